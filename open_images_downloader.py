#!/usr/bin/env python3
"""Download images and boxes of chosen classes from Open Images.

    open_images_downloader.py --root data/guns --class_names "Handgun,Shotgun"
    train_ssd.py --dataset_type open_images --data data/guns

Exit codes: 0 all images are there, 2 wrong use, 3 some images could not be had (failed.txt names them),
130 interrupted. Running the same command again continues in every case.
"""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Sequence

from vision.cli import EXIT_INTERRUPTED, option, parse, run
from vision.open_images.download import BASE_URL, FAILED_FILE, VERSIONS, Report, Request, download
from vision.open_images.progress import image_line, progress_on

EXIT_INCOMPLETE = 3


@dataclass
class Options:
    """The command line; what it means is said at `vision.open_images.download.Request`."""

    root: str = option("data", "the folder to fill", flags=["--data"])
    class_names: str = option(
        "",
        'classes in any case, "Handgun,Shotgun"; "Handgun:~group:0.5" takes half of the images without a group box '
        'of it, "Handgun:group" those with nothing but group boxes of it',
    )
    splits: List[str] = option(["train", "validation", "test"], "which splits to fetch")
    num_workers: int = option(20, "images at the same time", flags=["--workers"])
    retry: int = option(10, "further tries of every image and file")
    filter_file: str = option("", "file with ids of images to leave out, one a line")
    remove_overlapped: bool = option(
        False, "leave out single boxes of which half or more lies in a group box of their class"
    )
    include_depiction: bool = option(False, "keep boxes of drawings, paintings, toys")
    exclude: List[str] = option([], "leave out boxes that are occluded, truncated, group, inside")
    min_box_size: float = option(0.0, "leave out boxes with a side below this fraction of the image's")
    max_images: int = option(-1, "at most so many images in all; the classes are balanced (-1: no limit)")
    max_images_per_class: int = option(-1, "at most so many images of any class (-1: no limit)")
    max_annotations_per_class: int = option(-1, "at most so many boxes of any class (-1: no limit)")
    negatives: int = option(0, "add so many images that people verified to hold none of the classes")
    expand_hierarchy: bool = option(False, "count subclasses as the class: Man, Woman, Boy, Girl as Person")
    version: str = option("v7", f"of Open Images: {', '.join(VERSIONS)}")
    seed: int = option(0, "of the choice of images; the same seed picks the same")
    stats_only: bool = option(False, "say what there is, fetch no image")
    attribution: bool = option(False, "fetch authors and licences for attribution.csv (0.6 GB for train)")
    base_url: str = option(BASE_URL, "mirror of the CSV files")
    endpoint_url: str = option("", "mirror of the images, with the S3 protocol")
    timeout: float = option(30.0, "seconds without a byte before a connection is given up")

    def request(self) -> Request:
        values = {**vars(self), "root": Path(self.root)}
        values.update(splits=tuple(self.splits), exclude=tuple(self.exclude))
        return Request(**values)


def print_plan(report: Report) -> None:
    """A table of images and boxes, split by split and class by class."""
    print(f"{'split':12}{'class':28}{'images':>9}{'boxes':>9}{'groups':>9}")
    for split, plan in report.splits.items():
        for name, count in plan.counts.items():
            print(f"{split:12}{name:28}{count.images:9}{count.boxes:9}{count.groups:9}")
        print(f"{split:12}{'(all)':28}{len(plan.images):9}", end="")
        print(f"{sum(count.boxes for count in plan.counts.values()):9}  of {plan.available} images", end="")
        print(f", {len(plan.negatives)} negatives" if plan.negatives else "")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse(Options, argv, __doc__ or "")
    signal.signal(signal.SIGTERM, _interrupt)
    report = download(options.request(), progress_on())
    print_plan(report)
    outcome = report.outcome
    if outcome is None:
        return 0
    failed = len(outcome.failures)
    print(
        image_line(
            outcome.done, report.num_images, outcome.downloaded, outcome.received, failed, outcome.seconds
        ),
        f"({outcome.downloaded} fetched, {outcome.already_there} there already)",
    )
    if failed:
        print(f"{failed} images could not be had: {Path(options.root) / FAILED_FILE}", file=sys.stderr)
    if outcome.fault:
        print(f"error: {outcome.fault}; run the same command again to continue", file=sys.stderr)
    if outcome.interrupted:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0 if report.complete else EXIT_INCOMPLETE


if __name__ == "__main__":
    sys.exit(run(main))
