"""What a file says about one image, before anything is checked, and the rules that make a sample of it.

Readers of formats only parse: they give `Annotation`s. What is wrong in them becomes a `Finding` here, by rules that
are the same for every format:

=================  ===============================================================================  ===========
code               what                                                                             done
=================  ===============================================================================  ===========
missing-image      no image file for an annotation                                                  dropped
unreadable-image   empty, not an image                                                              dropped
truncated-image    the file stops early (OpenCV would fill it with grey, silently)                  dropped
duplicate-id       an image is annotated twice in the split                                         dropped
size-mismatch      the declared width x height is not the file's: with the same aspect ratio the    boxes scaled
                   boxes are scaled to the file; otherwise they are taken in the file's pixels      or kept
exif-rotated       the declared size fits the photograph turned upright by EXIF: turned on reading  (a note)
no-name, no-box    an object without a name, or without four numbers                                dropped
bad-number         a number is none, NaN, infinite or beyond a million                              dropped
fraction-box       between 0 and 1: fractions where pixels are wanted                               dropped
pixel-box          beyond 2: pixels where fractions are wanted                                      dropped
unknown-class      a name that is not among the classes (one finding for all its boxes)             dropped
inverted-box       min and max exchanged: swapped when both corners lie in the image, else          swapped or
                                                                                                    dropped
outside-box        wholly outside the image                                                         dropped
clipped-box        partly outside, by more than one pixel (less is clipped in silence)              clipped
empty-box          narrower or lower than one pixel after clipping                                  dropped
=================  ===============================================================================  ===========

An annotation without objects is an image without objects: kept, as a negative.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from vision.data.images import Broken, Header, Size, check_image, split_suffix
from vision.data.labels import suggest
from vision.data.parts import draw, drawn_note
from vision.data.sample import Dataset, Finding, Sample

LARGEST_NUMBER = 1e6
LARGEST_FRACTION = 2.0
"""Above this a coordinate is no fraction that went astray: somebody wrote pixels."""

SMALLEST_SIDE = 1.0
"""Pixels; a box below this teaches nothing."""

ROUNDING = 0.01
"""Pixels that a box may lose on its way through a file: a side that was SMALLEST_SIDE still is."""

Corners = Tuple[float, float, float, float]
Scale = Tuple[float, float]


class Object(NamedTuple):
    """One object as read.

    Attributes:
        name: of its class; empty where the file has none.
        corners: x1, y1, x2, y2, 0-based pixels of the declared size (or fractions, see Annotation), NaN for what is
            no number; None where the file has no box.
        where: the line or object in the file.
        value: the box as written, for people.
        difficult, group: as in Sample.
    """

    name: str
    corners: Optional[Corners]
    where: str
    value: str = ""
    difficult: bool = False
    group: bool = False


class Annotation(NamedTuple):
    """One image as read.

    Attributes:
        id: of the sample.
        path: the image file; None where none was found.
        file: the file that says all this.
        where: the line or entry in it that names the image.
        objects: all of them, of classes wanted or not.
        size: declared (height, width), or None.
        fractions: corners are fractions of the image as stored, not pixels.
    """

    id: str
    path: Optional[Path]
    file: Path
    where: str
    objects: List[Object]
    size: Optional[Size] = None
    fractions: bool = False


# --- values -------------------------------------------------------------------------------------------------


def to_number(value: Any) -> float:
    """A number, or a text that is one, as a float; NaN for anything else. Never raises."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def to_name(value: Any) -> str:
    """The name of a class or file as one line of printable text; "" for what is no name."""
    if isinstance(value, int) and not isinstance(value, bool):
        return short(value)
    if not isinstance(value, str):
        return ""
    # Half a surrogate pair, as JSON may hold it, and control characters could not be written or printed later.
    return " ".join("".join(letter if letter.isprintable() else " " for letter in value).split())


def unlike_ids(names: Sequence[str]) -> Dict[str, str]:
    """File name -> id: its stem, or all of it where names differ in nothing but the suffix."""
    stems = Counter(split_suffix(name)[0] for name in dict.fromkeys(names))
    ids = {name: split_suffix(name)[0] for name in names}
    return {name: to_name(stem if stems[stem] == 1 else name) for name, stem in ids.items()}


def is_true(value: Any) -> bool:
    """Whether a flag is set: 1, true, yes in any spelling. -1 is unknown, and not set."""
    if isinstance(value, str) and value.strip().lower() in ("true", "yes", "t", "y"):
        return True
    return value is True or to_number(value) > 0


def to_size(height: Any, width: Any) -> Optional[Size]:
    """(height, width) as declared; None where they are no sizes (many tools write 0 x 0: it says nothing)."""
    rows, columns = to_number(height), to_number(width)
    known = 1 <= rows <= LARGEST_NUMBER and 1 <= columns <= LARGEST_NUMBER
    return (int(rows), int(columns)) if known else None


def short(value: Any, longest: int = 80) -> str:
    """A value from a file, for a message: never long, and of containers only the kind (they may be bombs)."""
    if value is None or isinstance(value, (bool, float)):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "an integer of over 20 digits"
    if isinstance(value, str):
        text = to_name(value[: 2 * longest])
        return text if len(text) <= longest else text[:longest] + "..."
    return {"list": "a list", "dict": "a mapping"}.get(type(value).__name__, type(value).__name__)


# --- boxes --------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A corner box in pixels, or why there is none; `code` is empty when there is nothing to say."""

    box: Optional[Corners]
    code: str = ""
    action: str = "dropped"


def judge(corners: Corners, size: Size) -> Verdict:
    """The box of one object by the rules at the head of this file; finite corners in pixels of `size`."""
    height, width = size
    x1, y1, x2, y2 = corners
    code, action = "", ""
    if x1 > x2 or y1 > y2:
        inside = all(-1 <= x <= width for x in (x1, x2)) and all(-1 <= y <= height for y in (y1, y2))
        if not inside:
            return Verdict(None, "inverted-box")
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        code, action = "inverted-box", "corners swapped"
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        # A box without area on the border is empty rather than outside.
        degenerate = min(x2 - x1, y2 - y1) < SMALLEST_SIDE
        return Verdict(None, "empty-box" if degenerate else "outside-box")
    if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
        code, action = "clipped-box", "clipped to the image"
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if min(x2 - x1, y2 - y1) < SMALLEST_SIDE - ROUNDING:
        return Verdict(None, "empty-box")
    return Verdict((x1, y1, x2, y2), code, action)


def declared_scale(declared: Optional[Size], real: Size) -> Tuple[Scale, str]:
    """(x, y) factors from declared to real pixels, and what to say about them ("" when the sizes agree)."""
    if declared is None or declared == real:
        return (1.0, 1.0), ""
    y, x = real[0] / declared[0], real[1] / declared[1]
    if abs(y / x - 1) <= 0.01:
        return (x, y), f"boxes scaled by {(x * y) ** 0.5:.4g}"
    return (1.0, 1.0), "boxes taken as pixels of the file"


def size_as_read(
    header: Header, declared: Optional[Size], file: Path, where: str, findings: List[Finding]
) -> Tuple[Size, Scale]:
    """(height, width) of the image as it will be read, and the factors that boxes need; says what was decided."""
    stored = f"{header.size[1]} x {header.size[0]}"
    if declared is None:
        return header.size, (1.0, 1.0)
    told = f"{declared[1]} x {declared[0]}"
    if header.must_turn(declared):
        text = f"stored as {stored}, annotated as {told}"
        findings.append(Finding("exif-rotated", str(file), where, text, "turned upright on reading"))
        return declared, (1.0, 1.0)
    scale, action = declared_scale(declared, header.size)
    if action:
        kind = "the XML" if file.suffix.lower() == ".xml" else "the annotation"
        text = f"{told} in {kind}, {stored} in the file"
        findings.append(Finding("size-mismatch", str(file), where, text, action))
    return header.size, scale


def _to_pixels(thing: Object, annotation: Annotation, size: Size, scale: Scale) -> Verdict:
    """The box of one object, with what depends on the unit it is written in."""
    corners = thing.corners
    if corners is None:
        return Verdict(None, "no-box")
    if not all(abs(value) <= LARGEST_NUMBER for value in corners):  # False for NaN
        return Verdict(None, "bad-number")
    if annotation.fractions:
        if max(map(abs, corners)) > LARGEST_FRACTION:
            return Verdict(None, "pixel-box", "dropped; boxes of this format are fractions, 0 to 1")
        factors = (float(size[1]), float(size[0]))
    else:
        if all(0 <= value <= 1 for value in corners) and any(value % 1 for value in corners):
            return Verdict(None, "fraction-box", "dropped; boxes of this format are in pixels")
        factors = scale
    x1, y1, x2, y2 = (value * factors[i % 2] for i, value in enumerate(corners))
    return judge((x1, y1, x2, y2), size)


# --- samples ------------------------------------------------------------------------------------------------


class _Unknown:
    """Boxes of classes that are not wanted: one finding for each file and name."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.seen: Dict[Tuple[str, str], List[str]] = {}

    def add(self, file: Path, thing: Object) -> None:
        """Count one."""
        self.seen.setdefault((str(file), thing.name), []).append(thing.where)

    def findings(self) -> Iterable[Finding]:
        """With the class that was perhaps meant."""
        for (file, name), places in self.seen.items():
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            action = "dropped" + suggest(name, self.classes)
            yield Finding("unknown-class", file, places[0] + more, short(name), action)


def to_sample(
    annotation: Annotation, number: Dict[str, int], findings: List[Finding], unknown: _Unknown
) -> Optional[Sample]:
    """One sample, or None and a finding when its image is of no use. `number`: class name -> label."""
    file, where = str(annotation.file), annotation.where
    if annotation.path is None:
        findings.append(Finding("missing-image", file, where, short(annotation.id), "dropped"))
        return None
    try:
        header = check_image(annotation.path)
    except Broken as broken:
        if broken.code == "missing-image":
            findings.append(Finding(broken.code, file, where, str(annotation.path), "dropped"))
        else:
            findings.append(Finding(broken.code, str(annotation.path), "", broken.reason, "dropped"))
        return None
    size, scale = size_as_read(header, annotation.size, annotation.file, where, findings)
    kept: List[Tuple[Corners, int, Object]] = []
    for thing in annotation.objects:
        if not thing.name:
            findings.append(Finding("no-name", file, thing.where, thing.value, "dropped"))
        elif thing.name not in number:
            unknown.add(annotation.file, thing)
        else:
            verdict = _to_pixels(thing, annotation, size, scale)
            if verdict.code:
                findings.append(Finding(verdict.code, file, thing.where, thing.value, verdict.action))
            if verdict.box is not None:
                kept.append((verdict.box, number[thing.name], thing))
    return Sample(
        id=annotation.id,
        path=annotation.path,
        boxes=np.array([box for box, _, _ in kept], np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _ in kept], np.int64),
        difficult=np.array([thing.difficult for _, _, thing in kept], bool),
        group=np.array([thing.group for _, _, thing in kept], bool),
        size=size,
    )


def joined(parts: Dict[str, List[Annotation]]) -> List[Annotation]:
    """The annotations of several parts, with the part's name in front of ids that occur in more than one."""
    owners: Dict[str, Set[str]] = {}
    for part, annotations in parts.items():
        for annotation in annotations:
            owners.setdefault(annotation.id, set()).add(part)
    return [
        annotation._replace(id=f"{part}/{annotation.id}") if len(owners[annotation.id]) > 1 else annotation
        for part, annotations in parts.items()
        for annotation in annotations
    ]


def drawn(
    annotations: List[Annotation], root: Path, reason: str, split: str, seed: int
) -> Tuple[List[Annotation], Finding]:
    """The part of one heap that a split takes, and the finding that says so."""
    ids = sorted({annotation.id for annotation in annotations})
    chosen = set(draw(ids, split, seed))
    note = drawn_note(root, reason, seed, len(ids))
    return [annotation for annotation in annotations if annotation.id in chosen], note


def to_dataset(
    name: str, classes: Tuple[str, ...], annotations: Iterable[Annotation], findings: List[Finding]
) -> Dataset:
    """All samples of a split, by the rules at the head of this file; `findings` are those of parsing."""
    dataset = Dataset(name, classes, [], findings)
    number = {each: label for label, each in enumerate(classes) if label}
    unknown = _Unknown(classes)
    seen: Set[str] = set()
    for annotation in annotations:
        if annotation.id in seen:
            file, text = str(annotation.file), short(annotation.id)
            findings.append(Finding("duplicate-id", file, annotation.where, text, "dropped"))
            continue
        seen.add(annotation.id)
        sample = to_sample(annotation, number, findings, unknown)
        if sample is not None:
            dataset.samples.append(sample)
    findings.extend(unknown.findings())
    return dataset
