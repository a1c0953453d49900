"""Measure a detector on a data set: `python eval_ssd.py --trained_model models/best.pth --dataset DIR`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from vision import cli
from vision.cli import option
from vision.errors import UserError

with cli.needs():
    from vision.data import Dataset, open_dataset, summary
    from vision.data.open_images import GROUP_RULES
    from vision.detector import NMS_METHODS, Detections, Detector
    from vision.evaluation import coco, open_images, voc
    from vision.evaluation.classes import common_classes, detections_under, sample_under
    from vision.evaluation.curves import draw_curves
    from vision.evaluation.detection_files import write_detections
    from vision.evaluation.inference import SCORE_THRESHOLD, detect_samples
    from vision.evaluation.report import Report
    from vision.runtimes import RUNTIMES, open_detector
    from vision.spec import parse_resolution

DESCRIPTION = (
    "Average precision of a detector on a data set. A checkpoint of train_ssd.py needs nothing but "
    "--trained_model and --dataset."
)

METRICS = {"voc07": "11point", "voc12": "area"}


@dataclass
class EvalOptions:
    """Options of `eval_ssd.py`. Raises UserError for values out of range."""

    # the detector
    trained_model: str = option(
        "", "checkpoint, or a file of another runtime", flags=("--model",), metavar="FILE"
    )
    net: str = option("", "name of the net, for a checkpoint that does not know it")
    label_file: str = option("", "label file, for a model that does not know its classes", metavar="FILE")
    resolution: str = option("", "input size, 300 or WIDTHxHEIGHT, for a model that does not know it")
    mb2_width_mult: float = option(
        1.0, "width multiplier of mb2-ssd-lite, for a checkpoint that does not know it"
    )
    conv4_3_norm: str = option("", "norm on conv4_3 of vgg16-ssd, likewise", choices=("batch", "l2"))
    runtime: str = option("auto", "what runs the model", choices=("auto", *RUNTIMES))
    use_cuda: bool = option(True, "use a GPU when there is one")
    provider: str = option("", "how an exported file is run: cpu, cuda, tensorrt, ...", metavar="NAME")
    threads: int = option(0, "of the CPU; 0 leaves it to the runtime")
    batch_size: int = option(8, "images at once")

    # the data
    dataset: List[str] = option(
        [], "one or more data set folders", flags=("--data", "--datasets"), metavar="DIR"
    )
    dataset_type: str = option("auto", "voc, coco, yolo, csv or open_images; auto looks at the folder")
    groups: str = option("ignore", "boxes round groups of objects", choices=GROUP_RULES)
    split: str = option("test", "which images")
    strict: bool = option(False, "any fault in the data ends the run instead of being mended")
    ignore_missing_classes: bool = option(False, "leave out classes of the data that the model lacks")
    num_workers: int = option(2, "threads that read images", flags=("--workers",))

    # the measure
    metric: str = option(
        "",
        "voc07 (11 points), voc12 (area), coco, or oi (Open Images: a box round a group is found once)",
        choices=("voc07", "voc12", "coco", "oi"),
    )
    group_weight: int = option(1, "of --metric oi: 1, a group is an object to be found; 0, it does not count")
    use_2007_metric: bool = option(True, "without --metric: voc07, else voc12")
    iou_threshold: float = option(0.5, "from which overlap a detection is right (VOC, Open Images)")
    nms_method: str = option("hard", "non-maximum suppression", choices=NMS_METHODS)
    nms_iou_threshold: float = option(0.45, "above which overlap hard NMS drops a box")
    score_threshold: float = option(SCORE_THRESHOLD, "detections below do not count at all")
    shown_threshold: float = option(0.5, "score from which precision, recall and F1 of the table count")

    # output
    eval_dir: str = option("eval_results", "where the detections of every class are written", metavar="DIR")
    json: str = option("", "also write the report here as JSON", metavar="FILE")
    csv: str = option("", "also write the report here as CSV", metavar="FILE")
    curves: str = option("", "also draw precision over recall into this picture", metavar="FILE")

    def __post_init__(self) -> None:
        for name in ("trained_model", "dataset"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing")
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size} is below 1")
        if not 0 < self.iou_threshold <= 1:
            raise UserError(f"--iou_threshold {self.iou_threshold} is outside (0, 1]")
        if self.group_weight not in (0, 1):
            raise UserError(f"--group_weight {self.group_weight} is neither 0 nor 1")
        if self.resolution:
            parse_resolution(self.resolution)

    def detector(self) -> Detector:
        """The detector to be measured."""
        options: Dict[str, Any] = {"batch_size": self.batch_size}
        if self.mb2_width_mult != 1.0:
            options["width_mult"] = self.mb2_width_mult
        if self.conv4_3_norm:
            options["conv4_3_norm"] = self.conv4_3_norm
        return open_detector(
            self.trained_model,
            self.runtime,
            labels=self.label_file or None,
            net=self.net or None,
            size=parse_resolution(self.resolution) if self.resolution else None,
            device=None if self.use_cuda else "cpu",
            provider=self.provider or None,
            threads=self.threads or None,
            **options,
        )


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(EvalOptions, argv, DESCRIPTION)
    detector = options.detector()
    dataset = open_dataset(
        options.dataset, options.split, options.dataset_type, strict=options.strict, groups=options.groups
    )
    print(summary(dataset))
    classes = common_classes(detector.classes, dataset.classes, options.ignore_missing_classes)
    print(f"Model: {options.trained_model} ({detector.name}, {len(detector.classes) - 1} classes)")

    start = time.perf_counter()
    found = _detect(detector, dataset, options)
    seconds = time.perf_counter() - start
    print(f"{len(dataset)} images in {seconds:.1f} s, {len(dataset) / seconds:.1f} images/s")

    found, report = _evaluate(found, dataset, classes, options)
    _print_report(report, options)
    folder = write_detections(options.eval_dir, found, dataset.samples)[0].parent
    print(f"Detections: {folder}")
    if options.json:
        report.write_json(_made(options.json), options.shown_threshold)
    if options.csv:
        report.write_csv(_made(options.csv), options.shown_threshold)
    if options.curves:
        draw_curves(report, options.curves)
    return 0


def _detect(detector: Detector, dataset: Dataset, options: EvalOptions) -> List[Detections]:
    results = detect_samples(
        detector,
        dataset.samples,
        options.score_threshold,
        options.num_workers,
        iou_threshold=options.nms_iou_threshold,
        nms_method=options.nms_method,
    )
    found: List[Detections] = []
    for result in results:
        found.append(result)
        if sys.stderr.isatty():
            end = "\n" if len(found) == len(dataset) else ""
            print(f"\r{len(found)} of {len(dataset)} images", end=end, file=sys.stderr, flush=True)
    return found


def _evaluate(
    found: Sequence[Detections], dataset: Dataset, classes: Tuple[str, ...], options: EvalOptions
) -> Tuple[List[Detections], Report]:
    """The detections of the classes evaluated, and the report."""
    mine = [detections_under(one, classes) for one in found]
    samples = [sample_under(sample, dataset.classes, classes) for sample in dataset.samples]
    metric = options.metric or ("voc07" if options.use_2007_metric else "voc12")
    if metric == "coco":
        return mine, coco.evaluate(mine, samples, classes)
    if metric == "oi":
        report = open_images.evaluate(mine, samples, classes, options.iou_threshold, options.group_weight)
        return mine, report
    return mine, voc.evaluate(mine, samples, classes, options.iou_threshold, METRICS[metric])


def _print_report(report: Report, options: EvalOptions) -> None:
    """The original's lines, for whoever reads them by program, and the table."""
    print("\n\nAverage Precision Per-class:")
    for result in report.classes:
        print(f"{result.name}: {'n/a' if result.ap is None else result.ap}")
    print(f"\nAverage Precision Across All Classes:{'n/a' if report.mean is None else report.mean}\n")
    print(report.text(options.shown_threshold))


def _made(path: str) -> Path:
    """A path whose folder exists."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)


if __name__ == "__main__":
    sys.exit(cli.run(main))
