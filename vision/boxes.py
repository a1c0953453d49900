"""Boxes: forms, areas, IoU, the SSD encoding, and non-maximum suppression. Numpy only.

Corners are x1, y1, x2, y2; centres are cx, cy, w, h. The unit (pixels or fractions of the image) is the
caller's: every function works in either, as long as both of its arguments are in the same one.
"""

from typing import List, Optional, Tuple

import numpy as np

Variances = Tuple[float, float]

# exp() of a size offset beyond this is an absurd box, not a bigger one; it would only overflow.
LARGEST_LOG_RATIO = 20.0


def corners_to_centers(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) corners -> (..., 4) centres."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def centers_to_corners(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) centres -> (..., 4) corners."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([center - half, center + half], axis=-1)


def area(boxes: np.ndarray) -> np.ndarray:
    """Area of (..., 4) corner boxes; an inverted box has none."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every corner box of `a` (N, 4) with every one of `b` (M, 4) -> (N, M).

    Boxes without area have IoU 0 with everything. (The original added 1e-5 to the union, which let identical
    small boxes escape suppression: in fractions, two equal boxes of side 0.003 had an IoU of 0.44.)
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low, 0)
    inter = sides[..., 0] * sides[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def encode(corners: np.ndarray, priors: np.ndarray, variances: Variances) -> np.ndarray:
    """What a net must predict for `corners` (..., 4) at `priors` (..., 4; centres) (SSD, section 2.2, eq. 2).

    Raises ValueError for a box without area, whose logarithm does not exist.
    """
    boxes = corners_to_centers(corners)
    if not (boxes[..., 2:] > 0).all():
        raise ValueError("a box without area cannot be encoded")
    center = (boxes[..., :2] - priors[..., :2]) / priors[..., 2:] / variances[0]
    size = np.log(boxes[..., 2:] / priors[..., 2:]) / variances[1]
    return np.concatenate([center, size], axis=-1)


def decode(locations: np.ndarray, priors: np.ndarray, variances: Variances) -> np.ndarray:
    """The inverse of `encode`: locations (..., 4) at priors (..., 4; centres) -> corners (..., 4)."""
    center = locations[..., :2] * variances[0] * priors[..., 2:] + priors[..., :2]
    size = np.exp(np.minimum(locations[..., 2:] * variances[1], LARGEST_LOG_RATIO)) * priors[..., 2:]
    return centers_to_corners(np.concatenate([center, size], axis=-1))


def clip(boxes: np.ndarray, size: Tuple[float, float]) -> np.ndarray:
    """Corner boxes (..., 4) cut to an image of `size` (height, width), in the boxes' unit."""
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


# --- non-maximum suppression --------------------------------------------------------------------------------


_PLANE = 1 << 15
"""Numbers in one plane of pairwise overlaps: so many stay in the cache, and are worth a call."""


def _overlaps(boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which corner boxes (L, K, 4) of a list have an IoU above the threshold with which: bool (L, K, K)."""
    # One plane per coordinate and in-place arithmetic: the planes stay in the cache.
    x1, y1, x2, y2 = (np.ascontiguousarray(boxes[..., i]) for i in range(4))
    areas = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    inter = np.minimum(x2[:, :, None], x2[:, None])
    inter -= np.maximum(x1[:, :, None], x1[:, None])
    np.maximum(inter, 0, out=inter)
    height = np.minimum(y2[:, :, None], y2[:, None])
    height -= np.maximum(y1[:, :, None], y1[:, None])
    np.maximum(height, 0, out=height)
    inter *= height
    # inter / union > t without the division, which would be 0 / 0 for boxes without area
    limit = np.add(areas[:, :, None], areas[:, None], out=height)
    limit -= inter
    limit *= iou_threshold
    return inter > limit


def suppress(boxes: np.ndarray, iou_threshold: float, lengths: Optional[np.ndarray] = None) -> np.ndarray:
    """Greedy suppression in several independent lists at once.

    Args:
        boxes: (L, K, 4) corners; in each of the L lists the K boxes stand by falling score. Rows without area
            neither suppress nor are suppressed.
        iou_threshold: a box goes when its IoU with a kept, better box is above this.
        lengths: (L,), how many boxes of each list are looked at (None: all); those behind stay.

    Returns: bool (L, K), True where a box stays.
    """
    lists, count, _ = boxes.shape
    keep = np.ones((lists, count), bool)
    if lengths is None:
        lengths = np.full(lists, count)
    overlaps = np.zeros((count, lists, count), bool)
    together = max(1, _PLANE // max(count * count, 1))
    for start in range(0, lists, together):
        several = slice(start, start + together)
        length = int(lengths[several].max())
        found = _overlaps(boxes[several, :length], iou_threshold)
        looked_at = np.arange(length) < lengths[several, None]
        found &= looked_at[:, :, None] & looked_at[:, None]
        overlaps[:length, several, :length] = found.transpose(1, 0, 2)
    # The greedy rule is sequential in a list, but all lists take the same step at once.
    for i in range(count - 1):
        keep[:, i + 1 :] &= ~(overlaps[i, :, i + 1 :] & keep[:, i : i + 1])
    return keep


def nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float = 0.45,
    top_k: int = -1,
    candidate_size: int = 200,
) -> np.ndarray:
    """Hard NMS of one class.

    Args:
        boxes, scores: (K, 4) corners and (K,).
        top_k: keep at most so many; -1 for all.
        candidate_size: only the best so many boxes are looked at.

    Returns: int64 row numbers of the kept boxes, by falling score (equal scores in input order).
    """
    order = np.argsort(-scores, kind="stable")[: max(candidate_size, 0)]
    kept = order[suppress(boxes[order][None], iou_threshold)[0]]
    return kept if top_k < 0 else kept[:top_k]


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    score_threshold: float = 0.01,
    sigma: float = 0.5,
    top_k: int = -1,
) -> Tuple[np.ndarray, np.ndarray]:
    """Soft NMS with a Gaussian penalty (Bodla et al. 2017, arXiv 1704.04503, eq. 3) of one class.

    Args:
        boxes, scores: (K, 4) corners and (K,).
        score_threshold: boxes whose decayed score is not above this are dropped (never the first).
        sigma: width of the penalty exp(-IoU^2 / sigma).
        top_k: stop after so many; -1 for all.

    Returns: int64 row numbers in the order of selection, and their decayed scores. The inputs stay as they are.
    """
    rows = np.arange(len(scores))
    left = np.array(scores, dtype=np.float32)
    kept: List[int] = []
    kept_scores: List[float] = []
    while len(rows) and (top_k < 0 or len(kept) < top_k):
        best = int(np.argmax(left))
        kept.append(int(rows[best]))
        kept_scores.append(float(left[best]))
        overlap = iou(boxes[rows[best]][None], boxes[rows])[0]
        left = left * np.exp(-(overlap**2) / sigma).astype(np.float32)
        stay = left > score_threshold
        stay[best] = False
        rows, left = rows[stay], left[stay]
    return np.array(kept, np.int64), np.array(kept_scores, np.float32)


def select(
    scores: np.ndarray,
    boxes: np.ndarray,
    threshold: float,
    iou_threshold: float = 0.45,
    top_k: int = -1,
    candidate_size: int = 200,
    method: str = "hard",
    sigma: float = 0.5,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the output of a net to the boxes worth showing: threshold and NMS, class by class.

    Args:
        scores: (P, C) after softmax; class 0 is the background.
        boxes: (P, 4) corners.
        threshold: a score must be above this.
        iou_threshold, candidate_size: of hard NMS, see `nms`.
        top_k: keep at most so many of each class; -1 for all.
        method, sigma: "hard" or "soft" (see `soft_nms`).

    Returns: boxes (K, 4), scores (K,), labels int64 (K,) in 1..C-1, by falling score.
    """
    # A prior that passes in no class is thrown away before anything is sorted.
    passed = scores > threshold
    passed[:, 0] = False
    # Flat first: few pass, and reducing 3000 short rows would take longer than all that follows.
    alive = np.unique(np.flatnonzero(passed) // scores.shape[1])
    foreground, boxes = np.ascontiguousarray(scores[alive, 1:].T), boxes[alive]
    if not foreground.size:
        return (
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
        )
    if method == "soft":
        rows, kept_scores, labels = _select_soft(foreground, boxes, threshold, top_k, sigma)
    elif method == "hard":
        rows, kept_scores, labels = _select_hard(
            foreground, boxes, threshold, iou_threshold, top_k, candidate_size
        )
    else:
        raise ValueError(f"NMS method {method!r} is neither 'hard' nor 'soft'")
    order = np.argsort(-kept_scores, kind="stable")
    return boxes[rows[order]], kept_scores[order], labels[order]


def _select_hard(
    scores: np.ndarray,
    boxes: np.ndarray,
    threshold: float,
    iou_threshold: float,
    top_k: int,
    candidate_size: int,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers, scores and labels that survive hard NMS; `scores` is (C - 1, P)."""
    # Classes that nothing passed take no part, and every list is as short as the longest needs.
    counts = (scores > threshold).sum(axis=1)
    present = np.flatnonzero(counts)
    scores = scores[present]
    length = int(min(counts.max(), candidate_size))
    if length < scores.shape[1]:
        rows = np.argpartition(-scores, length - 1, axis=1)[:, :length]
        rows.sort(axis=1)  # so that the stable sort below leaves equal scores in prior order
    else:
        rows = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    values = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    rows = np.take_along_axis(rows, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)

    passed = values > threshold
    keep = suppress(boxes[rows], iou_threshold, np.minimum(counts[present], length)) & passed
    if top_k >= 0:
        keep &= np.cumsum(keep, axis=1) <= top_k
    which, column = np.nonzero(keep)
    return rows[which, column], values[which, column], present[which] + 1


def _select_soft(
    scores: np.ndarray, boxes: np.ndarray, threshold: float, top_k: int, sigma: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers, decayed scores and labels after soft NMS; `scores` is (C - 1, P)."""
    rows, values, labels = [], [], []
    for label, of_class in enumerate(scores, start=1):
        passed = np.flatnonzero(of_class > threshold)
        kept, decayed = soft_nms(boxes[passed], of_class[passed], threshold, sigma, top_k)
        rows.append(passed[kept])
        values.append(decayed)
        labels.append(np.full(len(kept), label, np.int64))
    return np.concatenate(rows), np.concatenate(values), np.concatenate(labels)
