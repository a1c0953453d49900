"""Which arithmetic and memory layout a device gains from."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Optional

import torch

from vision.errors import UserError

log = logging.getLogger(__name__)


def pick_device(use_cuda: bool = True) -> torch.device:
    """The first GPU if there is one and it is wanted, else the CPU."""
    return torch.device("cuda" if use_cuda and torch.cuda.is_available() else "cpu")


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; without that, bf16 is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


@dataclass(frozen=True)
class Precision:
    """How a net is run for training.

    Attributes:
        dtype: of autocast, or None for plain float32.
        channels_last: whether images and weights are laid out N, H, W, C in memory.
    """

    device: torch.device
    dtype: Optional[torch.dtype]
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """For `.to(memory_format=...)`."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def needs_scaler(self) -> bool:
        """float16 gradients underflow unless the loss is scaled up first."""
        return self.dtype == torch.float16

    def autocast(self) -> "AbstractContextManager[object]":
        """The context in which the forward pass runs."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def __str__(self) -> str:
        number = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        return f"{number}, {'channels last' if self.channels_last else 'channels first'} on {self.device}"


def pick_precision(device: torch.device, amp: str = "auto", channels_last: str = "auto") -> Precision:
    """What `--amp auto|off|bf16|fp16` and `--channels_last auto|on|off` mean on this device.

    On a CPU the two help only together: bf16 with channels last is two to four times as fast as float32
    where the CPU has bf16 instructions, either alone gains little or loses. Depthwise nets on a GPU gain
    from both.
    """
    on_gpu = device.type == "cuda"
    if amp == "auto":
        if on_gpu:
            amp = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            amp = "bf16" if cpu_has_bf16() else "off"
    if amp == "fp16" and not on_gpu:
        raise UserError("--amp fp16 needs a GPU; on a CPU use --amp auto, bf16 or off")
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    if channels_last == "auto":
        layout = dtype is not None
    else:
        layout = channels_last == "on"
    return Precision(device, dtype, layout)
