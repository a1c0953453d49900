"""Data sets in one CSV for each part, a row for each object, as TensorFlow's tutorials and Roboflow write them.

    filename,width,height,class,xmin,ymin,xmax,ymax

    ROOT/train_labels.csv, test_labels.csv      images in ROOT/train, ROOT/images, ...
    ROOT/train/_annotations.csv, valid, test    images beside it (Roboflow)
    ROOT/annotations.csv                        one file: parts are drawn

The columns stand in any order and case, `width` and `height` may be missing, and `difficult` and `group` may be there.
Corners are 0-based pixels. A row of which only the filename (and size) is filled is an image without objects; so is, in
Roboflow's layout, an image beside the CSV that no row names. What is wrong becomes a `Finding`, by the rules in
`vision.data.annotations`, and besides:

=================  ===============================================================================  ===========
bad-row            fields are missing, or the row is no CSV                                         dropped
no-rows            images beside the CSV that no row names (one finding for all)                    kept, a note
=================  ===============================================================================  ===========
"""

import csv
import difflib
import io
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from vision.data.annotations import (
    Annotation,
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
from vision.data.images import SUFFIXES, Size, split_suffix
from vision.data.labels import read_labels, read_text, with_background
from vision.data.locate import ImageFolders, image_folders, inside, part_of
from vision.data.parts import by_part, choose, one_file_each
from vision.data.sample import Dataset, Finding
from vision.errors import UserError

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
NEEDED = ("filename", "class", "xmin", "ymin", "xmax", "ymax")
CORNERS = ("xmin", "ymin", "xmax", "ymax")

_SYNONYMS = {"file": "filename", "file_name": "filename", "image": "filename", "image_name": "filename"}
_SYNONYMS.update(path="filename", label="class", class_name="class", iscrowd="group", is_crowd="group")
_SYNONYMS.update(
    isgroupof="group", is_group_of="group", x_min="xmin", y_min="ymin", x_max="xmax", y_max="ymax"
)


class _File(NamedTuple):
    """One CSV file: image name -> its declared size and objects; and the lines that name images first."""

    path: Path
    objects: Dict[str, List[Object]]
    sizes: Dict[str, Optional[Size]]
    lines: Dict[str, int]
    findings: List[Finding]


# --- the files of a root ------------------------------------------------------------------------------------


def _delimiter(line: str) -> str:
    """Comma, or what a spreadsheet of another country puts there."""
    return max(",;\t", key=line.count)


def _columns(line: str) -> Dict[str, int]:
    """Column name -> position, of a header."""
    try:
        names = next(csv.reader([line], delimiter=_delimiter(line)), [])
    except csv.Error:
        return {}
    plain = [name.strip().lower() for name in names]
    return {_SYNONYMS.get(name, name): position for position, name in reversed(list(enumerate(plain)))}


def _header(path: Path) -> Dict[str, int]:
    """The columns of a file; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 16)
    except OSError:
        return {}
    wide = first[:2] in (b"\xff\xfe", b"\xfe\xff")
    # A line of UTF-16 was cut in the middle of its line feed.
    line = (
        first[: len(first) // 2 * 2].decode("utf-16", "replace")
        if wide
        else first.decode("utf-8-sig", "replace")
    )
    return _columns(line.strip("\r\n"))


def _misspelt(columns: Iterable[str]) -> Dict[str, str]:
    """Needed column that is missing -> the one that stands for it; empty unless that explains all that are missing."""
    there = set(columns)
    others = {name.replace("_", ""): name for name in columns if name not in COLUMNS}
    near: Dict[str, str] = {}
    missing = [name for name in NEEDED if name not in there]
    if len(missing) > len(NEEDED) // 2:
        return {}  # a table of something else
    for name in missing:
        matches = difflib.get_close_matches(name, others, n=1, cutoff=0.75)
        if not matches:
            return {}
        near[name] = others.pop(matches[0])
    return near


def _csv_files(folder: Path) -> List[Path]:
    """Those with the columns, and those in which some of them are misspelt."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.is_file())
    headers = {path: _header(path) for path in files}
    return [path for path in files if set(NEEDED) <= set(headers[path]) or _misspelt(headers[path])]


def find_files(root: Path) -> Dict[str, Path]:
    """Part, as written ("train", "valid", "") -> CSV file. May be empty. Raises UserError for two of one part,
    and for a file in which columns are misspelt: left out silently, its part would seem not to be there.
    """
    groups = []
    if root.is_dir():
        shared = ("annotations", "data", "labels")
        below = sorted(path for path in root.iterdir() if path.is_dir() and path.name.lower() not in shared)
        groups = [[(part_of(path.stem), path) for path in _csv_files(root)]]
        groups += [[(part_of(path.stem), path) for path in _csv_files(root / name)] for name in shared]
        groups += [[(folder.name, path) for folder in below for path in _csv_files(folder)]]
    named = next((group for group in groups if group), [])
    return one_file_each(_well_spelt(named))


def _well_spelt(named: Iterable[Tuple[str, Path]]) -> Iterator[Tuple[str, Path]]:
    for part, path in named:
        wrong = _misspelt(_header(path))
        if wrong:
            told = ", ".join(f"no column {name!r}, but {other!r}" for name, other in wrong.items())
            raise UserError(f"{path}: line 1: {told}; did you mean {', '.join(wrong)}? Rename in the header")
        yield part, path


def is_csv(root: Path) -> bool:
    """Whether a folder holds a CSV with the columns at the top of this module."""
    try:
        return bool(find_files(Path(root)))
    except UserError:
        return True  # it is, and reading it will say what is wrong


def csv_parts(root: Path) -> List[str]:
    """Names of the parts, canonical; none where one file holds everything."""
    return [part for part in by_part(find_files(Path(root))) if part]


# --- parsing ------------------------------------------------------------------------------------------------


def _rows(path: Path, findings: List[Finding]) -> Iterator[Tuple[int, Dict[str, str]]]:
    """(line number, column -> field) of every row that has all its fields."""
    text = read_text(path)
    first = text.split("\n", 1)[0].strip("\r\n")
    columns = _columns(first)
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise UserError(f"{path}: line 1: no column {', '.join(missing)}; wanted are {','.join(COLUMNS)}")
    reader = csv.reader(io.StringIO(text.replace("\0", " "), newline=""), delimiter=_delimiter(first))
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"line {reader.line_num}"
            findings.append(Finding("bad-row", str(path), where, str(error), "dropped"))
            continue
        if reader.line_num == 1 or not any(field.strip() for field in row):
            continue
        fields = {name: row[position].strip() for name, position in columns.items() if position < len(row)}
        if not fields.get("filename") or not all(name in fields for name in NEEDED):
            value = short(",".join(row))
            findings.append(Finding("bad-row", str(path), f"line {reader.line_num}", value, "dropped"))
            continue
        yield reader.line_num, fields


def _parse(path: Path) -> _File:
    """Raises UserError for a file without the columns."""
    file = _File(path, {}, {}, {}, [])
    for line, fields in _rows(path, file.findings):
        name = inside(fields["filename"])
        if name is None:
            value = short(fields["filename"])
            file.findings.append(Finding("bad-row", str(path), f"line {line}", value, "dropped"))
            continue
        things = file.objects.setdefault(name, [])
        if name not in file.lines:
            file.lines[name] = line
            file.sizes[name] = to_size(fields.get("height"), fields.get("width"))
        texts = [fields[corner] for corner in CORNERS]
        if not fields["class"] and not any(texts):
            continue  # an image without objects
        x1, y1, x2, y2 = map(to_number, texts)
        things.append(
            Object(
                name=to_name(fields["class"]),
                corners=(x1, y1, x2, y2) if all(texts) else None,
                where=f"line {line}",
                value=short(" ".join(f"{corner}={text or '?'}" for corner, text in zip(CORNERS, texts))),
                difficult=is_true(fields.get("difficult", "")),
                group=is_true(fields.get("group", "")),
            )
        )
    return file


def _annotations(root: Path, file: _File, part: str) -> List[Annotation]:
    """One for each image that the file names, and those beside it where the folder is the part's own."""
    folders = ImageFolders(image_folders(root, file.path, part))
    ids = unlike_ids(list(file.objects))
    found = [
        Annotation(
            id=ids[name],
            path=folders.find(name),
            file=file.path,
            where=f"line {file.lines[name]} ({short(name)})",
            objects=things,
            size=file.sizes[name],
        )
        for name, things in file.objects.items()
    ]
    if file.path.name.lower() == "_annotations.csv":
        named = {annotation.path for annotation in found}
        beside = [
            p for p in sorted(file.path.parent.iterdir()) if p.suffix.lower() in SUFFIXES and p not in named
        ]
        taken = {annotation.id for annotation in found}
        for path in beside:
            stem = to_name(split_suffix(path.name)[0])
            found.append(
                Annotation(stem if stem not in taken else path.name, path, file.path, f"({path.name})", [])
            )
        if beside:
            value = f"{len(beside)} images, the first {beside[0].name}"
            action = "kept as images without objects"
            file.findings.append(Finding("no-rows", str(file.path), "", value, action))
    return found


# --- the reader ---------------------------------------------------------------------------------------------


def _classes(root: Path, files: Sequence[_File]) -> Tuple[str, ...]:
    """labels.txt, else all names in all files, sorted."""
    if (root / "labels.txt").is_file():
        return read_labels(root / "labels.txt")
    things = [thing for file in files for of_image in file.objects.values() for thing in of_image]
    return with_background(sorted({thing.name for thing in things} - {""}))


def read_csv(root: Path, split: str, classes: Optional[Sequence[str]] = None, seed: int = 0) -> Dataset:
    """Read one part of a data set in CSV.

    Args:
        root: the folder described at the top of this module.
        split: train, val, test (else val), trainval, or the name of a part. Where one file holds everything, its images
            are divided 80/20.
        classes: names, which number the labels; None: labels.txt in the root, else the names in *all* files, sorted.
        seed: of the 80/20 split.

    Raises UserError when there is no such part, and for a file without the columns.
    """
    root = Path(root)
    raw = find_files(root)
    if not raw:
        raise UserError(f"{root}: no CSV with the columns {','.join(COLUMNS)}")
    parts = by_part(raw)
    wanted = [""] if "" in parts else choose(split, list(parts), root)
    named = {path: part for part, path in raw.items()}
    everything = classes is None and not (root / "labels.txt").is_file()
    files = {part: _parse(path) for part, path in parts.items() if everything or part in wanted}
    numbering = _classes(root, list(files.values())) if classes is None else with_background(list(classes))

    read = {part: _annotations(root, files[part], named[files[part].path]) for part in wanted}
    findings = [finding for part in wanted for finding in files[part].findings]
    annotations = joined(read)
    if wanted == [""] and split not in raw:  # asked for by its own name, it is given whole
        reason = f"{files[''].path.name} holds everything"
        annotations, note = drawn(annotations, root, reason, split, seed)
        findings.append(note)
    return to_dataset(f"{root.resolve().name}/{split}", numbering, annotations, findings)
