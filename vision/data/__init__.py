"""Data sets: reading, checking and augmenting them. Numpy and OpenCV only."""

import logging
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Callable, Collection, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from vision.data.coco import coco_parts, is_coco, read_coco
from vision.data.csv_rows import csv_parts, is_csv, read_csv
from vision.data.labels import read_labels, suggest, with_background
from vision.data.open_images import GROUP_RULES, is_open_images, open_images_parts, read_open_images
from vision.data.parts import canonical
from vision.data.sample import Dataset, Finding, Sample
from vision.data.voc import is_voc, read_voc, resembles_voc, voc_parts
from vision.data.yolo import is_yolo, read_yolo, told_labels, yolo_parts
from vision.errors import UserError

__all__ = ["Dataset", "Finding", "Sample", "open_dataset", "summary"]

logger = logging.getLogger(__name__)

PathLike = Union[str, Path]


class Format(NamedTuple):
    """A layout of data sets: how users call it, how to know it, how to read it.

    `parts(root)` gives the names of its parts, none where the images lie in one heap. `read(root, split, classes,
    seed)` gives a Dataset; classes None means those of the root itself. `shows` is what a folder of it holds.
    `resembles` knows layouts that other formats share; it is asked where no format is recognised.
    """

    name: str
    recognises: Callable[[Path], bool]
    parts: Callable[[Path], List[str]]
    read: Callable[[Path, str, Optional[Sequence[str]], int], Dataset]
    shows: str
    resembles: Optional[Callable[[Path], bool]] = None


def _read_open_images(root: Path, split: str, classes: Optional[Sequence[str]], seed: int) -> Dataset:
    return read_open_images(root, split, classes)  # its splits are never drawn


FORMATS: Tuple[Format, ...] = (
    Format(
        "voc",
        is_voc,
        voc_parts,
        read_voc,
        "Annotations/*.xml and JPEGImages/, or a.xml beside a.jpg",
        resembles_voc,
    ),
    Format("open_images", is_open_images, open_images_parts, _read_open_images, "*-annotations-bbox.csv"),
    Format(
        "coco", is_coco, coco_parts, read_coco, "annotations/instances_*.json or train/_annotations.coco.json"
    ),
    Format("yolo", is_yolo, yolo_parts, read_yolo, "data.yaml, obj.data, or images/ beside labels/"),
    Format("csv", is_csv, csv_parts, read_csv, "a CSV with filename,class,xmin,ymin,xmax,ymax"),
)
"""A new format is one line here. The order is that of recognition."""

NOTES = frozenset({"exif-rotated", "random-split", "no-rows"})
"""Findings that tell of a decision and not of a fault: `strict` lets them pass."""

SHOWN = 3
"""Findings of each code that a summary names."""

LISTED = 50
"""Findings that an error lists."""


def recognised(root: Path) -> List[Format]:
    """The formats that a folder shows, the likeliest first."""
    found = [known for known in FORMATS if known.recognises(root)]
    return found or [known for known in FORMATS if known.resembles is not None and known.resembles(root)]


def format_of(root: PathLike, dataset_type: str = "auto") -> Format:
    """The format that a user named, or that a folder shows. Raises UserError."""
    root = Path(root)
    names = [known.name for known in FORMATS]
    wanted = re.sub(r"[-_ ]", "", dataset_type.lower())
    if wanted != "auto":
        for known in FORMATS:
            if known.name.replace("_", "") == wanted:
                return known
        raise UserError(
            f"data set type {dataset_type!r} is not known{suggest(dataset_type, names)}; "
            f"known: auto, {', '.join(names)}"
        )
    if not root.exists():
        raise UserError(f"{root}: no such folder")
    found = recognised(root)
    if not found:
        raise UserError(_unrecognised(root))
    if len(found) > 1:
        others = " and ".join(f"like {known.name}" for known in found[1:])
        log = "%s: read as %s, but it also looks %s; --dataset_type says which"
        logger.warning(log, root, found[0].name, others)
    return found[0]


def _unrecognised(root: Path) -> str:
    """What was looked for in a folder, and what it holds."""
    if not root.is_dir():
        return f"{root}: a file, not the folder of a data set"
    held = sorted(path.name for path in root.iterdir())
    folders = [name for name in held if (root / name).is_dir()]
    nested = [name for name in folders[:LISTED] if recognised(root / name)]
    if nested:
        return f"{root}: not a data set; did you mean {root / nested[0]}?"
    looked = "".join(f"\n  {known.name}: {known.shows}" for known in FORMATS)
    return f"{root}: not a data set of a known type; it holds {', '.join(held[:8]) or 'nothing'}. Looked for{looked}"


def _union(lists: Sequence[Tuple[str, ...]]) -> Tuple[str, ...]:
    """One numbering for several roots: their own when they agree, else all names sorted.

    It depends neither on the order of the roots nor on which of them is tested on.
    """
    if all(classes == lists[0] for classes in lists):
        return lists[0]
    return with_background(sorted({name for classes in lists for name in classes[1:]}))


def _renumber(dataset: Dataset, classes: Tuple[str, ...]) -> List[Sample]:
    """The samples of a data set under another numbering that holds all its classes."""
    number = np.array([classes.index(name) for name in dataset.classes], np.int64)
    return [replace(sample, labels=number[sample.labels]) for sample in dataset.samples]


def _tell_apart(roots: Sequence[Path], parts: Sequence[List[Sample]]) -> List[Sample]:
    """All samples, with the root's path in front of ids that occur in more than one."""
    counts = Counter(sample.id for part in parts for sample in part)
    above = os.path.commonpath([str(root.resolve().parent) for root in roots])
    samples = []
    for root, part in zip(roots, parts):
        name = os.path.relpath(str(root.resolve()), above).replace(os.sep, "/")
        for sample in part:
            clash = counts[sample.id] > 1
            samples.append(replace(sample, id=f"{name}/{sample.id}") if clash else sample)
    return samples


def _refuse(findings: Sequence[Finding]) -> None:
    """Raise UserError when there is a fault among the findings."""
    faults = [finding for finding in findings if finding.code not in NOTES]
    if faults:
        lines = [str(fault) for fault in faults[:LISTED]]
        if len(faults) > LISTED:
            lines.append(f"... and {len(faults) - LISTED} more")
        head = f"{len(faults)} fault{'s' * (len(faults) > 1)} in the data, and --strict lets none pass:"
        raise UserError("\n  ".join([head] + lines))


def _recognised(known: Format, root: Path) -> str:
    """What a root was taken for, for people."""
    parts = known.parts(root)
    return f"{root}: {known.name}, {'splits ' + ', '.join(parts) if parts else 'not divided into splits'}"


def _with_groups(samples: Sequence[Sample], rule: str) -> List[Sample]:
    """Samples under one of GROUP_RULES."""
    if rule == "ignore":
        return list(samples)
    if rule == "keep":
        return [replace(sample, group=np.zeros_like(sample.group)) for sample in samples]
    kept = []
    for sample in samples:
        single = ~sample.group
        if single.any() or not len(single):  # else the image would pass for one that holds no object
            boxes, labels, difficult = sample.boxes[single], sample.labels[single], sample.difficult[single]
            group = sample.group[single]
            kept.append(replace(sample, boxes=boxes, labels=labels, difficult=difficult, group=group))
    return kept


def _check_labels(dataset: Dataset, split: str) -> None:
    """Raise UserError when the given classes are why no object is left: misspelt, or of other data.

    A part to test on may well lack the classes that somebody picked.
    """
    unknown = [finding for finding in dataset.findings if finding.code == "unknown-class"]
    misspelt = any("did you mean" in finding.action for finding in unknown)
    if unknown and (misspelt or split in ("train", "trainval")):
        names = Counter(finding.value + finding.action.replace("dropped", "", 1) for finding in unknown)
        told = "\n  ".join(name for name, _ in names.most_common(SHOWN * 3))
        given = ", ".join(dataset.classes[1:])
        raise UserError(
            f"{dataset.name}: no object is of the given classes ({given}). The data hold:\n  {told}"
        )


def without_objects(samples: Sequence[Sample], kinds: Sequence[str]) -> str:
    """What is said of a training part without a single object; `kinds` are the formats of its roots."""
    places = told_labels([sample.path for sample in samples]) if set(kinds) == {"yolo"} else ""
    return f"{len(samples)} images to train on, and not one object in them{places}"


def open_dataset(
    roots: Union[PathLike, Sequence[PathLike]],
    split: str,
    dataset_type: str = "auto",
    labels: Union[PathLike, Sequence[str], None] = None,
    strict: bool = False,
    seed: int = 0,
    groups: str = "ignore",
) -> Dataset:
    """Read a split of one or more roots as one data set.

    Args:
        roots: one folder or several.
        split: "train", "test", or what the format knows beyond these.
        dataset_type: "auto" or the name of a format, in any case.
        labels: a label file, or class names; None for the classes of the roots. Several roots are joined by
            name: their own order when they agree on it, else sorted.
        strict: refuse data with any finding but notes (see NOTES).
        seed: of splits that have to be drawn.
        groups: boxes round several objects: "ignore" leaves them marked in `Sample.group`, so that they are neither
            objects nor background; "keep" makes them ordinary objects; "drop" leaves them out, and the images in which
            nothing else is.

    Raises UserError for a missing or unknown root, for a split without a single sample, for data without a
    single class, for a training part without a single object, and in strict mode for any fault, naming them.
    """
    several = [roots] if isinstance(roots, (str, Path)) else list(roots)
    paths = [Path(root).expanduser() for root in several]
    if not paths:
        raise UserError("no data set given")
    repeated = [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if repeated:
        raise UserError(f"{repeated[0]}: given twice")
    given: Optional[Tuple[str, ...]] = None
    if labels is not None:
        given = read_labels(labels) if isinstance(labels, (str, Path)) else with_background(list(labels))

    if groups not in GROUP_RULES:
        raise UserError(f"--groups {groups!r} is none of {', '.join(GROUP_RULES)}")
    formats = [format_of(path, dataset_type) for path in paths]
    parts = [known.read(path, split, given, seed) for known, path in zip(formats, paths)]
    classes = _union([part.classes for part in parts])
    dataset = Dataset(
        name=" + ".join(part.name for part in parts),
        classes=classes,
        samples=_tell_apart(paths, [_renumber(part, classes) for part in parts]),
        findings=[finding for part in parts for finding in part.findings],
        recognised=tuple(_recognised(known, path) for known, path in zip(formats, paths)),
    )
    dataset.samples = _with_groups(dataset.samples, groups)
    if strict:
        _refuse(dataset.findings)
    if not dataset.samples:
        raise UserError(f"{dataset.name}: not one usable image\n{summary(dataset)}")
    if len(classes) < 2:
        raise UserError(
            f"{dataset.name}: the annotations hold no object, so there is no class; give a label file"
        )
    if given is not None and not dataset.num_objects:
        _check_labels(dataset, split)
    if canonical(split) in ("train", "trainval") and not dataset.num_objects:
        told = without_objects(dataset.samples, [known.name for known in formats])
        raise UserError(f"{' '.join(map(str, paths))}: {told}\n{summary(dataset)}")
    return dataset


def summary(dataset: Dataset, told: Collection[Finding] = ()) -> str:
    """Images, negatives, objects of each class, and the findings by code, for people to read.

    `told` are findings that were shown with another part: what is of the whole set need not be said twice.
    """
    known = set(told)
    findings = [finding for finding in dataset.findings if finding not in known]
    negatives = sum(len(sample.labels) == 0 for sample in dataset.samples)
    difficult = sum(int(sample.difficult.sum()) for sample in dataset.samples)
    group = sum(int(sample.group.sum()) for sample in dataset.samples)
    lines = list(dataset.recognised)
    lines += [
        f"{dataset.name}: {len(dataset)} images, {negatives} of them without objects; "
        f"{dataset.num_objects} objects, {difficult} of them difficult"
        + (f", {group} of them groups" if group else "")
    ]
    counts = np.zeros(len(dataset.classes), np.int64)
    images = np.zeros(len(dataset.classes), np.int64)
    for sample in dataset.samples:
        np.add.at(counts, sample.labels, 1)
        images[np.unique(sample.labels)] += 1
    width = max([len(name) for name in dataset.classes[1:]] + [0])
    for name, count, seen in list(zip(dataset.classes, counts, images))[1:]:
        nothing = "" if count else "   <- no object in this split"
        lines.append(f"  {name:{width}}  {count:6d} in {seen} images{nothing}")
    codes = Counter(finding.code for finding in findings)
    for code, number in codes.most_common():
        lines.append(f"  {number} x {code}")
        named = [finding for finding in findings if finding.code == code]
        lines += [f"      {finding}" for finding in named[:SHOWN]]
        if number > SHOWN:
            lines.append(f"      ... and {number - SHOWN} more")
    return "\n".join(lines)
