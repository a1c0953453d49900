"""From a photograph to Detections: one preprocess and one postprocess, whatever runs the net. Numpy and OpenCV."""

from dataclasses import dataclass
from typing import Iterator, List, Sequence, Tuple

import numpy as np


@dataclass(frozen=True)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 (K, 4), corners x1, y1, x2, y2 in pixels of the image, inside it.
        scores: float32 (K,), 0..1, falling.
        labels: int64 (K,), 1..C-1.
        classes: class names, BACKGROUND first.
        size: (height, width) of the image in pixels.

    Raises ValueError at birth when shapes, types or values do not fit together; K = 0 is a good result.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: Tuple[str, ...]
    size: Tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.labels.shape != (count,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape} and labels {self.labels.shape} do not match"
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("detections hold NaN or infinite numbers")
        if count and not (1 <= self.labels.min() and self.labels.max() < len(self.classes)):
            raise ValueError(f"labels {self.labels.min()}..{self.labels.max()} for {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Tuple[str, float, np.ndarray]]:
        """(class name, score, box in pixels) of each detection, best first."""
        for box, score, label in zip(self.boxes, self.scores, self.labels):
            yield self.classes[label], float(score), box

    @property
    def names(self) -> List[str]:
        """Class name of each detection."""
        return [self.classes[label] for label in self.labels]
