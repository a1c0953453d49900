"""A data set of painted shapes: a real VOC tree, written to disk, for trying everything out and for tests.

    python -m vision.data.shapes DIR --images 500 --seed 0

Toys lie on a textured cloth, some of them on top of each other. Every class has its own outline and its own
pattern, so that a small net trained from scratch for minutes can tell them apart.
"""

import argparse
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from vision.data.labels import write_labels
from vision.errors import UserError

PathLike = Union[str, Path]

TEST_SHARE = 0.2
EMPTY_SHARE = 0.06
"""Of the images: those without any object."""

SMALLEST_WIDTH, SMALLEST_HEIGHT = 320, 240
LARGEST_WIDTH, LARGEST_HEIGHT = 480, 360

MOSTLY_COVERED = 0.45
"""An object of which less than this is seen is difficult; below HIDDEN it is not put there at all."""

HIDDEN = 0.2

# --- outlines, on the unit square -1..1 ---------------------------------------------------------------------


def _polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """A regular polygon, or a star where every second corner has the radius `inner`: float64 (K, 2)."""
    count = corners if inner == 1.0 else 2 * corners
    angles = turn - np.pi / 2 + 2 * np.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2 == 1, inner, 1.0) if inner != 1.0 else np.ones(count)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _cross() -> np.ndarray:
    a, b = 1.0, 0.36
    return np.array(
        [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
    )


_OUTLINES: Dict[str, List[np.ndarray]] = {
    # The second outline is cut out of the first.
    "disc": [_polygon(64)],
    "square": [np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])],
    "triangle": [_polygon(3) * (1.1, 1.2) + (0, 0.3)],
    "star": [_polygon(5, inner=0.45)],
    "ring": [_polygon(64), _polygon(64) * 0.52],
    "cross": [_cross()],
}

CLASSES = tuple(_OUTLINES)

# --- patterns, on the same square: 0..1, mixed between an object's two colours ------------------------------


def _ball(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.clip(1.1 * np.hypot(x + 0.35, y + 0.4) - 0.2, 0, 1)


def _checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((np.floor((x + 0.9) / 0.45) + np.floor((y + 0.9) / 0.45)) % 2).astype(np.float32)


def _stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.sin(y * 14) > 0).astype(np.float32)


def _rays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.clip(1.3 * np.hypot(x, y), 0, 1)


def _wedges(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.sin(np.arctan2(y, x) * 6) > 0).astype(np.float32)


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.hypot((x / 0.36 + 0.5) % 1 - 0.5, (y / 0.36 + 0.5) % 1 - 0.5) < 0.28).astype(np.float32)


class _Look(NamedTuple):
    """Hue of the body and of the pattern in degrees, brightness of the pattern, and the pattern itself."""

    hue: float
    other_hue: float
    other_value: float
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray]


_LOOKS = {
    "disc": _Look(4, 350, 0.45, _ball),
    "square": _Look(215, 210, 0.35, _checks),
    "triangle": _Look(130, 70, 0.95, _stripes),
    "star": _Look(48, 22, 0.9, _rays),
    "ring": _Look(285, 320, 0.95, _wedges),
    "cross": _Look(180, 200, 0.25, _dots),
}

# --- one object ---------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """A shape to paint: its class, and where: centre and half axes in pixels, angle in radians."""

    name: str
    center: Tuple[float, float]
    half: Tuple[float, float]
    angle: float


def _matrix(shape: Shape) -> np.ndarray:
    """From the unit square to pixels: float64 (2, 3)."""
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * shape.half
    return np.concatenate([turn, np.array(shape.center)[:, None]], axis=1)


def _mask(shape: Shape, size: Tuple[int, int]) -> np.ndarray:
    """How much of each pixel of an image of `size` (height, width) the shape covers: float32 0..1."""
    matrix = _matrix(shape)
    mask = np.zeros(size, np.uint8)
    for outline, value in zip(_OUTLINES[shape.name], (255, 0)):
        points = outline @ matrix[:, :2].T + matrix[:, 2]
        # Pixel i of an array has its centre at i; in boxes it covers i .. i + 1. Four bits behind the point.
        cv2.fillPoly(mask, [np.rint((points - 0.5) * 16).astype(np.int32)], value, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _box(mask: np.ndarray) -> Optional[Tuple[int, int, int, int]]:
    """Corners in pixels round what a mask covers (x2, y2 one behind the last pixel), or None for nothing."""
    rows, columns = np.flatnonzero(mask.max(axis=1) > 0.5), np.flatnonzero(mask.max(axis=0) > 0.5)
    if not len(rows) or not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _grid(size: Tuple[int, int], start: float) -> Tuple[np.ndarray, np.ndarray]:
    """Rows (height, 1) and columns (1, width) counted from `start`, float32."""
    rows = np.arange(size[0], dtype=np.float32) + np.float32(start)
    columns = np.arange(size[1], dtype=np.float32) + np.float32(start)
    return rows[:, None], columns[None, :]


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in degrees, saturation and value 0..1 -> RGB 0..255, float32 (3,)."""
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _paint(image: np.ndarray, shape: Shape, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Paint a shape with its shadow into a float32 RGB image 0..255, in place."""
    reach = max(2.0, 0.08 * min(shape.half))
    # Nothing changes far from the shape.
    far = int(max(shape.half) * 1.7 + 4 * reach)
    left, top = (max(0, int(middle) - far) for middle in shape.center)
    image = image[top : int(shape.center[1]) + far, left : int(shape.center[0]) + far]
    mask = mask[top : int(shape.center[1]) + far, left : int(shape.center[0]) + far]
    shadow = cv2.warpAffine(mask, np.array([[1, 0, reach], [0, 1, reach]]), (mask.shape[1], mask.shape[0]))
    shadow = cv2.GaussianBlur(shadow, (0, 0), reach)
    image *= (1 - 0.5 * shadow)[..., None]

    height, width = mask.shape
    matrix = cv2.invertAffineTransform(_matrix(shape)).astype(np.float32)
    y, x = _grid((height, width), 0.5)
    y, x = y + np.float32(top), x + np.float32(left)
    u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    look = _LOOKS[shape.name]
    hue = rng.uniform(-10, 10)
    value = rng.uniform(0.85, 1.0)
    body = _hsv(look.hue + hue, rng.uniform(0.75, 0.95), value)
    other = _hsv(look.other_hue + hue, rng.uniform(0.7, 0.95), look.other_value * value)
    blend = look.pattern(u, v).astype(np.float32)[..., None]
    paint = body + (other - body) * blend
    light = 1.06 - 0.16 * np.clip((u + v) / 2, -1, 1)
    paint *= light.astype(np.float32)[..., None]
    image += mask[..., None] * (paint - image)


# --- the cloth below ----------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, size: Tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise 0..1 with features of about `cell` pixels, float32 (height, width)."""
    coarse = rng.random((int(size[0] / cell) + 3, int(size[1] / cell) + 3)).astype(np.float32)
    return cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def background(rng: np.random.Generator, size: Tuple[int, int]) -> np.ndarray:
    """A cloth, board or wall of muted colours: float32 RGB 0..255, (height, width, 3)."""
    y, x = _grid(size, 0.0)
    angle, period = rng.uniform(0, np.pi), np.float32(rng.uniform(10, 46))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across = x * cos + y * sin
    along = y * cos - x * sin
    cloud = 0.6 * _noise(rng, size, rng.uniform(50, 140)) + 0.4 * _noise(rng, size, rng.uniform(12, 40))
    kind = int(rng.integers(5))
    if kind == 0:  # wood
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * across / period + 7 * cloud)
    elif kind == 1:  # tartan
        pattern = 0.25 * (np.sin(2 * np.pi * across / period) > 0.2) + 0.25 * (
            np.sin(2 * np.pi * along / period) > 0.2
        )
        pattern = pattern + 0.5 * cloud
    elif kind == 2:  # tiles
        joint = np.minimum(across % (2 * period), along % (2 * period)) < 2
        pattern = np.where(joint, 0.0, 0.45 + 0.5 * cloud)
    elif kind == 3:  # stone
        pattern = np.abs(cloud - 0.5) * 2.2
    else:  # felt
        pattern = cloud
    hue, saturation = rng.uniform(0, 360), rng.uniform(0.05, 0.25)
    value = rng.uniform(0.35, 0.75)
    dark = _hsv(hue, saturation, value)
    light = _hsv(hue + rng.uniform(-40, 40), saturation * 0.7, min(1.0, value + rng.uniform(0.12, 0.3)))
    pattern = np.clip(pattern, 0, 1).astype(np.float32)[..., None]
    image = dark + (light - dark) * pattern
    # Light falls from one side.
    slope = rng.uniform(-0.18, 0.18, 2).astype(np.float32)
    image *= (1 + slope[0] * (2 * x / size[1] - 1) + slope[1] * (2 * y / size[0] - 1))[..., None]
    return image


# --- a whole picture ----------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A painted picture and its truth.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        names: class of each object.
        boxes: corners in pixels, x2 and y2 one behind the last pixel.
        difficult: mostly covered by others.
        truncated: reaching beyond the border.
    """

    image: np.ndarray
    names: List[str]
    boxes: List[Tuple[int, int, int, int]]
    difficult: List[bool]
    truncated: List[bool]


def _draw_shape(rng: np.random.Generator, size: Tuple[int, int], name: str) -> Shape:
    """A shape of about a quarter to two thirds of the shorter side, mostly inside the image."""
    height, width = size
    side = min(size) * np.exp(rng.uniform(np.log(0.24), np.log(0.65)))
    stretch = np.exp(rng.normal(0, 0.16))
    half = (side / 2 * stretch, side / 2 / stretch)
    margin = 0.3 * side
    center = (rng.uniform(margin, width - margin), rng.uniform(margin, height - margin))
    return Shape(name, center, half, rng.uniform(-0.5, 0.5))


def _visible(masks: Sequence[np.ndarray]) -> List[float]:
    """Which share of each mask the later ones leave open."""
    shares: List[float] = []
    above = np.zeros((1, 1), np.float32)
    for mask in reversed(masks):
        shares.append(float((mask * (1 - above)).sum() / mask.sum()))
        above = np.maximum(above, mask)
    return shares[::-1]


def paint_picture(rng: np.random.Generator, size: Tuple[int, int], count: int) -> Picture:
    """A picture of `size` (height, width) with up to `count` objects."""
    shapes: List[Shape] = []
    masks: List[np.ndarray] = []
    for _ in range(count):
        for _ in range(20):
            shape = _draw_shape(rng, size, CLASSES[int(rng.integers(len(CLASSES)))])
            mask = _mask(shape, size)
            # Most objects lie apart, and none hides another.
            limit = HIDDEN if rng.random() < 0.25 else 0.8
            if mask.sum() > 40 and min(_visible([*masks, mask])) >= limit:
                shapes.append(shape)
                masks.append(mask)
                break
    image = background(rng, size)
    for shape, mask in zip(shapes, masks):
        _paint(image, shape, mask, rng)
    image += rng.standard_normal((*size, 1), np.float32) * np.float32(rng.uniform(1, 5))
    boxes, truncated = [], []
    for mask in masks:
        box = _box(mask)
        assert box is not None  # more than 40 pixels are covered
        boxes.append(box)
        truncated.append(box[0] == 0 or box[1] == 0 or box[2] == size[1] or box[3] == size[0])
    difficult = [share < MOSTLY_COVERED for share in _visible(masks)]
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Picture(pixels, [shape.name for shape in shapes], boxes, difficult, truncated)


# --- the tree on disk ---------------------------------------------------------------------------------------

_OBJECT = """\t<object>
\t\t<name>{name}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>{truncated:d}</truncated>
\t\t<difficult>{difficult:d}</difficult>
\t\t<bndbox>
\t\t\t<xmin>{box[0]}</xmin>
\t\t\t<ymin>{box[1]}</ymin>
\t\t\t<xmax>{box[2]}</xmax>
\t\t\t<ymax>{box[3]}</ymax>
\t\t</bndbox>
\t</object>
"""

_ANNOTATION = """<annotation>
\t<folder>JPEGImages</folder>
\t<filename>{filename}</filename>
\t<size>
\t\t<width>{width}</width>
\t\t<height>{height}</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{objects}</annotation>
"""


def _annotation(picture: Picture, filename: str) -> str:
    """The XML of a picture: 1-based pixels, the last one included, as VOC has it."""
    objects = ""
    for name, box, difficult, truncated in zip(
        picture.names, picture.boxes, picture.difficult, picture.truncated
    ):
        corners = (box[0] + 1, box[1] + 1, box[2], box[3])
        objects += _OBJECT.format(name=name, box=corners, difficult=difficult, truncated=truncated)
    height, width = picture.image.shape[:2]
    return _ANNOTATION.format(filename=filename, width=width, height=height, objects=objects)


def write_shapes(root: PathLike, images: int = 500, seed: int = 0) -> Path:
    """Write a VOC tree of painted shapes: 80 % of the images in trainval.txt, the others in test.txt.

    Image number i is a function of (seed, i) alone. Files already there are written over.

    Args:
        root: folder to write to; made when it is not there.
        images: how many, at least 5.
        seed: of everything random.

    Returns: the root.
    """
    if images < 5:
        raise UserError(f"{images} images are too few for a training and a test part; ask for at least 5")
    root = Path(root)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(images):
        rng = np.random.default_rng((seed, number))
        size = (
            int(rng.integers(SMALLEST_HEIGHT, LARGEST_HEIGHT + 1)),
            int(rng.integers(SMALLEST_WIDTH, LARGEST_WIDTH + 1)),
        )
        count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, 6))
        picture = paint_picture(rng, size, count)
        name = f"shapes_{number:05d}"
        coded = cv2.imencode(".jpg", picture.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(coded.tobytes())
        (root / "Annotations" / f"{name}.xml").write_text(
            _annotation(picture, f"{name}.jpg"), encoding="utf-8"
        )
        names.append(name)
    first_test = images - round(images * TEST_SHARE)
    for split, part in (("trainval", names[:first_test]), ("test", names[first_test:])):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    write_labels(root / "labels.txt", CLASSES)
    return root


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vision.data.shapes", description=__doc__.splitlines()[0])
    parser.add_argument("root", metavar="DIR", help="folder to write to")
    parser.add_argument("--images", type=int, default=500, help="how many images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        root = write_shapes(options.root, options.images, options.seed)
    except (UserError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{options.images} images of {', '.join(CLASSES)} in {root}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
