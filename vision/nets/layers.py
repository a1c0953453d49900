"""Blocks and layers that several backbones share.

No activation here works in place: a source map is often tapped just before one, and would silently come out
activated.
"""

from typing import Callable, List, Optional

import torch
from torch import nn
from torch.nn import functional as F


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision made float32; anything else as it is, so that an exported graph holds no idle Cast."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that also trains on one value per channel; same keys, same numbers otherwise.

    The last maps of an SSD are 1 x 1, and a data set's last batch may hold one image. One value has no
    variance, so torch refuses ("Expected more than 1 value per channel when training"). Such a batch is
    normalised by the running statistics instead, which stay as they are.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class Conv2d(nn.Conv2d):
    """Conv2d that trains on a map of one cell through its centre tap alone; same keys, same numbers otherwise.

    The other taps meet padding there and have a gradient of 0. oneDNN's bfloat16 backward leaves what was in
    memory for them when the stride is 2 (seen with torch 2.13), now and then NaN.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = self.kernel_size
        if self.training and x.shape[2:] == (1, 1) and self.padding == (rows // 2, columns // 2) != (0, 0):
            center = self.weight[:, :, rows // 2 : rows // 2 + 1, columns // 2 : columns // 2 + 1]
            return F.conv2d(x, center, self.bias, groups=self.groups)
        return super().forward(x)


class ScaledL2Norm(nn.Module):
    """Each position's channels scaled to unit length, times a learned scale (ParseNet, arXiv 1506.04579, eq. 5-7).

    SSD does this to conv4_3, whose values are larger than those of deeper maps (arXiv 1512.02325, section 3.1).
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # x: (N, C, H, W). The sum is float32: squares of a VGG map overflow float16.
        wide = at_least_float32(x)
        norm = wide.pow(2).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-10)
        return wide / norm * self.scale.view(1, -1, 1, 1)


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    activation: Optional[Callable[[], nn.Module]] = nn.ReLU,
    depthwise: bool = False,
) -> List[nn.Module]:
    """Convolution without bias that keeps the size at stride 1, BatchNorm, activation: a list to be chained."""
    groups = in_channels if depthwise else 1
    layers: List[nn.Module] = [
        Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        BatchNorm(out_channels),
    ]
    if activation is not None:
        layers.append(activation())
    return layers


def separable(
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    padding: int = 1,
    norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Depthwise 3 x 3 and pointwise convolution, both with bias and nothing after (SSDLite, arXiv 1801.04381,
    section 6.2); `norm` puts a BatchNorm between."""
    layers: List[nn.Module] = [Conv2d(in_channels, in_channels, 3, stride, padding, groups=in_channels)]
    if norm:
        layers.append(BatchNorm(in_channels))
    return nn.Sequential(*layers, activation(), nn.Conv2d(in_channels, out_channels, 1))


# --- heads: (in_channels, out_channels, is_last) -> Module ---------------------------------------------------


def plain_head(in_channels: int, out_channels: int, is_last: bool) -> nn.Module:
    """The SSD paper's head: one 3 x 3 convolution on every map."""
    return Conv2d(in_channels, out_channels, 3, padding=1)


def lite_head(in_channels: int, out_channels: int, is_last: bool) -> nn.Module:
    """A separable convolution; the last map, a single cell at 300 x 300, gets a 1 x 1 convolution."""
    if is_last:
        return nn.Conv2d(in_channels, out_channels, 1)
    return separable(in_channels, out_channels)


def lite_bn_head(in_channels: int, out_channels: int, is_last: bool) -> nn.Module:
    """As `lite_head`, with BatchNorm and ReLU6 inside."""
    if is_last:
        return nn.Conv2d(in_channels, out_channels, 1)
    return separable(in_channels, out_channels, norm=True, activation=nn.ReLU6)
