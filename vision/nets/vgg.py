"""VGG-16 (arXiv 1409.1556) with fc6 and fc7 made convolutions, as in the SSD paper: vgg16-ssd."""

from functools import partial
from typing import List

from torch import nn

from vision.errors import UserError
from vision.nets.layers import BatchNorm, ScaledL2Norm, plain_head
from vision.nets.mobilenet_v1 import extra_block
from vision.spec import Extra, InputSpec, NetSpec, PriorLayer, Tap, register

# (convolutions, channels) of each stage
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

PRIORS = (
    PriorLayer(8, 30, 60, (2,)),
    PriorLayer(16, 60, 111, (2, 3)),
    PriorLayer(32, 111, 162, (2, 3)),
    PriorLayer(64, 162, 213, (2, 3)),
    PriorLayer(None, 213, 264, (2,)),
    PriorLayer(None, 264, 315, (2,)),
)
EXTRAS = (Extra(256, 512), Extra(128, 256), Extra(128, 256, 1, 0), Extra(128, 256, 1, 0))

# Keyed by the option's value. "batch" is what the published weights were trained with; "l2" is the paper's.
CONV4_3_NORMS = {"batch": BatchNorm, "l2": ScaledL2Norm}


def backbone() -> nn.Sequential:
    """Children 0..34, numbered as in vgg16_reducedfc.pth; 22 is conv4_3 after its ReLU, 34 is fc7 after its."""
    layers: List[nn.Module] = []
    channels = 3
    for stage, (repeats, out) in enumerate(STAGES):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        if stage == 4:
            layers.append(nn.MaxPool2d(3, 1, 1))  # keeps the size: fc6 sees as much through its dilation
        else:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=stage == 2))  # 75 -> 38 cells at 300 pixels
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, 1024, 3, padding=6, dilation=6),
        nn.ReLU(),
        nn.Conv2d(1024, 1024, 1),
        nn.ReLU(),
    )


def vgg16_ssd(conv4_3_norm: str = "batch") -> NetSpec:
    """
    Args:
        conv4_3_norm: "batch", a BatchNorm on conv4_3 (the published weights), or "l2", the paper's scaled L2
            norm with an initial scale of 20.
    """
    if conv4_3_norm not in tuple(CONV4_3_NORMS):
        raise UserError(
            f"vgg16-ssd: conv4_3_norm is {conv4_3_norm!r}; it can be {' or '.join(CONV4_3_NORMS)}"
        )
    return NetSpec(
        name="vgg16-ssd",
        backbone=backbone,
        taps=(Tap("22", 512, add_on=partial(CONV4_3_NORMS[conv4_3_norm], 512)), Tap("34", 1024)),
        extras=EXTRAS,
        extra_block=extra_block,
        head=plain_head,
        priors=PRIORS,
        input=InputSpec(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0)),
        learning_rate=0.001,
        adamw_rate=0.0003,
    )


register("vgg16-ssd", vgg16_ssd)
