"""From samples on disk to batches on the device: uint8 images, padded objects, and an order to resume from."""

import signal
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vision.data.augment import Example
from vision.data.balance import draw_repeats
from vision.data.sample import Sample
from vision.errors import UserError
from vision.spec import InputSpec

Key = Tuple[int, int]
"""(epoch, number of the sample): all that the randomness of an example depends on, besides the seed. When a sample
comes several times in an epoch, the number is that of the sample plus a multiple of the number of samples."""

Transform = Callable[[Sample, int, int], Example]
"""(sample, epoch, number) -> what the net learns from it."""


@dataclass
class Batch:
    """What the net and the loss see.

    Attributes:
        images: uint8 (N, H, W, 3), RGB. Normalised on the device, see `to_blob`.
        gains: float32 (N,), a factor on each image's pixels.
        boxes: float32 (N, G, 4), corners, fractions; padded with zeros.
        labels: int64 (N, G); padded with 0; IGNORED for a box round a group.
        ids: of the N samples.
    """

    images: Tensor
    gains: Tensor
    boxes: Tensor
    labels: Tensor
    ids: List[str]

    def __len__(self) -> int:
        return len(self.ids)

    def pin_memory(self) -> "Batch":
        """Called by the loader where copies to a GPU should overlap."""
        return self._moved(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(move(self.images), move(self.gains), move(self.boxes), move(self.labels), self.ids)


def to_blob(batch: Batch, spec: InputSpec) -> Tensor:
    """The images, on whatever device -> normalised float32 (N, 3, H, W) there, channels last in memory."""
    device = batch.images.device
    mean, std = torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device)
    pixels = batch.images.float() * batch.gains[:, None, None, None]
    return ((pixels - mean) / std).permute(0, 3, 1, 2)


class Examples:
    """Samples through a transform, looked up by (epoch, number)."""

    def __init__(self, samples: Sequence[Sample], transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Tuple[Example, str]:
        epoch, number = key
        sample = self.samples[number % len(self.samples)]
        return self.transform(sample, epoch, number), sample.id

    def __getitems__(self, keys: Sequence[Key]) -> Union[List[Tuple[Example, str]], UserError]:
        """The examples of a batch. A UserError is returned: torch would raise it with the traceback of the worker
        as its message."""
        try:
            return [self[key] for key in keys]
        except UserError as error:
            return error


def collate(examples: Sequence[Tuple[Example, str]]) -> Batch:
    """Stack images and pad objects to the longest list."""
    ids = [sample_id for _, sample_id in examples]
    images, boxes, labels, gains = zip(*(example for example, _ in examples))
    longest = max(len(of_image) for of_image in labels)
    padded_boxes = np.zeros((len(ids), longest, 4), np.float32)
    padded_labels = np.zeros((len(ids), longest), np.int64)
    for i, (of_boxes, of_labels) in enumerate(zip(boxes, labels)):
        padded_boxes[i, : len(of_labels)] = of_boxes
        padded_labels[i, : len(of_labels)] = of_labels
    return Batch(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(gains)),
        torch.from_numpy(padded_boxes),
        torch.from_numpy(padded_labels),
        ids,
    )


class EpochBatches(Sampler[List[Key]]):
    """The batches of one epoch; their order is a function of (seed, epoch) and can be entered at any step.

    Set `epoch` and `first_step` before iterating.

    Args:
        count: of the samples.
        repeats: float (count,), how often each sample comes in an epoch, on average; None for once. See
            `vision.data.balance.repeat_factors`.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        repeats: Optional[np.ndarray] = None,
    ) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.repeats = repeats
        self.epoch = 0
        self.first_step = 0

    def __len__(self) -> int:
        total = self.count if self.repeats is None else round(float(self.repeats.sum()))
        return -(-total // self.batch_size)

    def __iter__(self) -> Iterator[List[Key]]:
        order = np.arange(self.count)
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.repeats is not None:
            order = draw_repeats(self.repeats, rng)
        if self.shuffle:
            order = rng.permutation(order)
        for step in range(self.first_step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(self.epoch, int(number)) for number in chosen]


def _prepare_worker(_: int) -> None:
    # Ctrl-C, and SIGTERM from a service manager, reach the whole process group; the main process decides when
    # the workers stop, and they end with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # One worker is one core: OpenCV's own threads would only fight over them.
    cv2.setNumThreads(0)


def _collate(examples: Union[List[Tuple[Example, str]], UserError]) -> Union[Batch, UserError]:
    return examples if isinstance(examples, UserError) else collate(examples)


class Loader:
    """Yields `Batch`es; each pass is one of `loader`.

    Its worker processes wait for the next pass until `close`. They ignore SIGTERM, so a program that ends without it
    may wait for them for ever.
    """

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def close(self) -> None:
        """End the worker processes; another pass would start new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def make_loader(
    samples: Sequence[Sample],
    transform: Transform,
    batches: EpochBatches,
    workers: int,
    pin_memory: bool = False,
) -> Loader:
    """A torch DataLoader that yields `Batch`es in the order of `batches`."""
    loader: DataLoader[Any] = DataLoader(
        Examples(samples, transform),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_prepare_worker,
        pin_memory=pin_memory,
    )
    return Loader(loader)
