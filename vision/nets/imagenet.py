"""ImageNet weights of torchvision as start of our backbones, where the architectures agree.

Keys are renamed; VGG's fully connected layers become convolutions; and the first layer takes over the change of
normalisation, so that a photograph gives the features it gave in torchvision.
"""

import importlib
import logging
import re
import sys
from types import ModuleType
from typing import Any, Dict, List

import torch

from vision.errors import UserError
from vision.spec import InputSpec

log = logging.getLogger(__name__)

State = Dict[str, torch.Tensor]

# net -> (torchvision's model, its weights); the weights of 2018, trained for features by the plain recipe
MODELS = {
    "mb2-ssd-lite": ("mobilenet_v2", "MobileNet_V2_Weights"),
    "vgg16-ssd": ("vgg16", "VGG16_Weights"),
    "sq-ssd-lite": ("squeezenet1_1", "SqueezeNet1_1_Weights"),
}

# torchvision's normalisation of pixels / 255
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_libraries: List[Any] = []
"""torch.library.Library objects; what they define goes when they do."""


def import_torchvision() -> ModuleType:
    """`import torchvision`, also where its compiled part does not fit the installed torch.

    A CUDA build of torchvision next to a CPU build of torch (pip mixes them readily) cannot load its operators,
    and then fails while it registers shape functions for them: "operator torchvision::nms does not exist". Its
    models are plain Python and need none; declaring the missing operators lets the import go through. They
    cannot be called, only exist. Raises UserError when torchvision is missing or fails otherwise.
    """
    for _ in range(10):
        try:
            return importlib.import_module("torchvision")
        except ImportError as error:
            raise UserError(f"torchvision is needed for this: pip install torchvision ({error})") from error
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise UserError(f"torchvision does not fit torch {torch.__version__}: {error}") from error
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing.group(1)}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _libraries.append(library)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]  # half imported
    raise UserError(f"torchvision does not fit torch {torch.__version__}; install a matching pair")


def download(name: str) -> State:
    """torchvision's ImageNet weights for the net `name`, from its cache or the network, hash-checked, its keys.

    Raises UserError for a net that none fit, and when they cannot be had.
    """
    if name.startswith("mb3-"):
        raise UserError(
            f"{name}: no published trunk fits this MobileNetV3 (squeeze-and-excite stands behind the projection "
            "and has BatchNorm inside, shortcuts may be convolutions, and the strides of the 160-channel blocks "
            "are swapped). Train it from scratch, or take mb2-ssd-lite."
        )
    if name not in MODELS:
        raise UserError(
            f"{name}: torchvision has no weights for its backbone. Give a file (mobilenet_v1_with_relu_69_5.pth "
            f"for mb1), or take one of {', '.join(MODELS)}."
        )
    models = import_torchvision().models
    enum = getattr(models, MODELS[name][1], None)
    if enum is None:
        raise UserError("this torchvision is too old to name its weights; 0.13 or newer is needed")
    weights = enum.IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
    except (OSError, RuntimeError) as error:  # no network, a refused download, or a wrong hash
        file = weights.url.rsplit("/", 1)[-1]
        raise UserError(
            f"cannot get torchvision's weights from {weights.url} ({error}). Without a network, fetch {file} "
            f"elsewhere and put it into {torch.hub.get_dir()}/checkpoints, or give its path as the base net."
        ) from error


def is_torchvision(name: str, state: State) -> bool:
    """Whether `state` is torchvision's model for the net `name` (its own numbering, a classifier behind)."""
    marks = {
        "mb2-ssd-lite": ("features.1.conv.0.0.weight",),
        "vgg16-ssd": ("features.0.weight", "classifier.0.weight"),
        "sq-ssd-lite": ("features.0.weight", "classifier.1.weight"),
    }
    return name in marks and all(key in state for key in marks[name])


def from_torchvision(name: str, state: State) -> State:
    """torchvision's state dict -> keys and shapes of our backbone of the net `name`, same features."""
    features = {key[len("features.") :]: t for key, t in state.items() if key.startswith("features.")}
    if name == "mb2-ssd-lite":
        return {_mobilenet_v2_key(key): t for key, t in features.items()}
    if name == "vgg16-ssd":
        return {**features, **_reduced_fc(state)}
    if name == "sq-ssd-lite":
        return features
    raise ValueError(f"{name} has no counterpart in torchvision")


def _mobilenet_v2_key(key: str) -> str:
    """torchvision nests convolution, norm and activation ("2.conv.1.0"); ours are one chain ("2.conv.3")."""
    match = re.fullmatch(r"(\d+)\.conv\.(\d+)(?:\.(\d+))?\.(\w+)", key)
    if not match:
        return key
    block, outer, inner, rest = match.groups()
    if inner is not None:
        place = 3 * int(outer) + int(inner)
    else:
        # projection and its norm: behind one triple in the block that does not expand, behind two elsewhere
        triples = 1 if block == "1" else 2
        place = 3 * triples + int(outer) - triples
    return f"{block}.conv.{place}.{rest}"


def _reduced_fc(state: State) -> State:
    """fc6 and fc7 as convolutions 31 and 33 (arXiv 1412.7062, section 3; SSD, section 3).

    fc6 is a 7 x 7 convolution on 512 channels with 4096 outputs. Every fourth output and every third row and
    column stay, 3 x 3 taps that the dilation of 6 spreads over the map, which is not halved before them any
    more. Of fc7 every fourth output and input stay.
    """
    fc6 = state["classifier.0.weight"].reshape(4096, 512, 7, 7)
    fc7 = state["classifier.3.weight"].reshape(4096, 4096, 1, 1)
    if not (torch.isfinite(fc6).all() and torch.isfinite(fc7).all()):
        raise UserError(
            "these VGG weights have no classifier (torchvision's IMAGENET1K_FEATURES), but SSD's fc6 and fc7 are "
            "made of it; take IMAGENET1K_V1"
        )
    return {
        "31.weight": fc6[::4, :, ::3, ::3].contiguous(),
        "31.bias": state["classifier.0.bias"][::4].contiguous(),
        "33.weight": fc7[::4, ::4].contiguous(),
        "33.bias": state["classifier.3.bias"][::4].contiguous(),
    }


def fold_normalisation(state: State, spec: InputSpec) -> State:
    """The first layer changed to take pixels normalised by `spec` instead of torchvision's way.

    torchvision's input is a * x + b of ours, channel by channel. The factor goes into the weights, the offset
    into the bias or the running mean of the norm behind. Exact but for the border, where the padding of 0 now
    means our mean colour. (Without it VGG would see its input 60 times too large, and its biases would vanish.)
    """
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    factor = torch.tensor(spec.std) / 255 / std
    offset = (torch.tensor(spec.mean) / 255 - mean) / std
    key, norm = ("0.0.weight", True) if "0.0.weight" in state else ("0.weight", False)
    weight = state[key]
    constant = (weight * offset.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    changed = dict(state)
    changed[key] = weight * factor.view(1, 3, 1, 1)
    if norm:
        changed["0.1.running_mean"] = state["0.1.running_mean"] - constant
    else:
        changed["0.bias"] = state["0.bias"] + constant
    return changed
