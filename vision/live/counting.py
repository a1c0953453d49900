"""Counting tracked objects at lines and in zones, which a small JSON file describes:

    {
      "units": "fractions",
      "lines": [{"name": "door", "from": [0.5, 0.1], "to": [0.5, 0.9], "classes": ["person"]}],
      "zones": [{"name": "queue", "corners": [[0.6, 0.2], [0.9, 0.2], [0.9, 0.8]]}]
    }

Units are "fractions" of the picture or "pixels". An object stands where the middle of its box is, or with "point":
"foot" where the middle of its lower edge is. Seen from a line's "from" towards its "to", who goes from left to right
goes "in", who goes from right to left goes "out".
"""

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

import cv2
import numpy as np

from vision.detector import Detections
from vision.errors import UserError

POINTS = ("middle", "foot")
UNITS = ("fractions", "pixels")

MARGIN = 0.05
"""Part of an object's height that it must be away from a line to be on one of its sides; else a box that trembles
on the line would be counted again and again."""

COLOUR = (255, 255, 255)
_EDGE = (16, 18, 24)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Line(NamedTuple):
    """Two ends (2, 2), and the class names that count; None for all."""

    name: str
    ends: np.ndarray
    classes: Optional[Tuple[str, ...]]


class Zone(NamedTuple):
    """Corners (N, 2) of a polygon, and the class names that count; None for all."""

    name: str
    corners: np.ndarray
    classes: Optional[Tuple[str, ...]]


class Plan(NamedTuple):
    """What is counted.

    Attributes:
        units: of UNITS.
        point: of POINTS: where an object stands.
    """

    lines: Tuple[Line, ...]
    zones: Tuple[Zone, ...]
    units: str = "fractions"
    point: str = "middle"

    def scale(self, size: Tuple[int, int]) -> np.ndarray:
        """What turns x, y of the plan into pixels of a picture of (height, width)."""
        return np.array([size[1], size[0]], np.float64) if self.units == "fractions" else np.ones(2)


# --- reading ------------------------------------------------------------------------------------------------


def read_plan(path: Union[str, Path], classes: Sequence[str]) -> Plan:
    """The plan in a JSON file.

    Args:
        classes: that the model knows, BACKGROUND first.

    Raises UserError that names the file, the line or zone, and what is wrong with it.
    """
    path = Path(path)
    try:
        plan = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({error})") from error
    if not isinstance(plan, dict):
        raise UserError(f'{path}: expected an object {{"lines": [...], "zones": [...]}}')
    _check_keys(str(path), plan, ("units", "point", "lines", "zones"))
    units, point = plan.get("units", "fractions"), plan.get("point", "middle")
    if units not in UNITS:
        raise UserError(f"{path}: units {units!r} are none of {', '.join(UNITS)}")
    if point not in POINTS:
        raise UserError(f"{path}: point {point!r} is none of {', '.join(POINTS)}")
    taken: Set[str] = set()
    lines, zones = [], []
    for where, entry in _entries(path, plan, "lines", taken):
        _check_keys(where, entry, ("name", "from", "to", "classes"))
        ends = _points(where, [entry.get("from"), entry.get("to")], units)
        if (ends[0] == ends[1]).all():
            raise UserError(f"{where}: from and to are the same point")
        lines.append(Line(entry["name"], ends, _classes(where, entry, classes)))
    for where, entry in _entries(path, plan, "zones", taken):
        _check_keys(where, entry, ("name", "corners", "classes"))
        corners = entry.get("corners")
        if not isinstance(corners, list) or len(corners) < 3:
            raise UserError(f"{where}: corners are a list of at least 3 points [x, y]")
        zones.append(Zone(entry["name"], _points(where, corners, units), _classes(where, entry, classes)))
    if not lines and not zones:
        raise UserError(f"{path}: neither lines nor zones")
    return Plan(tuple(lines), tuple(zones), units, point)


def _entries(
    path: Path, plan: Mapping[str, Any], key: str, taken: Set[str]
) -> List[Tuple[str, Dict[str, Any]]]:
    """(where, entry) of each line or zone; their names are good and differ."""
    entries = plan.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: {key} is a list of objects")
    found = []
    for number, entry in enumerate(entries):
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: {key}[{number}] has no name")
        if name in taken:
            raise UserError(f"{path}: the name {name!r} is given twice")
        taken.add(name)
        found.append((f"{path}: {key}[{number}] {name!r}", entry))
    return found


def _check_keys(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise UserError(f"{where}: {key!r} is not known here; known: {', '.join(known)}")


def _points(where: str, points: Sequence[Any], units: str) -> np.ndarray:
    for point in points:
        good = isinstance(point, list) and len(point) == 2
        if not good or not all(type(v) in (int, float) and math.isfinite(v) for v in point):
            raise UserError(f"{where}: {point!r} is no point [x, y]")
        if units == "fractions" and not all(0 <= value <= 1 for value in point):
            raise UserError(f'{where}: {point} is outside 0..1; for pixels say "units": "pixels"')
    return np.array(points, np.float64)


def _classes(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> Optional[Tuple[str, ...]]:
    names = entry.get("classes")
    if names is None:
        return None
    if not isinstance(names, list) or not names:
        raise UserError(f"{where}: classes is a list of names")
    for name in names:
        if name not in known[1:]:
            raise UserError(f"{where}: the model has no class {name!r}; it knows {', '.join(known[1:])}")
    return tuple(names)


# --- counting -----------------------------------------------------------------------------------------------


class Counter:
    """Counts of one source."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._passed = {line.name: {"in": 0, "out": 0} for line in plan.lines}
        self._entered = {zone.name: 0 for zone in plan.zones}
        self._inside = {zone.name: 0 for zone in plan.zones}
        self._last: Dict[Tuple[str, int], np.ndarray] = {}
        self._been: Set[Tuple[str, int]] = set()

    def update(
        self, detections: Detections, tracks: np.ndarray, alive: Sequence[int]
    ) -> Dict[str, Dict[str, int]]:
        """Take in a frame.

        Args:
            detections, tracks: (K,) numbers as the tracker gave them.
            alive: numbers of all tracks that are still remembered.

        Returns: {line: {"in", "out"}, zone: {"inside", "entered"}}; but for "inside" since the beginning.
        """
        scale = self.plan.scale(detections.size)
        rows = np.flatnonzero(tracks > 0)
        boxes = detections.boxes[rows].astype(np.float64)
        points = (boxes[:, :2] + boxes[:, 2:]) / 2
        if self.plan.point == "foot":
            points[:, 1] = boxes[:, 3]
        things = [
            (int(tracks[row]), detections.classes[detections.labels[row]], point, box[3] - box[1])
            for row, point, box in zip(rows, points, boxes)
        ]
        for line in self.plan.lines:
            ends = line.ends * scale
            for number, name, point, height in things:
                if line.classes is None or name in line.classes:
                    self._cross(line.name, ends, number, point, MARGIN * height)
        for zone in self.plan.zones:
            corners = (zone.corners * scale).astype(np.float32)
            inside = [
                number
                for number, name, point, _ in things
                if (zone.classes is None or name in zone.classes)
                and cv2.pointPolygonTest(corners, (float(point[0]), float(point[1])), False) >= 0
            ]
            self._inside[zone.name] = len(inside)
            fresh = {(zone.name, number) for number in inside} - self._been
            self._entered[zone.name] += len(fresh)
            self._been |= fresh
        self._forget(set(alive))
        return self.counts()

    def _cross(self, name: str, ends: np.ndarray, number: int, point: np.ndarray, margin: float) -> None:
        """Compare where the object was last clear of the line with where it is now."""
        side = _side(ends, point)
        if abs(side) < max(margin, 1e-9):
            return
        before = self._last.get((name, number))
        self._last[name, number] = point
        if before is None or (_side(ends, before) > 0) == (side > 0):
            return
        # It is on the other side; did it pass between the ends?
        if _side(np.array([before, point]), ends[0]) * _side(np.array([before, point]), ends[1]) <= 0:
            self._passed[name]["in" if side > 0 else "out"] += 1

    def _forget(self, alive: Set[int]) -> None:
        self._last = {key: value for key, value in self._last.items() if key[1] in alive}
        self._been = {key for key in self._been if key[1] in alive}

    def counts(self) -> Dict[str, Dict[str, int]]:
        """As `update` gives them."""
        lines = {name: dict(passed) for name, passed in self._passed.items()}
        zones = {
            name: {"inside": self._inside[name], "entered": entered}
            for name, entered in self._entered.items()
        }
        return {**lines, **zones}


def _side(ends: np.ndarray, point: np.ndarray) -> float:
    """Distance of a point from the line through two ends, in pixels; above 0 on the right, seen from the first."""
    along, to_point = ends[1] - ends[0], point - ends[0]
    length = math.hypot(along[0], along[1])
    return float(along[0] * to_point[1] - along[1] * to_point[0]) / length if length else 0.0


# --- drawing ------------------------------------------------------------------------------------------------


def draw_counts(picture: np.ndarray, plan: Plan, counts: Mapping[str, Mapping[str, int]]) -> np.ndarray:
    """Lines and zones with their counts, drawn into a picture (RGB uint8, changed in place)."""
    height, width = picture.shape[:2]
    scale = plan.scale((height, width))
    thick = max(1, round(min(height, width) / 300))
    size = max(0.4, min(height, width) / 800)
    for zone in plan.zones:
        corners = zone.corners * scale
        _stroke(picture, corners, thick, closed=True)
        words = f"{zone.name}: {counts[zone.name]['inside']} ({counts[zone.name]['entered']})"
        _write(picture, words, corners.min(axis=0), size)
    for line in plan.lines:
        start, end = line.ends * scale
        _stroke(picture, np.array([start, end]), thick)
        # An arrow head on the side that is "in".
        along = (end - start) / max(1.0, math.hypot(*(end - start)))
        across = np.array([-along[1], along[0]])
        foot, wing = (start + end) / 2, 6 * thick
        tip = foot + across * 2 * wing
        _stroke(picture, np.array([foot, tip]), thick)
        _stroke(picture, np.array([tip + (along - across) * wing, tip, tip - (along + across) * wing]), thick)
        words = f"{line.name}: in {counts[line.name]['in']} out {counts[line.name]['out']}"
        _write(picture, words, start if start[1] > end[1] else end, size)
    return picture


def _stroke(picture: np.ndarray, points: np.ndarray, thick: int, closed: bool = False) -> None:
    """White on a dark edge, to be seen on every ground."""
    whole = np.rint(points).astype(np.int32)
    for colour, width in ((_EDGE, thick + 2), (COLOUR, thick)):
        cv2.polylines(picture, [whole], closed, colour, width, cv2.LINE_AA)


def _write(picture: np.ndarray, text: str, place: np.ndarray, size: float) -> None:
    """On a dark plate whose lower left corner is at `place`, moved into the picture where it can be."""
    text = text.encode("ascii", "replace").decode("ascii")
    (width, height), below = cv2.getTextSize(text, _FONT, size, 1)
    pad = max(2, height // 2)
    wide, high = width + 2 * pad, height + below + pad
    left = int(np.clip(place[0], 0, max(0, picture.shape[1] - wide)))
    top = int(np.clip(place[1] - high, 0, max(0, picture.shape[0] - high)))
    cv2.rectangle(picture, (left, top), (left + wide - 1, top + high - 1), _EDGE, cv2.FILLED)
    where = (left + pad, top + pad // 2 + height)
    cv2.putText(picture, text, where, _FONT, size, COLOUR, 1, cv2.LINE_AA)
