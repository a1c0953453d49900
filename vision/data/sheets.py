"""Contact sheets: many small pictures with their boxes in one, for people to look at."""

from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from vision.data.sample import IGNORED
from vision.drawing import draw_boxes
from vision.errors import UserError

PathLike = Union[str, Path]

Item = Tuple[np.ndarray, np.ndarray, np.ndarray]
"""RGB uint8 (h, w, 3); corner boxes as fractions (G, 4); labels (G,): what a transform of samples gives."""

CELL = 300
GAP = 8
SMALLEST_NAMED = 32
"""Pixels of a cell: narrower boxes get no name."""

GROUND = 24
"""Grey level between the pictures."""


def _fit(image: np.ndarray) -> np.ndarray:
    """The picture in a CELL x CELL square, with its aspect ratio, on the sheet's ground."""
    height, width = image.shape[:2]
    scale = CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    cell = np.full((CELL, CELL, 3), GROUND, np.uint8)
    top, left = (CELL - size[1]) // 2, (CELL - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=kind)
    return cell


def _name(label: int, classes: Sequence[str]) -> str:
    return "(group)" if label == IGNORED else classes[label]


def contact_sheet(
    items: Iterable[Item], classes: Sequence[str], path: PathLike, columns: Optional[int] = None
) -> Path:
    """Write a picture of images with their boxes and class names.

    Args:
        items: what `Augmentation` or `Resized` give, or (image, boxes as fractions, labels) from elsewhere.
        classes: names, BACKGROUND first.
        path: .jpg or .png; its folder is made when it is not there.
        columns: pictures in a row; None for a sheet about 4 : 3.

    Returns: the path. Raises UserError when there is nothing to show or the file cannot be written.
    """
    cells: List[np.ndarray] = []
    for image, boxes, labels in items:
        cell = _fit(image)
        # Boxes go into the picture, not into the square: undo the centring.
        height, width = image.shape[:2]
        longest = max(height, width)
        part = np.array([width, height, width, height], np.float64) * CELL / longest
        corner = (CELL - part[[0, 1, 0, 1]]) // 2
        placed = boxes * part + corner
        # On tiny objects the colour must do: names would hide them.
        wide = placed[:, 2] - placed[:, 0] >= SMALLEST_NAMED
        names = [_name(int(label), classes) if named else "" for label, named in zip(labels, wide)]
        cells.append(draw_boxes(cell, placed, names, labels=[max(int(label), 0) for label in labels]))
    if not cells:
        raise UserError(f"{path}: no picture to put on the sheet")

    columns = columns or max(1, round((len(cells) * 4 / 3) ** 0.5))
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    step = CELL + GAP
    sheet = np.full((rows * step + GAP, columns * step + GAP, 3), GROUND, np.uint8)
    for number, cell in enumerate(cells):
        top, left = GAP + number // columns * step, GAP + number % columns * step
        sheet[top : top + CELL, left : left + CELL] = cell
    return write_image(path, sheet)


def write_image(path: PathLike, image: np.ndarray) -> Path:
    """Write an RGB uint8 picture; the suffix chooses the format. Raises UserError when that fails."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        good, coded = cv2.imencode(path.suffix or ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if good:
            path.write_bytes(coded.tobytes())
            return path
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    except cv2.error:
        pass
    raise UserError(f"{path}: OpenCV writes no {path.suffix!r} files; use .jpg or .png")
