"""Boxes with names, drawn into pictures. Numpy and OpenCV only."""

from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np

Colour = Tuple[int, int, int]

PALETTE: Tuple[Colour, ...] = (
    (255, 90, 80),
    (64, 156, 255),
    (52, 199, 110),
    (255, 179, 41),
    (175, 110, 255),
    (0, 199, 190),
    (255, 107, 180),
    (158, 205, 50),
    (255, 138, 61),
    (100, 122, 255),
    (222, 196, 0),
    (201, 120, 90),
)
"""RGB; neighbours differ in hue and all are bright enough for dark letters."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK: Colour = (16, 18, 24)
_FONT_HEIGHT = 22.0
"""Height of a capital letter of the font at scale 1, in pixels."""

_LARGEST = 1 << 14
"""Corners are cut to so many pixels outside the image: OpenCV counts in 32-bit numbers."""


def colour_of(label: int) -> Colour:
    """RGB of a class; after the palette is used up it begins again."""
    return PALETTE[label % len(PALETTE)]


def _labels_of(names: Sequence[str]) -> List[int]:
    """A number for each name, in the order in which names first occur."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [order[name] for name in names]


def _corners(box: np.ndarray, shape: Tuple[int, ...]) -> Optional[Tuple[int, int, int, int]]:
    """Whole pixels of a box, its last row and column included; None for NaN."""
    if not np.isfinite(box).all():
        return None
    height, width = shape[:2]
    low, high = (-_LARGEST,) * 4, (width + _LARGEST, height + _LARGEST) * 2
    x1, y1, x2, y2 = np.clip(np.rint(box), low, high).astype(int)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


class _Tags:
    """Names on grounds of their colours, beside their boxes and, where there is room, not over each other."""

    def __init__(self, canvas: np.ndarray, scale: float) -> None:
        self.canvas = canvas
        self.scale = scale
        self.stroke = max(1, round(scale * 1.8))
        self.taken: List[Tuple[int, int, int, int]] = []

    def _place(self, corners: Tuple[int, int, int, int], size: Tuple[int, int]) -> Tuple[int, int]:
        """(left, top) of a tag of `size` (width, height): the first place that is free, else the first.

        On top of the box, inside it above or below, or under it.
        """
        x1, y1, x2, y2 = corners
        most_left, most_top = self.canvas.shape[1] - size[0], self.canvas.shape[0] - size[1]
        places = []
        for top in (y1 - size[1], y1, y2 - size[1] + 1, y2 + 1):
            for left in (x1, x2 - size[0] + 1):
                if 0 <= top <= most_top:
                    places.append((int(np.clip(left, 0, max(0, most_left))), top))
        for left, top in places:
            if not any(
                left < other[2] and other[0] < left + size[0] and top < other[3] and other[1] < top + size[1]
                for other in self.taken
            ):
                return left, top
        here = int(np.clip(x1, 0, max(0, most_left))), int(np.clip(y1, 0, max(0, most_top)))
        return places[0] if places else here

    def add(self, text: str, corners: Tuple[int, int, int, int], colour: Colour) -> None:
        """Draw one tag."""
        (width, height), below = cv2.getTextSize(text, _FONT, self.scale, self.stroke)
        pad = max(2, round(height * 0.35))
        size = width + 2 * pad, height + below // 2 + 2 * pad
        left, top = self._place(corners, size)
        self.taken.append((left, top, left + size[0], top + size[1]))
        cv2.rectangle(self.canvas, (left, top), (left + size[0] - 1, top + size[1] - 1), colour, cv2.FILLED)
        place = (left + pad, top + pad + height)
        cv2.putText(self.canvas, text, place, _FONT, self.scale, _INK, self.stroke, cv2.LINE_AA)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: Optional[Sequence[float]] = None,
    labels: Optional[Sequence[int]] = None,
) -> np.ndarray:
    """A picture with boxes and their names.

    Args:
        image: uint8 (H, W, 3), RGB; of any size from one pixel on. It is not changed.
        boxes: (K, 4) corners in pixels; they may reach beyond the border.
        names: of the K boxes; "" for a box without a tag.
        scores: 0..1, written behind the names.
        labels: class numbers, which choose the colours; None: one colour for each name, in order.

    Returns: uint8 (H, W, 3), RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    numbers = _labels_of(names) if labels is None else [int(label) for label in labels]
    side = min(canvas.shape[:2]) ** 0.5 * max(canvas.shape[:2]) ** 0.5
    thickness = max(2, round(side / 250)) if side > 150 else 1
    scale = max(0.35, side / 42 / _FONT_HEIGHT)

    # Small boxes last, so that big ones do not cover them; the best-scored of equal ones on top.
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    order = np.argsort(-np.nan_to_num(sides[:, 0] * sides[:, 1]), kind="stable")
    placed = [(row, corners) for row in order for corners in [_corners(boxes[row], canvas.shape)] if corners]
    for row, (x1, y1, x2, y2) in placed:
        if thickness > 1:  # a dark edge lets the line be seen on a ground of its own colour
            cv2.rectangle(canvas, (x1, y1), (x2, y2), _INK, thickness + 2)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour_of(numbers[row]), thickness)
    tags = _Tags(canvas, scale)
    for row, corners in reversed(placed):
        text = names[row] if scores is None else f"{names[row]} {scores[row]:.2f}".strip()
        if text:
            tags.add(_printable(text), corners, colour_of(numbers[row]))
    return canvas


def _printable(text: str) -> str:
    """OpenCV's font has ASCII only."""
    return text.encode("ascii", "replace").decode("ascii")
