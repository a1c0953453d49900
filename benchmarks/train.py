"""Training, the whole pipeline: ours against the plain loop of the original.

    python benchmarks/train.py DATA [--net mb1-ssd] [--steps 12] [--rounds 3]

Both read, augment and match the same photographs with as many workers, and update the same net with SGD. Ours:
one warp on uint8, normalisation and matching for the whole batch on the device, mixed precision and channels last
where the device gains from them. Plain: float32 augmentation and matching per sample in the workers, float32, N, C,
H, W. They take turns in one process, and the best round of each counts.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import torch
from augment import original
from torch.utils.data import DataLoader

from vision.config import TrainConfig
from vision.data.sample import Sample
from vision.engine import Trainer
from vision.loader import EpochBatches
from vision.loss import MultiBoxLoss
from vision.matching import match
from vision.precision import pick_device
from vision.ssd import build


class PlainExamples:
    """What the original's DataLoader gave: a normalised float32 image and its targets, matched in the worker."""

    def __init__(self, samples: Any, priors: torch.Tensor, variances: Tuple[float, float]) -> None:
        self.samples, self.priors, self.variances = samples, priors, variances

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Tuple[int, int]) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        epoch, number = key
        sample: Sample = self.samples[number]
        image, boxes = original(sample, epoch * len(self.samples) + number)
        # The float crop may drop objects without saying which; the labels do not change the work.
        labels = torch.ones(1, len(boxes), dtype=torch.int64)
        matched = match(torch.from_numpy(boxes).float()[None], labels, self.priors, self.variances)
        return image, matched[0][0], matched[1][0]


def endless(loader: Any, batches: EpochBatches) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader
        batches.epoch += 1


def plain_loop(config: TrainConfig, trainer: Trainer) -> Callable[[], int]:
    """One step of the plain loop, as a function that returns the number of images."""
    device = pick_device()
    net = build(config.net, len(trainer.classes)).to(device).train()
    batches = EpochBatches(len(trainer.train_set), config.batch_size)
    loader = DataLoader(
        PlainExamples(trainer.train_set.samples, net.priors.cpu(), net.spec.variances),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
    )
    source = endless(loader, batches)
    criterion = MultiBoxLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def step() -> int:
        images, labels, targets = (part.to(device) for part in next(source))
        loss = sum(criterion(*net(images), labels, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(images)

    return step


def our_loop(trainer: Trainer) -> Callable[[], int]:
    """One step of ours."""
    source = endless(trainer.train_loader, trainer.batches)
    trainer.net.train()

    def step() -> int:
        batch = next(source)
        trainer.step(batch)
        return len(batch)

    return step


def rate(step: Callable[[], int], steps: int) -> float:
    """Images a second over so many steps."""
    began = time.perf_counter()
    images = sum(step() for _ in range(steps))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--net", default="mb1-ssd")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            datasets=[options.data],
            net=options.net,
            batch_size=options.batch_size,
            num_workers=options.workers,
            lr=1e-4,
            checkpoint_folder=str(Path(folder)),
        )
        trainer = Trainer(config)
        loops = {"plain": plain_loop(config, trainer), "ours": our_loop(trainer)}
        best: Dict[str, float] = dict.fromkeys(loops, 0.0)
        for step in loops.values():
            rate(step, 2)  # the workers start
        for _ in range(options.rounds):
            for name, step in loops.items():
                best[name] = max(best[name], rate(step, options.steps))
    print(f"{options.net}, {trainer.precision}, batches of {options.batch_size}, {options.workers} workers")
    for name, value in best.items():
        print(f"{name:6} {value:7.1f} images/s")
    print(f"ours is {best['ours'] / best['plain']:.2f} times as fast")


if __name__ == "__main__":
    main()
