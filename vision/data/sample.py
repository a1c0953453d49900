"""One photograph with its objects, and what a reader found wrong on the way."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

IGNORED = -1
"""Label, in training, of a region that is neither an object nor background: a box round a group."""


LONGEST_TOLD = 300
LONGEST_REFUSAL = 4000
"""Of "cannot-open" and "no-objects": their value is no text of the data but a message, with what was looked for."""


def _cut(text: str, longest: int = LONGEST_TOLD) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


@dataclass(frozen=True)
class Finding:
    """Something wrong in a data set, and what was done about it.

    Attributes:
        code: short and stable, for filters and documentation ("empty-box", "missing-image").
        file: the file at fault.
        where: the line or object inside it ("object 3 (WBC)", "line 12"); empty when it is the whole file.
        value: the offending value, as read.
        action: what was done ("dropped", "clipped to the image", "kept as a negative").
    """

    code: str
    file: str
    where: str
    value: str
    action: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.told()}"

    def told(self) -> str:
        """Without the code; long values (a file may hold anything) are cut."""
        file, where, action = map(_cut, (self.file, self.where, self.action))
        value = _cut(
            self.value, LONGEST_REFUSAL if self.code in ("cannot-open", "no-objects") else LONGEST_TOLD
        )
        return f"{file}{': ' if where else ''}{where}{': ' if value else ''}{value} -> {action}"


@dataclass(frozen=True)
class Sample:
    """One image and its ground truth.

    Attributes:
        id: unique in the data set (the file's stem, or its path below the root where stems repeat).
        path: the image file.
        boxes: float32 (G, 4), corners x1, y1, x2, y2 in pixels, 0-based.
        labels: int64 (G,), 1..C-1; 0 is BACKGROUND and never occurs.
        difficult: bool (G,); not trained on and not counted in evaluation (VOC's flag).
        group: bool (G,); one box round several objects (COCO's crowd, Open Images' IsGroupOf).
        size: (height, width) in pixels as declared by the annotation, or None.
    """

    id: str
    path: Path
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    group: np.ndarray
    size: Optional[Tuple[int, int]] = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.boxes.shape != (count, 4) or self.boxes.dtype != np.float32:
            raise ValueError(
                f"{self.id}: boxes are {self.boxes.dtype} {self.boxes.shape}, not float32 ({count}, 4)"
            )
        if not (len(self.difficult) == len(self.group) == count):
            raise ValueError(f"{self.id}: flags do not match the {count} labels")


@dataclass
class Dataset:
    """Samples under one numbering of classes.

    Attributes:
        name: for people ("bccd/test").
        classes: class names, BACKGROUND first; labels index it.
        samples: in the order of the split file.
        findings: what the reader met and how it was resolved.
        recognised: what each root was taken for, for people ("DIR: voc, splits train, test").
    """

    name: str
    classes: Tuple[str, ...]
    samples: List[Sample]
    findings: List[Finding] = field(default_factory=list)
    recognised: Tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_objects(self) -> int:
        """Ground-truth boxes, difficult ones included."""
        return sum(len(sample.labels) for sample in self.samples)
