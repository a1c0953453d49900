"""Box files of any size: the rows of some classes, filtered as a stream of bytes.

The train file has 14.6 million rows (1 to 2.2 GB). Nearly all of them are of other classes, so the class ids are
searched for in the raw bytes, and only rows that hold one of them are looked at.
"""

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Container, Dict, Iterator, List, NamedTuple, Set, Tuple

from vision.data.open_images import (
    BOX_COLUMNS,
    COLUMNS,
    Corners,
    blocks,
    box_fractions,
    column_numbers,
    fields,
    is_set,
    lines,
)
from vision.data.sample import Finding
from vision.errors import UserError

# What the old tools wrote: the columns of the box file, then the two of the class file.
SUB_COLUMNS = (*COLUMNS, "id", "ClassName")
ATTRIBUTES = {
    "occluded": "IsOccluded",
    "truncated": "IsTruncated",
    "group": "IsGroupOf",
    "depiction": "IsDepiction",
    "inside": "IsInside",
}
# Values of columns that a file lacks. -1 is "unknown".
ABSENT = {"Source": "", "Confidence": "1", **{column: "-1" for column in ATTRIBUTES.values()}}
MOST_FINDINGS = 100
# An image id becomes a file name; nothing that could name another folder passes.
IMAGE_ID = re.compile(r"[0-9A-Za-z_-]+")
OVERLAP = 0.5


@dataclass(frozen=True)
class RowRules:
    """Which rows of the wanted classes to leave out.

    Attributes:
        without: attributes (keys of ATTRIBUTES) that a box must not have. Unknown (-1) counts as not having it.
        min_size: both sides of a box must be at least this fraction of the image's.
    """

    without: Tuple[str, ...] = ("depiction",)
    min_size: float = 0.0


@dataclass
class Filtered:
    """What came of filtering a box file.

    Attributes:
        read, kept: rows.
        bad: rows with a wanted id that could not be used.
        findings: the first of them.
        ruled_out: images with a row that `RowRules` left out (they may hold the class all the same).
    """

    read: int = 0
    kept: int = 0
    bad: int = 0
    findings: List[Finding] = field(default_factory=list)
    ruled_out: Set[str] = field(default_factory=set)

    def add_bad(self, path: Path, number: int, line: bytes, reason: str) -> None:
        self.bad += 1
        if len(self.findings) < MOST_FINDINGS:
            value = line[:80].decode("utf-8", "replace")
            self.findings.append(
                Finding("bad-row", str(path), f"line {number}", value, f"row left out: {reason}")
            )


class Box(NamedTuple):
    """One row of a filtered file."""

    image_id: str
    name: str
    group: bool
    corners: Corners
    line: bytes


def _csv_line(values: List[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8")


def filter_boxes(source: Path, target: BinaryIO, names: Dict[str, str], rules: RowRules) -> Filtered:
    """Copy the rows of some classes, with the columns SUB_COLUMNS.

    Args:
        source: a box file of any version; its columns are found by the header.
        target: open for writing; gets a header line and the rows.
        names: class id (MID) -> what to write as ClassName.

    Returns: counts and bad rows. Memory does not grow with the file, except for `ruled_out`.
    Raises UserError when the source is no box file.
    """
    column = column_numbers(source, ("ImageID", "LabelName", *BOX_COLUMNS))
    row_parser = _RowParser(column, names, rules)
    # All ids begin with "/m/0": the search leaps from one id to the next and skips whatever is between them.
    ids = re.compile(
        b"(?:" + b"|".join(re.escape(mid.encode()) for mid in sorted(names)) + b")(?![0-9A-Za-z_])"
    )
    result = Filtered()
    target.write(_csv_line(list(SUB_COLUMNS)))
    first, block = 1, b""
    for first, block in blocks(source):
        hit = ids.search(block)
        while hit:
            start = block.rfind(b"\n", 0, hit.start()) + 1
            end = block.find(b"\n", hit.end())
            end = len(block) if end < 0 else end
            fault = row_parser.copy(block[start:end], target, result)
            if fault:
                # Line numbers are counted only where one is needed: it is half of the work.
                result.add_bad(source, first + block.count(b"\n", 0, start), block[start:end], fault)
            hit = ids.search(block, end)
    last = first + block.count(b"\n") - block.endswith(b"\n")
    result.read = last - 1  # all but the header
    return result


class _RowParser:
    """Checks one row that holds a wanted id and brings it into the columns of the `sub-` files."""

    def __init__(self, column: Dict[str, int], names: Dict[str, str], rules: RowRules):
        self.column = column
        self.names = names
        self.rules = rules
        self.without = [column[ATTRIBUTES[name]] for name in rules.without if ATTRIBUTES[name] in column]

    def copy(self, line: bytes, target: BinaryIO, result: Filtered) -> str:
        """Write the row if it is to be kept. Returns what is wrong with it, or ""."""
        row = fields(line)
        if len(row) <= max(self.column.values()):
            return "fields are missing"
        image_id, mid = row[self.column["ImageID"]], row[self.column["LabelName"]]
        if mid not in self.names:
            return ""  # the id stands in another column
        if not IMAGE_ID.fullmatch(image_id):
            return "the image id is no id"
        box = box_fractions([row[self.column[name]] for name in BOX_COLUMNS])
        if box is None:
            return "the box is not four finite numbers"
        if self._rules_out(row, box):
            result.ruled_out.add(image_id)
            return ""
        values = [row[self.column[name]] if name in self.column else ABSENT[name] for name in COLUMNS]
        target.write(_csv_line([*values, mid, self.names[mid]]))
        result.kept += 1
        return ""

    def _rules_out(self, row: List[str], box: Corners) -> bool:
        # An inverted box is not small; whoever reads the table says what is wrong with it.
        small = min(abs(box[2] - box[0]), abs(box[3] - box[1])) < self.rules.min_size
        return small or any(is_set(row[column]) for column in self.without)


def read_filtered(path: Path) -> Iterator[Box]:
    """The rows of what `filter_boxes` wrote."""
    image, name, group = (SUB_COLUMNS.index(each) for each in ("ImageID", "ClassName", "IsGroupOf"))
    first = SUB_COLUMNS.index("XMin")
    for number, line in lines(path):
        row = fields(line)
        box = box_fractions(row[first : first + 4])
        if number > 1 and box is not None:
            yield Box(row[image], row[name], is_set(row[group]), box, line)


def write_table(filtered: Path, target: Path, chosen: Container[str], remove_overlapped: bool = False) -> int:
    """Write the `sub-` file: the rows of the chosen images, under a temporary name until it is whole.

    Args:
        remove_overlapped: leave out a single box of which half or more lies in a group box of its class.

    Returns: the number of boxes.
    """
    groups = _group_boxes(filtered, chosen) if remove_overlapped else {}
    part = target.with_name(target.name + ".part")
    count = 0
    with part.open("wb") as file:
        file.write(_csv_line(list(SUB_COLUMNS)))
        for box in read_filtered(filtered):
            if box.image_id not in chosen:
                continue
            if not box.group and _lies_in(box.corners, groups.get((box.image_id, box.name), [])):
                continue
            file.write(box.line + b"\n")
            count += 1
    part.replace(target)
    return count


def _group_boxes(filtered: Path, chosen: Container[str]) -> Dict[Tuple[str, str], List[Corners]]:
    groups: Dict[Tuple[str, str], List[Corners]] = {}
    for box in read_filtered(filtered):
        if box.group and box.image_id in chosen:
            groups.setdefault((box.image_id, box.name), []).append(box.corners)
    return groups


def _lies_in(box: Corners, others: List[Corners]) -> bool:
    """Whether at least half of a box lies in one of the others."""
    size = (box[2] - box[0]) * (box[3] - box[1])
    for other in others:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        if size > 0 and max(width, 0) * max(height, 0) >= OVERLAP * size:
            return True
    return False


def check_whole(path: Path) -> None:
    """Raises UserError when a box file is none, or was cut in the middle of a row."""
    column = column_numbers(path, ())
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - (1 << 16), 0))
        tail = file.read()
    last = tail.rstrip(b"\r\n").split(b"\n")[-1]
    if len(fields(last)) <= max(column.values()):
        raise UserError(f"{path}: its last row is cut: {last[:80]!r}")
