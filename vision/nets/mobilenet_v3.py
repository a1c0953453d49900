"""The original's MobileNetV3 as SSDLite backbone: mb3-large-ssd-lite, mb3-small-ssd-lite.

It is near the paper's net (arXiv 1905.02244) but not the same: squeeze-and-excite stands behind the projection
and has BatchNorm inside, shortcuts may be convolutions, and the strides of the 160-channel blocks of "large"
are swapped. So weights of the paper's net do not fit, and none were published for this one.
"""

from functools import partial
from typing import NamedTuple, Tuple

import torch
from torch import nn

from vision.nets.layers import BatchNorm, Conv2d, conv_bn, lite_bn_head
from vision.nets.mobilenet_v1 import PRIORS
from vision.spec import Extra, NetSpec, Tap, register

RE, HS = nn.ReLU, nn.Hardswish


class Row(NamedTuple):
    """One block: depthwise kernel, expanded and output channels, activation, squeeze-and-excite, stride."""

    kernel: int
    expand: int
    out: int
    activation: type
    squeeze: bool
    stride: int


LARGE = (
    Row(3, 16, 16, RE, False, 1),
    Row(3, 64, 24, RE, False, 2),
    Row(3, 72, 24, RE, False, 1),
    Row(5, 72, 40, RE, True, 2),
    Row(5, 120, 40, RE, True, 1),
    Row(5, 120, 40, RE, True, 1),
    Row(3, 240, 80, HS, False, 2),
    Row(3, 200, 80, HS, False, 1),
    Row(3, 184, 80, HS, False, 1),
    Row(3, 184, 80, HS, False, 1),
    Row(3, 480, 112, HS, True, 1),
    Row(3, 672, 112, HS, True, 1),
    Row(5, 672, 160, HS, True, 1),
    Row(5, 672, 160, HS, True, 2),
    Row(5, 960, 160, HS, True, 1),
)
SMALL = (
    Row(3, 16, 16, RE, True, 2),
    Row(3, 72, 24, RE, False, 2),
    Row(3, 88, 24, RE, False, 1),
    Row(5, 96, 40, HS, True, 2),
    Row(5, 240, 40, HS, True, 1),
    Row(5, 240, 40, HS, True, 1),
    Row(5, 120, 48, HS, True, 1),
    Row(5, 144, 48, HS, True, 1),
    Row(5, 288, 96, HS, True, 2),
    Row(5, 576, 96, HS, True, 1),
    Row(5, 576, 96, HS, True, 1),
)
STEM = 16

EXTRAS = (Extra(256, 512), Extra(128, 256), Extra(128, 256), Extra(64, 64))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole map says (arXiv 1709.01507), BatchNorm behind both convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 4
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1, bias=False),
            BatchNorm(squeezed),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1, bias=False),
            BatchNorm(channels),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.se(x)


class Block(nn.Module):
    """Expand, depthwise, project, squeeze-and-excite; at stride 1 always summed with its shortcut."""

    def __init__(self, in_channels: int, row: Row) -> None:
        super().__init__()
        kernel, expand, out = row.kernel, row.expand, row.out
        self.adds_shortcut = row.stride == 1
        # First, though it runs last: the order of the keys in published files.
        self.se = SqueezeExcite(out) if row.squeeze else nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, expand, 1, bias=False)
        self.bn1 = BatchNorm(expand)
        self.act1 = row.activation()
        self.conv2 = Conv2d(expand, expand, kernel, row.stride, kernel // 2, groups=expand, bias=False)
        self.bn2 = BatchNorm(expand)
        self.act2 = row.activation()
        self.conv3 = nn.Conv2d(expand, out, 1, bias=False)
        self.bn3 = BatchNorm(out)
        self.shortcut = nn.Sequential()
        if self.adds_shortcut and in_channels != out:
            self.shortcut = nn.Sequential(*conv_bn(in_channels, out, 1, activation=None))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.se(self.bn3(self.conv3(y)))
        return y + self.shortcut(x) if self.adds_shortcut else y


def backbone(rows: Tuple[Row, ...], last: int) -> nn.Sequential:
    """A flat chain: children 0..2 the stem, one child a row from 3 on, then convolution, BatchNorm, activation."""
    layers = conv_bn(3, STEM, 3, stride=2, activation=HS)
    channels = STEM
    for row in rows:
        layers.append(Block(channels, row))
        channels = row.out
    layers += conv_bn(channels, last, 1, activation=HS)
    return nn.Sequential(*layers)


def extra_block(in_channels: int, extra: Extra) -> nn.Module:
    return Block(in_channels, Row(3, extra.hidden, extra.out, HS, False, extra.stride))


def _spec(name: str, rows: Tuple[Row, ...], tapped_row: int, last: int) -> NetSpec:
    """`tapped_row`: number of the last row at stride 16, counted from 0."""
    return NetSpec(
        name=name,
        backbone=partial(backbone, rows, last),
        taps=(Tap(str(3 + tapped_row), rows[tapped_row].out), Tap(str(3 + len(rows) + 2), last)),
        extras=EXTRAS,
        extra_block=extra_block,
        head=lite_bn_head,
        priors=PRIORS,
    )


def mb3_large_ssd_lite() -> NetSpec:
    return _spec("mb3-large-ssd-lite", LARGE, 11, 960)


def mb3_small_ssd_lite() -> NetSpec:
    return _spec("mb3-small-ssd-lite", SMALL, 7, 576)


register("mb3-large-ssd-lite", mb3_large_ssd_lite)
register("mb3-small-ssd-lite", mb3_small_ssd_lite)
