"""Checkpoints in PyTorch itself, prepared for inference. The one module here that needs torch."""

import copy
from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vision.checkpoint import open_net
from vision.data.labels import read_labels
from vision.detector import Detector
from vision.errors import UserError
from vision.ssd import SSD, Deployed


def load(
    path: Union[str, Path],
    labels: Optional[Union[str, Path]] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    device: Optional[str] = None,
    batch_size: int = 8,
    provider: Optional[str] = None,
    threads: Optional[int] = None,
    **net_options: Any,
) -> Detector:
    """A checkpoint -> Detector.

    Args:
        path, net, size: see `vision.checkpoint.open_net`; a checkpoint written here knows all of it, of a bare
            state dict the net must be said.
        labels: label file, for a checkpoint that does not know its classes.
        device, provider: as torch names it; None is the first GPU, else the CPU.
        batch_size: images at once.
        threads: of all of PyTorch in this process; None leaves them.
        net_options: of the net ("width_mult").
    """
    classes = read_labels(labels) if labels is not None else None
    ssd, names, spec = open_net(path, net=net, classes=classes, size=size, **net_options)
    where = pick_device(provider or device)
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads are too few")
        torch.set_num_threads(threads)
    return Detector(TorchRun(ssd, where), spec, names, f"{ssd.spec.name}, PyTorch on {where}", batch_size)


def devices() -> List[str]:
    """Names that `device` takes here."""
    return ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]


class TorchRun:
    """A trained `vision.ssd.SSD` as the callable a Detector needs. The net given is left as it is."""

    def __init__(self, ssd: SSD, device: torch.device) -> None:
        self.device = device
        net = copy.deepcopy(ssd).eval()
        fold_norms(net)
        # Both together run mb1-ssd about twice as fast on a CPU; on a GPU they do no harm.
        self.net = Deployed(net).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, blob: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            images = torch.from_numpy(blob).to(self.device, memory_format=torch.channels_last)
            scores, boxes = self.net(images)
            return scores.cpu().numpy(), boxes.cpu().numpy()


def pick_device(name: Optional[str] = None) -> torch.device:
    """A device by its torch name; None is the first GPU, else the CPU. Raises UserError when it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def fold_norms(net: nn.Module) -> None:
    """Fold every BatchNorm that follows a convolution in a Sequential into it, in place; for inference only."""
    for chain in net.modules():
        if not isinstance(chain, nn.Sequential):
            continue
        names = [name for name, _ in chain.named_children()]
        for first, second in zip(names, names[1:]):
            conv, norm = getattr(chain, first), getattr(chain, second)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(chain, first, fuse_conv_bn_eval(conv, norm))
                # A place holder: taps name the modules behind it by number.
                setattr(chain, second, nn.Identity())
