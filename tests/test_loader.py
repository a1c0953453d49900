"""Batches: padding, order, and what arrives on the device."""

import multiprocessing
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from vision.data.sample import Sample
from vision.errors import UserError
from vision.loader import EpochBatches, Examples, collate, make_loader, to_blob
from vision.spec import InputSpec


def example(objects, gain=1.0, value=0):
    image = np.full((4, 5, 3), value, np.uint8)
    boxes = np.arange(objects * 4, dtype=np.float32).reshape(-1, 4)
    return (image, boxes, np.ones(objects, np.int64), np.float32(gain)), f"image{objects}"


def test_images_without_objects():
    batch = collate([example(0), example(0)])
    assert batch.boxes.shape == (2, 0, 4) and batch.labels.shape == (2, 0)


def test_objects_are_padded_with_background():
    batch = collate([example(2), example(0), example(3)])
    assert batch.labels.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert (
        batch.boxes.shape == (3, 3, 4)
        and not batch.boxes[1].any()
        and batch.boxes[0, 1].tolist() == [4, 5, 6, 7]
    )
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (3, 4, 5, 3)
    assert batch.ids == ["image2", "image0", "image3"] and len(batch) == 3


def test_the_gain_is_applied_before_the_mean_and_is_not_clipped():
    spec = InputSpec(4, 5, (100.0, 110.0, 120.0), (2.0, 4.0, 8.0))
    blob = to_blob(collate([example(0, gain=1.5, value=200), example(0, value=100)]), spec)
    assert blob.shape == (2, 3, 4, 5) and blob.dtype == torch.float32
    assert blob[0, :, 0, 0].tolist() == [100.0, 47.5, 22.5]
    assert blob[1, :, 0, 0].tolist() == [0.0, -2.5, -2.5]
    assert blob.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("count, size, steps", [(0, 4, 0), (1, 4, 1), (8, 4, 2), (9, 4, 3)])
def test_an_epoch_sees_every_image_once(count, size, steps):
    batches = EpochBatches(count, size, seed=1)
    seen = [key for batch in batches for key in batch]
    assert len(batches) == len(list(batches)) == steps
    assert sorted(number for _, number in seen) == list(range(count))
    assert all(epoch == 0 for epoch, _ in seen)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch, first=0):
        batches = EpochBatches(20, 3, seed)
        batches.epoch, batches.first_step = epoch, first
        return list(batches)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4) and order(0, 3) != order(1, 3)
    assert order(0, 3, first=4) == order(0, 3)[4:]


class Shade:
    """A transform whose image tells its key."""

    def __call__(self, sample, epoch, number):
        image = np.full((2, 2, 3), 10 * epoch + number, np.uint8)
        return image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.float32(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_reaches_every_worker(workers):
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, bool)
    samples = [Sample(str(i), Path("x"), *none) for i in range(6)]
    batches = EpochBatches(6, 4, shuffle=False)
    loader = make_loader(samples, Shade(), batches, workers)
    for epoch in (0, 1, 2):
        batches.epoch = epoch
        shades = torch.cat([batch.images[:, 0, 0, 0] for batch in loader])
        assert shades.tolist() == [10 * epoch + i for i in range(6)]


class Unreadable:
    """A transform that fails on image 3."""

    def __call__(self, sample, epoch, number):
        if number == 3:
            raise UserError(f"{sample.path}: no longer there")
        return Shade()(sample, epoch, number)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_said_in_its_own_words(workers):
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, bool)
    samples = [Sample(str(i), Path(f"{i}.jpg"), *none) for i in range(6)]
    loader = make_loader(samples, Unreadable(), EpochBatches(6, 2, shuffle=False), workers)
    seen = []
    with pytest.raises(UserError, match=r"^3\.jpg: no longer there$"), closing(loader):
        seen.extend(loader)
    assert [batch.ids for batch in seen] == [["0", "1"]]
    assert not multiprocessing.active_children()


def test_rare_images_come_more_often_and_look_different_each_time(tmp_path):
    repeats = np.array([1.0, 3.0, 1.5, 1.5])
    batches = EpochBatches(4, 3, seed=2, repeats=repeats)
    keys = [key for batch in batches for key in batch]
    assert len(batches) == 3 and len(keys) == len(set(keys)) == 7
    assert sum(number % 4 == 1 for _, number in keys) == 3
    batches.first_step = 1
    assert [key for batch in batches for key in batch] == keys[3:]
    samples = [
        Sample(
            str(n), Path("x"), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), *[np.zeros(0, bool)] * 2
        )
        for n in range(4)
    ]
    examples = Examples(samples, lambda sample, epoch, number: (sample.id, number))
    assert examples[(0, 9)] == (("1", 9), "1")
