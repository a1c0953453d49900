"""MobileNetV2 (arXiv 1801.04381) as SSDLite backbone: mb2-ssd-lite."""

from functools import partial
from typing import Callable, List

import torch
from torch import nn

from vision.errors import UserError
from vision.nets.layers import conv_bn, lite_bn_head
from vision.nets.mobilenet_v1 import PRIORS
from vision.spec import Extra, NetSpec, Tap, register

# (expansion, output channels, repeats, stride of the first) of the groups of inverted residuals
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST = 32, 1280
TAPPED_EXPANSION = 6 * 96  # inside block 14, the last at stride 16
SMALLEST_WIDTH, LARGEST_WIDTH = 0.1, 4.0

EXTRAS = (Extra(256, 512), Extra(128, 256), Extra(128, 256), Extra(64, 64))


class InvertedResidual(nn.Module):
    """Expand, depthwise 3 x 3, project without activation; summed with the input where the shapes allow.

    A block that does not sum is a plain chain, so that a source map may be tapped inside it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        stride: int,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.adds_input = stride == 1 and in_channels == out_channels
        self.is_chain = not self.adds_input
        expand = [] if hidden == in_channels else conv_bn(in_channels, hidden, 1, activation=activation)
        self.conv = nn.Sequential(
            *expand,
            *conv_bn(hidden, hidden, 3, stride, activation, depthwise=True),
            *conv_bn(hidden, out_channels, 1, activation=None),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.adds_input else self.conv(x)


def backbone(width_mult: float = 1.0, activation: Callable[[], nn.Module] = nn.ReLU6) -> nn.Sequential:
    """Children 0..18; inside 14, after the expansion, 576 channels at stride 16; 18 gives 1280 at stride 32."""
    channels = int(STEM * width_mult)
    blocks: List[nn.Module] = [nn.Sequential(*conv_bn(3, channels, 3, 2, activation))]
    for expansion, out, repeats, first_stride in GROUPS:
        out = int(out * width_mult)
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            blocks.append(InvertedResidual(channels, out, channels * expansion, stride, activation))
            channels = out
    blocks.append(nn.Sequential(*conv_bn(channels, last_channels(width_mult), 1, activation=activation)))
    return nn.Sequential(*blocks)


def last_channels(width_mult: float) -> int:
    """Narrow nets keep the full last layer (arXiv 1801.04381, section 5)."""
    return int(LAST * max(width_mult, 1.0))


def extra_block(in_channels: int, extra: Extra) -> nn.Module:
    """An inverted residual that shrinks; ReLU6 whatever the backbone has, as published."""
    return InvertedResidual(in_channels, extra.out, extra.hidden, extra.stride, nn.ReLU6)


def mb2_ssd_lite(width_mult: float = 1.0, onnx_compatible: bool = False) -> NetSpec:
    """
    Args:
        width_mult: factor on the channels of the backbone.
        onnx_compatible: ReLU instead of ReLU6 in the backbone (and nowhere else, as in the original).
    """
    if isinstance(width_mult, bool) or not isinstance(width_mult, (int, float)):
        raise UserError(f"mb2-ssd-lite: width_mult is {width_mult!r}; give a number such as 0.5 or 1.0")
    if not SMALLEST_WIDTH <= width_mult <= LARGEST_WIDTH:
        raise UserError(f"mb2-ssd-lite: width_mult {width_mult} is outside {SMALLEST_WIDTH}..{LARGEST_WIDTH}")
    if not isinstance(onnx_compatible, bool):
        raise UserError(f"mb2-ssd-lite: onnx_compatible is {onnx_compatible!r}; give True or False")
    # The original took round(576 * width_mult), which is not what the block has at 0.35, for example.
    expanded = int(96 * width_mult) * 6
    return NetSpec(
        name="mb2-ssd-lite",
        backbone=partial(backbone, width_mult, nn.ReLU if onnx_compatible else nn.ReLU6),
        taps=(Tap("14.conv.2", expanded), Tap("18", last_channels(width_mult))),
        extras=EXTRAS,
        extra_block=extra_block,
        head=lite_bn_head,
        priors=PRIORS,
    )


register("mb2-ssd-lite", mb2_ssd_lite)
