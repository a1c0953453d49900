"""Writing data sets: one function for each format, into a folder that holds nothing yet.

Images are copied as they are, under flat names made of the samples' ids, so nothing is ever written outside the target.
What a format cannot say is said as near as it can be:

==============  ============================================  ============================================
format          difficult objects                             boxes round groups
==============  ============================================  ============================================
voc             as such                                       difficult
coco            `ignore`                                      `iscrowd`
csv             column `difficult`                            column `group`
open_images     IsGroupOf                                     IsGroupOf
yolo            left out, and images of nothing else          left out, and images of nothing else
==============  ============================================  ============================================

YOLO and Open Images declare no size, and count in pixels as stored: a photograph that is annotated as EXIF turns it is
written turned. No format but VOC has trainval; elsewhere it is train.
"""

import csv
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple
from typing import Counter as Counts
from xml.sax.saxutils import escape

import cv2

from vision.data.annotations import to_name
from vision.data.csv_rows import COLUMNS as CSV_COLUMNS
from vision.data.images import Broken, Size, check_image, read_image, split_suffix
from vision.data.labels import write_labels
from vision.data.open_images import COLUMNS as OPEN_IMAGES_COLUMNS
from vision.data.open_images import SPLIT_NAMES
from vision.data.sample import Dataset, Sample
from vision.errors import UserError

DIGITS = 4
"""Behind the point, of pixels."""

LONGEST_NAME = 150


class Entry(NamedTuple):
    """A sample and the names that it gets: `stem`, and `name` with its suffix; `turned` where EXIF turns it."""

    sample: Sample
    stem: str
    name: str
    size: Size
    turned: bool


Parts = Dict[str, List[Entry]]
Notes = Counts[str]
"""What could not be said -> how many."""


# --- names --------------------------------------------------------------------------------------------------


def _plain_stem(sample_id: str) -> str:
    """An id as a file name that is legal everywhere and leads nowhere."""
    word = re.sub(r'[<>:"|?*/\\]', "_", to_name(sample_id)).strip(". ")
    return word[:LONGEST_NAME].strip() or "image"


def _unique(stem: str, part: str, taken: Set[str]) -> str:
    """A stem that differs from all others, also where case does not count."""
    candidates = [stem, f"{part}_{stem}"] + [f"{stem}_{number}" for number in range(2, len(taken) + 3)]
    chosen = next(name for name in candidates if name.lower() not in taken)
    taken.add(chosen.lower())
    return chosen


def _entries(datasets: Dict[str, Dataset]) -> Parts:
    """All samples with the names of their files, each once."""
    taken: Set[str] = set()
    parts: Parts = {}
    for part, dataset in datasets.items():
        parts[part] = []
        for sample in dataset.samples:
            stem = _unique(_plain_stem(sample.id), part, taken)
            suffix = split_suffix(sample.path.name)[1].lower()
            try:
                header = check_image(sample.path)
            except Broken as broken:
                raise UserError(f"{sample.path}: {broken.reason}") from broken
            size = sample.size or header.size
            parts[part].append(Entry(sample, stem, stem + suffix, size, header.must_turn(sample.size)))
    return parts


# --- images -------------------------------------------------------------------------------------------------


def _place(source: Path, target: Path, link: bool) -> None:
    """Copy an image, or link to it: symbolically, else hard."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    if not link:
        shutil.copyfile(str(source), str(target))
        return
    try:
        target.symlink_to(source)
    except (OSError, NotImplementedError):  # Windows wants a privilege for it
        os.link(str(source), str(target))


def _place_upright(entry: Entry, target: Path, link: bool) -> bool:
    """Like `_place`, but an image that EXIF turns is written turned. Returns whether it was."""
    if not entry.turned:
        _place(entry.sample.path, target, link)
        return False
    image = read_image(entry.sample.path, size=entry.sample.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 97] if target.suffix in (".jpg", ".jpeg") else []
    target.write_bytes(cv2.imencode(target.suffix, image[..., ::-1], options)[1].tobytes())
    return True


# --- formats ------------------------------------------------------------------------------------------------


def _number(value: float, digits: int = DIGITS) -> str:
    """Rounded, without trailing zeros."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def _objects(sample: Sample) -> Iterator[Tuple[int, List[float], bool, bool]]:
    """(label, corners, difficult, group) of each object."""
    flags = zip(sample.difficult.tolist(), sample.group.tolist())
    for label, box, (difficult, group) in zip(sample.labels.tolist(), sample.boxes.tolist(), flags):
        yield label, box, difficult, group


def _voc_xml(entry: Entry, classes: Sequence[str], notes: Notes) -> str:
    height, width = entry.size
    lines = [
        "<annotation>",
        f"\t<filename>{escape(entry.name)}</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for label, box, difficult, group in _objects(entry.sample):
        notes["boxes round groups, marked difficult: VOC has no groups"] += group
        tags = zip(("xmin", "ymin", "xmax", "ymax"), box)
        corners = "".join(f"<{tag}>{_number(value + 1)}</{tag}>" for tag, value in tags)  # VOC counts from 1
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(classes[label])}</name>",
            f"\t\t<difficult>{int(difficult or group)}</difficult>",
            f"\t\t<bndbox>{corners}</bndbox>",
            "\t</object>",
        ]
    return "\n".join(lines + ["</annotation>", ""])


def write_voc(root: Path, parts: Parts, classes: Sequence[str], link: bool, notes: Notes) -> None:
    """Annotations, JPEGImages, ImageSets/Main and labels.txt."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for part, entries in parts.items():
        for entry in entries:
            text = _voc_xml(entry, classes, notes)
            (root / "Annotations" / f"{entry.stem}.xml").write_text(text, encoding="utf-8")
            _place(entry.sample.path, root / "JPEGImages" / entry.name, link)
        stems = "".join(entry.stem + "\n" for entry in entries)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(stems, encoding="utf-8")
    write_labels(root / "labels.txt", classes)


def write_coco(root: Path, parts: Parts, classes: Sequence[str], link: bool, notes: Notes) -> None:
    """annotations/instances_<part>.json and images/<part>."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes) if number]
    for part, entries in _without_trainval(parts).items():
        images: List[Dict[str, Any]] = []
        annotations: List[Dict[str, Any]] = []
        for number, entry in enumerate(entries, start=1):
            height, width = entry.size
            images.append({"id": number, "file_name": entry.name, "width": width, "height": height})
            for label, (x1, y1, x2, y2), difficult, group in _objects(entry.sample):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [round(value, DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), DIGITS),
                    "iscrowd": int(group),
                }
                if difficult:
                    annotation["ignore"] = 1
                annotations.append(annotation)
            _place(entry.sample.path, root / "images" / part / entry.name, link)
        whole = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(whole, ensure_ascii=False)
        (root / "annotations" / f"instances_{part}.json").write_text(text, encoding="utf-8")


def write_yolo(root: Path, parts: Parts, classes: Sequence[str], link: bool, notes: Notes) -> None:
    """data.yaml, images/<part> and labels/<part>."""
    parts = _without_trainval(parts, ("train", "val", "test"))
    for part, entries in parts.items():
        folder = root / "labels" / part
        folder.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            height, width = entry.size
            lines = []
            if len(entry.sample.labels) and (entry.sample.difficult | entry.sample.group).all():
                notes["images of nothing else, left out: they would pass for images without objects"] += 1
                continue
            for label, (x1, y1, x2, y2), difficult, group in _objects(entry.sample):
                if difficult or group:
                    notes[
                        "difficult objects and boxes round groups, left out: YOLO has no word for them"
                    ] += 1
                    continue
                centre = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
                values = centre + ((x2 - x1) / width, (y2 - y1) / height)
                lines.append(" ".join([str(label - 1)] + [_number(value, 9) for value in values]) + "\n")
            (folder / f"{entry.stem}.txt").write_text("".join(lines), encoding="utf-8")
            turned = _place_upright(entry, root / "images" / part / entry.name, link)
            notes["images written turned upright"] += turned
    places = {part: f"images/{part}" for part in parts}
    if "val" not in places and "test" in places:
        places["val"] = places["test"]  # other tools want it
    text = "".join(f"{part}: {place}\n" for part, place in places.items()) + "names:\n"
    # A text in JSON's quotes is one in YAML's.
    text += "".join(f"  {n}: {json.dumps(name, ensure_ascii=False)}\n" for n, name in enumerate(classes[1:]))
    (root / "data.yaml").write_text(text, encoding="utf-8")


def write_csv(root: Path, parts: Parts, classes: Sequence[str], link: bool, notes: Notes) -> None:
    """<part>/_annotations.csv with the images beside it, and labels.txt."""
    parts = _without_trainval(parts)
    samples = [entry.sample for entries in parts.values() for entry in entries]
    flagged = any(sample.difficult.any() or sample.group.any() for sample in samples)
    for part, entries in parts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        with (root / part / "_annotations.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(CSV_COLUMNS + (("difficult", "group") if flagged else ()))
            for entry in entries:
                height, width = entry.size
                for label, box, difficult, group in _objects(entry.sample):
                    row = [entry.name, width, height, classes[label]] + [_number(value) for value in box]
                    rows.writerow(row + ([int(difficult), int(group)] if flagged else []))
                _place(entry.sample.path, root / part / entry.name, link)
    write_labels(root / "labels.txt", classes)


def write_open_images(root: Path, parts: Parts, classes: Sequence[str], link: bool, notes: Notes) -> None:
    """sub-<split>-annotations-bbox.csv, sub-<split>-negatives.txt and the folders of images."""
    for part, entries in _without_trainval(parts, ("train", "val", "validation", "test")).items():
        split = SPLIT_NAMES[part][0]
        (root / split).mkdir(parents=True, exist_ok=True)
        negatives = []
        with (root / f"sub-{split}-annotations-bbox.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(OPEN_IMAGES_COLUMNS + ["ClassName"])
            for entry in entries:
                height, width = entry.size
                for label, (x1, y1, x2, y2), difficult, group in _objects(entry.sample):
                    notes["difficult objects, marked as groups: Open Images has no difficult ones"] += (
                        difficult
                    )
                    corners = [_number(v, 9) for v in (x1 / width, x2 / width, y1 / height, y2 / height)]
                    row = [entry.stem, "", classes[label], "1"] + corners
                    rows.writerow(
                        row + ["-1", "-1", str(int(group or difficult)), "-1", "-1", classes[label]]
                    )
                if not len(entry.sample.labels):
                    negatives.append(entry.stem + "\n")
                notes["images written turned upright"] += _place_upright(
                    entry, root / split / entry.name, link
                )
        (root / f"sub-{split}-negatives.txt").write_text("".join(negatives), encoding="utf-8")


def _without_trainval(parts: Parts, known: Sequence[str] = ()) -> Parts:
    """Parts under the names of a format that has no trainval, and no others than `known` where these are given."""
    renamed = {
        ("train" if part in ("trainval", "default") and "train" not in parts else part): entries
        for part, entries in parts.items()
    }
    for part in renamed:
        if known and part not in known:
            raise UserError(
                f"this format has the parts {', '.join(known)}, not {part!r}; divide with `split` first"
            )
    return renamed


Writer = Callable[[Path, Parts, Sequence[str], bool, Notes], None]

WRITERS: Dict[str, Writer] = {
    "voc": write_voc,
    "coco": write_coco,
    "yolo": write_yolo,
    "csv": write_csv,
    "open_images": write_open_images,
}


# --- the target ---------------------------------------------------------------------------------------------


def _check_target(target: Path, sources: Sequence[Path]) -> None:
    """Raise UserError unless the target is a new place outside the sources."""
    place = target.resolve()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target}: is not a folder; choose another target")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target}: already holds something; choose a new folder")
    for source in sources:
        own = source.resolve()
        if place == own or own in place.parents or place in own.parents:
            raise UserError(f"{target}: lies in the source {source}, or holds it; choose a folder beside it")


def write_dataset(
    target: Path, to: str, datasets: Dict[str, Dataset], sources: Sequence[Path] = (), link: bool = False
) -> Notes:
    """Write the parts of a data set in another format; the target is there when all of it is, or not at all.

    Args:
        target: a folder that is not there yet, or is empty.
        to: one of WRITERS.
        datasets: part ("train", "val", "test", ...) -> its samples, all under the same classes.
        sources: where the data come from; nothing is written there.
        link: link to the images instead of copying them.

    Returns: what the format could not say -> how often.

    Raises UserError for a target that is in use, an unreadable image, or a full disk.
    """
    if to not in WRITERS:
        raise UserError(f"cannot write {to!r}; there are: {', '.join(WRITERS)}")
    target = Path(target)
    _check_target(target, sources)
    classes = next(iter(datasets.values())).classes
    unfinished = target.parent / f".{target.name}.{os.getpid()}.part"
    notes: Notes = Counter()
    try:
        unfinished.mkdir(parents=True)
        WRITERS[to](unfinished, _entries(datasets), classes, link, notes)
        if target.is_dir():
            target.rmdir()
        unfinished.rename(target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}): {error.filename}"
        ) from None
    finally:
        shutil.rmtree(str(unfinished), ignore_errors=True)
    return +notes
