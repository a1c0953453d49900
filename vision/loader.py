"""From samples on disk to batches on the device: uint8 images, padded objects, and an order to resume from."""

import signal
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vision.data.sample import Sample
from vision.spec import InputSpec

Key = Tuple[int, int]
"""(epoch, number of the sample): all that the randomness of an example depends on, besides the seed."""

Example = Tuple[np.ndarray, np.ndarray, np.ndarray, str]
"""RGB uint8 (H, W, 3), corner boxes as fractions (G, 4), labels (G,), id of the sample."""

Transform = Callable[[Sample, int, int], Tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass
class Batch:
    """What the net and the loss see.

    Attributes:
        images: uint8 (N, H, W, 3), RGB. Normalised on the device, see `to_blob`.
        boxes: float32 (N, G, 4), corners, fractions; padded with zeros.
        labels: int64 (N, G); padded with 0.
        ids: of the N samples.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    ids: List[str]

    def __len__(self) -> int:
        return len(self.ids)

    def pin_memory(self) -> "Batch":
        """Called by the loader where copies to a GPU should overlap."""
        return Batch(self.images.pin_memory(), self.boxes.pin_memory(), self.labels.pin_memory(), self.ids)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        moved = [tensor.to(device, non_blocking=True) for tensor in (self.images, self.boxes, self.labels)]
        return Batch(*moved, self.ids)


def to_blob(images: Tensor, spec: InputSpec) -> Tensor:
    """uint8 (N, H, W, 3) on any device -> normalised float32 (N, 3, H, W) there, channels last in memory."""
    mean = torch.tensor(spec.mean, device=images.device)
    std = torch.tensor(spec.std, device=images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


class Examples:
    """Samples through a transform, looked up by (epoch, number)."""

    def __init__(self, samples: Sequence[Sample], transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Example:
        epoch, number = key
        sample = self.samples[number]
        image, boxes, labels = self.transform(sample, epoch, number)
        return image, boxes, labels, sample.id


def collate(examples: Sequence[Example]) -> Batch:
    """Stack images and pad objects to the longest list."""
    images, boxes, labels, ids = zip(*examples)
    longest = max(len(of_image) for of_image in labels)
    padded_boxes = np.zeros((len(ids), longest, 4), np.float32)
    padded_labels = np.zeros((len(ids), longest), np.int64)
    for i, (of_boxes, of_labels) in enumerate(zip(boxes, labels)):
        padded_boxes[i, : len(of_labels)] = of_boxes
        padded_labels[i, : len(of_labels)] = of_labels
    return Batch(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(padded_boxes),
        torch.from_numpy(padded_labels),
        list(ids),
    )


class EpochBatches(Sampler[List[Key]]):
    """The batches of one epoch; their order is a function of (seed, epoch) and can be entered at any step.

    Set `epoch` and `first_step` before iterating.
    """

    def __init__(self, count: int, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.epoch = 0
        self.first_step = 0

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[List[Key]]:
        order = np.arange(self.count)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for step in range(self.first_step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(self.epoch, int(number)) for number in chosen]


def _prepare_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when the workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One worker is one core: OpenCV's own threads would only fight over them.
    cv2.setNumThreads(0)


def make_loader(
    samples: Sequence[Sample],
    transform: Transform,
    batches: EpochBatches,
    workers: int,
    pin_memory: bool = False,
) -> "DataLoader[Any]":
    """A torch DataLoader that yields `Batch`es in the order of `batches`."""
    return DataLoader(
        Examples(samples, transform),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_prepare_worker,
        pin_memory=pin_memory,
    )
