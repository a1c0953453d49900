"""What a run leaves behind for people: a CSV log, a picture of its curves, and the files worth keeping."""

import csv
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

log = logging.getLogger(__name__)

Row = Dict[str, Any]


def read_log(path: Path) -> List[Row]:
    """Rows of a CSV log; empty cells are None, all others numbers."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {name: float(cell) if cell else None for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


OF_A_RUN = ("best.pth", "last.pth", "log.csv", "curves.png")
"""What each run writes under the same name."""


def set_aside(folder: Path) -> Optional[Path]:
    """Move what an earlier run left in a folder to `earlier-1` in it (or -2, ...), and say so; None without one."""
    left = [folder / name for name in OF_A_RUN if (folder / name).is_file()]
    if not left:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    place = folder / f"earlier-{number}"
    place.mkdir()
    for path in left:
        path.replace(place / path.name)
    log.info("%s holds an earlier run: its %s are in %s now", folder, ", ".join(p.name for p in left), place)
    return place


class Record:
    """`log.csv` and `curves.png` in a run's folder, one row an epoch.

    Args:
        folder: of the run; made when needed.
        resuming: keep the rows that are there; otherwise start anew.
    """

    def __init__(self, folder: Path, resuming: bool = False) -> None:
        self.resuming = resuming
        self.path = folder / "log.csv"
        self.picture = folder / "curves.png"
        self.rows = read_log(self.path) if resuming else []
        self._best_flat: Optional[Path] = None
        self._last_flat: Optional[Path] = None

    def rewind(self, epoch: int) -> None:
        """Forget rows of epochs that will be trained again."""
        self.rows = [row for row in self.rows if row["epoch"] is not None and row["epoch"] < epoch]

    def add(self, row: Row) -> None:
        """Append an epoch and write both files anew."""
        self.rows.append(row)
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        draw_curves(self.rows, self.picture)

    def keep_flat(self, path: Path, best: bool) -> None:
        """Of the flat state dicts that this run has written, only the best and the last stay."""
        if self._last_flat and self._last_flat not in (path, self._best_flat):
            self._last_flat.unlink(missing_ok=True)  # type: ignore[call-arg,unused-ignore]
        if best:
            if self._best_flat and self._best_flat != path:
                self._best_flat.unlink(missing_ok=True)  # type: ignore[call-arg,unused-ignore]
            self._best_flat = path
        self._last_flat = path


def draw_curves(rows: List[Row], path: Path) -> None:
    """Losses, mAP with the APs of the classes, and the learning rate over the epochs, as a PNG."""
    from matplotlib.figure import Figure  # slow to import, and only training needs it

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, precisions, rate = figure.subplots(1, 3)
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        _plot(losses, rows, name, label)
    losses.set_title("loss")
    losses.set_ylim(bottom=0)
    classes = sorted({name for row in rows for name in row if name.startswith("AP ")})
    for name in classes[:12]:
        _plot(precisions, rows, name, name[3:], alpha=0.45, linewidth=1)
    _plot(precisions, rows, "mAP", "mAP", color="black", linewidth=2)
    precisions.set_title("average precision")
    precisions.set_ylim(0, 1)
    _plot(rate, rows, "lr", "")
    rate.set_title("learning rate")
    rate.set_ylim(bottom=0)
    for axes in (losses, precisions, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (losses, precisions):
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _plot(axes: Any, rows: List[Row], name: str, label: str, **style: Any) -> None:
    points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    if points:
        axes.plot(*zip(*points), label=label, marker="o" if len(points) < 3 else "", **style)
