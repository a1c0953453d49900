import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.detector import Detections
from vision.live.tracking import PATIENCE, Tracker, assign

SIZE = (480, 640)
CLASSES = ("BACKGROUND", "cell", "other")


SAME_PLACE = 10
"""Pixels between two middles; the boxes are 40 wide."""


def detections(boxes, scores=None, labels=None):
    count = len(boxes)
    scores = np.full(count, 0.9, np.float32) if scores is None else np.array(scores, np.float32)
    order = np.argsort(-scores, kind="stable")
    labels = np.ones(count, np.int64) if labels is None else np.array(labels, np.int64)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes[order], scores[order], labels[order], CLASSES, SIZE), order


def around(x, y, side=40):
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


class Sequence:
    """Objects on known paths, seen with noise; counts what the tracker makes of them."""

    def __init__(self, paths, seed=0, noise=1.5, threshold=0.5):
        self.paths, self.noise, self.threshold = paths, noise, threshold
        self.rng = np.random.default_rng(seed)
        self.tracker = Tracker()
        self.seen = [[] for _ in paths]

    def play(self, frames, hidden=(), unsure=(), step=1):
        """hidden, unsure: of (object, first frame, last frame).

        While two objects are in the same place their detections cannot be told apart by anybody; these frames do
        not count, those before and after do.
        """
        for frame in range(0, frames, step):
            mine, boxes, scores = [], [], []
            for number, path in enumerate(self.paths):
                if any(who == number and first <= frame <= last for who, first, last in hidden):
                    continue
                low = any(who == number and first <= frame <= last for who, first, last in unsure)
                mine.append(number)
                boxes.append(np.array(around(*path(frame))) + self.rng.normal(0, self.noise, 4))
                scores.append(0.2 if low else self.rng.uniform(0.6, 0.95))
            found, order = detections(boxes, scores)
            places = np.array([path(frame) for path in self.paths])
            for row, track in zip(order, self.tracker.update(found, self.threshold, frame)):
                apart = np.abs(np.delete(places, mine[row], axis=0) - places[mine[row]]).max(
                    axis=1, initial=0
                )
                if (apart > SAME_PLACE).all():
                    self.seen[mine[row]].append(int(track))
        return self

    def numbers(self, number):
        """Distinct track numbers that an object had, without the 0 of its first frame."""
        return set(self.seen[number]) - {0}


def test_nothing_at_all():
    tracker = Tracker()
    assert tracker.update(detections([])[0], 0.5).tolist() == []
    assert tracker.tracks == []


def test_one_object_keeps_its_number():
    sequence = Sequence([lambda t: (100 + 3 * t, 200)]).play(60)
    assert sequence.numbers(0) == {1} and 0 not in sequence.seen[0]


@pytest.mark.parametrize("seed", range(10))
def test_numbers_survive_a_crossing(seed):
    """Two paths that cross at right angles, and two that meet head on, one above the other by half a box."""
    sequence = Sequence(
        [
            lambda t: (100 + 4 * t, 240),
            lambda t: (260, 80 + 4 * t),
            lambda t: (100 + 4 * t, 400),
            lambda t: (500 - 4 * t, 425),
        ],
        seed,
    ).play(80)
    assert [len(sequence.numbers(n)) for n in range(4)] == [1] * 4
    assert len(set().union(*(sequence.numbers(n) for n in range(4)))) == 4


def test_numbers_survive_a_short_occlusion():
    sequence = Sequence([lambda t: (60 + 4 * t, 100), lambda t: (560 - 4 * t, 300)])
    sequence.play(100, hidden=[(0, 30, 42), (1, 50, 70)])
    assert sequence.numbers(0) == {1} or sequence.numbers(0) == {2}
    assert len(sequence.numbers(1)) == 1 and sequence.numbers(0) != sequence.numbers(1)


def test_numbers_survive_an_occlusion_at_a_crossing():
    """One goes behind the other: where the paths cross only the one in front is seen."""
    sequence = Sequence([lambda t: (100 + 4 * t, 240), lambda t: (420 - 4 * t, 250)])
    sequence.play(80, hidden=[(1, 36, 44)])
    assert len(sequence.numbers(0)) == len(sequence.numbers(1)) == 1
    assert sequence.numbers(0) != sequence.numbers(1)


def test_a_low_score_continues_a_track_and_begins_none():
    sequence = Sequence([lambda t: (60 + 4 * t, 100), lambda t: (300, 300)])
    sequence.play(60, unsure=[(0, 20, 40), (1, 0, 60)])
    assert sequence.numbers(0) == {1} and 0 not in sequence.seen[0]
    assert sequence.numbers(1) == set(), "it was never sure"


def test_without_the_second_match_the_number_would_be_lost():
    """The reason for ByteTrack: the same low scores, but thrown away before, over more frames than are remembered."""
    paths = [lambda t: (60 + 2 * t + 30 * np.sin(t / 8), 100)]
    away = (0, 20, 20 + PATIENCE + 10)
    assert len(Sequence(paths).play(120, unsure=[away]).numbers(0)) == 1
    assert len(Sequence(paths).play(120, hidden=[away]).numbers(0)) == 2


def test_frames_may_be_dropped():
    sequence = Sequence([lambda t: (60 + 3 * t, 100), lambda t: (560 - 3 * t, 110)]).play(150, step=5)
    assert [len(sequence.numbers(n)) for n in (0, 1)] == [1, 1]


def test_an_object_that_was_away_for_long_is_a_new_one():
    sequence = Sequence([lambda t: (100, 100)]).play(120, hidden=[(0, 20, 20 + PATIENCE + 5)])
    assert sequence.numbers(0) == {1, 2}


def test_a_false_alarm_of_one_frame_gets_no_number():
    tracker = Tracker()
    still = around(100, 100)
    tracker.update(detections([still])[0], 0.5)
    found, order = detections([still, around(300, 300)], [0.9, 0.8])
    assert tracker.update(found, 0.5).tolist() == [1, 0]
    for _ in range(3):
        assert tracker.update(detections([still])[0], 0.5).tolist() == [1]
    assert len(tracker.tracks) == 1 and tracker.last_number == 1


def test_classes_are_not_mixed():
    tracker = Tracker()
    box = around(100, 100)
    for _ in range(3):
        found, _ = detections([box, box], [0.9, 0.8], [1, 2])
        assert tracker.update(found, 0.5).tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(2))
def test_a_crowd(seed):
    """Twenty objects on straight paths among each other, each out of sight once for up to ten frames."""
    rng = np.random.default_rng(seed)
    starts, speeds = rng.uniform(50, 400, (20, 2)), rng.uniform(-2.5, 2.5, (20, 2))
    paths = [lambda t, p=p, v=v: tuple(p + v * t) for p, v in zip(starts, speeds)]
    hidden = [
        (n, first, first + int(rng.integers(1, 10))) for n, first in enumerate(rng.integers(10, 60, 20))
    ]
    sequence = Sequence(paths, seed).play(80, hidden)
    whole = sum(len(sequence.numbers(n)) == 1 for n in range(20))
    assert whole >= 18, [sequence.numbers(n) for n in range(20)]


def test_memory_does_not_grow():
    tracker = Tracker()
    rng = np.random.default_rng(0)
    for _ in range(100):
        tracker.update(detections([around(*rng.uniform(50, 400, 2)) for _ in range(5)])[0], 0.5)
    assert len(tracker.tracks) <= 5 * (PATIENCE + 2)


# --- assignment ---


def cheapest(cost):
    """By trying all."""
    rows, columns = cost.shape
    if rows > columns:
        return cheapest(cost.T)
    return min(
        (sum(cost[row, column] for row, column in enumerate(order)) for order in
         itertools.permutations(range(columns), rows)), default=0
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_assign(shape):
    rows, columns = assign(np.zeros(shape))
    assert len(rows) == len(columns) == 0


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_no_other_pairs_are_cheaper(count, width, seed, coarse):
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 4, (count, width)).astype(float) if coarse else rng.normal(size=(count, width))
    rows, columns = assign(cost)
    assert len(rows) == min(count, width) == len(set(rows.tolist())) == len(set(columns.tolist()))
    assert rows.tolist() == sorted(rows.tolist())
    assert cost[rows, columns].sum() == pytest.approx(cheapest(cost), abs=1e-9)


def test_a_large_assignment_agrees_with_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    cost = np.random.default_rng(0).random((120, 150))
    rows, columns = assign(cost)
    theirs = optimize.linear_sum_assignment(cost)
    assert cost[rows, columns].sum() == pytest.approx(cost[theirs].sum())
