"""Average precision by the rule of the Open Images challenge: VOC's area under the curve, with boxes round groups.

The rule (https://storage.googleapis.com/openimages/web/evaluation.html): detections of a class in an image, by falling
score, each look for the single object with the highest IoU. From the threshold upwards (>=) it is right when it is the
first one there, and does not count when the object is difficult. One that is not right, and of whose own area at least
the threshold lies in a box round a group (intersection over the area of the detection), is not wrong either: of all
those in a group box the best one counts as right, the others do not count; a group box in which nothing is found is an
object that was missed. What remains is wrong.

With group weight 0 (the rule before the challenge) a group box is no object: all that lies in it does not count.

The challenge leaves out detections of classes that nobody verified for an image. Samples carry no verified labels, so
here such detections are wrong, as with any other data.
"""

from typing import List, Sequence, Tuple

import numpy as np

from vision.boxes import area, iou
from vision.data.sample import Sample
from vision.detector import Detections
from vision.errors import UserError
from vision.evaluation.report import ClassResult, Report, precision_recall
from vision.evaluation.voc import average_precision, check_pairs


def evaluate(
    detections: Sequence[Detections],
    samples: Sequence[Sample],
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    group_weight: int = 1,
) -> Report:
    """Open Images AP of every class.

    Args:
        detections: one for each sample, in the same order.
        samples: the ground truth; labels index `classes`, those of the detections too.
        classes: names, BACKGROUND first.
        iou_threshold: in (0, 1]; of IoU with an object, and of the share of a detection that lies in a group.
        group_weight: 1, a group box is an object that one detection finds; 0, it is none.

    Returns: a Report; a class without an object that counts has no AP and stays out of the mean.

    Raises UserError for values out of range, ValueError for detections that do not fit the samples.
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"IoU threshold {iou_threshold} is outside (0, 1]")
    if group_weight not in (0, 1):
        raise UserError(f"group weight {group_weight} is neither 0 nor 1")
    check_pairs(detections, samples, classes)
    results = []
    for label in range(1, len(classes)):
        results.append(_class_result(label, classes[label], detections, samples, iou_threshold, group_weight))
    name = "Open Images AP" if group_weight else "Open Images AP, groups ignored,"
    return Report(f"{name} at IoU {iou_threshold:g}", iou_threshold, len(samples), results)


def _class_result(
    label: int,
    name: str,
    detections: Sequence[Detections],
    samples: Sequence[Sample],
    threshold: float,
    group_weight: int,
) -> ClassResult:
    """One class over all images."""
    nothing = np.zeros(0, bool)
    parts: List[Tuple[np.ndarray, np.ndarray, np.ndarray]] = [(np.zeros(0, np.float32), nothing, nothing)]
    objects = images = 0
    for found, sample in zip(detections, samples):
        of_class = sample.labels == label
        single = of_class & ~sample.group
        groups = of_class & sample.group
        here = int((single & ~sample.difficult).sum()) + group_weight * int(groups.sum())
        objects += here
        images += here > 0
        mine = np.flatnonzero(found.labels == label)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        right, wrong = judge(
            found.boxes[mine],
            sample.boxes[single],
            sample.difficult[single],
            sample.boxes[groups],
            threshold,
            group_weight,
        )
        parts.append((found.scores[mine], right, wrong))
    scores, tp, fp = (np.concatenate(columns) for columns in zip(*parts))
    order = np.argsort(-scores, kind="stable")
    scores, tp, fp = scores[order], tp[order], fp[order]
    recall, precision = precision_recall(tp, fp, objects)
    ap = average_precision(recall, precision, "area") if objects else None
    return ClassResult(name, ap, images, objects, scores, tp, fp)


def judge(
    boxes: np.ndarray,
    objects: np.ndarray,
    difficult: np.ndarray,
    groups: np.ndarray,
    threshold: float = 0.5,
    group_weight: int = 1,
) -> Tuple[np.ndarray, np.ndarray]:
    """Right and wrong detections of one class in one image; one that is neither does not count.

    Args:
        boxes: (D, 4) detections by falling score; all boxes are corners in pixels.
        objects, difficult: (G, 4) and bool (G,), single objects.
        groups: (K, 4) boxes round groups.

    Returns: two bool (D,).
    """
    right = np.zeros(len(boxes), bool)
    settled = np.zeros(len(boxes), bool)
    if len(objects) and len(boxes):
        overlaps = iou(boxes.astype(np.float64), objects.astype(np.float64))
        nearest = overlaps.argmax(axis=1)
        free = np.ones(len(objects), bool)
        for d, g in enumerate(nearest.tolist()):
            if overlaps[d, g] < threshold:
                continue
            if difficult[g]:
                settled[d] = True
            elif free[g]:
                free[g] = False
                right[d] = settled[d] = True
    if len(groups) and len(boxes):
        shares = _share_inside(boxes, groups)
        nearest = shares.argmax(axis=1)
        found = np.zeros(len(groups), bool)
        for d in np.flatnonzero(~settled).tolist():
            g = int(nearest[d])
            if shares[d, g] < threshold:
                continue
            settled[d] = True
            right[d] = bool(group_weight) and not found[g]
            found[g] = True
    return right, ~settled


def _share_inside(boxes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(D, 4), (K, 4) -> float64 (D, K): the share of each box's area that lies in each group; 0 for an empty box."""
    a, b = boxes.astype(np.float64), groups.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low, 0)
    inter = sides[..., 0] * sides[..., 1]
    own = area(a)[:, None]
    return np.divide(inter, own, out=np.zeros_like(inter), where=own > 0)
