"""Average precision by the rule of the PASCAL VOC development kit (VOCevaldet.m, VOCap.m).

The rule: detections of a class, of all images, by falling score. Each looks for the object of its class in its
image with the highest IoU; pixels are inclusive (a box from 3 to 5 is 3 pixels wide). From the IoU threshold
upwards (>=) the detection is right when it is the first one there, wrong when it is not, and does not count at
all when the object is difficult. Below the threshold it is wrong.
"""

from typing import List, Sequence, Tuple

import numpy as np

from vision.data.sample import Sample
from vision.detector import Detections
from vision.errors import UserError
from vision.evaluation.report import ClassResult, Report, precision_recall

METRICS = {"11point": "VOC 2007 AP (11 points)", "area": "VOC AP (area under the curve)"}


def average_precision(recall: np.ndarray, precision: np.ndarray, metric: str = "11point") -> float:
    """AP of one curve.

    Args:
        recall, precision: (D,) after each detection, from the best on; empty gives 0.
        metric: "11point": mean, over the recalls 0, 0.1, ..., 1, of the best precision from that recall on
            (VOC 2007). "area": area under the curve made monotone (VOC 2010 and later).
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    recall, precision = np.asarray(recall, np.float64), np.asarray(precision, np.float64)
    # The best precision from each point on; after the last point there is none.
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    if metric == "area":
        return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())
    # k / 10 and the recall n / objects are both rounded once, so equal fractions compare equal.
    tenths = np.arange(11) / 10
    return float(envelope[np.searchsorted(recall, tenths, side="left")].sum() / 11)


def evaluate(
    detections: Sequence[Detections],
    samples: Sequence[Sample],
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    metric: str = "11point",
) -> Report:
    """VOC AP of every class.

    Args:
        detections: one for each sample, in the same order.
        samples: the ground truth; labels index `classes`, those of the detections too. Boxes round groups are
            treated as difficult objects.
        classes: names, BACKGROUND first.
        iou_threshold: in (0, 1].
        metric: "11point" or "area".

    Returns: a Report; a class without an object that counts has no AP and stays out of the mean.

    Raises UserError for a threshold out of range, ValueError for detections that do not fit the samples.
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"IoU threshold {iou_threshold} is outside (0, 1]")
    if metric not in METRICS:
        raise UserError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    check_pairs(detections, samples, classes)
    scores, labels, objects, overlaps = _best_objects(detections, samples)
    truth = _Truth(samples, len(classes))

    results = []
    for label in range(1, len(classes)):
        mine = np.flatnonzero(labels == label)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        tp, fp = _judge(objects[mine], overlaps[mine] >= iou_threshold, truth.ignored)
        recall, precision = precision_recall(tp, fp, truth.objects[label])
        ap = average_precision(recall, precision, metric) if truth.objects[label] else None
        results.append(
            ClassResult(classes[label], ap, truth.images[label], truth.objects[label], scores[mine], tp, fp)
        )
    return Report(f"{METRICS[metric]} at IoU {iou_threshold:g}", iou_threshold, len(samples), results)


def check_pairs(detections: Sequence[Detections], samples: Sequence[Sample], classes: Sequence[str]) -> None:
    """Raises ValueError unless detections and samples fit each other and `classes`."""
    if len(detections) != len(samples):
        raise ValueError(f"{len(detections)} detections for {len(samples)} samples")
    for found, sample in zip(detections, samples):
        if tuple(found.classes) != tuple(classes):
            raise ValueError(f"{sample.id}: detections of {found.classes}, ground truth of {tuple(classes)}")
        if len(sample.labels) and not (1 <= sample.labels.min() and sample.labels.max() < len(classes)):
            raise ValueError(f"{sample.id}: a label is outside 1..{len(classes) - 1}")


class _Truth:
    """What the samples hold, per object (in one row for all samples) and per class.

    Attributes:
        ignored: bool (G,), objects that do not count.
        objects, images: per label, objects that count and images that hold one.
    """

    def __init__(self, samples: Sequence[Sample], num_classes: int) -> None:
        counted = [sample.labels[~(sample.difficult | sample.group)] for sample in samples]
        self.ignored = np.concatenate([s.difficult | s.group for s in samples] + [np.zeros(0, bool)])
        self.objects = _histogram(counted, num_classes)
        self.images = _histogram([np.unique(labels) for labels in counted], num_classes)


def _histogram(labels: Sequence[np.ndarray], num_classes: int) -> List[int]:
    together = np.concatenate(list(labels) + [np.zeros(0, np.int64)])
    return np.bincount(together, minlength=num_classes).tolist()


def _best_objects(
    detections: Sequence[Detections], samples: Sequence[Sample]
) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All detections in one row: score, label, the best object of the same class (its number in the row of all
    objects, -1 without one) and the IoU with it."""
    scores, labels = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    objects, overlaps = [np.zeros(0, np.int64)], [np.zeros(0)]
    first = 0
    for found, sample in zip(detections, samples):
        scores.append(found.scores)
        labels.append(found.labels)
        if len(found) and len(sample.labels):
            overlap = iou_inclusive(found.boxes, sample.boxes)
            overlap[found.labels[:, None] != sample.labels[None, :]] = -1
            best = overlap.argmax(axis=1)
            value = overlap[np.arange(len(found)), best]
            objects.append(np.where(value > 0, best + first, -1))
            overlaps.append(value)
        else:
            objects.append(np.full(len(found), -1, np.int64))
            overlaps.append(np.full(len(found), -1.0))
        first += len(sample.labels)
    return np.concatenate(scores), np.concatenate(labels), np.concatenate(objects), np.concatenate(overlaps)


def _judge(objects: np.ndarray, hit: np.ndarray, ignored: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Right and wrong, bool (D,), of detections of one class by falling score that found `objects`."""
    hit = hit & (objects >= 0)
    counts = np.ones(len(objects), bool)
    counts[hit] = ~ignored[objects[hit]]
    candidates = np.flatnonzero(hit & counts)
    _, first = np.unique(objects[candidates], return_index=True)
    tp = np.zeros(len(objects), bool)
    tp[candidates[first]] = True
    return tp, counts & ~tp


def iou_inclusive(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of corner boxes (N, 4) and (M, 4) in pixels that include their last pixel -> float64 (N, M).

    Boxes that do not share a pixel have 0.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low + 1, 0)
    inter = sides[..., 0] * sides[..., 1]
    union = _area_inclusive(a)[:, None] + _area_inclusive(b)[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=(inter > 0) & (union > 0))


def _area_inclusive(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
