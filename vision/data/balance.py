"""Uneven classes: an even choice of images, or rare ones more often."""

import dataclasses

import numpy as np

from vision.data.sample import Dataset
from vision.errors import UserError


def balanced(dataset: Dataset, seed: int = 0) -> Dataset:
    """Draw, for each class, as many images as the rarest class has; keep every image that was drawn.

    Images without objects stay: they belong to no class. The order is the data set's own.
    """
    images_of = {
        label: [i for i, sample in enumerate(dataset.samples) if (sample.labels == label).any()]
        for label in range(1, len(dataset.classes))
    }
    present = {label: images for label, images in images_of.items() if images}
    fewest = min((len(images) for images in present.values()), default=0)
    chosen = {i for i, sample in enumerate(dataset.samples) if not len(sample.labels)}
    for label, images in present.items():
        drawn = np.random.default_rng((seed, label)).choice(len(images), fewest, replace=False)
        chosen.update(images[i] for i in drawn)
    return dataclasses.replace(dataset, samples=[dataset.samples[i] for i in sorted(chosen)])


def repeat_factors(dataset: Dataset, threshold: float) -> np.ndarray:
    """How often each image should come in an epoch: repeat factor sampling (LVIS, arXiv 1908.03195, section 3.2).

    A class that a share f of the images hold has the factor max(1, sqrt(threshold / f)); an image has the largest
    factor of its classes, and 1 without objects.

    Args:
        threshold: in (0, 1]; classes in a larger share of the images are left as they are.

    Returns: float64 (N,), each at least 1.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"repeat factor threshold {threshold} is outside (0, 1]")
    held = [np.unique(sample.labels[~sample.group]) for sample in dataset.samples]
    images = np.bincount(np.concatenate(held + [np.zeros(0, np.int64)]), minlength=len(dataset.classes))
    share = images / max(len(dataset), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / np.where(images > 0, share, 1.0)))
    return np.array([of_class[labels].max(initial=1.0) for labels in held], np.float64)


def draw_repeats(repeats: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images of one epoch: each as often as its factor says, the fraction by chance, always as many in all.

    Returns: int64, image n for the first time is n, then n + N, n + 2N, ... for N images.
    """
    whole = np.floor(repeats).astype(np.int64)
    rest = np.cumsum(repeats - whole)
    count = round(float(repeats.sum())) - int(whole.sum())
    if count > 0:
        # Systematic sampling: evenly spaced marks on the line of all fractions, its beginning drawn.
        marks = (rng.random() + np.arange(count)) * rest[-1] / count
        np.add.at(whole, np.minimum(np.searchsorted(rest, marks, side="right"), len(whole) - 1), 1)
    times = [np.flatnonzero(whole > turn) + turn * len(whole) for turn in range(int(whole.max(initial=0)))]
    return np.concatenate(times + [np.zeros(0, np.int64)])
