"""The detector: SSD as it is trained, `Deployed` as it is used, and `build` (arXiv 1512.02325)."""

import contextlib
import math
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch
from torch import nn
from torch.nn import functional as F

import vision.nets  # noqa: F401  (fills the registry)
from vision.errors import UserError
from vision.nets.layers import at_least_float32
from vision.spec import NetSpec, Tap, canonical_name, make_priors, net_options, net_spec

Size = Tuple[int, int]


class SSD(nn.Module):
    """A backbone, extra blocks behind it, and two heads on each of their source maps.

    Args:
        spec: the net, as data.
        num_classes: C, with BACKGROUND.
        size: (height, width) of the input in pixels; the spec's own where None.

    Attributes:
        priors: buffer (P, 4) float32, centre form, fractions; moves with the net, never in its state dict.
        spec, num_classes, size: as given.
        cells: (height, width) of every source map.
        options: of the spec's factory, when made by `build`.

    Raises UserError for a class count below 2 and for a size at which a source map would vanish.
    """

    priors: torch.Tensor

    def __init__(self, spec: NetSpec, num_classes: int, size: Optional[Size] = None) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
            raise UserError(
                f"{spec.name}: {num_classes!r} classes; at least BACKGROUND and one more are needed"
            )
        self.spec = spec
        self.num_classes = num_classes
        self.size = check_size(spec.name, size or spec.input.size)
        self.options: Dict[str, Any] = {}
        self.cells = feature_sizes(spec, self.size)

        # The order of these five is the order of the published state dicts.
        self.base_net, self.extras = _trunk(spec)
        self.classification_headers = self._headers(num_classes)
        self.regression_headers = self._headers(4)
        self.source_layer_add_ons = nn.ModuleList(tap.add_on() for tap in spec.taps if tap.add_on)
        self.register_buffer(
            "priors", torch.from_numpy(make_priors(spec.priors, self.cells, self.size)), persistent=False
        )

    def _headers(self, per_prior: int) -> nn.ModuleList:
        channels, last = self.spec.source_channels, len(self.spec.priors) - 1
        return nn.ModuleList(
            self.spec.head(channels[i], layer.per_cell * per_prior, i == last)
            for i, layer in enumerate(self.spec.priors)
        )

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Normalised RGB (N, 3, height, width) -> logits (N, P, C), locations (N, P, 4)."""
        if not torch.jit.is_tracing() and tuple(images.shape[2:]) != self.size:
            raise ValueError(
                f"images are {tuple(images.shape)}, this net takes (N, 3, {self.size[0]}, {self.size[1]})"
            )
        logits, locations = [], []
        for i, source in enumerate(self.source_maps(images)):
            # The counts are Python's ints, never traced ones: so an exported graph holds plain constants.
            rows, columns = self.cells[i]
            priors = rows * columns * self.spec.priors[i].per_cell
            scores = self.classification_headers[i](source).permute(0, 2, 3, 1)  # N, H, W, A*C
            boxes = self.regression_headers[i](source).permute(0, 2, 3, 1)  # N, H, W, A*4
            logits.append(scores.reshape(-1, priors, self.num_classes))
            locations.append(boxes.reshape(-1, priors, 4))
        return torch.cat(logits, dim=1), torch.cat(locations, dim=1)

    def source_maps(self, images: torch.Tensor) -> List[torch.Tensor]:
        """The maps that enter the heads, (N, channels, rows, columns) each."""
        maps: List[torch.Tensor] = []
        _run_trunk(self.base_net, self.extras, self.spec.taps, images, maps)
        add_ons = iter(self.source_layer_add_ons)
        return [next(add_ons)(m) if tap.add_on else m for tap, m in zip(self.spec.taps, maps)] + maps[
            len(self.spec.taps) :
        ]


class Deployed(nn.Module):
    """A net as it is exported: class scores and boxes instead of logits and locations.

    `forward`: normalised RGB (N, 3, height, width) -> scores (N, P, C) float32, softmax over the classes, and
    boxes (N, P, 4) float32, corners as fractions of the image, not clipped.
    """

    prior_center: torch.Tensor
    center_scale: torch.Tensor
    half_size: torch.Tensor

    def __init__(self, net: SSD) -> None:
        super().__init__()
        self.net = net
        self.size_variance = net.spec.variances[1]
        center, size = net.priors[:, :2], net.priors[:, 2:]
        self.register_buffer("prior_center", center.clone(), persistent=False)
        self.register_buffer("center_scale", size * net.spec.variances[0], persistent=False)
        self.register_buffer("half_size", size * 0.5, persistent=False)

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        return self.decode(*self.net(images))

    def decode(self, logits: torch.Tensor, locations: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """What the net gave -> scores (N, P, C) and corner boxes (N, P, 4)."""
        # float32 also under autocast: a box in bfloat16 would be wrong by whole pixels.
        scores = F.softmax(at_least_float32(logits), dim=2)
        locations = at_least_float32(locations)
        center = locations[:, :, :2] * self.center_scale + self.prior_center
        half = torch.exp(locations[:, :, 2:] * self.size_variance) * self.half_size
        return scores, torch.cat([center - half, center + half], dim=2)


def build(name: str, num_classes: int, size: Optional[Size] = None, **options: Any) -> SSD:
    """A net ready to be trained from scratch.

    Args:
        name: of a registered net, "mb1-ssd".
        num_classes: with BACKGROUND.
        size: (height, width) in pixels; the net's own where None.
        options: of the net, see `vision.spec.net_options`.

    Random numbers are torch's; seed with `torch.manual_seed`. Raises UserError for an unknown name or option
    and for a size or class count that the net cannot take.
    """
    name = canonical_name(name)
    net = SSD(net_spec(name, **options), num_classes, size)
    net.options = {**net_options(name), **options}
    initialise(net)
    return net


# --- initial weights ----------------------------------------------------------------------------------------


PREDICTING_SHARE = 0.1
"""Of the usual initial weights, in the layers that predict."""


def initialise(net: nn.Module, background: Optional[float] = None) -> None:
    """Initial weights for training from scratch; biases 0, norms 1 and 0.

    Convolutions with a BatchNorm behind them, and the predicting ones, are Xavier-uniform (Glorot and Bengio
    2010, eq. 16). Those with a ReLU only are He-uniform (arXiv 1502.01852, eq. 10): a chain of ReLUs without
    norms halves the variance at each step under Xavier, and SqueezeNet's last maps would start at 1e-6. A
    backbone that takes pixels of -128..128 (VGG) keeps Xavier, whose decay brings them to about 1 on the way.
    The predicting ones get a tenth of it: the first scores are even and the first boxes are the priors, so hard
    negative mining has nothing wildly wrong to dig out in the first steps.

    The fans are those of one group. (torch's own count the outputs of all groups, which leaves next to nothing
    of the signal behind a depthwise convolution without BatchNorm.)

    Args:
        background: the share of BACKGROUND in the first scores. None leaves all classes equal, which is right
            with hard negative mining: it picks three negatives for each positive, whatever the scores. A focal
            loss over all priors needs something like 0.99 (arXiv 1708.02002, section 4.1).
    """
    predicting: Set[nn.Module] = set()
    xavier: Set[nn.Module] = set()
    if isinstance(net, SSD):
        predicting = {
            output_layer(header) for header in [*net.classification_headers, *net.regression_headers]
        }
        xavier |= predicting
        if max(net.spec.input.std) < 16:
            xavier |= set(net.base_net.modules())
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            fan_in = module.weight.shape[1] * area
            fan_out = module.weight.shape[0] // module.groups * area
            # Only a convolution with a BatchNorm behind it does without a bias.
            he = module.bias is not None and module not in xavier
            bound = math.sqrt(6.0 / fan_in) if he else math.sqrt(6.0 / (fan_in + fan_out))
            if module in predicting:
                bound *= PREDICTING_SHARE
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if background is not None:
        if not isinstance(net, SSD) or not 0.0 < background < 1.0:
            raise ValueError(f"a background share of {background} needs an SSD, and must be between 0 and 1")
        for header in net.classification_headers:
            bias = output_layer(header).bias
            assert bias is not None
            with torch.no_grad():  # anchor-major: row = anchor * C + class
                bias[:: net.num_classes] = math.log(background * (net.num_classes - 1) / (1.0 - background))


def output_layer(header: nn.Module) -> nn.Conv2d:
    """The convolution of a head whose output rows are the predictions (anchor-major)."""
    return [module for module in header.modules() if isinstance(module, nn.Conv2d)][-1]


# --- source maps --------------------------------------------------------------------------------------------


def _trunk(spec: NetSpec) -> Tuple[nn.Sequential, nn.ModuleList]:
    """Backbone and extra blocks, fresh."""
    base_net = spec.backbone()
    _check_taps(spec, base_net)
    channels, extras = spec.taps[-1].channels, nn.ModuleList()
    # Behind the last tap the rest of the backbone runs; where there is a rest, it keeps the channels.
    for extra in spec.extras:
        extras.append(spec.extra_block(channels, extra))
        channels = extra.out
    return base_net, extras


def _check_taps(spec: NetSpec, base_net: nn.Module) -> None:
    """A block that is opened for a tap has its children run one after the other: it must be just that."""
    for tap in spec.taps:
        base_net.get_submodule(tap.path)
        for parent in _parents(tap.path):
            block = base_net.get_submodule(parent)
            if not (isinstance(block, nn.Sequential) or getattr(block, "is_chain", False)):
                raise ValueError(
                    f"{spec.name}: the tap {tap.path!r} opens {parent!r} ({type(block).__name__}), which does "
                    "more than call its children in order (a skip would be lost)"
                )


def _parents(path: str) -> List[str]:
    """ "14.conv.2" -> ["14", "14.conv"]."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _run_trunk(
    base_net: nn.Module,
    extras: nn.ModuleList,
    taps: Sequence[Tap],
    x: torch.Tensor,
    maps: List[torch.Tensor],
) -> None:
    """Append every source map of `x` to `maps`, in order, as soon as it is there."""
    paths = [tap.path for tap in taps]
    opened = {parent for path in paths for parent in _parents(path)}
    x = _run_chain(base_net, "", x, paths, opened, maps)
    for extra in extras:
        x = extra(x)
        maps.append(x)


def _run_chain(
    chain: nn.Module,
    prefix: str,
    x: torch.Tensor,
    paths: List[str],
    opened: Set[str],
    maps: List[torch.Tensor],
) -> torch.Tensor:
    for name, child in chain.named_children():
        path = prefix + name
        x = _run_chain(child, path + ".", x, paths, opened, maps) if path in opened else child(x)
        if path in paths:
            maps.append(x)
    return x


# --- input size ---------------------------------------------------------------------------------------------


def check_size(name: str, size: Size) -> Size:
    """(height, width) as two positive ints, or a UserError."""
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(
            f"{name}: an input size of {size!r}; give height and width in pixels, such as (300, 300)"
        )
    return size[0], size[1]


def feature_sizes(spec: NetSpec, size: Size) -> Tuple[Size, ...]:
    """(rows, columns) of every source map for an input of `size` (height, width) pixels.

    Raises UserError where a map would vanish, naming the smallest side that the net takes.
    """
    sizes = _feature_sizes(spec, size)
    vanished = len(sizes)
    if vanished == len(spec.priors):
        return sizes
    refused, taken = 0, max(max(size), 32)
    while len(_feature_sizes(spec, (taken, taken))) < len(spec.priors):
        refused, taken = taken, taken * 2
    while taken - refused > 1:
        middle = (refused + taken) // 2
        fits = len(_feature_sizes(spec, (middle, middle))) == len(spec.priors)
        refused, taken = (refused, middle) if fits else (middle, taken)
    raise UserError(
        f"{spec.name} cannot take images of {size[0]} x {size[1]} pixels (height x width): source map "
        f"{vanished + 1} of {len(spec.priors)} would vanish. The smallest side it takes is {taken} pixels."
    )


def _feature_sizes(spec: NetSpec, size: Size) -> Tuple[Size, ...]:
    """As `feature_sizes`, but ends before the first map that vanishes.

    The real modules run on a batch of no image: shapes only. (The meta device would do it too, but its first operation
    imports a compiler, for over a second.)
    """
    with torch.device("meta"):  # weights without values
        base_net, extras = _trunk(spec)
    base_net.to_empty(device="cpu")
    extras.to_empty(device="cpu")
    x = torch.empty(0, 3, *size)
    maps: List[torch.Tensor] = []
    base_net.eval()
    extras.eval()
    # A kernel may be larger than its input; `maps` holds those before.
    with torch.inference_mode(), contextlib.suppress(RuntimeError):
        _run_trunk(base_net, extras, spec.taps, x, maps)
    sizes: List[Size] = []
    for channels, found in zip(spec.source_channels, maps):
        if found.shape[1] != channels:
            raise ValueError(
                f"{spec.name}: source map {len(sizes) + 1} has {found.shape[1]} channels, not {channels}"
            )
        if min(found.shape[2:]) < 1:
            break
        sizes.append((int(found.shape[2]), int(found.shape[3])))
    return tuple(sizes)
