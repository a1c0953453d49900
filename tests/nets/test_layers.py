"""Layers that differ from torch's where torch refuses or errs."""

import pytest
import torch
from torch import nn

from vision.nets.layers import BatchNorm, Conv2d


@pytest.mark.parametrize(
    "kernel, stride, padding, groups", [(3, 2, 1, 1), (3, 1, 1, 4), (5, 2, 2, 4), (1, 1, 0, 1)]
)
@pytest.mark.parametrize("cells", [1, 2])
def test_a_convolution_is_torchs(kernel, stride, padding, groups, cells):
    torch.manual_seed(0)
    ours, theirs = (kind(4, 8, kernel, stride, padding, groups=groups) for kind in (Conv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, cells, cells)
    for net in (ours, theirs):
        net(x).square().sum().backward()
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, atol=1e-4)
    assert torch.allclose(ours.bias.grad, theirs.bias.grad, atol=1e-4)


def test_bf16_gradients_on_one_cell_are_numbers():
    for _ in range(8):
        layer = Conv2d(128, 256, 3, 2, 1)
        x = torch.randn(16, 128, 1, 1).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        y.float().sum().backward()
        outer = layer.weight.grad.clone()
        outer[:, :, 1, 1] = 0
        assert torch.isfinite(layer.weight.grad).all() and not outer.any()


def test_one_value_has_no_variance_and_still_trains():
    norm = BatchNorm(3).train()
    before = norm.running_mean.clone()
    y = norm(torch.randn(1, 3, 1, 1))
    y.sum().backward()
    assert torch.equal(norm.running_mean, before) and torch.isfinite(norm.weight.grad).all()
    norm(torch.randn(2, 3, 1, 1))
    assert not torch.equal(norm.running_mean, before)
