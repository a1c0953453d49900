"""A detector over a whole data set: images are read ahead in threads while the net works on a batch."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np

from vision.data.images import read_image
from vision.data.sample import Dataset, Sample
from vision.detector import Detections, Detector
from vision.errors import UserError
from vision.evaluation import voc
from vision.evaluation.classes import common_classes, detections_under, sample_under

SCORE_THRESHOLD = 0.01
"""Detections below this do not enter an evaluation, as in the original."""

AHEAD = 2
"""Batches that are read, or wait, while the net works on another."""


def detect_samples(
    detector: Detector,
    samples: Sequence[Sample],
    threshold: float = SCORE_THRESHOLD,
    readers: int = 2,
    **settings: Any,
) -> Iterator[Detections]:
    """Detections of each sample's image, in order, batch by batch.

    Args:
        threshold, settings: of `Detector.postprocess`.
        readers: threads that read images.

    Raises UserError for an image that cannot be read.
    """
    size = detector.batch_size
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    with ThreadPoolExecutor(max(readers, 1)) as pool:
        ahead = deque(pool.submit(_read, detector, batch) for batch in batches[:AHEAD])
        for number in range(len(batches)):
            blob, sizes = ahead.popleft().result()
            if number + AHEAD < len(batches):
                ahead.append(pool.submit(_read, detector, batches[number + AHEAD]))
            scores, boxes = detector.run(blob)
            yield from detector.postprocess(scores, boxes, sizes, threshold, **settings)


def _read(detector: Detector, samples: Sequence[Sample]) -> Tuple[np.ndarray, List[Tuple[int, int]]]:
    """The blob of a batch, and (height, width) of its images; the photographs themselves are let go."""
    images = [read_image(sample.path, size=sample.size) for sample in samples]
    return detector.preprocess(images), [(image.shape[0], image.shape[1]) for image in images]


def mean_ap(detector: Detector, dataset: Dataset, threshold: float = SCORE_THRESHOLD) -> float:
    """mAP (VOC, 11 points, IoU 0.5) of the classes that detector and data share.

    Raises UserError where the data has nothing to find.
    """
    classes = common_classes(detector.classes, dataset.classes, ignore_missing=True)
    samples = [sample_under(sample, dataset.classes, classes) for sample in dataset.samples]
    found = [detections_under(one, classes) for one in detect_samples(detector, dataset.samples, threshold)]
    mean = voc.evaluate(found, samples, classes, 0.5, "11point").mean
    if mean is None:
        raise UserError(
            f"{dataset.name} holds no object of {', '.join(classes[1:])}; nothing to measure with"
        )
    return mean
