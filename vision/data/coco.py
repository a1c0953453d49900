"""Data sets in COCO's JSON: one file for each part, with `images`, `annotations` and `categories`.

    ROOT/annotations/instances_train2017.json, instances_val2017.json     images in ROOT/train2017, ROOT/images, ...
    ROOT/train/_annotations.coco.json, valid, test                        images beside it (Roboflow)
    ROOT/annotations.json                                                 one file: parts are drawn

`bbox` is x, y, width, height in 0-based pixels. `iscrowd` is a group; `ignore` (or `difficult`) a difficult object.
Category ids mean nothing outside their file: categories are taken by name. What is wrong becomes a `Finding`, by the
rules in `vision.data.annotations`, and besides:

=================  ===============================================================================  ===========
bad-annotation     an entry of `images` or `annotations` without what it needs; annotations of        dropped
                   images that the file does not list (one finding for all)
=================  ===============================================================================  ===========

An image that is listed and has no annotation is an image without objects.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from vision.data.annotations import (
    Annotation,
    Corners,
    Object,
    drawn,
    is_true,
    joined,
    short,
    to_dataset,
    to_name,
    to_number,
    to_size,
    unlike_ids,
)
from vision.data.labels import read_labels, with_background
from vision.data.locate import ImageFolders, image_folders, inside, part_of
from vision.data.parts import by_part, choose, one_file_each
from vision.data.sample import Dataset, Finding
from vision.errors import UserError

SNIFFED = 1 << 16
"""Bytes at both ends of a JSON file that are searched for COCO's keys."""

# Other tasks of COCO in the same folder.
_OTHER_TASKS = re.compile(r"^(captions|person_keypoints|panoptic|image_info|stuff)_")
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')


class _File(NamedTuple):
    """One JSON file, its parts checked to be lists of mappings.

    Attributes:
        categories: id -> name.
        objects: image id -> (position, annotation).
    """

    path: Path
    images: List[Tuple[int, Dict[str, Any]]]
    objects: Dict[str, List[Tuple[int, Dict[str, Any]]]]
    categories: Dict[str, str]
    findings: List[Finding]


# --- the files of a root ------------------------------------------------------------------------------------


def _looks_like_coco(path: Path) -> bool:
    """Whether a JSON file has COCO's keys near its beginning or end."""
    if _OTHER_TASKS.match(path.name):
        return False
    if path.name.endswith(".coco.json") or path.name.startswith("instances_"):
        return True
    try:
        with path.open("rb") as file:
            ends = file.read(SNIFFED)
            length = file.seek(0, 2)
            if length > SNIFFED:
                file.seek(max(SNIFFED, length - SNIFFED))
                ends += file.read()
    except OSError:
        return False
    return len(set(_KEYS.findall(ends))) >= (2 if len(ends) == length else 1)


def _json_files(folder: Path) -> List[Path]:
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and path.is_file())
    return [path for path in files if _looks_like_coco(path)]


def find_files(root: Path) -> Dict[str, Path]:
    """Part, as written ("train2017", "valid", "") -> JSON file. May be empty. Raises UserError for two of one part."""
    groups = []
    if root.is_dir():
        below = sorted(
            path for path in root.iterdir() if path.is_dir() and path.name.lower() != "annotations"
        )
        groups = [
            [(part_of(path.stem), path) for path in _json_files(root / "annotations")],
            [(folder.name, path) for folder in below for path in _json_files(folder)],
            [(part_of(path.stem), path) for path in _json_files(root)],
        ]
    named = next((group for group in groups if group), [])
    return one_file_each(named)


def is_coco(root: Path) -> bool:
    """Whether a folder holds annotations in COCO's JSON."""
    try:
        return bool(find_files(Path(root)))
    except UserError:
        return True  # it is COCO, and reading it will say what is wrong


def coco_parts(root: Path) -> List[str]:
    """Names of the parts, canonical; none where one file holds everything."""
    return [part for part in by_part(find_files(Path(root))) if part]


# --- parsing ------------------------------------------------------------------------------------------------


def _key(value: Any) -> str:
    """An id, in whatever type it is written; "" for none."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return to_name(value)


def _load(path: Path) -> Dict[str, Any]:
    """The JSON of a file. Raises UserError that names line and column."""
    try:
        loaded = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; not JSON") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be a COCO file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # bad Unicode, an integer of thousands of digits
        raise UserError(f"{path}: not JSON ({short(str(error))})") from None
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path}: holds {short(loaded)}, not a mapping with images, annotations and categories"
        )
    return loaded


def _entries(
    loaded: Dict[str, Any], key: str, path: Path, findings: List[Finding]
) -> Iterator[Tuple[int, Dict]]:
    """(position, entry) of a list of mappings. Raises UserError when there is no such list."""
    entries = loaded.get(key)
    if not isinstance(entries, list):
        what = f"{key!r} is {short(entries)}" if key in loaded else f"no {key!r}"
        raise UserError(f"{path}: {what}; a COCO file has a list of {key}")
    for position, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield position, entry
        else:
            findings.append(
                Finding("bad-annotation", str(path), f"{key}[{position}]", short(entry), "dropped")
            )


def _categories(loaded: Dict[str, Any], path: Path, findings: List[Finding]) -> Dict[str, str]:
    """Category id -> name, by rising id; the empty super-category that Roboflow writes is left out."""
    named: Dict[str, str] = {}
    above: Dict[str, Any] = {}
    for position, entry in _entries(loaded, "categories", path, findings):
        number, name = _key(entry.get("id")), to_name(entry.get("name"))
        if not number or not name:
            value = f"id {short(entry.get('id'))}, name {short(entry.get('name'))}"
            findings.append(Finding("bad-annotation", str(path), f"categories[{position}]", value, "dropped"))
        elif number in named and named[number] != name:
            raise UserError(f"{path}: category id {number} is both {named[number]!r} and {name!r}")
        else:
            named[number] = name
            above[number] = entry.get("supercategory")
    order = sorted(named, key=lambda number: (to_number(number) if number.isdigit() else 1e18, number))
    parents = {name for name in above.values() if isinstance(name, str)}
    annotations = loaded.get("annotations")
    used = (
        {_key(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
        if isinstance(annotations, list)
        else set()
    )
    empty = {n for n in named if above[n] == "none" and named[n] in parents and n not in used}
    return {number: named[number] for number in order if number not in empty}


def _parse(path: Path) -> _File:
    """Raises UserError for a file that is not COCO's."""
    loaded = _load(path)
    findings: List[Finding] = []
    images = list(_entries(loaded, "images", path, findings))
    objects: Dict[str, List[Tuple[int, Dict[str, Any]]]] = {}
    if "annotations" in loaded or "categories" not in loaded:
        for position, entry in _entries(loaded, "annotations", path, findings):
            objects.setdefault(_key(entry.get("image_id")), []).append((position, entry))
    return _File(path, images, objects, _categories(loaded, path, findings), findings)


def _corners(entry: Dict[str, Any]) -> Optional[Corners]:
    """From `bbox`, else the box round the polygons of `segmentation`; None where neither is there."""
    bbox = entry.get("bbox")
    if isinstance(bbox, list) and len(bbox) == 4:
        x, y, width, height = map(to_number, bbox)
        return x, y, x + width, y + height
    outlines = entry.get("segmentation")
    if isinstance(outlines, list) and outlines and all(isinstance(each, list) for each in outlines):
        xs = [to_number(value) for each in outlines for value in each[0::2]]
        ys = [to_number(value) for each in outlines for value in each[1::2]]
        if len(xs) == len(ys) >= 3:
            return min(xs), min(ys), max(xs), max(ys)
    return None


def _object(position: int, entry: Dict[str, Any], categories: Dict[str, str]) -> Object:
    number, own = _key(entry.get("category_id")), _key(entry.get("id"))
    name = categories.get(number, f"category_id {number}" if number else "")
    bbox = entry.get("bbox")
    value = "bbox " + " ".join(short(each, 20) for each in bbox[:5]) if isinstance(bbox, list) else ""
    return Object(
        name=name,
        corners=_corners(entry),
        where=f"annotation {own}" if own else f"annotations[{position}]",
        value=value or f"bbox is {short(bbox)}",
        difficult=is_true(entry.get("ignore")) or is_true(entry.get("difficult")),
        group=is_true(entry.get("iscrowd")),
    )


def _annotations(file: _File, folders: ImageFolders) -> Iterator[Annotation]:
    """One for each image that the file lists."""
    known: Set[str] = set()
    names = [
        inside(entry["file_name"]) for _, entry in file.images if isinstance(entry.get("file_name"), str)
    ]
    ids = unlike_ids([name for name in names if name is not None])
    for position, entry in file.images:
        own, name = _key(entry.get("id")), entry.get("file_name")
        relative = inside(name) if isinstance(name, str) else None
        if not own or relative is None:
            value = f"id {short(entry.get('id'))}, file_name {short(name)}"
            file.findings.append(
                Finding("bad-annotation", str(file.path), f"images[{position}]", value, "dropped")
            )
            known.add(own)
            continue
        things = file.objects.get(own, []) if own not in known else []
        known.add(own)
        yield Annotation(
            id=ids[relative],
            path=folders.find(relative),
            file=file.path,
            where=f"image {own} ({short(relative)})",
            objects=[_object(number, each, file.categories) for number, each in things],
            size=to_size(entry.get("height"), entry.get("width")),
        )
    lost = [entry for own, entries in file.objects.items() if own not in known for _, entry in entries]
    if lost:
        value = f"{len(lost)} annotations, the first of image_id {short(lost[0].get('image_id'))}"
        file.findings.append(Finding("bad-annotation", str(file.path), "", value, "dropped"))


# --- the reader ---------------------------------------------------------------------------------------------


def _classes(root: Path, files: Sequence[_File]) -> Tuple[str, ...]:
    """labels.txt, else the categories by rising id where all files agree on them, else all of them sorted."""
    if (root / "labels.txt").is_file():
        return read_labels(root / "labels.txt")
    lists = [tuple(dict.fromkeys(file.categories.values())) for file in files]
    # A file may lack what it has no object of; the longest then says the order.
    longest = max(lists, key=len, default=())
    agree = all(names == tuple(name for name in longest if name in names) for names in lists)
    return with_background(longest if agree else sorted({name for names in lists for name in names}))


def read_coco(root: Path, split: str, classes: Optional[Sequence[str]] = None, seed: int = 0) -> Dataset:
    """Read one part of a data set in COCO's JSON.

    Args:
        root: the folder described at the top of this module.
        split: train, val, test (else val), trainval, or the name of a part. Where one file holds everything, its images
            are divided 80/20.
        classes: names, which number the labels; None: labels.txt in the root, else the categories of *all* files, so
            that the numbering does not hang on the part.
        seed: of the 80/20 split.

    Raises UserError when there is no such part, and for a file that is not COCO's.
    """
    root = Path(root)
    raw = find_files(root)
    if not raw:
        raise UserError(
            f"{root}: no COCO file: no annotations/instances_*.json and no train/_annotations.coco.json"
        )
    parts = by_part(raw)
    wanted = [""] if "" in parts else choose(split, list(parts), root)
    named = {path: part for part, path in raw.items()}
    everything = classes is None and not (root / "labels.txt").is_file()
    files = {part: _parse(path) for part, path in parts.items() if everything or part in wanted}
    numbering = _classes(root, list(files.values())) if classes is None else with_background(list(classes))

    read: Dict[str, List[Annotation]] = {}
    findings: List[Finding] = []
    for part in wanted:
        file = files[part]
        folders = ImageFolders(image_folders(root, file.path, named[file.path]))
        read[part] = list(_annotations(file, folders))
        findings += file.findings
    annotations = joined(read)
    if wanted == [""] and split not in raw:  # asked for by its own name, it is given whole
        reason = f"{files[''].path.name} holds everything"
        annotations, note = drawn(annotations, root, reason, split, seed)
        findings.append(note)
    return to_dataset(f"{root.resolve().name}/{split}", numbering, annotations, findings)
