"""The learning rate over the steps."""

import pytest

from vision.schedule import Schedule


def test_a_run_without_steps():
    assert Schedule("cosine", 0).factor(0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "schedule, step, factor",
    [
        (Schedule("constant", 10), 7, 1.0),
        (Schedule("cosine", 10), 0, 1.0),
        (Schedule("cosine", 10), 5, 0.5),
        (Schedule("cosine", 10), 10, 0.0),
        (Schedule("cosine", 10), 12, 0.0),  # never back up again
        (Schedule("multi-step", 10, (4, 8), 0.1), 3, 1.0),
        (Schedule("multi-step", 10, (4, 8), 0.1), 4, 0.1),
        (Schedule("multi-step", 10, (4, 8), 0.5), 9, 0.25),
        (Schedule("constant", 10, warmup=4), 0, 0.2),
        (Schedule("constant", 10, warmup=4), 3, 0.8),
        (Schedule("constant", 10, warmup=4), 4, 1.0),
    ],
)
def test_factors(schedule, step, factor):
    assert schedule.factor(step) == pytest.approx(factor)


def test_the_last_step_of_a_cosine_still_trains():
    # The original stepped its schedule before the epoch, and spent the last one at a rate of 0.
    assert 0 < Schedule("cosine", 100).factor(99) < 0.001
