"""How near the priors of a net come to the objects of a data set, before anything is trained.

A net learns an object at the priors that overlap it by an IoU of 0.5 (SSD, arXiv 1512.02325, section 2.2); an object
that none reaches is matched to its best prior alone, and mostly missed. Here are the priors of every net as numbers, so
that this can be asked where torch is not installed; a test holds them equal to those of the nets.
"""

import difflib
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from vision.boxes import centers_to_corners
from vision.errors import UserError
from vision.spec import ALIASES, PriorLayer, make_priors

Size = Tuple[int, int]


class Window(NamedTuple):
    """A convolution or pooling that changes the size of a map; `up`: a last part of a window counts."""

    kernel: int
    stride: int
    padding: int = 0
    up: bool = False

    def cells(self, side: int) -> int:
        """Cells that come out of `side` cells."""
        room = side + 2 * self.padding - self.kernel + (self.stride - 1 if self.up else 0)
        return room // self.stride + 1 if room >= 0 else 0


class Maps(NamedTuple):
    """The source maps of a net: the windows between one and the next (the first: from the image), and their priors."""

    windows: Tuple[Tuple[Window, ...], ...]
    priors: Tuple[PriorLayer, ...]


_HALF = Window(3, 2, 1)
_POOL = Window(2, 2)
_BARE = Window(3, 2)
_SHRINK = Window(3, 1)

_MOBILE_PRIORS = (
    PriorLayer(16, 60, 105, (2, 3)),
    PriorLayer(32, 105, 150, (2, 3)),
    PriorLayer(64, 150, 195, (2, 3)),
    PriorLayer(None, 195, 240, (2, 3)),
    PriorLayer(None, 240, 285, (2, 3)),
    PriorLayer(None, 285, 330, (2, 3)),
)
_MOBILE = Maps(((_HALF,) * 4,) + ((_HALF,),) * 5, _MOBILE_PRIORS)
_SQUEEZE = Maps(((_BARE,) * 4, (Window(3, 2, 2),)) + ((_HALF,),) * 4, _MOBILE_PRIORS)
_VGG = Maps(
    ((_POOL, _POOL, Window(2, 2, 0, True)), (_POOL,), (_HALF,), (_HALF,), (_SHRINK,), (_SHRINK,)),
    (
        PriorLayer(8, 30, 60, (2,)),
        PriorLayer(16, 60, 111, (2, 3)),
        PriorLayer(32, 111, 162, (2, 3)),
        PriorLayer(64, 162, 213, (2, 3)),
        PriorLayer(None, 213, 264, (2,)),
        PriorLayer(None, 264, 315, (2,)),
    ),
)

NETS: Dict[str, Maps] = {
    "mb1-ssd": _MOBILE,
    "mb1-ssd-lite": _MOBILE,
    "mb2-ssd-lite": _MOBILE,
    "mb3-large-ssd-lite": _MOBILE,
    "mb3-small-ssd-lite": _MOBILE,
    "sq-ssd-lite": _SQUEEZE,
    "vgg16-ssd": _VGG,
}

SIZES: Tuple[Tuple[str, float], ...] = (("small", 32.0), ("medium", 96.0), ("large", float("inf")))
"""Name, and the root of the area below which an object is so; COCO's bounds, in pixels of the net's input."""

MATCHED = 0.5


class Reach(NamedTuple):
    """What the priors do for the objects of one size: how many, their mean best IoU, the share with 0.5 or more."""

    size: str
    objects: int
    mean_iou: float
    share: float


def priors_of(net: str, size: Size) -> np.ndarray:
    """Priors of a net at an input of (height, width): float32 (P, 4), centre form, fractions. Raises UserError."""
    name = ALIASES.get(net, net)
    if name not in NETS:
        near = difflib.get_close_matches(name, NETS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"the priors of {net!r} are not known here{hint} Nets: {', '.join(NETS)}")
    cells, (rows, columns) = [], size
    for windows in NETS[name].windows:
        for window in windows:
            rows, columns = window.cells(rows), window.cells(columns)
        cells.append((rows, columns))
    if min(map(min, cells)) < 1:
        raise UserError(
            f"{name} cannot take images of {size[1]} x {size[0]} pixels; a larger --resolution can be"
        )
    return make_priors(NETS[name].priors, cells, size)


def best_iou(fractions: np.ndarray, priors: np.ndarray, block: int = 512) -> np.ndarray:
    """The IoU of each corner box (G, 4) with the prior that fits it best; boxes and priors as fractions -> (G,)."""
    corners = centers_to_corners(priors.astype(np.float32))
    x1, y1, x2, y2 = corners.T
    areas = (x2 - x1) * (y2 - y1)
    best = np.zeros(len(fractions), np.float32)
    for start in range(0, len(fractions), block):
        part = fractions[start : start + block, :, None].astype(np.float32)
        wide = np.minimum(part[:, 2], x2) - np.maximum(part[:, 0], x1)
        high = np.minimum(part[:, 3], y2) - np.maximum(part[:, 1], y1)
        inter = np.maximum(wide, 0) * np.maximum(high, 0)
        own = (part[:, 2] - part[:, 0]) * (part[:, 3] - part[:, 1])
        best[start : start + block] = (inter / np.maximum(own + areas - inter, 1e-12)).max(axis=1)
    return best


def side_of(fractions: np.ndarray, size: Size) -> np.ndarray:
    """Root of the area of corner boxes (G, 4; fractions) in pixels of an input of (height, width) -> (G,)."""
    sides = np.maximum(fractions[:, 2:] - fractions[:, :2], 0) * np.array([size[1], size[0]])
    return np.sqrt(sides[:, 0] * sides[:, 1])


def reach(fractions: np.ndarray, best: np.ndarray, size: Size) -> List[Reach]:
    """By size of the objects; sizes without an object are left out."""
    sides = side_of(fractions, size)
    rows, above = [], 0.0
    for name, below in SIZES:
        chosen = best[(sides >= above) & (sides < below)]
        above = below
        if len(chosen):
            rows.append(Reach(name, len(chosen), float(chosen.mean()), float((chosen >= MATCHED).mean())))
    return rows


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Boxes of many images below each other; (0, 4) of none."""
    return np.concatenate(list(parts)) if len(parts) else np.zeros((0, 4))
