"""An even choice of images from an uneven data set."""

import dataclasses

import numpy as np

from vision.data.sample import Dataset


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
