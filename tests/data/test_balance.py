"""An even choice of images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.data.balance import balanced, draw_repeats, repeat_factors
from vision.data.sample import Dataset, Sample
from vision.errors import UserError


def sample(name, *labels):
    count = len(labels)
    return Sample(
        name,
        Path(name),
        np.zeros((count, 4), np.float32),
        np.array(labels, np.int64),
        np.zeros(count, bool),
        np.zeros(count, bool),
    )


def dataset(*samples):
    return Dataset("d", ("BACKGROUND", "cat", "dog", "owl"), list(samples))


def test_nothing_stays_nothing():
    assert balanced(dataset()).samples == []
    only = balanced(dataset(sample("empty")))
    assert [s.id for s in only.samples] == ["empty"]


@pytest.mark.parametrize("seed", range(4))
def test_every_class_gives_as_many_images_as_the_rarest(seed):
    cats = [sample(f"cat{i}", 1) for i in range(30)]
    dogs = [sample(f"dog{i}", 2, 2) for i in range(9)]
    owls = [sample(f"owl{i}", 3) for i in range(4)]
    chosen = balanced(dataset(*cats, *dogs, *owls, sample("empty")), seed).samples
    names = [s.id[:3] for s in chosen]
    assert [names.count(name) for name in ("cat", "dog", "owl", "emp")] == [4, 4, 4, 1]
    assert names == sorted(names, key=("cat", "dog", "owl", "emp").index)


def test_the_draw_depends_on_the_seed_alone():
    images = dataset(*[sample(f"cat{i}", 1) for i in range(30)], sample("dog", 2))
    first, second, other = (balanced(images, seed) for seed in (1, 1, 2))
    assert [s.id for s in first.samples] == [s.id for s in second.samples]
    assert [s.id for s in first.samples] != [s.id for s in other.samples]


# --- repeat factors -----------------------------------------------------------------------------------------


def test_repeat_factors_by_hand():
    images = dataset(*[sample(f"cat{i}", 1) for i in range(9)], sample("both", 1, 2, 2), sample("empty"))
    factors = repeat_factors(images, 0.5)
    # Ten of eleven images hold a cat, more than half; one holds a dog: sqrt(0.5 / (1 / 11)) = sqrt(5.5).
    np.testing.assert_allclose(factors, [1] * 9 + [5.5**0.5, 1])
    assert repeat_factors(images, 1 / 11).tolist() == [1] * 11
    assert repeat_factors(dataset(), 0.5).shape == (0,)


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(UserError, match="outside"):
        repeat_factors(dataset(sample("cat", 1)), threshold)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1, 6), min_size=1, max_size=30), st.integers(0, 9))
def test_an_epoch_has_always_as_many_images(factors, seed):
    repeats = np.array(factors)
    drawn = draw_repeats(repeats, np.random.default_rng(seed))
    assert len(drawn) == round(float(repeats.sum())) and len(set(drawn.tolist())) == len(drawn)
    times = np.bincount(drawn % len(repeats), minlength=len(repeats))
    assert (times >= np.floor(repeats)).all() and (times <= np.ceil(repeats) + 1).all()


def test_the_fraction_comes_out_on_average():
    repeats = np.array([1.0, 1.25, 1.5, 2.75, 1.0])
    times = np.zeros(5)
    for seed in range(2000):
        times += np.bincount(draw_repeats(repeats, np.random.default_rng(seed)) % 5, minlength=5)
    # 7.5 images are rounded to 8: the half more comes to those with fractions.
    assert times[0] == times[4] == 2000 and (np.abs(times / 2000 - repeats) <= 0.27).all()
    assert times[1] < times[2] and times.sum() == 8 * 2000
