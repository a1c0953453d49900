"""Open Images: boxes in one CSV per split, images in one folder per split.

    ROOT/sub-train-annotations-bbox.csv     what the downloader wrote: the chosen classes, with a ClassName column
    ROOT/sub-train-negatives.txt            ImageIDs of images that hold none of the classes (may be absent)
    ROOT/train/<ImageID>.jpg
    ... the same for validation and test

Without any `sub-` file the full CSVs are read (`train-annotations-bbox.csv` and `class-descriptions-boxable.csv`),
restricted to the images that are in the folders. The boxes are XMin, XMax, YMin, YMax (in this order!) as fractions
of the image as stored, before any EXIF rotation. The attributes (IsGroupOf and its like) are 1, 0 and -1 for
"unknown"; unknown is never taken for true.

What is wrong becomes a `Finding`:

================  ======================================================================  ==================
code              what                                                                    done
================  ======================================================================  ==================
bad-row           fields are missing                                                      dropped
bad-number        a corner is no number, NaN or infinite                                  dropped
pixel-box         a corner beyond 2: pixels where Open Images wants fractions             dropped
unknown-class     a name that is not among the classes (one finding for all its boxes)    dropped
inverted-box      min and max exchanged: swapped when both corners lie in the image       swapped or dropped
outside-box       wholly outside the image                                                dropped
clipped-box       partly outside, by more than one pixel (less is clipped in silence)     clipped
empty-box         narrower or lower than one pixel after clipping                         dropped
missing-image     no image file (in a full box file such rows are passed over)            dropped
unreadable-image  empty, not an image                                                     dropped
truncated-image   the file stops early                                                    dropped
================  ======================================================================  ==================
"""

import csv
import math
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from vision.data.annotations import LARGEST_FRACTION, ROUNDING, SMALLEST_SIDE
from vision.data.images import SUFFIXES, Broken, check_image
from vision.data.labels import suggest, with_background
from vision.data.sample import Dataset, Finding, Sample
from vision.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES: Dict[str, Tuple[str, ...]] = {
    "train": ("train",),
    "val": ("validation",),
    "valid": ("validation",),
    "validation": ("validation",),
    "test": ("test",),
    "trainval": ("train", "validation"),
}
COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
).split(",")
BOX_COLUMNS = ("XMin", "XMax", "YMin", "YMax")
CLASSES_FILE = "class-descriptions-boxable.csv"
GROUP_RULES = ("ignore", "keep", "drop")

BLOCK = 1 << 18
LONGEST_LINE = 1 << 20

Corners = Tuple[float, float, float, float]


# --- CSV ----------------------------------------------------------------------------------------------------


def blocks(path: Path) -> Iterator[Tuple[int, bytes]]:
    """(number of its first line, from 1; whole lines) of a file of any size, in constant memory.

    Raises UserError when the file cannot be read or a line is longer than 1 MB (then it is no CSV).
    """
    number, tail = 1, b""
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(BLOCK), b""):
                block = tail + block
                end = block.rfind(b"\n") + 1
                tail = block[end:]
                if end:
                    yield number, block[:end]
                    number += block.count(b"\n")
                if len(tail) > LONGEST_LINE:
                    raise UserError(f"{path}: line {number} is over 1 MB long; this is no CSV")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if tail:
        yield number, tail


def lines(path: Path) -> Iterator[Tuple[int, bytes]]:
    """(line number from 1, line without its LF); otherwise like `blocks`."""
    for first, block in blocks(path):
        yield from enumerate((block[:-1] if block.endswith(b"\n") else block).split(b"\n"), start=first)


def fields(line: bytes) -> List[str]:
    """The fields of one CSV line; none of a line that is no CSV (an open quote, a field over 128 KB)."""
    text = line.decode("utf-8", "replace")
    if '"' not in text:
        return [field.strip() for field in text.split(",")]
    try:
        return [field.strip() for field in next(csv.reader([text.rstrip("\r")], strict=True))]
    except (csv.Error, StopIteration):
        return []


def header(path: Path) -> List[str]:
    """The column names of a CSV, from its first line. Raises UserError when there is none."""
    for _, line in lines(path):
        return fields(line[3:] if line.startswith(b"\xef\xbb\xbf") else line)
    raise UserError(f"{path}: is empty; delete it and download it again")


def column_numbers(path: Path, required: Sequence[str]) -> Dict[str, int]:
    """Column name -> position. Raises UserError that names the required columns which are missing."""
    names = header(path)
    missing = [name for name in required if name not in names]
    if missing:
        raise UserError(
            f"{path}: line 1: no column {', '.join(missing)}; this is not an Open Images file "
            f"(its columns: {', '.join(names)[:200]})"
        )
    return {name: number for number, name in enumerate(names)}


def is_set(text: str) -> bool:
    """Whether an attribute is 1. 0, -1 (unknown) and anything else are not."""
    try:
        return float(text) == 1.0
    except ValueError:
        return False


def box_fractions(texts: Sequence[str]) -> Optional[Corners]:
    """XMin, XMax, YMin, YMax as read -> corners x1, y1, x2, y2; None unless all four are finite numbers."""
    try:
        x1, x2, y1, y2 = (float(text) for text in texts)
    except ValueError:
        return None
    return (x1, y1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else None


def read_class_names(path: Path) -> Dict[str, str]:
    """MID ("/m/0k4j") -> name ("Car") of a class file, with or without the header `LabelName,DisplayName`."""
    names = {}
    for number, line in lines(path):
        row = fields(line.lstrip(b"\xef\xbb\xbf") if number == 1 else line)
        if row in ([], [""]) or row[0] == "LabelName":
            continue
        if len(row) < 2 or not row[0].startswith("/"):
            raise UserError(
                f"{path}: line {number}: {line[:80]!r} is not 'class id,name', e.g. '/m/0k4j,Car'"
            )
        names[row[0]] = row[1]
    if not names:
        raise UserError(f"{path}: holds no class; delete it and download it again")
    return names


# --- the folder ---------------------------------------------------------------------------------------------


def find_tables(root: Path) -> Dict[str, Path]:
    """Split -> its box file: the `sub-` files, or the full ones where there is no `sub-` file. May be empty."""
    for prefix in ("sub-", ""):
        found = {split: root / f"{prefix}{split}-annotations-bbox.csv" for split in SPLITS}
        found = {split: path for split, path in found.items() if path.is_file()}
        if found:
            return found
    return {}


def is_open_images(root: Path) -> bool:
    """Whether a folder looks like one of the downloader's, or holds full Open Images box files."""
    return bool(find_tables(Path(root)))


def open_images_parts(root: Path) -> List[str]:
    """The splits that have a box file."""
    return list(find_tables(Path(root)))


def negatives_file(root: Path, split: str) -> Path:
    """Where the ImageIDs of a split's images without objects stand, one a line."""
    return root / f"sub-{split}-negatives.txt"


def images_of(folder: Path) -> Dict[str, Path]:
    """ImageID -> image file of a split's folder; nothing where the folder is missing."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


class _Object(NamedTuple):
    """One row of a box file; the box is corners in fractions."""

    line: int
    name: str
    box: Corners
    group: bool


class _Table:
    """A box file: its columns, and how a row names its class."""

    def __init__(self, path: Path, split: str):
        self.path = path
        self.folder = path.parent / split
        self.images = images_of(self.folder)
        self.full = not path.name.startswith("sub-")
        self.column = column_numbers(
            path, ("ImageID", *BOX_COLUMNS, "LabelName" if self.full else "ClassName")
        )
        self.width = 1 + max(self.column.values())  # a name may be there twice
        self.names = read_class_names(path.parent / CLASSES_FILE) if self.full else {}

    def rows(self) -> Iterator[Tuple[int, List[str]]]:
        """(line number, fields) of the rows to look at: all, or in a full file those with an image."""
        for number, line in lines(self.path):
            if number == 1 or not line.strip():
                continue
            row = fields(line)
            if self.full and len(row) > self.column["ImageID"] and self.image_id(row) not in self.images:
                continue
            yield number, row

    def image_id(self, row: List[str]) -> str:
        return row[self.column["ImageID"]]

    def class_name(self, row: List[str]) -> str:
        """The class of a row; "" where it is unknown."""
        if self.full:
            return self.names.get(row[self.column["LabelName"]], "")
        return row[self.column["ClassName"]]

    def class_names(self) -> Set[str]:
        """The classes that occur."""
        return {self.class_name(row) for _, row in self.rows() if len(row) >= self.width} - {""}


def read_open_images(
    root: Path, split: str, classes: Optional[Sequence[str]] = None, groups: str = "ignore"
) -> Dataset:
    """The samples of one split.

    Args:
        root: the folder described at the top of this module.
        split: train, validation (also val, valid), test, or trainval (train and validation, as far as present).
        classes: names to read, with or without BACKGROUND in front; their order is the numbering. None: all that
            occur in the files of *all* splits, sorted, so that the numbering does not depend on the split.
        groups: boxes round several touching objects (IsGroupOf = 1): "ignore" marks them in `Sample.group` (neither
            an object nor background), "keep" makes them ordinary objects, "drop" leaves them out, and leaves out the
            images where nothing else remains.

    Returns: the samples; `size` is that of the stored pixels. What was wrong is in `findings`, with file and line.
        Images of which the class list leaves nothing are kept as negatives.

    Raises UserError for a folder, file, split or rule that is not there.
    """
    if groups not in GROUP_RULES:
        raise UserError(f"group rule {groups!r} is none of {', '.join(GROUP_RULES)}")
    root = Path(root)
    tables = _open_tables(root)
    wanted = _splits_to_read(root, split, tables)
    if classes is None:
        classes = sorted(set().union(*(table.class_names() for table in tables.values())))
    dataset = Dataset(f"{root.name}/{split}", with_background(classes), [])
    for each in wanted:
        _read_split(tables[each], dataset, groups)
    return dataset


def _open_tables(root: Path) -> Dict[str, _Table]:
    paths = find_tables(root)
    if not paths:
        raise UserError(
            f"{root}: no sub-<split>-annotations-bbox.csv; "
            "open_images_downloader.py writes one for train, validation and test"
        )
    return {split: _Table(path, split) for split, path in paths.items()}


def _splits_to_read(root: Path, split: str, tables: Dict[str, _Table]) -> List[str]:
    try:
        asked = SPLIT_NAMES[split.lower()]
    except KeyError:
        raise UserError(f"split {split!r} is none of {', '.join(SPLIT_NAMES)}") from None
    there = [each for each in asked if each in tables]
    if not there:
        raise UserError(f"{root}: no box file of split {split!r}; there are: {', '.join(tables)}")
    return there


def _read_split(table: _Table, dataset: Dataset, groups: str) -> None:
    """Append the samples of one table to the data set."""
    objects, unlisted = _read_objects(table, dataset)
    for name, count in sorted(unlisted.items()):
        value = f"{name} ({count} boxes)" if name else f"{count} boxes of classes that {CLASSES_FILE} lacks"
        action = "dropped" + suggest(name, dataset.classes)
        dataset.findings.append(Finding("unknown-class", str(table.path), "", value, action))
    negatives = negatives_file(table.folder.parent, table.folder.name)
    if not table.full and negatives.is_file():
        for _, line in lines(negatives):
            if line.strip():
                objects.setdefault(line.decode("utf-8", "replace").strip(), [])
    for image_id, rows in objects.items():
        sample = _sample(table, image_id, rows, dataset, groups)
        if sample is not None:
            dataset.samples.append(sample)


def _read_objects(table: _Table, dataset: Dataset) -> Tuple[Dict[str, List[_Object]], Dict[str, int]]:
    """ImageID -> its objects, and name -> boxes of classes that are not listed."""
    objects: Dict[str, List[_Object]] = {}
    unlisted: Dict[str, int] = {}
    known = set(dataset.classes[1:])
    group_column = table.column.get("IsGroupOf")

    def report(code: str, number: int, value: str, action: str) -> None:
        dataset.findings.append(Finding(code, str(table.path), f"line {number}", value[:80], action))

    for number, row in table.rows():
        if len(row) < table.width:
            report("bad-row", number, ",".join(row), "dropped; fields are missing")
            continue
        name = table.class_name(row)
        rows = objects.setdefault(table.image_id(row), [])
        if name not in known:
            unlisted[name] = unlisted.get(name, 0) + 1
            continue
        texts = [row[table.column[column]] for column in BOX_COLUMNS]
        box = box_fractions(texts)
        if box is None:
            report("bad-number", number, ",".join(texts), "dropped")
        elif max(map(abs, box)) > LARGEST_FRACTION:
            report("pixel-box", number, ",".join(texts), "dropped; Open Images boxes are fractions, 0 to 1")
        else:
            rows.append(_Object(number, name, box, group_column is not None and is_set(row[group_column])))
    return objects, unlisted


def _judge(box: Corners, size: Tuple[int, int]) -> Tuple[Optional[Corners], str, str]:
    """Corners in fractions to corners in pixels inside an image of (height, width); a finding's code and action.

    The box is None where there is nothing left, the code "" where there is nothing to say.
    """
    height, width = size
    code, action = "", ""
    if box[0] > box[2] or box[1] > box[3]:
        box = (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
        if min(box) < 0 or max(box) > 1:
            return None, "inverted-box", "dropped"
        code, action = "inverted-box", "corners swapped"
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
    if (x1 == x2 and box[0] < box[2]) or (y1 == y2 and box[1] < box[3]):
        return None, "outside-box", "dropped"
    if max(abs(a - b) * side for a, b, side in zip((x1, y1, x2, y2), box, (width, height) * 2)) > 1:
        code, action = "clipped-box", "clipped to the image"
    pixels = (x1 * width, y1 * height, x2 * width, y2 * height)
    if min(pixels[2] - pixels[0], pixels[3] - pixels[1]) < SMALLEST_SIDE - ROUNDING:
        return None, "empty-box", "dropped"
    return pixels, code, action


def _sample(
    table: _Table, image_id: str, objects: List[_Object], dataset: Dataset, groups: str
) -> Optional[Sample]:
    """None, and a finding where one is due, for an image that cannot be used."""
    kept = objects if groups != "drop" else [each for each in objects if not each.group]
    if objects and not kept:
        return None  # only groups: without them the image would pass for one that holds no object
    path = table.images.get(image_id)
    where = f"line {objects[0].line}" if objects else ""
    if path is None:
        file = str(table.folder / f"{image_id}.jpg")
        dataset.findings.append(Finding("missing-image", str(table.path), where, file, "dropped"))
        return None
    try:
        size = check_image(path).size
    except Broken as broken:
        dataset.findings.append(Finding(broken.code, str(path), "", broken.reason, "dropped"))
        return None
    number = {name: label for label, name in enumerate(dataset.classes)}
    boxes: List[Corners] = []
    labels: List[int] = []
    group: List[bool] = []
    for each in kept:
        pixels, code, action = _judge(each.box, size)
        if code:
            value = " ".join(f"{value:g}" for value in each.box)
            dataset.findings.append(Finding(code, str(table.path), f"line {each.line}", value, action))
        if pixels is not None:
            boxes.append(pixels)
            labels.append(number[each.name])
            group.append(each.group and groups == "ignore")
    return Sample(
        id=image_id,
        path=path,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        difficult=np.zeros(len(labels), bool),
        group=np.array(group, bool),
        size=size,
    )
