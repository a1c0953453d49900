"""COCO's average precision, by the rule of pycocotools and to its numbers, all pairs of image and class at once.

The rule (https://cocodataset.org/#detection-eval): of each image and class the best 100 detections, by falling
score, each take the object of their class with the highest IoU, from a threshold on, that is still free. Objects
that do not count (groups, difficult ones, those outside the size range asked for) are taken only when no other
is left; such a detection does not count either, nor does one that found nothing and is outside the size range.
AP is the mean, over recalls 0, 0.01, ..., 1, of the best precision from there on; the headline is its mean over
classes and over the thresholds 0.5, 0.55, ..., 0.95.
"""

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vision.data.sample import Sample
from vision.detector import Detections
from vision.evaluation.report import ClassResult, Report
from vision.evaluation.voc import check_pairs

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100

SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Smallest and largest area in pixels. A sample has no outline, so the area is that of its box."""

# So many comparisons of a detection with an object are held at once (times 40 for sizes and thresholds).
PAIRS_AT_ONCE = 20_000


class _Group(NamedTuple):
    """Detections and objects of one class in one image; corners float64, detections by falling score."""

    boxes: np.ndarray
    scores: np.ndarray
    objects: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray


class _Judged(NamedTuple):
    """Outcome of one group: scores (D,); tp, fp bool (sizes, thresholds, D); objects that count, per size."""

    scores: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    counted: np.ndarray


def evaluate(
    detections: Sequence[Detections],
    samples: Sequence[Sample],
    classes: Sequence[str],
) -> Report:
    """COCO AP of every class.

    Args:
        detections: one for each sample, in the same order (which also settles equal scores).
        samples: the ground truth; labels index `classes`. `group` is COCO's iscrowd; difficult objects do not
            count either, but overlap as ordinary boxes.
        classes: names, BACKGROUND first.

    Returns: a Report. `ap` and `mean` are AP50:95; `summary` holds AP, AP50, AP75, AP of small, medium and large
    objects and AR with 1, 10 and 100 detections; the counts are at IoU 0.5.
    """
    check_pairs(detections, samples, classes)
    results, precisions, recalls = [], [], []
    for label in range(1, len(classes)):
        groups = [_group(found, sample, label) for found, sample in zip(detections, samples)]
        judged = _judge([group for group in groups if len(group.scores) or len(group.objects)])
        precision, recall = _accumulate(judged, MAX_DETECTIONS)
        precisions.append(precision)
        recalls.append([_accumulate(judged, best)[1][0] for best in (1, 10)] + [recall[0]])
        results.append(_class_result(classes[label], judged, precision))
    summary = _summary(np.array(precisions), np.array(recalls)) if precisions else {}
    return Report("COCO AP (IoU 0.50 to 0.95)", float(IOU_THRESHOLDS[0]), len(samples), results, summary)


def _group(found: Detections, sample: Sample, label: int) -> _Group:
    of_class = np.flatnonzero(found.labels == label)
    order = of_class[np.argsort(-found.scores[of_class], kind="stable")[:MAX_DETECTIONS]]
    objects = sample.labels == label
    return _Group(
        found.boxes[order].astype(np.float64),
        found.scores[order],
        sample.boxes[objects].astype(np.float64),
        sample.group[objects],
        (sample.group | sample.difficult)[objects],
    )


# --- matching -----------------------------------------------------------------------------------------------


def _judge(groups: Sequence[_Group]) -> List[_Judged]:
    """Every group's outcome, in the order given."""
    judged: List[Optional[_Judged]] = [None] * len(groups)
    for numbers in _chunks(groups):
        for number, outcome in zip(numbers, _judge_chunk([groups[n] for n in numbers])):
            judged[number] = outcome
    return [outcome for outcome in judged if outcome is not None]


def _chunks(groups: Sequence[_Group]) -> Iterator[List[int]]:
    """Group numbers, those of like size together, so that little is padded."""
    order = sorted(range(len(groups)), key=lambda n: (len(groups[n].scores), len(groups[n].objects)))
    chunk: List[int] = []
    most = 0
    for n in order:
        pairs = (len(groups[n].scores) + 1) * (len(groups[n].objects) + 1)
        if chunk and max(most, pairs) * (len(chunk) + 1) > PAIRS_AT_ONCE:
            yield chunk
            chunk, most = [], 0
        chunk.append(n)
        most = max(most, pairs)
    if chunk:
        yield chunk


def _judge_chunk(groups: Sequence[_Group]) -> Iterator[_Judged]:
    """Greedy matching of B groups at once: the n-th detection of each, at every size and threshold."""
    boxes = _padded([group.boxes for group in groups], 0.0)  # (B, D, 4)
    objects = _padded([group.objects for group in groups], 0.0)  # (B, G, 4)
    crowd = _padded([group.crowd for group in groups], False)
    never = _padded([group.ignored for group in groups], False)
    exists = _padded([np.ones(len(group.objects), bool) for group in groups], False)
    overlaps = _iou(boxes, objects, crowd)
    overlaps[~np.broadcast_to(exists[:, None, :], overlaps.shape)] = -1

    low, high = np.array(list(SIZES.values())).T
    object_area, box_area = _area(objects), _area(boxes)
    # (B, A, G): an object that does not count at this size; (B, A, D): a detection outside it
    ignored = never[:, None] | _outside(object_area, low, high)
    outside = _outside(box_area, low, high)

    batch, depth, sizes = len(groups), boxes.shape[1], len(SIZES)
    needed = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[None, None, :, None]
    free = np.ones((batch, sizes, len(IOU_THRESHOLDS), objects.shape[1]), bool)
    tp = np.zeros((batch, sizes, len(IOU_THRESHOLDS), depth), bool)
    fp = np.zeros_like(tp)
    for d in range(depth if objects.shape[1] else 0):
        overlap = overlaps[:, None, None, d, :]  # (B, 1, 1, G)
        open_to = (free | crowd[:, None, None]) & (overlap >= needed)
        counts = open_to & ~ignored[:, :, None]
        best = _last_argmax(np.where(counts, overlap, -1.0))
        second = _last_argmax(np.where(open_to, overlap, -1.0))
        right = counts.any(axis=-1)
        any_match = open_to.any(axis=-1)
        taken = np.where(right, best, second)
        _take(free, taken, any_match)
        tp[..., d] = right
        fp[..., d] = ~any_match & ~outside[:, :, None, d]
    if not objects.shape[1]:
        fp[:] = ~outside[:, :, None, :]
    counted = (exists[:, None] & ~ignored).sum(axis=-1)
    for b, group in enumerate(groups):
        count = len(group.scores)
        yield _Judged(group.scores, tp[b, :, :, :count], fp[b, :, :, :count], counted[b])


def _padded(arrays: Sequence[np.ndarray], fill: object) -> np.ndarray:
    """Arrays of different lengths under one roof: (B, longest, ...)."""
    longest = max(len(array) for array in arrays)
    together = np.full((len(arrays), longest) + arrays[0].shape[1:], fill, arrays[0].dtype)
    for row, array in zip(together, arrays):
        row[: len(array)] = array
    return together


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _outside(area: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(B, K) areas -> bool (B, sizes, K)."""
    return (area[:, None] < low[:, None]) | (area[:, None] > high[:, None])


def _iou(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(B, D, G); with a crowd it is the share of the detection that lies inside."""
    low = np.maximum(boxes[:, :, None, :2], objects[:, None, :, :2])
    high = np.minimum(boxes[:, :, None, 2:], objects[:, None, :, 2:])
    sides = np.maximum(high - low, 0)
    inter = sides[..., 0] * sides[..., 1]
    own = _area(boxes)[:, :, None]
    union = np.where(crowd[:, None, :], own, own + _area(objects)[:, None, :] - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=inter > 0)


def _last_argmax(values: np.ndarray) -> np.ndarray:
    """Of equal overlaps pycocotools takes the last object."""
    return values.shape[-1] - 1 - np.argmax(values[..., ::-1], axis=-1)


def _take(free: np.ndarray, which: np.ndarray, where: np.ndarray) -> None:
    """Mark object `which` (B, A, T) as taken, where `where`."""
    b, a, t = np.nonzero(where)
    free[b, a, t, which[b, a, t]] = False


# --- curves -------------------------------------------------------------------------------------------------


def _accumulate(judged: Sequence[_Judged], most: int) -> Tuple[np.ndarray, np.ndarray]:
    """Precision at each of RECALLS (A, T, 101) and the recall reached (A, T); NaN at sizes without objects."""
    sizes, thresholds = len(SIZES), len(IOU_THRESHOLDS)
    precision = np.full((sizes, thresholds, len(RECALLS)), np.nan)
    recall = np.full((sizes, thresholds), np.nan)
    objects = sum((group.counted for group in judged), np.zeros(sizes, np.int64))
    if not objects.any():
        return precision, recall
    scores = np.concatenate([group.scores[:most] for group in judged])
    order = np.argsort(-scores, kind="stable")
    tp = np.cumsum(np.concatenate([g.tp[..., :most] for g in judged], axis=-1)[..., order], axis=-1)
    fp = np.cumsum(np.concatenate([g.fp[..., :most] for g in judged], axis=-1)[..., order], axis=-1)
    for a in np.flatnonzero(objects):
        for t in range(thresholds):
            precision[a, t], recall[a, t] = _curve(tp[a, t], fp[a, t], objects[a])
    return precision, recall


def _curve(tp: np.ndarray, fp: np.ndarray, objects: int) -> Tuple[np.ndarray, float]:
    if not len(tp):
        return np.zeros(len(RECALLS)), 0.0
    reached = tp / objects
    envelope = np.maximum.accumulate((tp / (tp + fp + np.spacing(1)))[::-1])[::-1]
    sampled = np.append(envelope, 0.0)[np.searchsorted(reached, RECALLS, side="left")]
    return sampled, float(reached[-1])


def _class_result(name: str, judged: Sequence[_Judged], precision: np.ndarray) -> ClassResult:
    """All sizes; counts at IoU 0.5."""
    scores = np.concatenate([group.scores for group in judged] + [np.zeros(0, np.float32)])
    order = np.argsort(-scores, kind="stable")
    tp = np.concatenate([group.tp[0, 0] for group in judged] + [np.zeros(0, bool)])[order]
    fp = np.concatenate([group.fp[0, 0] for group in judged] + [np.zeros(0, bool)])[order]
    counted = [int(group.counted[0]) for group in judged]
    images = sum(count > 0 for count in counted)
    return ClassResult(name, _mean(precision[0]), images, sum(counted), scores[order], tp, fp)


def _summary(precision: np.ndarray, recall: np.ndarray) -> Dict[str, Optional[float]]:
    """From precision (C, A, T, 101) and recall (C, 3, T)."""
    summary = {
        "AP": _mean(precision[:, 0]),
        "AP50": _mean(precision[:, 0, 0]),
        "AP75": _mean(precision[:, 0, 5]),
    }
    for a, size in enumerate(SIZES):
        if a:
            summary[f"AP {size}"] = _mean(precision[:, a])
    for i, best in enumerate((1, 10, MAX_DETECTIONS)):
        summary[f"AR {best}"] = _mean(recall[:, i])
    return summary


def _mean(values: np.ndarray) -> Optional[float]:
    """Of what is there; None when nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
