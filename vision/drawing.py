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


def _tag(
    canvas: np.ndarray, text: str, corners: Tuple[int, int, int, int], colour: Colour, scale: float
) -> None:
    """A name on a ground of its colour: on top of the box, or inside it where there is no room; in place."""
    height, width = canvas.shape[:2]
    stroke = max(1, round(scale * 1.8))
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = max(2, round(text_height * 0.35))
    box_height, box_width = text_height + below // 2 + 2 * pad, text_width + 2 * pad
    x1, y1, _, _ = corners
    left = int(np.clip(x1, 0, max(0, width - box_width)))
    top = y1 - box_height
    if top < 0:
        top = int(np.clip(y1, 0, max(0, height - box_height)))
    cv2.rectangle(canvas, (left, top), (left + box_width - 1, top + box_height - 1), colour, cv2.FILLED)
    cv2.putText(canvas, text, (left + pad, top + pad + text_height), _FONT, scale, _INK, stroke, cv2.LINE_AA)


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
    thickness = max(1, round(side / 200))
    scale = max(0.35, side / 42 / _FONT_HEIGHT)

    # Small boxes last, so that big ones do not cover them; the best-scored of equal ones on top.
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    order = np.argsort(-np.nan_to_num(sides[:, 0] * sides[:, 1]), kind="stable")
    placed = [(row, corners) for row in order for corners in [_corners(boxes[row], canvas.shape)] if corners]
    for row, (x1, y1, x2, y2) in placed:
        # A dark edge lets the line be seen on a ground of its own colour.
        cv2.rectangle(canvas, (x1, y1), (x2, y2), _INK, thickness + 2)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour_of(numbers[row]), thickness)
    for row, corners in placed:
        text = names[row] if scores is None else f"{names[row]} {scores[row]:.2f}".strip()
        if text:
            _tag(canvas, _printable(text), corners, colour_of(numbers[row]), scale)
    return canvas


def _printable(text: str) -> str:
    """OpenCV's font has ASCII only."""
    return text.encode("ascii", "replace").decode("ascii")
