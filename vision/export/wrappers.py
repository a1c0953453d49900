"""What goes round a net for export: the forms of an exported file, each a module of its own.

Every shape in here is a Python number, never a traced one, so that exported graphs hold plain constants.
"""

from typing import Sequence, Tuple

import torch
from torch import nn

from vision.spec import InputSpec
from vision.ssd import SSD, Deployed, at_least_float32

Pair = Tuple[torch.Tensor, torch.Tensor]

DETECTNET_INPUT = (127.5, 127.5)
"""Mean and standard deviation of every channel in NVIDIA's detectNet, whatever the net was trained with."""

# IoU is computed on a grid of so many cells a side: areas of small boxes stay above the smallest float16, and
# those of boxes as large as three images below the largest.
_GRID = 64.0
# Turns a difference of areas into 0 or 1. Below the largest float16, where infinity times 0 would be NaN.
_STEEP = 1e4


class Raw(nn.Module):
    """normalised images -> scores (N, P, C) after softmax, locations (N, P, 4) to be decoded outside."""

    def __init__(self, net: SSD) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> Pair:
        logits, locations = self.net(images)
        return torch.softmax(at_least_float32(logits), dim=2), at_least_float32(locations)


class OtherNormalisation(nn.Module):
    """The same net for images that were normalised otherwise: (x - mean) / std with the mean and std of `given`.

    The affine map between the two stands before the net and is not folded into its first convolution: zero
    padding means grey in one normalisation and not in the other, so folding the offset would change every pixel
    at the border. Runtimes fuse the two operators.
    """

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, inner: nn.Module, trained: InputSpec, given: InputSpec) -> None:
        super().__init__()
        self.inner = inner
        mean, std = _channels(trained.mean), _channels(trained.std)
        given_mean, given_std = _channels(given.mean), _channels(given.std)
        # x = given * given_std + given_mean; normalised = (x - mean) / std. In float64, rounded once.
        self.register_buffer("factor", (given_std / std).float(), persistent=False)
        self.register_buffer("shift", ((given_mean - mean) / std).float(), persistent=False)

    def forward(self, images: torch.Tensor) -> Pair:
        return self.inner(images * self.factor + self.shift)


class Averaged(nn.Module):
    """The same net for images of `factor` times its size: means of blocks of pixels, the other normalisation included.

    For consumers that resize by picking single pixels: of four that are picked, the mean is what an interpolation
    gives. One depthwise convolution; without padding, normalisation can be folded into it.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, inner: nn.Module, trained: InputSpec, given: InputSpec, factor: int) -> None:
        super().__init__()
        self.inner = inner
        self.factor = factor
        affine = OtherNormalisation(inner, trained, given)
        block = torch.ones(3, 1, factor, factor) / factor**2
        self.register_buffer("weight", block * affine.factor.view(3, 1, 1, 1), persistent=False)
        self.register_buffer("bias", affine.shift.view(3), persistent=False)

    def forward(self, images: torch.Tensor) -> Pair:
        return self.inner(nn.functional.conv2d(images, self.weight, self.bias, stride=self.factor, groups=3))


class FromBytes(nn.Module):
    """The same net for RGB bytes (N, height, width, 3)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, inner: nn.Module, trained: InputSpec) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", _channels(trained.mean).float(), persistent=False)
        self.register_buffer("std", _channels(trained.std).float(), persistent=False)

    def forward(self, images: torch.Tensor) -> Pair:
        # Cast first: TensorRT knows bytes as an input and nowhere else. Contiguous, or the strides of the bytes
        # would go through the whole net, and into the graph.
        planes = images.float().permute(0, 3, 1, 2).contiguous()
        return self.inner((planes - self.mean) / self.std)


def _channels(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


class Suppressed(nn.Module):
    """NMS unrolled into plain operators, for consumers that have none of their own, or a wrong one.

    For each class the best `candidates` priors are taken (as `vision.boxes.nms` does), and the score of each
    that NMS drops is set to 0. What comes out looks like any SSD: one row for each candidate of each class, its
    score in the column of that class and 0 elsewhere, so that an argmax over classes, sorting or merging of
    overlapping boxes has nothing left to spoil.

    Greedy NMS is sequential, but a fixed number of steps gives the same: from "all stay", a box is dropped when
    a better box that stays overlaps it. After n steps every box is right whose chain of "dropped by one that
    was dropped by one that ..." is shorter than n; photographs make chains of two or three.

    Operators: Slice, Transpose, TopK, Gather, Min, Max, Sub, Mul, Add, Clip, MatMul, Reshape. No booleans, no
    scatter, no NonMaxSuppression, which TensorRT 8 lacks or leaves to plugins.

    `forward`: images (1, ...) -> scores (1, (C - 1) * K, C), boxes (1, (C - 1) * K, 4) corners as fractions, and
    what the net itself gave, scores (1, P, C) and boxes (1, P, 4).
    """

    upper: torch.Tensor
    columns: torch.Tensor
    everyone: torch.Tensor

    def __init__(
        self, deployed: nn.Module, net: SSD, iou_threshold: float, candidates: int = 200, steps: int = 12
    ) -> None:
        super().__init__()
        self.deployed = deployed
        self.priors = len(net.priors)
        self.foreground = net.num_classes - 1
        self.candidates = min(candidates, self.priors)
        self.iou_threshold = iou_threshold
        self.steps = steps
        count = self.candidates
        # [i, j] is 1 where candidate i is better than j: they stand by falling score.
        self.register_buffer("upper", torch.triu(torch.ones(1, count, count), diagonal=1), persistent=False)
        columns = torch.eye(net.num_classes)[1:].reshape(self.foreground, 1, net.num_classes)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("everyone", torch.ones(self.foreground, 1, count), persistent=False)

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        all_scores, all_boxes = self.deployed(images)
        classes, count = self.foreground, self.candidates
        of_class = all_scores[:, :, 1:].permute(0, 2, 1).reshape(classes, self.priors)
        scores, rows = torch.topk(of_class, count, dim=1)  # (C - 1, K)
        boxes = all_boxes.reshape(self.priors, 4).index_select(0, rows.reshape(classes * count))
        kept = scores.reshape(classes, count, 1) * self.stays(boxes.reshape(classes, count, 4))
        rows_of_classes = (kept * self.columns).reshape(1, classes * count, classes + 1)
        return rows_of_classes, boxes.reshape(1, classes * count, 4), all_scores, all_boxes

    def stays(self, boxes: torch.Tensor) -> torch.Tensor:
        """Corner boxes (L, K, 4) by falling score -> (L, K, 1), 1 where NMS keeps a box, else 0."""
        over = self.overlaps(boxes) * self.upper
        keep = self.everyone
        for _ in range(self.steps):
            keep = torch.clamp(1.0 - torch.matmul(keep, over), 0.0, 1.0)
        return keep.reshape(self.foreground, self.candidates, 1)

    def overlaps(self, boxes: torch.Tensor) -> torch.Tensor:
        """(L, K, 4) -> (L, K, K), 1 where the IoU is above the threshold, else 0."""
        lists, count = self.foreground, self.candidates
        # An absurd box must not overflow; one larger than three images overlaps as one of three images does.
        boxes = torch.clamp(boxes, -1.0, 2.0) * _GRID
        low, high = boxes[:, :, :2], boxes[:, :, 2:]
        sides = torch.clamp(high - low, 0.0, 3 * _GRID)
        area = sides[:, :, :1] * sides[:, :, 1:]
        inter = None
        for axis in range(2):
            start, end = low[:, :, axis : axis + 1], high[:, :, axis : axis + 1]
            shared = torch.minimum(end, end.reshape(lists, 1, count)) - torch.maximum(
                start, start.reshape(lists, 1, count)
            )
            shared = torch.clamp(shared, 0.0, 3 * _GRID)
            inter = shared if inter is None else inter * shared
        assert inter is not None
        # IoU > t is inter > t / (1 + t) * (sum of areas): no union, no division.
        share = self.iou_threshold / (1.0 + self.iou_threshold)
        limit = (area + area.reshape(lists, 1, count)) * share
        return torch.clamp((inter - limit) * _STEEP, 0.0, 1.0)


def wrap(
    net: SSD,
    form: str,
    trained: InputSpec,
    given: InputSpec,
    suppress: bool,
    iou_threshold: float,
    candidates: int,
) -> nn.Module:
    """The module that is exported for a form of `vision.card.FORMS`.

    Args:
        trained, given: the image as the net was trained on it, and as the exported file will get it: with another
            normalisation, or a whole number of times as large.
        suppress: unroll NMS into the graph, with `iou_threshold` and `candidates` for each class.
    """
    module: nn.Module = Raw(net) if form == "raw" else Deployed(net)
    if form == "uint8":
        module = FromBytes(module, trained)
    elif given.size != trained.size:
        module = Averaged(module, trained, given, given.height // trained.height)
    elif (given.mean, given.std) != (trained.mean, trained.std):
        module = OtherNormalisation(module, trained, given)
    if suppress:
        module = Suppressed(module, net, iou_threshold, candidates)
    return module.eval()
