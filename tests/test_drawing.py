import numpy as np
import pytest

from vision.boxes import iou
from vision.drawing import PALETTE, _Tags, colour_of, draw_boxes

NO_BOXES = np.zeros((0, 4), np.float32)


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def test_nothing_drawn_is_a_copy():
    image = grey(20, 30)
    out = draw_boxes(image, NO_BOXES, [])
    np.testing.assert_array_equal(out, image)
    assert out is not image and not np.shares_memory(out, image)


def test_the_picture_given_stays_as_it_is():
    image = grey(100, 100)
    out = draw_boxes(image, np.array([[10, 40, 60, 90]]), ["cat"], [0.9])
    assert (image == 128).all() and (out != 128).any()


@pytest.mark.parametrize("side, wide", [(60, 1), (300, 2), (1200, 5), (4000, 16)])
def test_the_line_lies_on_the_box_in_its_colour(side, wide):
    box = np.array([[side * 0.25, side * 0.5, side * 0.75, side * 0.9]])
    out = draw_boxes(grey(side, side), box, [""])
    x1, y1, x2, y2 = np.rint(box[0]).astype(int)
    for point in (
        (y2 - 1, (x1 + x2) // 2),
        ((y1 + y2) // 2, x1),
        ((y1 + y2) // 2, x2 - 1),
        (y1, (x1 + x2) // 2),
    ):
        assert tuple(out[point]) == PALETTE[0]
    assert (out[(y1 + y2) // 2, (x1 + x2) // 2] == 128).all()
    line = (out[(y1 + y2) // 2, : (x1 + x2) // 2] == PALETTE[0]).all(axis=1).sum()
    assert wide <= line <= wide + 2  # OpenCV's wide lines are a little fat


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 2), (7, 900)])
@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 1, 1),
        (-1e9, -1e9, 1e9, 1e9),
        (5, 5, 2, 2),
        (np.nan, 0, 1, 1),
        (0, 0, np.inf, 3),
        (900, 900, 950, 950),
        (-80, -80, -20, -20),
    ],
)
def test_any_box_in_any_picture(size, box):
    out = draw_boxes(grey(*size), np.array([box], np.float32), ["a name"], [0.5])
    assert out.shape == (*size, 3) and out.dtype == np.uint8


def test_a_tag_at_the_upper_border_stays_inside():
    out = draw_boxes(grey(200, 200), np.array([[150, 0, 199, 199]]), ["giraffe"], [0.87])
    tag = (out == PALETTE[0]).all(axis=2)
    assert tag[:20].sum() > 300  # a filled ground, in the picture
    assert tag[3, :150].any()  # wider than the box, so it was moved to the left


def test_tags_do_not_hide_each_other():
    tags = _Tags(grey(300, 300), 0.5)
    for corners in ((50, 100, 140, 180), (52, 101, 141, 181), (51, 99, 139, 180), (-20, -20, 400, 400)):
        tags.add("cat 0.90", corners, PALETTE[0])
    places = np.array(tags.taken, float)
    overlaps = iou(places, places)
    assert (overlaps[~np.eye(4, dtype=bool)] == 0).all()
    assert places.min() >= 0 and places.max() <= 300


def test_names_of_one_class_share_a_colour_and_labels_choose_it():
    boxes = np.array([[0, 50, 20, 70], [30, 50, 50, 70], [60, 50, 80, 70]])
    out = draw_boxes(grey(100, 100), boxes, ["a", "b", "a"])
    assert tuple(out[69, 10]) == tuple(out[69, 70]) == PALETTE[0] and tuple(out[69, 40]) == PALETTE[1]
    out = draw_boxes(grey(100, 100), boxes, ["a", "b", "a"], labels=[4, 4, len(PALETTE) + 2])
    assert tuple(out[69, 10]) == tuple(out[69, 40]) == PALETTE[4] and tuple(out[69, 70]) == PALETTE[2]
    assert colour_of(len(PALETTE)) == PALETTE[0]


def test_small_boxes_lie_on_top_of_large_ones():
    boxes = np.array([[40, 40, 60, 60], [10, 10, 90, 60]])  # they share the lower side
    out = draw_boxes(grey(100, 100), boxes, ["", ""], labels=[0, 1])
    assert tuple(out[59, 50]) == PALETTE[0] and tuple(out[59, 20]) == PALETTE[1]


def test_names_in_any_script_and_pictures_of_any_layout():
    image = np.ascontiguousarray(grey(60, 80)[:, ::-1])[:, ::2]
    out = draw_boxes(image, [[5, 5, 30, 50]], ["猫 größe"], [1.0])
    assert out.shape == image.shape
