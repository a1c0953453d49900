"""The MultiBox loss with hard negative mining (SSD, arXiv 1512.02325, section 2.2, "Training objective")."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mine_hard_negatives(background_loss: Tensor, labels: Tensor, ratio: float, at_least: int) -> Tensor:
    """Which priors enter the classification loss: bool (N, P).

    All positives, and in each image the `ratio` times as many negatives whose background loss is highest
    (section 2.2, "Hard negative mining"), at least `at_least` of them: without that, an image with no object
    would teach nothing.

    Args:
        background_loss: (N, P), -log p(background).
        labels: int64 (N, P), 0 is the background; priors below it are left out.
    """
    positive = labels > 0
    wanted = (positive.sum(dim=1, keepdim=True) * ratio).long().clamp(min=at_least)
    order = background_loss.masked_fill(labels != 0, -torch.inf).argsort(dim=1, descending=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return positive | ((rank < wanted) & (labels == 0))


class MultiBoxLoss(nn.Module):
    """Smooth L1 of locations and cross entropy of classes, each summed and divided by the positives.

    Args:
        negative_ratio: mined negatives for each positive.
        min_negatives: mined in an image with few or no positives. The original mined none there.
    """

    def __init__(self, negative_ratio: float = 3.0, min_negatives: int = 3) -> None:
        super().__init__()
        self.negative_ratio = negative_ratio
        self.min_negatives = min_negatives

    def forward(
        self, logits: Tensor, locations: Tensor, labels: Tensor, targets: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """(localisation loss, classification loss), scalars.

        Args:
            logits: (N, P, C) before softmax.
            locations, targets: (N, P, 4) encoded boxes, predicted and true.
            labels: int64 (N, P), 0 is the background; what is below 0 teaches nothing.

        Without a positive in the whole batch the sums are divided by 1: finite, and still teaching.
        """
        logits, locations = logits.float(), locations.float()
        with torch.no_grad():
            background_loss = torch.logsumexp(logits, dim=2) - logits[..., 0]
            mask = mine_hard_negatives(background_loss, labels, self.negative_ratio, self.min_negatives)
        positive = labels > 0
        count = positive.sum().clamp(min=1)
        classification = F.cross_entropy(logits[mask], labels[mask], reduction="sum")
        localisation = F.smooth_l1_loss(locations[positive], targets[positive], reduction="sum")
        return localisation / count, classification / count
