"""What a net is, as data: its input, taps, extras, heads and priors. Numpy only.

The callables in a `NetSpec` make torch modules, but nothing here imports torch: a spec is filled in by the
backbone's own file in `vision.nets`, and a device that runs an exported file never needs that floor.
"""

import difflib
import inspect
import math
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from vision.errors import UserError

BACKGROUND = "BACKGROUND"
"""The name of class 0 in every label file and every net."""

REFERENCE_SIDE = 300
"""Prior sizes are written in pixels of a 300 x 300 image, as in the original."""

FeatureSize = Tuple[int, int]
"""Height and width of a feature map, in cells."""


@dataclass(frozen=True)
class InputSpec:
    """The image a net takes: height x width pixels, RGB, each channel normalised as (x - mean) / std.

    Attributes:
        height, width: pixels.
        mean, std: one value for each of R, G, B, in units of 0..255.
    """

    height: int = REFERENCE_SIDE
    width: int = REFERENCE_SIDE
    mean: Tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: Tuple[float, float, float] = (128.0, 128.0, 128.0)

    @property
    def size(self) -> Tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


@dataclass(frozen=True)
class PriorLayer:
    """The priors of one feature map, in pixels of a 300 x 300 image.

    Attributes:
        stride: distance between neighbouring cells in input pixels, or None where the cells of the map
            divide the image evenly. (The first maps of a net have a true stride of 8, 16, 32 or 64 pixels
            at any input size; on the last, tiny ones the original spreads the cells over the image.)
        min_size, max_size: sides of the small square prior, and of the square whose side is
            sqrt(min_size * max_size).
        ratios: each ratio r gives two priors, of width : height r and 1/r.
    """

    stride: Optional[int]
    min_size: float
    max_size: float
    ratios: Tuple[float, ...]

    @property
    def per_cell(self) -> int:
        """Priors in each cell."""
        return 2 + 2 * len(self.ratios)


@dataclass(frozen=True)
class Tap:
    """Where a source map leaves the backbone.

    Attributes:
        path: module path below the backbone whose output is the map ("11", or "14.conv.2" inside a block).
        channels: channels of that map.
        add_on: makes a module through which the map (not the trunk) passes, or None.
    """

    path: str
    channels: int
    add_on: Optional[Callable[[], Any]] = None


@dataclass(frozen=True)
class Extra:
    """One block behind the backbone; its output is one more source map.

    Attributes:
        hidden, out: channels inside and after the block (the input's follow from the block before).
        stride, padding: of its 3 x 3 convolution.
    """

    hidden: int
    out: int
    stride: int = 2
    padding: int = 1


@dataclass(frozen=True)
class NetSpec:
    """A whole detector, as data.

    Attributes:
        name: as users type it, "mb1-ssd".
        backbone: () -> Sequential, the children numbered as in published weights.
        taps: source maps inside the backbone, in order.
        extras: blocks behind it; one more source map each.
        extra_block: (in_channels, Extra) -> Module.
        head: (in_channels, out_channels, is_last) -> Module; the same rule for classes and boxes.
        priors: one layer for each source map.
        input: default size, and the normalisation.
        variances: of centres and of sizes, in the encoding of boxes (SSD, Caffe's prior_box layer).
        learning_rate: that SGD starts well with, in batches of 16; nets without BatchNorm take far less.
        adamw_rate: the same for AdamW.
    """

    name: str
    backbone: Callable[[], Any]
    taps: Tuple[Tap, ...]
    extras: Tuple[Extra, ...]
    extra_block: Callable[[int, Extra], Any]
    head: Callable[[int, int, bool], Any]
    priors: Tuple[PriorLayer, ...]
    input: InputSpec = InputSpec()
    variances: Tuple[float, float] = (0.1, 0.2)
    learning_rate: float = 0.03
    adamw_rate: float = 0.004

    def __post_init__(self) -> None:
        maps = len(self.taps) + len(self.extras)
        if maps != len(self.priors):
            raise ValueError(f"{self.name}: {maps} source maps but {len(self.priors)} prior layers")

    @property
    def source_channels(self) -> Tuple[int, ...]:
        """Channels of every source map, in prior order."""
        return tuple(tap.channels for tap in self.taps) + tuple(extra.out for extra in self.extras)


# --- priors -------------------------------------------------------------------------------------------------


def layer_priors(layer: PriorLayer, cells: FeatureSize, size: Tuple[int, int]) -> np.ndarray:
    """Priors of one map for an input of `size` (height, width) pixels.

    Returns float64 (rows * columns * per_cell, 4), centre form, fractions, not clamped, ordered by row,
    column, prior. Sides keep their aspect ratio in pixels and grow with the root of the image's area, so that
    a 640 x 384 input keeps square priors square (SSD, arXiv 1512.02325, section 2.2).
    """
    rows, columns = cells
    height, width = size
    step_y = layer.stride or height / rows
    step_x = layer.stride or width / columns
    center_y = (np.arange(rows) + 0.5) * step_y / height
    center_x = (np.arange(columns) + 0.5) * step_x / width

    scale = math.sqrt(height * width) / REFERENCE_SIDE
    middle = math.sqrt(layer.min_size * layer.max_size)
    sides = [(layer.min_size, layer.min_size), (middle, middle)]
    for ratio in layer.ratios:
        root = math.sqrt(ratio)
        sides.append((layer.min_size * root, layer.min_size / root))
        sides.append((layer.min_size / root, layer.min_size * root))
    shapes = np.array(sides, np.float64) * scale / (width, height)

    priors = np.empty((rows, columns, len(sides), 4), np.float64)
    priors[..., 0] = center_x[None, :, None]
    priors[..., 1] = center_y[:, None, None]
    priors[..., 2:] = shapes
    return priors.reshape(-1, 4)


def make_priors(
    layers: Sequence[PriorLayer], cells: Sequence[FeatureSize], size: Tuple[int, int]
) -> np.ndarray:
    """All priors of a net for an input of `size` (height, width) pixels, whose maps have `cells`.

    Returns float32 (P, 4), centre form, fractions. All four numbers are clamped to 0..1, centres included, as
    the original did: the last centres of a 10 x 10 map at stride 32 would lie outside a 300-pixel image.
    """
    if len(layers) != len(cells):
        raise ValueError(f"{len(layers)} prior layers for {len(cells)} feature maps")
    parts = [layer_priors(layer, cell, size) for layer, cell in zip(layers, cells)]
    return np.clip(np.concatenate(parts), 0.0, 1.0).astype(np.float32)


# --- input size ---------------------------------------------------------------------------------------------

SMALLEST_SIDE = 32
LARGEST_SIDE = 4096


def parse_resolution(text: str) -> Tuple[int, int]:
    """ "300" or "640x384" (width x height) -> (height, width) in pixels."""
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*[xX*]\s*(\d{1,6}))?\s*", str(text))
    if not match:
        raise UserError(
            f"resolution {text!r} is neither a number of pixels nor WIDTHxHEIGHT; write 300 or 640x384"
        )
    width = int(match.group(1))
    height = int(match.group(2) or width)
    for side in (width, height):
        if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
            raise UserError(
                f"resolution {text!r}: a side of {side} pixels is outside {SMALLEST_SIDE}..{LARGEST_SIDE}"
            )
    return height, width


# --- the registry -------------------------------------------------------------------------------------------

_FACTORIES: Dict[str, Callable[..., NetSpec]] = {}
ALIASES = {"ssd-mobilenet": "mb1-ssd"}
"""Other names that published command lines use."""


def register(name: str, factory: Callable[..., NetSpec]) -> None:
    """Serve `factory(**options) -> NetSpec` under `name`; its keyword arguments are the net's options."""
    if name in _FACTORIES:
        raise ValueError(f"net {name!r} is registered twice")
    _FACTORIES[name] = factory


def net_names() -> List[str]:
    """Names of all registered nets (fill the registry with `import vision.nets`)."""
    return sorted(_FACTORIES)


def canonical_name(name: str) -> str:
    """The registered name for what a user typed. Raises UserError with the nearest names."""
    known = ALIASES.get(name, name)
    if known in _FACTORIES:
        return known
    near = difflib.get_close_matches(name, net_names() + list(ALIASES), n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"unknown net {name!r}{hint} Nets: {', '.join(net_names())}")


def net_options(name: str) -> Dict[str, Any]:
    """Options of a net with their defaults, e.g. {"width_mult": 1.0}."""
    parameters = inspect.signature(_FACTORIES[canonical_name(name)]).parameters
    return {key: parameter.default for key, parameter in parameters.items()}


def net_spec(name: str, **options: Any) -> NetSpec:
    """The spec of a registered net. Raises UserError for an unknown name or option."""
    name = canonical_name(name)
    known = net_options(name)
    for key in options:
        if key not in known:
            raise UserError(f"{name} has no option {key!r}; its options: {', '.join(known) or 'none'}")
    return _FACTORIES[name](**options)
