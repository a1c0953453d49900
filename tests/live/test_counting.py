import json

import numpy as np
import pytest

from vision.detector import Detections
from vision.errors import UserError
from vision.live.counting import Counter, Line, Plan, Zone, draw_counts, read_plan

SIZE = (100, 200)
CLASSES = ("BACKGROUND", "person", "dog")


def detections(points, labels=None, side=10):
    points = np.array(points, np.float32).reshape(-1, 2)
    boxes = np.concatenate([points - side / 2, points + side / 2], axis=1)
    count = len(points)
    labels = np.ones(count, np.int64) if labels is None else np.array(labels)
    return Detections(boxes, np.full(count, 0.9, np.float32), labels, CLASSES, SIZE)


def walk(plan, paths, labels=None):
    """Each path is a list of points, None where the object is not seen. The last counts."""
    counter, counts = Counter(plan), {}
    numbers = np.arange(1, len(paths) + 1)
    for step in range(len(paths[0]) if paths else 1):
        there = [n for n, path in enumerate(paths) if path[step] is not None]
        found = detections(
            [paths[n][step] for n in there], None if labels is None else [labels[n] for n in there]
        )
        counts = counter.update(found, numbers[there], numbers.tolist())
    return counts


def line(ends=((100, 10), (100, 90)), classes=None, **more):
    return Plan((Line("door", np.array(ends, float), classes),), (), "pixels", **more)


def zone(corners=((50, 20), (150, 20), (150, 80), (50, 80)), classes=None, **more):
    return Plan((), (Zone("queue", np.array(corners, float), classes),), "pixels", **more)


def test_nobody_comes():
    assert walk(line(), []) == {"door": {"in": 0, "out": 0}}
    assert walk(zone(), []) == {"queue": {"inside": 0, "entered": 0}}


LEFTWARD = [(140 - 10 * t, 50) for t in range(9)]
RIGHTWARD = [(60 + 10 * t, 50) for t in range(9)]


@pytest.mark.parametrize(
    "paths, passed",
    [
        # the line goes down; who looks along it has the picture's left on his right
        ([LEFTWARD], (1, 0)),
        ([RIGHTWARD], (0, 1)),
        ([LEFTWARD, RIGHTWARD, [(140 - 10 * t, 30) for t in range(9)]], (2, 1)),
        ([LEFTWARD + RIGHTWARD], (1, 1)),
        ([[(60, 50), (99, 50), (60, 50)]], (0, 0)),
        ([[(60, 95), (140, 95)]], (0, 0)),
        ([[(60, 5), (140, 5)]], (0, 0)),
        ([[(60, 50), (140, 50)]], (0, 1)),
        ([[(60, 50), None, None, (140, 50)]], (0, 1)),
        ([[(100, 50), (140, 50)]], (0, 0)),
        ([[(90, 50), (100, 50), (110, 50)]], (0, 1)),
        # trembling on the line
        ([[(90, 50)] + [(100 + 0.4 * (-1) ** t, 50) for t in range(20)] + [(110, 50)]], (0, 1)),
    ],
)
def test_lines(paths, passed):
    assert walk(line(), paths) == {"door": {"in": passed[0], "out": passed[1]}}


def test_a_line_the_other_way_round_swaps_in_and_out():
    assert walk(line(((100, 90), (100, 10))), [LEFTWARD]) == {"door": {"in": 0, "out": 1}}


def test_only_some_classes():
    assert walk(line(classes=("dog",)), [LEFTWARD, LEFTWARD], [1, 2])["door"]["in"] == 1
    assert walk(zone(classes=("dog",)), [[(100, 50)], [(90, 50)]], [1, 2])["queue"]["inside"] == 1


def test_zones():
    inside, outside = (100, 50), (10, 10)
    paths = [[outside, inside, inside, outside, inside], [inside] * 4 + [outside]]
    assert walk(zone(), paths) == {"queue": {"inside": 1, "entered": 2}}


def test_feet_and_middles():
    assert walk(zone(), [[(100, 17)]])["queue"]["inside"] == 0
    assert walk(zone(point="foot"), [[(100, 17)]])["queue"]["inside"] == 1


def test_fractions():
    plan = zone(((0.25, 0.2), (0.75, 0.2), (0.75, 0.8), (0.25, 0.8)))._replace(units="fractions")
    assert walk(plan, [[(100, 50)], [(40, 50)]])["queue"]["inside"] == 1


def test_objects_without_a_number_are_not_counted():
    counts = Counter(zone()).update(detections([(100, 50)]), np.array([0]), [])
    assert counts == {"queue": {"inside": 0, "entered": 0}}


def test_what_is_forgotten_takes_no_memory():
    counter = Counter(Plan(line().lines, zone().zones, "pixels"))
    for number in range(1, 200):
        counter.update(detections([(90, 50)]), np.array([number]), [number])
    assert len(counter._last) == len(counter._been) == 1
    assert counter.counts()["queue"]["entered"] == 199


# --- the file ---

GOOD = {
    "units": "pixels",
    "point": "foot",
    "lines": [{"name": "door", "from": [1, 2], "to": [3, 4.5], "classes": ["dog"]}],
    "zones": [{"name": "queue", "corners": [[0, 0], [1, 0], [1, 1]]}],
}


def write(tmp_path, plan):
    path = tmp_path / "plan.json"
    path.write_text(plan if isinstance(plan, str) else json.dumps(plan), encoding="utf-8")
    return path


def test_reading_a_plan(tmp_path):
    plan = read_plan(write(tmp_path, GOOD), CLASSES)
    assert plan.units == "pixels" and plan.point == "foot"
    assert plan.lines[0].ends.tolist() == [[1, 2], [3, 4.5]] and plan.lines[0].classes == ("dog",)
    assert plan.zones[0].corners.shape == (3, 2) and plan.zones[0].classes is None


def with_line(**values):
    return {"lines": [{"name": "door", "from": [0, 0], "to": [1, 1], **values}]}


@pytest.mark.parametrize(
    "plan, message",
    [
        ("{", "no JSON"),
        ("[]", "expected an object"),
        ({}, "neither lines nor zones"),
        ({"lines": {}}, "list of objects"),
        ({**GOOD, "units": "metres"}, "units 'metres'"),
        ({**GOOD, "point": "head"}, "point 'head'"),
        ({**GOOD, "line": []}, "'line' is not known"),
        (with_line(name=""), "has no name"),
        (with_line(to=[0, 0]), "the same point"),
        (with_line(to=[0]), r"\[0\] is no point"),
        (with_line(to=[0, "1"]), "is no point"),
        (with_line(to=[0, True]), "is no point"),
        (with_line(to=[0, 300]), "outside 0..1"),
        (with_line(classes=["cat"]), "no class 'cat'; it knows person, dog"),
        (with_line(classes="dog"), "list of names"),
        (with_line(colour="red"), "'colour' is not known"),
        ({"zones": [{"name": "q", "corners": [[0, 0], [1, 1]]}]}, "at least 3 points"),
        ({**with_line(), "zones": [{"name": "door", "corners": [[0, 0], [1, 1], [0, 1]]}]}, "given twice"),
    ],
)
def test_a_bad_plan_is_explained(tmp_path, plan, message):
    with pytest.raises(UserError, match=message) as error:
        read_plan(write(tmp_path, plan), CLASSES)
    assert "plan.json" in str(error.value)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="plan.json"):
        read_plan(tmp_path / "plan.json", CLASSES)


@pytest.mark.parametrize("size", [(1, 1), (100, 200), (2000, 3000)])
def test_lines_and_zones_are_drawn(size):
    plan = Plan(line().lines, zone().zones, "pixels")
    picture = draw_counts(np.full((*size, 3), 90, np.uint8), plan, Counter(plan).counts())
    assert picture.shape == (*size, 3)
    if size == (100, 200):
        assert picture[30, 100].min() > 150 and (picture[95:, :40] == 90).all()
