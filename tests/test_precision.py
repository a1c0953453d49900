"""Which arithmetic is chosen."""

import pytest
import torch

from vision import precision
from vision.errors import UserError
from vision.precision import pick_device, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "amp, layout, has_bf16, dtype, channels_last",
    [
        ("auto", "auto", True, torch.bfloat16, True),
        ("auto", "auto", False, None, False),
        ("off", "auto", True, None, False),
        ("bf16", "auto", False, torch.bfloat16, True),
        ("off", "on", True, None, True),
        ("auto", "off", True, torch.bfloat16, False),
    ],
)
def test_on_a_cpu(monkeypatch, amp, layout, has_bf16, dtype, channels_last):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    chosen = pick_precision(CPU, amp, layout)
    assert (chosen.dtype, chosen.channels_last, chosen.needs_scaler) == (dtype, channels_last, False)


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        pick_precision(CPU, "fp16")


def test_autocast_really_casts():
    layer = torch.nn.Conv2d(3, 4, 1)
    for amp, dtype in (("bf16", torch.bfloat16), ("off", torch.float32)):
        with pick_precision(CPU, amp).autocast():
            assert layer(torch.ones(1, 3, 2, 2)).dtype == dtype


def test_the_cpu_where_no_gpu_is_wanted():
    assert pick_device(use_cuda=False) == CPU
