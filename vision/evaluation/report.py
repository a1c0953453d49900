"""The result of an evaluation: per class and as a whole, as text, JSON and CSV."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

NOT_AVAILABLE = "n/a"


@dataclass(frozen=True)
class Counts:
    """What a class looks like when only detections of at least some score are shown."""

    tp: int
    fp: int
    objects: int

    @property
    def precision(self) -> Optional[float]:
        """Share of the shown detections that are right; None when none is shown."""
        shown = self.tp + self.fp
        return self.tp / shown if shown else None

    @property
    def recall(self) -> Optional[float]:
        """Share of the objects that were found; None when there is none."""
        return self.tp / self.objects if self.objects else None

    @property
    def f1(self) -> Optional[float]:
        """Harmonic mean of precision and recall; None when there is neither an object nor a detection."""
        total = self.tp + self.fp + self.objects
        return 2 * self.tp / total if total else None


@dataclass(frozen=True)
class ClassResult:
    """One class.

    Attributes:
        name: of the class.
        ap: average precision 0..1, or None when no image holds an object of the class that counts.
        images: images that hold at least one such object.
        objects: such objects; difficult ones and groups do not count.
        scores: float32 (D,), of all detections of the class, falling.
        tp, fp: bool (D,), right and wrong ones; neither for a detection of an object that does not count.
    """

    name: str
    ap: Optional[float]
    images: int
    objects: int
    scores: np.ndarray
    tp: np.ndarray
    fp: np.ndarray

    def at(self, threshold: float) -> Counts:
        """What remains when only detections with a score of at least `threshold` are shown."""
        shown = self.scores >= threshold
        return Counts(int(self.tp[shown].sum()), int(self.fp[shown].sum()), self.objects)

    def curve(self) -> Tuple[np.ndarray, np.ndarray]:
        """Recall and precision, float64 (D,), after each detection from the best on."""
        return precision_recall(self.tp, self.fp, self.objects)


def precision_recall(tp: np.ndarray, fp: np.ndarray, objects: int) -> Tuple[np.ndarray, np.ndarray]:
    """Recall and precision (D,) float64 after each detection; tp and fp (D,) stand by falling score."""
    right, wrong = np.cumsum(tp, dtype=np.float64), np.cumsum(fp, dtype=np.float64)
    shown = right + wrong
    recall = right / objects if objects else np.zeros_like(right)
    # Before the first detection that counts there is no precision; 0 leaves the curve's envelope as it is.
    precision = np.divide(right, shown, out=np.zeros_like(right), where=shown > 0)
    return recall, precision


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        metric: what `ap` and `mean` are, for people ("VOC 2007 AP (11 points) at IoU 0.5").
        iou_threshold: at which a detection counts as right in the counts.
        images: number of images.
        classes: one result for each class, BACKGROUND left out, in label order.
        summary: further numbers of the metric (COCO's AP50, AP small, ...); None where not available.
    """

    metric: str
    iou_threshold: float
    images: int
    classes: List[ClassResult]
    summary: Dict[str, Optional[float]] = field(default_factory=dict)

    @property
    def mean(self) -> Optional[float]:
        """Mean AP over the classes that have one; None when none has."""
        known = [result.ap for result in self.classes if result.ap is not None]
        return sum(known) / len(known) if known else None

    @property
    def objects(self) -> int:
        """Objects that count, of all classes."""
        return sum(result.objects for result in self.classes)

    def total(self, threshold: float) -> Counts:
        """The counts of all classes together."""
        counts = [result.at(threshold) for result in self.classes]
        return Counts(sum(count.tp for count in counts), sum(count.fp for count in counts), self.objects)

    def rows(self, threshold: float = 0.5) -> List[Dict[str, Any]]:
        """One mapping for each class and one for "all"; None is "not available"."""
        rows = [_row(r.name, r.ap, r.images, r.at(threshold)) for r in self.classes]
        rows.append(_row("all", self.mean, self.images, self.total(threshold)))
        return rows

    def text(self, threshold: float = 0.5) -> str:
        """An aligned table; counts, precision, recall and F1 are at `threshold`."""
        rows = self.rows(threshold)
        columns = list(rows[0])
        cells = [columns] + [[_cell(row[column]) for column in columns] for row in rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        lines = [f"{self.metric}; counts, precision, recall and F1 at scores of at least {threshold:g}"]
        lines += [_aligned(line, widths) for line in cells]
        lines.insert(2, "-" * len(lines[1]))
        lines.insert(len(lines) - 1, "-" * len(lines[1]))
        lines += [f"{name}: {_cell(value)}" for name, value in self.summary.items()]
        return "\n".join(lines)

    def to_dict(self, threshold: float = 0.5) -> Dict[str, Any]:
        """Plain values for JSON."""
        rows = self.rows(threshold)
        return {
            "metric": self.metric,
            "iou_threshold": self.iou_threshold,
            "score_threshold": threshold,
            "images": self.images,
            "objects": self.objects,
            "mean_ap": self.mean,
            "summary": dict(self.summary),
            "classes": rows[:-1],
            "all": rows[-1],
        }

    def write_json(self, path: Union[str, Path], threshold: float = 0.5) -> None:
        """Write `to_dict` as JSON."""
        text = json.dumps(self.to_dict(threshold), indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def write_csv(self, path: Union[str, Path], threshold: float = 0.5) -> None:
        """Write `rows` as CSV; what is not available stays empty."""
        rows = self.rows(threshold)
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _row(name: str, ap: Optional[float], images: int, counts: Counts) -> Dict[str, Any]:
    return {
        "class": name,
        "images": images,
        "objects": counts.objects,
        "ap": ap,
        "tp": counts.tp,
        "fp": counts.fp,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
    }


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOT_AVAILABLE
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell to the left, numbers to the right."""
    first = cells[0].ljust(widths[0])
    return "  ".join([first] + [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])])
