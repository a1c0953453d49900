"""SqueezeNet 1.1 (arXiv 1602.07360) as SSDLite backbone: sq-ssd-lite."""

import torch
from torch import nn

from vision.nets.layers import lite_head
from vision.nets.mobilenet_v1 import PRIORS, extra_block_lite
from vision.spec import Extra, NetSpec, Tap, register

# The padding of 2 makes 10 x 10 of the 17 x 17 cells that unpadded pooling leaves of 300 pixels.
EXTRAS = (Extra(256, 512, padding=2), Extra(256, 512), Extra(128, 256), Extra(128, 256), Extra(128, 256))


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1 x 1 and 3 x 3 side by side."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.squeeze(x))
        return self.activation(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


def backbone() -> nn.Sequential:
    """Children 0..12, numbered as in torchvision's squeezenet1_1.features; pooling rounds down, unlike there."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        nn.MaxPool2d(3, 2),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        nn.MaxPool2d(3, 2),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )


def sq_ssd_lite() -> NetSpec:
    return NetSpec(
        name="sq-ssd-lite",
        backbone=backbone,
        taps=(Tap("11", 512),),
        extras=EXTRAS,
        extra_block=extra_block_lite,
        head=lite_head,
        priors=PRIORS,
        learning_rate=0.01,
        adamw_rate=0.001,
    )


register("sq-ssd-lite", sq_ssd_lite)
