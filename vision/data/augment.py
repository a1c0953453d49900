"""Augmentation as in the SSD paper (arXiv 1512.02325, section 2.2): boxes first, pixels once.

Expand, crop and flip are drawn on the boxes. What they leave is one window, a rectangle in the photograph (larger
than it after an expansion, smaller after a crop), which becomes the net's input. So the photograph is decoded at
no higher resolution than the window needs, warped once to the input size, and coloured there as uint8. Only
contrast stays out of the pixels: it leaves 0..255, so it travels beside them as a gain, to be applied in floating
point where the net normalises its input.

Everything random is a function of (seed, epoch, index) alone, so that neither the number of workers nor the
step at which a run was resumed changes a pixel.
"""

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import cv2
import numpy as np

from vision.boxes import area
from vision.data.images import Size, image_size, read_image, shrink
from vision.data.sample import IGNORED, Sample
from vision.errors import UserError

Example = Tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]
"""RGB uint8 (h, w, 3); corner boxes as fractions, float32 (G, 4); labels, int64 (G,), IGNORED for the box round a
group; gain of the pixels."""

# --- geometry, on boxes alone -------------------------------------------------------------------------------

EXPAND_PROBABILITY = 0.5
LARGEST_EXPANSION = 4.0

MIN_IOUS: Tuple[Optional[float], ...] = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
"""Ways to crop, equally likely: not at all (None), with an object of at least this IoU, or freely (0)."""

SMALLEST_CROP = 0.3
"""Of the side of the image; the area is then at least about 0.1 of it, as in the paper."""

LARGEST_CROP_RATIO = 2.0
CROP_TRIES = 50
MIRROR_PROBABILITY = 0.5


@dataclass(frozen=True)
class Window:
    """The rectangle of a photograph that becomes the input: its corners in pixels, and whether it is mirrored.

    Pixel i of the photograph covers i .. i + 1. Parts outside the photograph are filled.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    mirror: bool = False

    @property
    def size(self) -> Tuple[float, float]:
        """(height, width) in pixels of the photograph."""
        return self.y2 - self.y1, self.x2 - self.x1

    def fractions(self, boxes: np.ndarray) -> np.ndarray:
        """Corner boxes (G, 4) in pixels of the photograph -> corner boxes as fractions of the window, clipped."""
        height, width = self.size
        moved = (boxes - (self.x1, self.y1, self.x1, self.y1)) / (width, height, width, height)
        moved = np.clip(moved, 0, 1).astype(np.float32)
        if self.mirror:
            moved[:, [0, 2]] = 1 - moved[:, [2, 0]]
        return moved


def draw_expansion(rng: np.random.Generator, size: Size) -> Window:
    """The whole photograph, or with probability 1/2 a canvas 1 to 4 times its sides with it somewhere inside."""
    height, width = size
    if rng.random() >= EXPAND_PROBABILITY:
        return Window(0, 0, width, height)
    draw = rng.random(3)
    ratio = 1 + (LARGEST_EXPANSION - 1) * draw[0]
    left, top = draw[1] * width * (ratio - 1), draw[2] * height * (ratio - 1)
    return Window(-left, -top, width * ratio - left, height * ratio - top)


def _candidates(rng: np.random.Generator, window: Window) -> np.ndarray:
    """CROP_TRIES random crops of a window, corners in pixels of the photograph; those too long or flat left out."""
    height, width = window.size
    draw = rng.random((CROP_TRIES, 4))
    sides = (SMALLEST_CROP + (1 - SMALLEST_CROP) * draw[:, :2]) * (width, height)
    low = draw[:, 2:] * ((width, height) - sides) + (window.x1, window.y1)
    ratio = sides[:, 1] / sides[:, 0]
    right = (ratio <= LARGEST_CROP_RATIO) & (ratio * LARGEST_CROP_RATIO >= 1)
    return np.concatenate([low, low + sides], axis=1)[right]


def _inside(centers: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Which centres (G, 2) lie strictly inside which crops (K, 4): bool (K, G)."""
    return np.asarray(((crops[:, None, :2] < centers) & (centers < crops[:, None, 2:])).all(axis=2))


def draw_crop(rng: np.random.Generator, window: Window, boxes: np.ndarray) -> Tuple[Window, np.ndarray]:
    """A crop of a window, and which of the boxes stay: those whose centre it holds.

    One of MIN_IOUS is drawn. A crop is taken when it keeps at least one box, and one of those it keeps has at
    least that IoU with it; when 50 tries bring none, the way to crop is drawn again. (In the original the test
    could not fail, 0.5 was missing, and crops never touched the left and upper border.) Without boxes any crop
    will do.

    Args:
        boxes: float (G, 4) corners in pixels of the photograph.

    Returns: the crop, and bool (G,).
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    areas = area(boxes)
    while True:
        min_iou = MIN_IOUS[int(rng.integers(len(MIN_IOUS)))]
        if min_iou is None:
            return window, np.ones(len(boxes), bool)
        crops = _candidates(rng, window)
        kept = _inside(centers, crops)
        fits = kept
        if min_iou > 0:
            low = np.maximum(crops[:, None, :2], boxes[:, :2])
            high = np.minimum(crops[:, None, 2:], boxes[:, 2:])
            inter = (high - low).prod(axis=2)  # of boxes with their centre inside: never negative
            fits = kept & (inter >= min_iou * (area(crops)[:, None] + areas - inter))
        good = np.flatnonzero(fits.any(axis=1)) if len(boxes) else np.arange(len(crops))
        if len(good):
            first = good[0]
            return Window(*crops[first].tolist()), kept[first]


def draw_window(rng: np.random.Generator, size: Size, boxes: np.ndarray) -> Tuple[Window, np.ndarray]:
    """Expand, crop and flip an image of `size` (height, width) with corner boxes (G, 4), all in pixels.

    Returns: the window that becomes the input, and which boxes stay, bool (G,).
    """
    window, kept = draw_crop(rng, draw_expansion(rng, size), boxes)
    mirror = bool(rng.random() < MIRROR_PROBABILITY)
    return Window(window.x1, window.y1, window.x2, window.y2, mirror), kept


# --- the pixels, once ---------------------------------------------------------------------------------------


def reduction(window: Window, size: Size) -> int:
    """The power of two by which a photograph may be shrunk before its window is warped to `size`."""
    height, width = window.size
    factor = min(height / size[0], width / size[1])
    reduce = 1
    while factor >= 2 * reduce:
        reduce *= 2
    return reduce


def _covered(low: float, high: float, side: int, length: int) -> Tuple[int, int]:
    """First and last + 1 of the `length` output pixels over low..high whose centre lies in 0..side."""
    step = (high - low) / length
    first, last = np.ceil([-low / step - 0.5, (side - low) / step - 0.5])
    return int(np.clip(first, 0, length)), int(np.clip(last, 0, length))


def warp(
    image: np.ndarray, window: Window, reduce: int, photo: Size, size: Size
) -> Tuple[np.ndarray, Tuple[int, int]]:
    """The part of a window that the photograph covers, at the input's resolution.

    Args:
        image: uint8 (H, W, 3), the photograph shrunk `reduce` times.
        window: in pixels of the photograph.
        photo: (height, width) of the photograph as it was.
        size: (height, width) of the input, which the window fills.

    Returns: uint8 (h, w, 3), and the (row, column) of the input at which it belongs; h or w may be 0.
    """
    rows, columns = size
    top, bottom = _covered(window.y1, window.y2, photo[0], rows)
    left, right = _covered(window.x1, window.x2, photo[1], columns)
    if bottom <= top or right <= left:
        return np.empty((0, 0, 3), np.uint8), (0, 0)
    step_y = (window.y2 - window.y1) / rows / reduce
    step_x = (window.x2 - window.x1) / columns / reduce
    # Where one axis still shrinks much more than the other, take means first: linear interpolation between
    # two neighbours would skip pixels. (Below three it hardly does, and prediction does the same.)
    blocks = int(step_y) if step_y >= 3 else 1, int(step_x) if step_x >= 3 else 1
    if max(blocks) > 1:
        image = shrink(image, *blocks)
    step_y, step_x = step_y / blocks[0], step_x / blocks[1]
    # Centre of output pixel i: (i + 0.5) * step from the window's corner; of an image pixel j: j + 0.5.
    start_y = window.y1 / reduce / blocks[0] + (top + 0.5) * step_y - 0.5
    start_x = window.x1 / reduce / blocks[1] + (left + 0.5) * step_x - 0.5
    column = left
    if window.mirror:
        start_x, step_x = start_x + (right - left - 1) * step_x, -step_x
        column = columns - right
    matrix = np.array([[step_x, 0, start_x], [0, step_y, start_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    part = cv2.warpAffine(
        image, matrix, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return part, (top, column)


def _fill_up(part: np.ndarray, corner: Tuple[int, int], size: Size, fill: Sequence[float]) -> np.ndarray:
    """`part` (h, w, 3) at its (row, column) in an image of `size` of one colour."""
    row, column = corner
    below, right = size[0] - row - part.shape[0], size[1] - column - part.shape[1]
    value = [float(round(channel)) for channel in fill]
    if not part.size:
        return np.full((size[0], size[1], 3), value, np.uint8)
    return cv2.copyMakeBorder(part, row, below, column, right, cv2.BORDER_CONSTANT, value=value)


# --- colour -------------------------------------------------------------------------------------------------

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18.0
"""Degrees."""

PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True)
class Colour:
    """One drawn change of colour: value = contrast * (value + brightness), with saturation and hue in between.

    The original draws whether contrast comes before or behind saturation and hue. It is a factor on all three
    channels and they do not depend on such a factor, so the order makes no difference.

    Attributes:
        contrast: not for `recolour`, which must stay in 0..255, but for the net's input.
        hue: degrees.
        channels: the order in which R, G and B are put out.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    channels: Tuple[int, int, int] = PERMUTATIONS[0]


def draw_colour(rng: np.random.Generator) -> Colour:
    """Photometric distortion with the original's ranges; each part with probability 1/2."""
    drawn = rng.random(5) < 0.5
    values = rng.random(4)
    return Colour(
        brightness=BRIGHTNESS * (2 * values[0] - 1) if drawn[0] else 0.0,
        contrast=CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * values[1] if drawn[1] else 1.0,
        saturation=SATURATION[0] + (SATURATION[1] - SATURATION[0]) * values[2] if drawn[2] else 1.0,
        hue=HUE * (2 * values[3] - 1) if drawn[3] else 0.0,
        channels=PERMUTATIONS[int(rng.integers(6))] if drawn[4] else PERMUTATIONS[0],
    )


def _brighten(image: np.ndarray, offset: float, channels: Sequence[int]) -> np.ndarray:
    """value + offset on reordered channels, rounded and clipped to 0..255, in one pass."""
    if offset == 0 and tuple(channels) == PERMUTATIONS[0]:
        return image
    matrix = np.zeros((3, 4), np.float32)
    matrix[:, 3] = offset
    matrix[[0, 1, 2], list(channels)] = 1
    return cv2.transform(image, matrix)


def _shift_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """The hue turned, through 8-bit HSV with a hue of 256 steps, which wrap by themselves."""
    steps = round(degrees * 256 / 360) % 256
    if steps == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(steps)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """HSV saturation times a factor, without going through HSV: channel -> V - factor * (V - channel).

    V, the largest channel, and the hue stay. Where the saturation would leave its range, the smallest channel is
    clipped to 0.
    """
    if factor == 1:
        return image
    red, green, blue = cv2.split(image)
    value = cv2.max(cv2.max(red, green), blue)
    return cv2.addWeighted(image, factor, cv2.merge((value, value, value)), 1 - factor, 0)


def recolour(image: np.ndarray, colour: Colour) -> np.ndarray:
    """uint8 RGB (h, w, 3) -> uint8 RGB: all but the contrast. Values are clipped to 0..255."""
    if colour.saturation == 1 and colour.hue == 0:
        return _brighten(image, colour.brightness, colour.channels)
    image = _brighten(image, colour.brightness, PERMUTATIONS[0])
    image = _scale_saturation(_shift_hue(image, colour.hue), colour.saturation)
    return _brighten(image, 0.0, colour.channels)


def apply_gain(image: np.ndarray, gain: float) -> np.ndarray:
    """uint8 RGB times the gain of an example, clipped to 0..255: for people; nets take it unclipped."""
    return cv2.convertScaleAbs(image, alpha=float(gain))


# --- from a sample to an example ----------------------------------------------------------------------------


def random_stream(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch; streams of different arguments are independent."""
    mask = (1 << 64) - 1
    key = np.array([seed & mask, ((epoch << 40) + index) & mask], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _to_learn(sample: Sample) -> Tuple[np.ndarray, np.ndarray]:
    """Boxes (float64) and labels of single, not difficult objects: what counts in evaluation."""
    counts = ~np.asarray(sample.difficult | sample.group, bool)
    return sample.boxes[counts].astype(np.float64), sample.labels[counts]


def _with_groups(
    sample: Sample, window: Window, boxes: np.ndarray, labels: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of an example, with boxes round groups behind them, as far as they are in the window."""
    if not sample.group.any():
        return boxes, labels
    groups = window.fractions(sample.boxes[sample.group].astype(np.float64))
    groups = groups[(groups[:, 2:] > groups[:, :2]).all(axis=1)]
    together = np.concatenate([boxes, groups])
    return together, np.concatenate([labels, np.full(len(groups), IGNORED, np.int64)])


@dataclass(frozen=True)
class Augmentation:
    """A training sample: distorted, expanded, cropped, mirrored, at the input size.

    Attributes:
        size: (height, width) of the input.
        fill: RGB of what lies outside the photograph; the mean that the net subtracts.
        seed: of everything random.
    """

    size: Size
    fill: Tuple[float, float, float] = (127.0, 127.0, 127.0)
    seed: int = 0

    def __call__(self, sample: Sample, epoch: int, index: int) -> Example:
        """The example that sample number `index` gives in `epoch`. Raises UserError for an unreadable image."""
        rng = random_stream(self.seed, epoch, index)
        boxes, labels = _to_learn(sample)
        photo = sample.size or image_size(sample.path)
        colour = draw_colour(rng)
        window, kept = draw_window(rng, photo, boxes)

        reduce = reduction(window, self.size)
        image = read_image(sample.path, reduce, sample.size)
        if image.shape[:2] != (-(-photo[0] // reduce), -(-photo[1] // reduce)):
            raise UserError(
                f"{sample.path}: no longer the {photo[1]} x {photo[0]} pixels it had when the data set was read"
            )
        part, (row, column) = warp(image, window, reduce, photo, self.size)
        # Only the photograph is coloured: what is filled stays the mean, as in the original.
        out = recolour(part, colour) if part.size else part
        if out.shape[:2] != self.size:
            # Divided by the gain, so that it is the mean again where the gain has been applied.
            fill = tuple(value / colour.contrast for value in self.fill)
            out = _fill_up(out, (row, column), self.size, fill)

        moved = window.fractions(boxes[kept])
        solid = (moved[:, 2:] > moved[:, :2]).all(axis=1)
        moved, labels = _with_groups(sample, window, moved[solid], labels[kept][solid])
        return out, moved, labels, np.float32(colour.contrast)


@dataclass(frozen=True)
class Resized:
    """A sample without augmentation, prepared as for prediction: stretched to the input size on uint8.

    Attributes:
        size: (height, width) of the input.
    """

    size: Size

    def __call__(self, sample: Sample, epoch: int = 0, index: int = 0) -> Example:
        """The example; `epoch` and `index` change nothing. Raises UserError for an unreadable image."""
        image = read_image(sample.path, size=sample.size)
        boxes, labels = _to_learn(sample)
        height, width = image.shape[:2]
        window = Window(0, 0, width, height)
        image = cv2.resize(image, (self.size[1], self.size[0]), interpolation=cv2.INTER_LINEAR)
        moved, labels = _with_groups(sample, window, window.fractions(boxes), labels)
        return image, moved, labels, np.float32(1)
