"""Open Images AP: groups, by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.data.sample import Sample
from vision.detector import Detections
from vision.errors import UserError
from vision.evaluation import voc
from vision.evaluation.open_images import evaluate, judge

CLASSES = ("BACKGROUND", "cat", "dog")
BOX, NEAR, FAR = [10, 10, 50, 50], [12, 10, 52, 50], [300, 300, 340, 340]
GROUP = [100, 100, 200, 200]
IN_A, IN_B = [110, 110, 150, 150], [150, 150, 190, 190]
HALF = [80, 110, 120, 150]  # 20 of its 40 columns lie in the group
LESS = [79, 110, 119, 150]


def found(boxes=(), scores=(), labels=None):
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.ones(count, np.int64) if labels is None else np.array(labels, np.int64),
        CLASSES,
        (400, 400),
    )


def truth(boxes=(), group=None, difficult=None, labels=None):
    count = len(boxes)
    return Sample(
        "a",
        Path("a.jpg"),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.ones(count, np.int64) if labels is None else np.array(labels, np.int64),
        np.zeros(count, bool) if difficult is None else np.array(difficult, bool),
        np.zeros(count, bool) if group is None else np.array(group, bool),
    )


def test_nothing_at_all():
    report = evaluate([], [], CLASSES)
    assert report.mean is None and [result.objects for result in report.classes] == [0, 0]


# name, detections, objects, which are groups, then at weight 1 and weight 0: right, wrong, objects, AP
CASES = [
    ("an empty image", found(), truth(), "", "", 0, None, "", "", 0, None),
    ("a group that nobody found", found(), truth([GROUP], [1]), "", "", 1, 0.0, "", "", 0, None),
    ("one in a group", found([IN_A], [0.9]), truth([GROUP], [1]), "1", "0", 1, 1.0, "0", "0", 0, None),
    (
        "two in a group",
        found([IN_A, IN_B], [0.9, 0.8]),
        truth([GROUP], [1]),
        "10",
        "00",
        1,
        1.0,
        "00",
        "00",
        0,
        None,
    ),
    (
        "the best one counts",
        found([IN_A, IN_B], [0.3, 0.8]),
        truth([GROUP], [1]),
        "10",
        "00",
        1,
        1.0,
        "00",
        "00",
        0,
        None,
    ),
    ("half inside", found([HALF], [0.9]), truth([GROUP], [1]), "1", "0", 1, 1.0, "0", "0", 0, None),
    ("less than half inside", found([LESS], [0.9]), truth([GROUP], [1]), "0", "1", 1, 0.0, "0", "1", 0, None),
    # wrong 0.9, right 0.8 (the group): precision 1/2 at recall 1/2; the single object is missed
    (
        "a wrong one before",
        found([FAR, IN_A], [0.9, 0.8]),
        truth([GROUP, BOX], [1, 0]),
        *("01", "10", 2, 0.25),
        *("00", "10", 1, 0.0),
    ),
    # a second detection of an object is wrong, but not inside a group
    ("a duplicate", found([BOX, NEAR], [0.9, 0.8]), truth([BOX]), "10", "01", 1, 1.0, "10", "01", 1, 1.0),
    (
        "a duplicate in a group",
        found([BOX, NEAR], [0.9, 0.8]),
        truth([BOX, [0, 0, 60, 60]], [0, 1]),
        *("11", "00", 2, 1.0),
        *("10", "00", 1, 1.0),
    ),
    # right 0.9, wrong 0.8, group 0.7: 1/2 * 1 + 1/2 * 2/3
    (
        "objects and groups",
        found([BOX, FAR, IN_A], [0.9, 0.8, 0.7]),
        truth([BOX, GROUP], [0, 1]),
        *("101", "010", 2, 0.5 + 1 / 3),
        *("100", "010", 1, 1.0),
    ),
    # the object inside the group is found as an object, the rest belongs to the group
    (
        "an object in a group",
        found([IN_A, IN_B], [0.9, 0.8]),
        truth([IN_A, GROUP], [0, 1]),
        *("11", "00", 2, 1.0),
        *("10", "00", 1, 1.0),
    ),
    (
        "a group of another class",
        found([IN_A], [0.9]),
        truth([GROUP, BOX], [1, 0], labels=[2, 1]),
        *("0", "1", 1, 0.0),
        *("0", "1", 1, 0.0),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("weight", [1, 0])
def test_by_hand(case, weight):
    _, detections, sample, *answers = case
    right, wrong, objects, ap = answers[:4] if weight else answers[4:]
    result = evaluate([detections], [sample], CLASSES, group_weight=weight).classes[0]
    assert ["".join(str(int(flag)) for flag in flags) for flags in (result.tp, result.fp)] == [right, wrong]
    assert result.objects == objects
    assert result.ap == (None if ap is None else pytest.approx(ap, abs=1e-12))


def test_a_difficult_object_does_not_count():
    sample = truth([BOX, FAR], difficult=[True, False])
    result = evaluate([found([BOX, NEAR, FAR], [0.9, 0.8, 0.7])], [sample], CLASSES).classes[0]
    assert (result.tp.tolist(), result.fp.tolist(), result.objects) == ([False, False, True], [False] * 3, 1)
    assert result.ap == 1.0


def test_each_detection_goes_to_one_of_two_groups():
    groups = [[0, 0, 100, 100], [50, 0, 150, 100]]
    boxes = np.array([[60, 10, 90, 40], [110, 10, 140, 40], [5, 5, 40, 40]], np.float32)
    right, wrong = judge(boxes, np.zeros((0, 4)), np.zeros(0, bool), np.array(groups, np.float32))
    assert (
        right.tolist() == [True, True, False] and not wrong.any()
    )  # the first lies in both: in the first one


def test_values_out_of_range():
    with pytest.raises(UserError, match="threshold"):
        evaluate([], [], CLASSES, iou_threshold=0)
    with pytest.raises(UserError, match="weight"):
        evaluate([], [], CLASSES, group_weight=2)


coordinates = st.integers(0, 20)


@st.composite
def scenes(draw):
    def boxes(most):
        corners = draw(st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=most))
        return [(10 * x, 10 * y, 10 * (x + w + 1), 10 * (y + h + 1)) for x, y, w, h in corners]

    detections, objects = boxes(8), boxes(6)
    scores = draw(st.permutations(range(len(detections))))
    return found(detections, [0.9 - 0.01 * s for s in scores]), truth(objects)


@settings(deadline=None, max_examples=60)
@given(st.lists(scenes(), max_size=4), st.integers(0, 1))
def test_without_groups_it_is_voc_with_plain_pixels(pairs, weight):
    """Where no box is round a group only the pixel convention differs: compared on boxes where that cannot matter."""
    detections, samples = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ours = evaluate(detections, samples, CLASSES, 0.5, weight).classes[0]
    # VOC adds a pixel to each side: take it off.
    shrunk = [
        Detections(d.boxes - np.array([0, 0, 1, 1], np.float32), d.scores, d.labels, d.classes, d.size)
        for d in detections
    ]
    objects = [truth(s.boxes - np.array([0, 0, 1, 1], np.float32)) for s in samples]
    theirs = voc.evaluate(shrunk, objects, CLASSES, 0.5, "area").classes[0]
    assert ours.tp.tolist() == theirs.tp.tolist() and ours.fp.tolist() == theirs.fp.tolist()
    assert ours.ap == theirs.ap and ours.objects == theirs.objects
