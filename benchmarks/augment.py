"""Augmentation on one core: ours against torchvision's v2 transforms and against the original's pipeline.

    python benchmarks/augment.py DATA [--samples 200] [--rounds 3]

DATA is a training set in any layout that `open_dataset` reads. All three take the path of a photograph and its
boxes and give a 300 x 300 example; JPEG decoding (by OpenCV in each) is included, and shown alone. The original's
order of work is written here again, in our words: float32 from the first step on, an expanded canvas, and a
resize at the end. All run in turn, round by round, and the best round counts. The time is the processor's, so that
other work on the machine does not count (everything runs in one thread).
"""

import argparse
import time
from typing import Any, Callable, Dict, List, Tuple

import cv2
import numpy as np
import torch

from vision.data import Sample, open_dataset
from vision.data.augment import MIN_IOUS, PERMUTATIONS, Augmentation

SIDE = 300
MEAN, STD = (127.0, 127.0, 127.0), 128.0

Work = Callable[[Sample, int], Any]


def decode(sample: Sample, _: int) -> np.ndarray:
    """The photograph as RGB uint8, as all but ours need it."""
    return cv2.cvtColor(cv2.imread(str(sample.path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


# --- the original's order of work ---------------------------------------------------------------------------


def float_colours(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Photometric distortion of a float32 image, 0..255 and beyond."""

    def contrast(image: np.ndarray) -> np.ndarray:
        return image * np.float32(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else image

    if rng.random() < 0.5:
        image = image + np.float32(rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = contrast(image)
    image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if rng.random() < 0.5:
        image[..., 1] *= rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:
        image[..., 0] = (image[..., 0] + rng.uniform(-18, 18)) % 360
    image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB)
    if not contrast_first:
        image = contrast(image)
    if rng.random() < 0.5:
        image = image[..., list(PERMUTATIONS[int(rng.integers(6))])]
    return image


def float_expand(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """The image somewhere on a canvas up to four times its sides."""
    if rng.random() < 0.5:
        return image, boxes
    height, width = image.shape[:2]
    ratio = rng.uniform(1, 4)
    left, top = int(rng.uniform(0, width * (ratio - 1))), int(rng.uniform(0, height * (ratio - 1)))
    canvas = np.empty((int(height * ratio) + 1, int(width * ratio) + 1, 3), np.float32)
    canvas[:] = MEAN
    canvas[top : top + height, left : left + width] = image
    return canvas, boxes + (left, top, left, top)


def float_crop(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """A free crop that holds the centre of some object; now and then the whole image."""
    height, width = image.shape[:2]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    while MIN_IOUS[int(rng.integers(len(MIN_IOUS)))] is not None:
        for _ in range(50):
            w, h = rng.uniform(0.3, 1) * width, rng.uniform(0.3, 1) * height
            if not 0.5 <= h / w <= 2:
                continue
            left, top = int(rng.uniform(0, width - w)), int(rng.uniform(0, height - h))
            low, high = np.array([left, top]), np.array([int(left + w), int(top + h)])
            inside = ((low < centers) & (centers < high)).all(axis=1)
            if inside.any():
                kept = np.concatenate(
                    [np.maximum(boxes[inside, :2], low), np.minimum(boxes[inside, 2:], high)], 1
                )
                return image[low[1] : high[1], low[0] : high[0]], kept - (left, top, left, top)
    return image, boxes


def original(sample: Sample, index: int) -> Tuple[torch.Tensor, np.ndarray]:
    """Normalised float32 (3, 300, 300), boxes as fractions."""
    rng = np.random.default_rng(index)
    image = float_colours(rng, decode(sample, index).astype(np.float32))
    image, boxes = float_crop(rng, *float_expand(rng, image, sample.boxes.astype(np.float32)))
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image = image[:, ::-1]
        boxes = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (width, 0, width, 0)
    image = cv2.resize(np.ascontiguousarray(image), (SIDE, SIDE))
    image = (image - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), boxes / (width, height, width, height)


# --- torchvision --------------------------------------------------------------------------------------------


def torchvision_work() -> Work:
    """transforms.v2 as in torchvision's own SSD recipe, on uint8 tensors."""
    from vision.nets.imagenet import import_torchvision

    import_torchvision()
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=dict.fromkeys((tv_tensors.Image, torch.Tensor), list(MEAN))),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize((SIDE, SIDE), antialias=False),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def work(sample: Sample, index: int) -> Any:
        image = decode(sample, index)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample.boxes), format="XYXY", canvas_size=image.shape[:2]
        )
        pixels = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        return transform(pixels, {"boxes": boxes, "labels": torch.from_numpy(sample.labels)})

    return work


# --- in one run ---------------------------------------------------------------------------------------------


def measure(works: Dict[str, Work], samples: List[Sample], rounds: int) -> Dict[str, float]:
    """Best rate of each kind of work, in samples a second of one core."""
    best = dict.fromkeys(works, 0.0)
    for turn in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            for index, sample in enumerate(samples):
                work(sample, turn * len(samples) + index)
            best[name] = max(best[name], len(samples) / (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--samples", type=int, default=200, help="photographs a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts (default %(default)s)")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    samples = open_dataset(options.data, "train").samples[: options.samples]
    augmentation = Augmentation((SIDE, SIDE), MEAN)
    works: Dict[str, Work] = {
        "decoding alone": decode,
        "original's order, float32": original,
        "torchvision v2, uint8": torchvision_work(),
        "ours": lambda sample, index: augmentation(sample, 0, index),
    }
    rates = measure(works, samples, options.rounds)
    print(
        f"{len(samples)} photographs, {SIDE} x {SIDE}, one core, decoding included, best of {options.rounds}"
    )
    for name, rate in rates.items():
        print(f"{name:27} {rate:7.0f} samples/s   ours is {rates['ours'] / rate:5.1f} times as fast")


if __name__ == "__main__":
    main()
