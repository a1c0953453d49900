"""MobileNetV1 (arXiv 1704.04861) as SSD and SSDLite backbone: mb1-ssd, mb1-ssd-lite."""

from torch import nn

from vision.nets.layers import Conv2d, conv_bn, lite_head, plain_head, separable
from vision.spec import Extra, NetSpec, PriorLayer, Tap, register

# (output channels, stride) of the depthwise separable blocks
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)

# The six prior layers of every net on a MobileNet or SqueezeNet. Where the stride is None the original's own
# (100, 150, 300 pixels) divides a 300-pixel image evenly.
PRIORS = (
    PriorLayer(16, 60, 105, (2, 3)),
    PriorLayer(32, 105, 150, (2, 3)),
    PriorLayer(64, 150, 195, (2, 3)),
    PriorLayer(None, 195, 240, (2, 3)),
    PriorLayer(None, 240, 285, (2, 3)),
    PriorLayer(None, 285, 330, (2, 3)),
)

EXTRAS = (Extra(256, 512), Extra(128, 256), Extra(128, 256), Extra(128, 256))


def backbone() -> nn.Sequential:
    """Children 0..13; 11 gives 512 channels at stride 16, 13 gives 1024 at stride 32."""
    channels = 32
    blocks = [nn.Sequential(*conv_bn(3, channels, 3, stride=2))]
    for out, stride in BLOCKS:
        depthwise = conv_bn(channels, channels, 3, stride, depthwise=True)
        pointwise = conv_bn(channels, out, 1)
        blocks.append(nn.Sequential(*depthwise, *pointwise))
        channels = out
    return nn.Sequential(*blocks)


def extra_block(in_channels: int, extra: Extra) -> nn.Module:
    """1 x 1, then 3 x 3 convolution, each with ReLU (SSD, figure 2)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, extra.hidden, 1),
        nn.ReLU(),
        Conv2d(extra.hidden, extra.out, 3, extra.stride, extra.padding),
        nn.ReLU(),
    )


def extra_block_lite(in_channels: int, extra: Extra) -> nn.Module:
    """1 x 1 convolution with ReLU, then a separable one with nothing behind it (as published)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, extra.hidden, 1),
        nn.ReLU(),
        separable(extra.hidden, extra.out, extra.stride, extra.padding),
    )


def mb1_ssd() -> NetSpec:
    return NetSpec(
        name="mb1-ssd",
        backbone=backbone,
        taps=(Tap("11", 512), Tap("13", 1024)),
        extras=EXTRAS,
        extra_block=extra_block,
        head=plain_head,
        priors=PRIORS,
        learning_rate=0.05,
    )


def mb1_ssd_lite() -> NetSpec:
    return NetSpec(
        name="mb1-ssd-lite",
        backbone=backbone,
        taps=(Tap("11", 512), Tap("13", 1024)),
        extras=EXTRAS,
        extra_block=extra_block_lite,
        head=lite_head,
        priors=PRIORS,
    )


register("mb1-ssd", mb1_ssd)
register("mb1-ssd-lite", mb1_ssd_lite)
