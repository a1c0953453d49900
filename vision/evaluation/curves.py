"""A picture of precision over recall."""

from pathlib import Path
from typing import List, Tuple, Union

import cv2
import numpy as np

from vision.data.sheets import write_image
from vision.drawing import colour_of
from vision.evaluation.report import Report

SIDE, BORDER, LEGEND, LINE = 480, 50, 260, 18
"""Pixels: the plot's side, what is round it, the width of the legend, the height of a line of it."""

WHITE, GREY, BLACK = (255, 255, 255), (225, 225, 225), (0, 0, 0)


def draw_curves(report: Report, path: Union[str, Path]) -> Path:
    """Write the precision-recall curve of every class that has an AP, best first, with the APs in a legend.

    The suffix chooses the format. Raises UserError when the picture cannot be written.
    """
    known = [(label, r) for label, r in enumerate(report.classes, start=1) if r.ap is not None]
    known.sort(key=lambda pair: -(pair[1].ap or 0.0))
    height = max(SIDE + 2 * BORDER, 2 * BORDER + LINE * len(known))
    image = np.full((height, SIDE + 2 * BORDER + LEGEND, 3), WHITE, np.uint8)
    _draw_grid(image)
    _write(image, report.metric, (BORDER, BORDER - 20))
    for row, (label, result) in enumerate(known):
        colour = colour_of(label)
        recall, precision = result.curve()
        points = [_point(r, p) for r, p in zip(np.append(0.0, recall), np.append(precision[:1], precision))]
        _draw_line(image, points, colour)
        at = (SIDE + 2 * BORDER - 20, BORDER + row * LINE)
        cv2.rectangle(image, (at[0], at[1] - 8), (at[0] + 10, at[1]), colour, cv2.FILLED)
        _write(image, f"{result.ap:.3f}  {result.name}", (at[0] + 18, at[1]))
    return write_image(path, image)


def _point(recall: float, precision: float) -> Tuple[int, int]:
    return BORDER + round(recall * SIDE), BORDER + round((1 - precision) * SIDE)


def _draw_line(image: np.ndarray, points: List[Tuple[int, int]], colour: Tuple[int, int, int]) -> None:
    if len(points) > 1:
        cv2.polylines(image, [np.array(points, np.int32)], False, colour, 2, cv2.LINE_AA)


def _draw_grid(image: np.ndarray) -> None:
    for tenth in range(0, 11, 2):
        share = tenth / 10
        cv2.line(image, _point(share, 0), _point(share, 1), GREY)
        cv2.line(image, _point(0, share), _point(1, share), GREY)
        x, y = _point(share, 0)
        _write(image, f"{share:g}", (x - 8, y + 18))
        x, y = _point(0, share)
        _write(image, f"{share:g}", (x - 28, y + 4))
    _write(image, "recall", (BORDER + SIDE // 2 - 20, BORDER + SIDE + 36))
    _write(image, "precision", (4, BORDER - 8))
    cv2.rectangle(image, _point(0, 1), _point(1, 0), BLACK)


def _write(image: np.ndarray, text: str, at: Tuple[int, int]) -> None:
    # OpenCV's letters are ASCII.
    plain = text.encode("ascii", "replace").decode("ascii")
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, BLACK, 1, cv2.LINE_AA)
