"""What a run leaves behind for people: a CSV log, a picture of its curves, and the files worth keeping."""

import contextlib
import csv
import logging
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

from matplotlib.figure import Figure

from vision.errors import UserError

log = logging.getLogger(__name__)

Row = Dict[str, Any]


def read_log(path: Path) -> List[Row]:
    """Rows of a CSV log; empty cells are None, all others numbers. Raises UserError for another program's CSV."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                {name: float(cell) if cell else None for name, cell in row.items()}
                for row in csv.DictReader(file)
            ]
        if any(row["epoch"] is None for row in rows):
            raise ValueError("an epoch without a number")
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(
            f"{path} is not as training wrote it ({error}), perhaps saved by a spreadsheet. Rename it; the run goes "
            "on without its rows."
        ) from None
    return rows


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
        earlier: the folder of the run that is continued, whose rows are kept; None to start anew.

    Attributes:
        goes_on: whether what is in the folder belongs to this run.
    """

    def __init__(self, folder: Path, earlier: Optional[Path] = None) -> None:
        self.goes_on = earlier is not None and earlier.resolve() == folder.resolve()
        self.path = folder / "log.csv"
        self.picture = folder / "curves.png"
        self.rows = read_log(earlier / "log.csv") if earlier else []
        self._best_flat: Optional[Path] = None
        self._last_flat: Optional[Path] = None

    def rewind(self, epoch: int) -> None:
        """Forget rows of epochs that will be trained again."""
        self.rows = [row for row in self.rows if row["epoch"] < epoch]

    def add(self, row: Row) -> None:
        """Append an epoch and write both files anew, whole or not at all; a file that cannot be written is logged."""
        self.rows.append(row)
        for path, write in ((self.path, write_log), (self.picture, draw_curves)):
            temporary = path.with_name(f".part.{path.name}")
            try:
                write(self.rows, temporary)
                temporary.replace(path)
            except OSError as error:  # as a spreadsheet on Windows locks what it shows; training goes on
                log.warning(
                    "%s: cannot be written (%s); it will be with the next epoch", path, error.strerror
                )
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def keep_flat(self, path: Path, best: bool) -> None:
        """Of the flat state dicts that this run has written, only the best and the last stay."""
        if self._last_flat and self._last_flat not in (path, self._best_flat):
            self._last_flat.unlink(missing_ok=True)  # type: ignore[call-arg,unused-ignore]
        if best:
            if self._best_flat and self._best_flat != path:
                self._best_flat.unlink(missing_ok=True)  # type: ignore[call-arg,unused-ignore]
            self._best_flat = path
        self._last_flat = path


def write_log(rows: List[Row], path: Path) -> None:
    """What `read_log` reads."""
    names = list(dict.fromkeys(name for each in rows for name in each))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(rows: List[Row], path: Path) -> None:
    """Losses, mAP with the APs of the classes, and the learning rate over the epochs, as a PNG."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, precisions, rate = figure.subplots(1, 3)
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        _plot(losses, rows, name, label)
    losses.set_title("loss")
    losses.set_ylim(bottom=0)
    classes = sorted({name for row in rows for name in row if name.startswith("AP ")})
    for name in classes[:12]:
        # Between two dollar signs matplotlib reads mathematics.
        _plot(precisions, rows, name, name[3:].replace("$", r"\$"), alpha=0.45, linewidth=1)
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter of a class's name that the font lacks
        figure.savefig(path, dpi=110, format="png")


def _plot(axes: Any, rows: List[Row], name: str, label: str, **style: Any) -> None:
    points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    if points:
        axes.plot(*zip(*points), label=label, marker="o" if len(points) < 3 else "", **style)
