import numpy as np
import pytest

from vision.data.images import read_image
from vision.data.sheets import CELL, GAP, contact_sheet
from vision.errors import UserError

CLASSES = ("BACKGROUND", "cat", "dog")


def item(height, width, boxes=(), labels=()):
    image = np.full((height, width, 3), 200, np.uint8)
    return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no picture"):
        contact_sheet([], CLASSES, tmp_path / "sheet.png")


@pytest.mark.parametrize(
    "count, columns, rows, wide", [(1, None, 1, 1), (3, 2, 2, 2), (2, 9, 1, 2), (12, None, 3, 4)]
)
def test_the_grid(tmp_path, count, columns, rows, wide):
    path = contact_sheet([item(30, 40)] * count, CLASSES, tmp_path / "new folder/sheet.png", columns)
    step = CELL + GAP
    assert read_image(path).shape == (rows * step + GAP, wide * step + GAP, 3)


def test_boxes_are_drawn_into_the_picture_and_not_into_its_frame(tmp_path):
    """A wide picture is centred in its square; a box of the whole of it follows."""
    path = contact_sheet([item(100, 200, [(0, 0, 1, 1)], [2])], ["B", "", ""], tmp_path / "sheet.png")
    cell = read_image(path)[GAP : GAP + CELL, GAP : GAP + CELL]
    drawn = (cell != 200).any(axis=2) & (cell != 24).any(axis=2)
    rows = np.flatnonzero(drawn.any(axis=1))
    assert abs(rows[0] - CELL // 4) <= 2 and abs(rows[-1] - CELL * 3 // 4) <= 2


def test_odd_pictures(tmp_path):
    odd = [item(1, 2), item(1, 500, [(0, 0, 1, 1)], [1]), item(700, 3, [(-1, -1, 2, 2)], [2])]
    assert contact_sheet(odd, CLASSES, tmp_path / "sheet.jpg").is_file()


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="use .jpg or .png"):
        contact_sheet([item(10, 10)], CLASSES, tmp_path / "sheet.docx")
