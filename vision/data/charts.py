"""Pictures of a data set: contact sheets, objects of each class, and the sizes of the boxes against the priors."""

from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from vision.boxes import corners_to_centers
from vision.data.check import Report, boxes_as_fractions, objects_of_classes
from vision.data.images import read_image
from vision.data.reach import MATCHED, NETS, SIZES, side_of
from vision.data.sample import Dataset
from vision.data.sheets import Item, contact_sheet, write_image
from vision.drawing import Colour, colour_of
from vision.errors import UserError
from vision.spec import ALIASES, layer_priors

SHEET_PICTURES = 20
BARS = 40
"""Classes on a chart; the rarest of more are summed up."""

DOTS = 6000
"""Objects on a scatter; of more every n-th."""

FINE = 2
"""Everything is drawn so many times too large, and shrunk: OpenCV's lines and letters look better so."""

PAPER: Colour = (252, 252, 250)
INK: Colour = (38, 42, 52)
PALE: Colour = (140, 146, 158)
GRID: Colour = (228, 230, 234)
RED: Colour = (214, 60, 60)
PART_COLOURS: Sequence[Colour] = ((46, 111, 191), (240, 160, 40), (60, 164, 110))

Point = Tuple[float, float]


class Canvas:
    """A sheet of paper, measured in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height * FINE, width * FINE, 3), PAPER, np.uint8)

    @staticmethod
    def _at(point: Point) -> Tuple[int, int]:
        return round(point[0] * FINE), round(point[1] * FINE)

    def box(self, low: Point, high: Point, colour: Colour, line: float = 0) -> None:
        """A rectangle; filled where no line width is given."""
        width = max(1, round(line * FINE)) if line else cv2.FILLED
        cv2.rectangle(self.pixels, self._at(low), self._at(high), colour, width, cv2.LINE_AA)

    def line(self, start: Point, end: Point, colour: Colour, width: float = 1) -> None:
        """A straight line."""
        cv2.line(
            self.pixels, self._at(start), self._at(end), colour, max(1, round(width * FINE)), cv2.LINE_AA
        )

    def dot(self, centre: Point, radius: float, colour: Colour) -> None:
        """A filled circle."""
        cv2.circle(
            self.pixels, self._at(centre), max(1, round(radius * FINE)), colour, cv2.FILLED, cv2.LINE_AA
        )

    def text(
        self,
        place: Point,
        text: str,
        colour: Colour = INK,
        size: float = 12,
        align: str = "left",
        bold: bool = False,
    ) -> None:
        """Letters of `size` pixels height, on the line through `place`."""
        text, face, scale, stroke = self._font(text, size, bold)
        x, y = self._at(place)
        width = cv2.getTextSize(text, face, scale, stroke)[0][0]
        x -= {"left": 0, "middle": width // 2, "right": width}[align]
        cv2.putText(self.pixels, text, (x, y), face, scale, colour, stroke, cv2.LINE_AA)

    @staticmethod
    def _font(text: str, size: float, bold: bool) -> Tuple[str, int, float, int]:
        plain = text.encode("ascii", "replace").decode("ascii")  # OpenCV's font has no others
        face = cv2.FONT_HERSHEY_DUPLEX if bold else cv2.FONT_HERSHEY_SIMPLEX
        return plain, face, size * FINE / 30, max(1, round(size * FINE / 18))

    @classmethod
    def width_of(cls, text: str, size: float = 12) -> float:
        """Pixels that letters take."""
        return cv2.getTextSize(*cls._font(text, size, False))[0][0] / FINE

    def done(self) -> np.ndarray:
        """The picture, RGB."""
        height, width = self.pixels.shape[:2]
        return cv2.resize(self.pixels, (width // FINE, height // FINE), interpolation=cv2.INTER_AREA)


class Panel:
    """Axes inside a canvas: x always logarithmic (powers of two), y too unless `top` says where it linearly ends."""

    def __init__(
        self, canvas: Canvas, low: Point, high: Point, ends: Point, top: Optional[float] = None
    ) -> None:
        self.canvas, self.low, self.high, self.top = canvas, low, high, top
        self.first, self.last = np.log2(ends[0]), np.log2(ends[1])

    def x(self, value: float) -> float:
        """Column of a value."""
        share = (np.log2(max(value, 1e-3)) - self.first) / (self.last - self.first)
        return self.low[0] + float(np.clip(share, 0, 1)) * (self.high[0] - self.low[0])

    def y(self, value: float) -> float:
        """Row of a value."""
        share = (
            value / self.top
            if self.top
            else (np.log2(max(value, 1e-3)) - self.first) / (self.last - self.first)
        )
        return self.high[1] - float(np.clip(share, 0, 1)) * (self.high[1] - self.low[1])

    def frame(self, title: str, x_name: str, y_name: str) -> None:
        """Grid, numbers and names."""
        canvas, powers = self.canvas, 2.0 ** np.arange(np.ceil(self.first), np.floor(self.last) + 1)
        for value in powers:
            column = self.x(value)
            canvas.line((column, self.low[1]), (column, self.high[1]), GRID)
            canvas.text((column, self.high[1] + 18), f"{value:g}", PALE, 10, "middle")
        for value in np.arange(0, 1.01, 0.25) * self.top if self.top else powers:
            row = self.y(value)
            canvas.line((self.low[0], row), (self.high[0], row), GRID)
            canvas.text((self.low[0] - 8, row + 4), f"{value:g}", PALE, 10, "right")
        canvas.box(self.low, self.high, PALE, 1)
        canvas.text((self.low[0], self.low[1] - 30), title, INK, 14, bold=True)
        canvas.text((self.low[0], self.low[1] - 10), y_name, PALE, 11)
        canvas.text((self.high[0], self.high[1] + 38), x_name, PALE, 11, "right")

    def scatter(self, points: np.ndarray, labels: np.ndarray, radius: float = 2.6) -> None:
        """Points (K, 2) in the colours of their labels; where many lie the colour is deeper."""
        if len(points) > DOTS:
            chosen = np.linspace(0, len(points) - 1, DOTS).astype(int)
            points, labels = points[chosen], labels[chosen]
        layers = 8 if len(points) > 200 else 2
        for layer in range(layers):  # neighbours in the list fall into different layers
            before = self.canvas.pixels.copy()
            for (x, y), label in zip(points[layer::layers], labels[layer::layers]):
                self.canvas.dot((self.x(x), self.y(y)), radius, colour_of(int(label)))
            cv2.addWeighted(self.canvas.pixels, 0.55, before, 0.45, 0, dst=self.canvas.pixels)


# --- contact sheets -----------------------------------------------------------------------------------------


def _items(dataset: Dataset) -> Iterator[Item]:
    """Pictures of a part, taken evenly from all of it."""
    count = min(SHEET_PICTURES, len(dataset))
    for number in np.unique(np.linspace(0, max(0, len(dataset) - 1), count).astype(int)):
        sample = dataset.samples[number]
        try:
            image = read_image(sample.path, size=sample.size)
        except UserError:
            continue
        height, width = image.shape[:2]
        yield image, sample.boxes / np.array([width, height, width, height], np.float32), sample.labels


# --- classes ------------------------------------------------------------------------------------------------


def _class_rows(report: Report) -> Tuple[List[str], np.ndarray, List[str]]:
    """Names by falling count, objects (rows, parts), names of the parts."""
    parts = list(report.parts)
    counts = np.stack([objects_of_classes(report.parts[part])[1:] for part in parts], axis=1)
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    names = [report.classes[1 + i] for i in order]
    counts = counts[order]
    if len(names) > BARS:
        rest = counts[BARS - 1 :].sum(axis=0, keepdims=True)
        names = names[: BARS - 1] + [f"{len(names) - BARS + 1} more"]
        counts = np.concatenate([counts[: BARS - 1], rest])
    return names, counts, parts


def class_chart(report: Report) -> np.ndarray:
    """Bars: objects of each class, by part."""
    names, counts, parts = _class_rows(report)
    thick = 14 if len(names) > 12 else 18
    step = thick * len(parts) + 14
    left = 40 + 8 * min(24, max(map(len, names)))
    width, top = 960, 84
    canvas = Canvas(width, top + step * len(names) + 40)
    canvas.text((28, 40), "Objects of each class", INK, 17, bold=True)
    place = width - 28.0
    for number, part in reversed(list(enumerate(parts))):
        shown = f"{part}  {int(counts[:, number].sum())}"
        canvas.text((place, 40), shown, PALE, 12, "right")
        place -= canvas.width_of(shown) + 20
        canvas.box((place, 29), (place + 11, 40), PART_COLOURS[number % 3])
        place -= 26
    longest = max(1, int(counts.max()))
    room = width - left - 100
    for row, name in enumerate(names):
        y = top + row * step
        middle = y + thick * len(parts) / 2
        canvas.text((left - 14, middle + 4), name if len(name) <= 24 else name[:22] + "..", INK, 12, "right")
        for number, count in enumerate(counts[row]):
            low = y + number * thick
            length = max(room * count / longest, 1.0)
            colour = PART_COLOURS[number % 3] if count else RED
            canvas.box((left, low + 1), (left + length, low + thick - 2), colour)
            canvas.text((left + length + 8, low + thick - 4), str(count), INK if count else RED, 11)
    canvas.line((left, top - 6), (left, top + step * len(names) - 6), PALE)
    return canvas.done()


# --- boxes and priors ---------------------------------------------------------------------------------------


def _prior_shapes(net: str, size: Tuple[int, int]) -> List[np.ndarray]:
    """Widths and heights (K, 2) of the priors of each map, in pixels of the input."""
    shapes = []
    for layer in NETS[ALIASES.get(net, net)].priors:
        priors = layer_priors(layer, (1, 1), size)
        shapes.append(priors[:, 2:] * np.array([size[1], size[0]]))
    return shapes


def _ends(values: np.ndarray) -> Point:
    """Powers of two round all values."""
    low, high = max(1.0, float(values.min(initial=8))), float(values.max(initial=256))
    return float(2 ** np.floor(np.log2(low))), float(2 ** np.ceil(np.log2(high * 1.05)))


def _aspects(panel: Panel) -> None:
    """Lines of equal aspect ratio."""
    low, high = 2**panel.first, 2**panel.last
    for ratio, name in ((1 / 3, "1:3"), (1, "1:1"), (3, "3:1")):
        start = max(low, low * ratio)
        end = min(high, high * ratio)
        panel.canvas.line(
            (panel.x(start), panel.y(start / ratio)),
            (panel.x(end), panel.y(end / ratio)),
            (206, 210, 218),
            1.5,
        )
        if ratio <= 1:
            panel.canvas.text((panel.x(end) - 30, panel.low[1] + 16), name, PALE, 10, "right")
        else:
            panel.canvas.text((panel.high[0] - 6, panel.y(end / ratio) - 6), name, PALE, 10, "right")


def box_chart(report: Report, part: str) -> np.ndarray:
    """Two panels: width and height of the objects with the shapes of the priors; best IoU with a prior by size."""
    size, dataset = report.question.size, report.parts[part]
    fractions = boxes_as_fractions(dataset)
    labels = np.concatenate(
        [s.labels for s in dataset.samples if s.size is not None] or [np.zeros(0, np.int64)]
    )
    sides = corners_to_centers(fractions)[:, 2:] * np.array([size[1], size[0]])
    shapes = _prior_shapes(report.question.net, size)
    ends = _ends(np.concatenate([sides.reshape(-1), *(shape.reshape(-1) for shape in shapes)]))
    canvas = Canvas(1400, 760)
    canvas.text((60, 42), f"Objects of {part}, and the priors of {report.question.net}", INK, 17, bold=True)
    resolution = f"{size[1]} x {size[0]}"
    canvas.text(
        (60, 64), f"{len(fractions)} objects; all sizes in pixels of the net's input, {resolution}", PALE, 12
    )

    left = Panel(canvas, (80, 132), (650, 690), ends)
    left.frame("Width and height", "width", "height")
    _aspects(left)
    left.scatter(sides, labels)
    for shape in shapes:
        for width, height in shape:
            place = left.x(width), left.y(height)
            canvas.box((place[0] - 5, place[1] - 5), (place[0] + 5, place[1] + 5), PAPER, 3.5)
            canvas.box((place[0] - 5, place[1] - 5), (place[0] + 5, place[1] + 5), INK, 1.5)

    right = Panel(canvas, (740, 132), (1180, 690), ends, top=1.0)
    right.frame("Best IoU with a prior", "root of the area", "IoU")
    best = report.best[part]
    right.scatter(np.stack([side_of(fractions, size), best], axis=1), labels)
    row = right.y(MATCHED)
    canvas.line((right.low[0], row), (right.high[0], row), RED, 1.5)
    canvas.text((right.high[0] - 6, row + 16), "below this only the best prior learns", RED, 10, "right")
    for _, bound in SIZES[:-1]:
        column = right.x(bound)
        canvas.line((column, right.low[1]), (column, right.high[1]), PALE, 1)

    _legend(canvas, report, part, labels)
    return canvas.done()


def _legend(canvas: Canvas, report: Report, part: str, labels: np.ndarray) -> None:
    """Classes by falling count, and what the panels say in numbers."""
    x, y = 1206.0, 150.0
    canvas.box((x - 4, y - 9), (x + 6, y + 1), INK, 1.5)
    canvas.text((x + 18, y), "prior", INK, 11)
    counts = np.bincount(labels, minlength=len(report.classes))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] and i]
    for label in order[:14]:
        y += 24
        name = report.classes[label]
        canvas.dot((x + 1, y - 4), 5, colour_of(label))
        canvas.text((x + 18, y), name if len(name) <= 16 else name[:14] + "..", INK, 11)
    if len(order) > 14:
        y += 24
        canvas.text((x + 18, y), f"{len(order) - 14} more", PALE, 11)
    y += 48
    for row in report.reached(part):
        canvas.text((x - 4, y), f"{row.size}: {row.objects}", INK, 12, bold=True)
        canvas.text((x - 4, y + 18), f"mean IoU {row.mean_iou:.2f}", PALE, 11)
        canvas.text((x - 4, y + 35), f"{row.share:.0%} reach 0.5", RED if row.share < MATCHED else PALE, 11)
        y += 64


# --- all ----------------------------------------------------------------------------------------------------


def draw_pictures(report: Report, folder: Path) -> List[Path]:
    """Write what there is to see; returns the files. Raises UserError when the folder cannot be written."""
    written: List[Path] = []
    for part, dataset in report.parts.items():
        items = list(_items(dataset))
        if items:
            written.append(contact_sheet(items, report.classes, folder / f"{part}.jpg"))
    if len(report.classes) > 1 and report.parts:
        written.append(write_image(folder / "classes.png", class_chart(report)))
    for part in report.best:
        if len(report.best[part]):
            written.append(write_image(folder / f"boxes-{part}.png", box_chart(report, part)))
    return written
