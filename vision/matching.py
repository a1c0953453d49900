"""Which prior learns which object: the SSD rule for a whole batch, on whatever device holds it."""

from typing import Tuple

import torch
from torch import Tensor

from vision.data.sample import IGNORED

IGNORED_SHARE = 0.5
"""Of a prior, in a box round a group, from which on it is no background; that of Open Images' own evaluation."""


def centers_to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centres -> (..., 4) corners."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def corners_to_centers(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centres."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Area of (..., 4) corner boxes; an inverted box has none."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of corner boxes (..., N, 4) and (..., M, 4) -> (..., N, M); 0 where both are without area."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    sides = (high - low).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = area(a)[..., :, None] + area(b)[..., None, :] - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def encode(corners: Tensor, priors: Tensor, variances: Tuple[float, float]) -> Tensor:
    """What the net must predict for corner boxes (..., P, 4) at centre-form priors (P, 4) (SSD, eq. 2)."""
    boxes = corners_to_centers(corners)
    center = (boxes[..., :2] - priors[..., :2]) / priors[..., 2:] / variances[0]
    size = torch.log(boxes[..., 2:] / priors[..., 2:]) / variances[1]
    return torch.cat([center, size], dim=-1)


def assign(
    boxes: Tensor, labels: Tensor, priors: Tensor, iou_threshold: float = 0.5
) -> Tuple[Tensor, Tensor]:
    """Give every prior its object (SSD, arXiv 1512.02325, section 2.2, "Matching strategy").

    A prior takes the object with which its IoU is highest, if that reaches the threshold; then every object
    takes its own best prior, whatever the IoU. Where two objects share their best prior, the later one has it.

    An object smaller than the smallest priors lies wholly inside dozens of them, all with the same highest IoU.
    The original took the first of these, often a cell or two away, and such objects were never learnt. Here it
    takes those of them with the nearest centre: the priors of one cell.

    Args:
        boxes: float (N, G, 4), corners, fractions; padded.
        labels: int64 (N, G), 1..C-1; 0 for padding; or IGNORED: a prior of which half or more lies in such a box, and
            that has no object, is IGNORED too. A box without area counts as padding.
        priors: (P, 4), centres, fractions.
        iou_threshold: of a positive prior.

    Returns: labels int64 (N, P), 0 for the background, IGNORED for neither, and the number of the object that each
    prior points at, int64 (N, P) (meaningless for the background).
    """
    objects = labels.shape[1]
    if objects == 0:
        nothing = labels.new_zeros(len(labels), len(priors))
        return nothing, nothing
    real = (labels > 0) & (area(boxes) > 0)
    overlaps = iou(centers_to_corners(priors), boxes)  # (N, P, G)
    overlaps = overlaps.masked_fill(~real[:, None, :], -1.0)
    best_overlap, best_object = overlaps.max(dim=2)

    # amax over the objects' numbers says "the later object wins" without a loop.
    numbers = torch.arange(objects, device=labels.device)
    forced = torch.where(_own_priors(overlaps, boxes, priors) & real[:, None], numbers, -1).amax(dim=2)

    target = torch.where(forced >= 0, forced, best_object)
    positive = (forced >= 0) | (best_overlap >= iou_threshold)
    background = _background(boxes, labels, priors)
    return torch.where(positive, labels.gather(1, target), background), target


def _background(boxes: Tensor, labels: Tensor, priors: Tensor) -> Tensor:
    """int64 (N, P) or (1, 1): what a prior without an object is, IGNORED inside a box round a group, else 0."""
    ignored = labels == IGNORED
    if not ignored.any():
        return labels.new_zeros(1, 1)
    corners = centers_to_corners(priors)[None, :, None]  # (1, P, 1, 4)
    low = torch.maximum(corners[..., :2], boxes[:, None, :, :2])
    high = torch.minimum(corners[..., 2:], boxes[:, None, :, 2:])
    sides = (high - low).clamp(min=0)
    share = sides[..., 0] * sides[..., 1] / area(corners).clamp(min=torch.finfo(boxes.dtype).tiny)
    inside = ((share >= IGNORED_SHARE) & ignored[:, None]).any(dim=2)
    return torch.where(inside, IGNORED, 0)


def _own_priors(overlaps: Tensor, boxes: Tensor, priors: Tensor) -> Tensor:
    """Which priors each object takes for itself: those of its highest IoU (N, P, G) with the nearest centre."""
    centers = corners_to_centers(boxes)[..., :2]  # (N, G, 2)
    distance = (priors[None, :, None, :2] - centers[:, None]).square().sum(dim=3)  # (N, P, G)
    # Equal up to rounding.
    best = overlaps >= overlaps.amax(dim=1, keepdim=True) * (1 - 1e-5)
    distance = distance.masked_fill(~best, torch.inf)
    return best & (distance <= distance.amin(dim=1, keepdim=True))


def match(
    boxes: Tensor,
    labels: Tensor,
    priors: Tensor,
    variances: Tuple[float, float],
    iou_threshold: float = 0.5,
) -> Tuple[Tensor, Tensor]:
    """Training targets for a batch: labels int64 (N, P) and encoded locations (N, P, 4).

    Arguments as in `assign`. Locations of background priors are zero.
    """
    prior_labels, target = assign(boxes, labels, priors, iou_threshold)
    if labels.shape[1] == 0:
        return prior_labels, boxes.new_zeros(*prior_labels.shape, 4)
    matched = boxes.gather(1, target[..., None].expand(-1, -1, 4))
    # Background priors may point at padding, whose logarithm is -inf: give them their own prior instead.
    positive = (prior_labels > 0)[..., None]
    matched = torch.where(positive, matched, centers_to_corners(priors))
    return prior_labels, torch.where(positive, encode(matched, priors, variances), 0.0)
