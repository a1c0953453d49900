"""The same photographs through every runtime of this machine, in one table: `python -m vision.parity`.

"It trained fine, but the device shows wrong boxes" is answered by numbers: the mAP of a checkpoint, of the files made
from it, and of each runtime that reads them, with the first one as the measure.
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Optional, Sequence

from vision import cli
from vision.caffe2_net import find_pair, is_pair
from vision.card import read_card
from vision.cli import option
from vision.data import Dataset, open_dataset, summary
from vision.errors import UserError
from vision.evaluation.inference import mean_ap
from vision.runtimes import RUNTIMES, open_detector, readers_of
from vision.runtimes.cuda_driver import find_gpu

log = logging.getLogger(__name__)

DESCRIPTION = "Measure models in every runtime of this machine on the same photographs, in one table."
EPILOG = """The first model, in the first runtime that is installed for it, is the measure. Exit code 1 where another
loses more than the tolerance. NVIDIA's detectNet is emulated; what it makes of a file that was not exported for it
(--target detectnet) is shown and not judged."""

TOLERANCE = 0.5
"""Points of mAP. On a test split of some dozens of photographs a point is chance."""


@dataclass
class ParityOptions:
    """Options of `python -m vision.parity`. Raises UserError for values out of range."""

    models: List[str] = option([], "checkpoints and exported files", metavar="MODEL", positional=True)
    dataset: List[str] = option([], "folders of annotated photographs", flags=("--data",), metavar="DIR")
    dataset_type: str = option("auto", "voc, coco, yolo, csv or open_images; auto looks at the folder")
    split: str = option("test", "which images")
    runtime: List[str] = option([], "only these (default: all that are installed)", choices=tuple(RUNTIMES))
    labels: str = option("", "label file, for models that do not know their classes", metavar="FILE")
    tolerance: float = option(TOLERANCE, "points of mAP that others may lose against the first")
    images: int = option(0, "take so many images only; 0 for all")
    batch_size: int = option(8, "images at once")
    use_cuda: bool = option(True, "use a GPU when there is one")
    json: str = option("", "also write the table here as JSON", metavar="FILE")

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("name a model, or several")
        if not self.dataset:
            raise UserError("--dataset is missing")
        for name in ("tolerance", "images"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} {getattr(self, name)} is below 0")
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size} is below 1")


@dataclass
class Row:
    """One model in one runtime.

    Attributes:
        mean_ap: VOC 2007, IoU 0.5; None where it could not be run, and `why` says the reason.
        difference: points of mAP from the first row; None for that one.
        images_a_second: reading included.
        judged: whether the tolerance holds for it.
    """

    model: str
    runtime: str
    mean_ap: Optional[float] = None
    difference: Optional[float] = None
    images_a_second: float = 0.0
    judged: bool = True
    why: str = ""


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(ParityOptions, argv, DESCRIPTION, EPILOG)
    pairs = [(model, name) for model in options.models for name in runtimes_for(model, options)]
    dataset = open_dataset(options.dataset, options.split, options.dataset_type)
    print(summary(dataset))
    if options.images:
        dataset.samples = dataset.samples[: options.images]
    rows: List[Row] = []
    for model, name in pairs:
        rows.append(measure(model, name, dataset, options))
        compare(rows)
        print(line(rows[-1], max(len(Path(one).name) for one in options.models)), flush=True)
    if options.json:
        text = json.dumps([asdict(row) for row in rows], indent=2) + "\n"
        Path(options.json).write_text(text, encoding="utf-8")
    wrong = faults(rows, options)
    for fault in wrong:
        log.error("error: %s", fault)
    return 1 if wrong else 0


def runtimes_for(model: str, options: ParityOptions) -> List[str]:
    """Names in RUNTIMES, in its order. Raises UserError for a file that is not there, or that nothing runs."""
    path = find_pair(Path(model)).predict if is_pair(Path(model)) else Path(model)
    if not path.is_file():
        raise UserError(f"{model}: no such file")
    readers, installed = readers_of(path)
    if options.runtime:
        chosen = [name for name in readers if name in options.runtime]
        if not chosen:
            raise UserError(f"{model} is read by {', '.join(readers)}, not by {', '.join(options.runtime)}")
        return chosen
    # TensorRT builds an engine first, which is pointless where there is nothing to run it.
    return [name for name in installed if name != "tensorrt" or find_gpu() is not None] or readers[:1]


def measure(model: str, runtime: str, dataset: Dataset, options: ParityOptions) -> Row:
    """Evaluate once. What a runtime refuses is a row that says why."""
    row = Row(model, runtime)
    try:
        if runtime == "detectnet":
            card = read_card(model)
            row.judged = card is not None and card.target == "detectnet"
        detector = open_detector(
            model,
            runtime,
            labels=options.labels or None,
            device=None if options.use_cuda else "cpu",
            batch_size=options.batch_size,
        )
        start = time.perf_counter()
        row.mean_ap = mean_ap(detector, dataset)
        row.images_a_second = len(dataset) / (time.perf_counter() - start)
    except UserError as error:
        row.why = str(error)
    return row


def compare(rows: Sequence[Row]) -> None:
    """Hold the last row against the first."""
    first, last = rows[0], rows[-1]
    if last is not first and last.mean_ap is not None and first.mean_ap is not None:
        last.difference = 100 * (last.mean_ap - first.mean_ap)


def line(row: Row, width: int) -> str:
    """For people."""
    head = f"{Path(row.model).name:{width}}  {row.runtime:11}"
    if row.mean_ap is None:
        return f"{head}  refused: {row.why}"
    difference = "" if row.difference is None else f"{round(row.difference, 2) + 0.0:+.2f} points"
    note = "" if row.judged else "  (not exported for detectNet: not judged)"
    return (
        f"{head}  mAP {row.mean_ap:.4f}  {difference:13}  {row.images_a_second:6.1f} images/s{note}".rstrip()
    )


def faults(rows: Sequence[Row], options: ParityOptions) -> List[str]:
    """What loses too much; and what was asked for by name and cannot be run."""
    found = []
    for number, row in enumerate(rows):
        where = f"{row.model} in {row.runtime}"
        if row.mean_ap is None:
            if number == 0 or row.runtime in options.runtime:
                found.append(f"{where} cannot be measured: {row.why}")
        elif row.judged and row.difference is not None and -row.difference > options.tolerance:
            found.append(f"{where} loses {-row.difference:.2f} points of mAP")
    return found


if __name__ == "__main__":
    sys.exit(cli.run(main))
