"""An even choice of images."""

from pathlib import Path

import numpy as np
import pytest

from vision.data.balance import balanced
from vision.data.sample import Dataset, Sample


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
