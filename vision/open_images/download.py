"""Images and boxes of chosen classes, into the folder that `vision.data.open_images` reads."""

import csv
import json
import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

from vision.data.images import Broken, check_image
from vision.data.open_images import (
    CLASSES_FILE,
    SPLIT_NAMES,
    SPLITS,
    column_numbers,
    fields,
    find_tables,
    lines,
    negatives_file,
    read_class_names,
)
from vision.errors import UserError
from vision.open_images.backoff import Backoff
from vision.open_images.boxes_csv import (
    ATTRIBUTES,
    RowRules,
    check_whole,
    filter_boxes,
    read_filtered,
    write_table,
)
from vision.open_images.bucket import Outcome, download_images, open_bucket
from vision.open_images.classes import ClassSpec, expand, parse_class_specs, read_hierarchy, resolve
from vision.open_images.fetch import DISK_FULL, fetch
from vision.open_images.plan import (
    Caps,
    ClassCount,
    Images,
    apply_filters,
    apportion,
    choose,
    choose_negatives,
    count_classes,
    images_of_boxes,
    read_image_ids,
)
from vision.open_images.progress import Progress

log = logging.getLogger(__name__)

BASE_URL = "https://storage.googleapis.com/openimages"
VERSIONS = ("v4", "v5", "v6", "v7")
HIERARCHY_FILE = "bbox_labels_600_hierarchy.json"
FAILED_FILE = "failed.txt"
REPORT_FILE = "download_report.json"
ATTRIBUTION_FILE = "attribution.csv"
ATTRIBUTION_COLUMNS = (
    "ImageID",
    "Subset",
    "Author",
    "AuthorProfileURL",
    "License",
    "OriginalLandingURL",
    "Title",
)
TYPICAL_IMAGE = 330_000  # bytes


def source_urls(version: str, split: str) -> Dict[str, str]:
    """Kind -> address below the base address.

    The train boxes are the same in all versions; the 2018 file is half the size of the later one. Validation and
    test have half as many boxes again since v5.
    """
    folder = "2018_04" if version == "v4" else "v5"
    whole = "-boxable" if split == "train" else ""
    later = f"{folder}/{split}/" if version == "v4" else f"{folder}/"
    return {
        "classes": f"{folder}/class-descriptions-boxable.csv",
        "hierarchy": f"2018_04/{HIERARCHY_FILE}",
        "boxes": ("2018_04/train/" if split == "train" else later) + f"{split}-annotations-bbox.csv",
        "image labels": f"v5/{split}-annotations-human-imagelabels-boxable.csv",
        "image info": f"2018_04/{split}/{split}-images{whole}-with-rotation.csv",
    }


@dataclass(frozen=True)
class Request:
    """What to download.

    Attributes:
        root: the folder.
        class_names: "Handgun,Shotgun:~group:0.5"; see `classes.ClassSpec`.
        splits: of train, validation, test.
        num_workers: images at the same time.
        retry: further tries of each image and file.
        filter_file: image ids to leave out, one a line; "" for none.
        remove_overlapped: leave out single boxes that lie in a group box of their class.
        include_depiction: keep drawings, paintings, toys.
        exclude: further attributes of `boxes_csv.ATTRIBUTES` that a box must not have.
        min_box_size: both sides of a box, as a fraction of the image's.
        max_images, max_images_per_class, max_annotations_per_class: caps over all splits; 0 or less for none.
        negatives: images that are verified to hold none of the classes, over all splits.
        expand_hierarchy: boxes of subclasses count as the asked class (Man, Woman ... as Person).
        version: of Open Images.
        seed: of the choice of images.
        stats_only: count, and fetch no image.
        attribution: fetch who made the images (0.6 GB for train). Where that file is present it is used anyway.
        base_url, endpoint_url: mirrors of the CSV files and (S3 protocol) of the images.
        timeout: seconds without a byte.
    """

    root: Path
    class_names: str
    splits: Tuple[str, ...] = SPLITS
    num_workers: int = 20
    retry: int = 10
    filter_file: str = ""
    remove_overlapped: bool = False
    include_depiction: bool = False
    exclude: Tuple[str, ...] = ()
    min_box_size: float = 0.0
    max_images: int = 0
    max_images_per_class: int = 0
    max_annotations_per_class: int = 0
    negatives: int = 0
    expand_hierarchy: bool = False
    version: str = "v7"
    seed: int = 0
    stats_only: bool = False
    attribution: bool = False
    base_url: str = BASE_URL
    endpoint_url: str = ""
    timeout: float = 30.0

    def __post_init__(self) -> None:
        splits = [SPLIT_NAMES.get(split.strip().lower()) for each in self.splits for split in each.split(",")]
        if not splits or None in splits:
            raise UserError(f"--splits {' '.join(self.splits)!r}: take from {', '.join(SPLITS)}")
        asked = {name for names in splits if names for name in names}
        object.__setattr__(self, "splits", tuple(split for split in SPLITS if split in asked))
        exclude = tuple(
            name.strip().lower() for each in self.exclude for name in each.split(",") if name.strip()
        )
        for name in exclude:
            if name not in ATTRIBUTES:
                raise UserError(f"--exclude {name!r}: take from {', '.join(ATTRIBUTES)}")
        object.__setattr__(self, "exclude", exclude)
        if self.version.lower() not in VERSIONS:
            raise UserError(f"--version {self.version!r}: take one of {', '.join(VERSIONS)}")
        object.__setattr__(self, "version", self.version.lower())
        if self.num_workers < 1:
            raise UserError(f"--num_workers {self.num_workers}: at least 1")
        if self.retry < 0 or self.negatives < 0 or self.timeout <= 0 or not 0 <= self.min_box_size < 1:
            raise UserError(
                f"--retry {self.retry}, --negatives {self.negatives}: not below 0; --timeout {self.timeout}: above 0; "
                f"--min_box_size {self.min_box_size}: from 0 to below 1"
            )

    @property
    def backoff(self) -> Backoff:
        return Backoff(self.retry)

    @property
    def rules(self) -> RowRules:
        depiction = () if self.include_depiction else ("depiction",)
        return RowRules(tuple(dict.fromkeys((*depiction, *self.exclude))), self.min_box_size)

    @property
    def caps(self) -> Caps:
        def cap(value: int) -> Optional[int]:
            return value if value > 0 else None

        return Caps(cap(self.max_images), cap(self.max_images_per_class), cap(self.max_annotations_per_class))


@dataclass
class SplitPlan:
    """What one split contributes.

    Attributes:
        filtered: the rows of the asked classes (`boxes_csv.filter_boxes`).
        images: the chosen ones.
        negatives: ImageIDs of the chosen images without any of the classes.
        counts: of the chosen images, class by class.
        available: the number of images with the classes, before filters and caps.
    """

    filtered: Path
    images: Images
    negatives: List[str]
    counts: Dict[str, ClassCount]
    available: int


@dataclass
class Report:
    """What was planned and what came of it.

    Attributes:
        classes: the asked ones, as Open Images spells them, sorted.
        splits: split -> what the box file of it says.
        outcome: of the images; None after `stats_only`.
        boxes: split -> boxes in the table that was written.
    """

    classes: List[str]
    splits: Dict[str, SplitPlan]
    outcome: Optional[Outcome] = None
    boxes: Dict[str, int] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return sum(len(plan.images) + len(plan.negatives) for plan in self.splits.values())

    @property
    def complete(self) -> bool:
        """Whether every planned image is there."""
        return self.outcome is not None and self.outcome.done == self.num_images and not self.outcome.failures


def download(request: Request, progress: Optional[Progress] = None) -> Report:
    """Do what the request says. A second run takes up what a first one left.

    Raises UserError for names, addresses and files that are not as they should be. Images that could not be had
    are in the report and in no table; so it is when Ctrl-C, a full disk or a dead network end the images early.
    """
    progress = progress or Progress()
    specs = parse_class_specs(request.class_names)
    excluded = read_image_ids(Path(request.filter_file)) if request.filter_file else set()
    if not request.stats_only:
        # What is missing or misspelt should show before gigabytes of CSV have come.
        client = open_bucket(request.endpoint_url, request.num_workers, request.timeout)
    try:
        request.root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as temporary:
            report = _plan(request, specs, excluded, progress, temporary)
            if request.stats_only:
                return report
            keys = _keys(report)
            _compare_disk(request.root, len(keys))
            report.outcome = download_images(
                client, keys, request.root, request.num_workers, request.backoff, progress
            )
            _write_results(request, report, progress)
    except OSError as error:
        full = "the disk is full; make room" if error.errno in DISK_FULL else (error.strerror or str(error))
        raise UserError(
            f"{error.filename or request.root}: {full}; run the same command again to continue"
        ) from error
    return report


# --- before the images --------------------------------------------------------------------------------------


def _plan(
    request: Request, asked: List[ClassSpec], excluded: Set[str], progress: Progress, temporary: ExitStack
) -> Report:
    """Read the CSV files and choose the images."""
    names = read_class_names(_get(request, "classes", SPLITS[0], CLASSES_FILE, progress))
    specs = resolve(asked, names)
    wanted = {mid: spec.name for mid, spec in specs.items()}
    if request.expand_hierarchy:
        wanted = expand(
            specs, read_hierarchy(_get(request, "hierarchy", SPLITS[0], HIERARCHY_FILE, progress))
        )
        log.info("with their subclasses: %s", ", ".join(sorted(names.get(mid, mid) for mid in wanted)))
    by_name = {spec.name: spec for spec in specs.values()}
    classes = sorted(by_name)
    filtered, available, ruled_out = {}, {}, {}
    for split in request.splits:
        filtered[split] = request.root / f".{split}-filtered.csv"
        temporary.callback(filtered[split].unlink, missing_ok=True)
        ruled_out[split] = _filter_split(
            _box_file(request, split, progress), filtered[split], wanted, request
        )
        available[split] = images_of_boxes(read_filtered(filtered[split]), classes)
    passed = {
        split: apply_filters(images, classes, by_name, excluded, request.seed)
        for split, images in available.items()
    }
    chosen = choose(passed, classes, request.caps, request.seed)
    _check_choice(request, chosen, available, classes)
    negatives = _negatives(request, chosen, available, ruled_out, set(specs), set(wanted), excluded, progress)
    splits = {
        split: SplitPlan(
            filtered[split],
            chosen[split],
            negatives[split],
            count_classes(chosen[split], classes),
            len(available[split]),
        )
        for split in request.splits
    }
    return Report(classes, splits)


def _filter_split(source: Path, target: Path, wanted: Dict[str, str], request: Request) -> Set[str]:
    """Copy the rows of the wanted classes; gives the images with rows that the rules left out."""
    with target.open("wb") as file:
        result = filter_boxes(source, file, wanted, request.rules)
    for finding in result.findings:
        log.warning("%s", finding)
    if result.bad:
        log.warning("%s: %d of %d rows could not be used", source, result.bad, result.read)
    return result.ruled_out


def _check_choice(
    request: Request, chosen: Dict[str, Images], available: Dict[str, Images], classes: List[str]
) -> None:
    """Raise UserError when there is nothing to download, and warn of classes that have nothing."""
    there = sum(map(len, available.values()))
    hint = "" if request.expand_hierarchy else "; are they boxed as subclasses? try --expand_hierarchy"
    if not there:
        raise UserError(f"{', '.join(request.splits)}: no box of {', '.join(classes)}{hint}")
    if not any(chosen.values()):
        raise UserError(
            f"no image is left of {there} with {', '.join(classes)}: filters and caps exclude all"
        )
    for name in classes:
        counts = [count_classes(images, classes)[name].images for images in available.values()]
        if not any(counts):
            log.warning("no box of %s%s", name, hint)


def _get(request: Request, kind: str, split: str, name: str, progress: Progress) -> Path:
    """A file of the folder, fetched unless it is there."""
    target = request.root / name
    if target.is_file() and target.stat().st_size:
        log.info("%s is there and used; delete it to have it fetched again", target)
        return target
    url = f"{request.base_url.rstrip('/')}/{source_urls(request.version, split)[kind]}"
    log.info("fetching %s", url)
    try:
        fetch(
            url,
            target,
            request.backoff,
            request.timeout,
            lambda done, total: progress.file(name, done, total),
        )
    finally:
        progress.close()
    return target


def _box_file(request: Request, split: str, progress: Progress) -> Path:
    """The box file of a split; one that an older tool left half-written is set aside and fetched anew."""
    name = f"{split}-annotations-bbox.csv"
    path = _get(request, "boxes", split, name, progress)
    try:
        check_whole(path)
    except UserError as error:
        aside = path.with_name(path.name + ".broken")
        log.warning("%s; kept as %s and fetched anew", error, aside.name)
        path.replace(aside)
        path = _get(request, "boxes", split, name, progress)
        check_whole(path)
    return path


def _negatives(
    request: Request,
    chosen: Dict[str, Images],
    available: Dict[str, Images],
    ruled_out: Dict[str, Set[str]],
    asked: Set[str],
    wanted: Set[str],
    excluded: Set[str],
    progress: Progress,
) -> Dict[str, List[str]]:
    """Split -> its negatives: as many of each as it has of the chosen images."""
    shares = _shares(request.negatives, [len(images) for images in chosen.values()])
    negatives: Dict[str, List[str]] = {split: [] for split in chosen}
    for (split, images), share in zip(available.items(), shares):
        if share:
            name = f"{split}-annotations-human-imagelabels-boxable.csv"
            labels = _get(request, "image labels", split, name, progress)
            not_these = set(images) | ruled_out[split] | excluded
            negatives[split] = choose_negatives(labels, asked, wanted, not_these, share, request.seed)
            if len(negatives[split]) < share:
                log.warning("%s: only %d of %d negatives exist", split, len(negatives[split]), share)
    return negatives


def _shares(total: int, weights: List[int]) -> List[int]:
    """`total` over parts by their weights; unlike `apportion` a part may get more than its weight."""
    scale = total // max(sum(weights), 1) + 1
    return [share or 0 for share in apportion(total, [weight * scale for weight in weights])]


def _keys(report: Report) -> List[str]:
    return [
        f"{split}/{image_id}.jpg"
        for split, plan in report.splits.items()
        for image_id in (*plan.images, *plan.negatives)
    ]


def _compare_disk(root: Path, images: int) -> None:
    need, free = images * TYPICAL_IMAGE, shutil.disk_usage(root).free
    log.info("%d images, about %.1f GB; %.1f GB of disk are free", images, need / 1e9, free / 1e9)
    if need > free:
        log.warning("the disk will probably not do; fewer with --max_images")


# --- after the images ---------------------------------------------------------------------------------------


def _write_results(request: Request, report: Report, progress: Progress) -> None:
    """The tables of what is there, and the lists of what is not."""
    outcome = report.outcome
    assert outcome is not None
    there = _images_there(request.root, report, outcome)
    for split, plan in report.splits.items():
        target = request.root / f"sub-{split}-annotations-bbox.csv"
        chosen = {image_id for image_id in plan.images if f"{split}/{image_id}.jpg" in there}
        report.boxes[split] = write_table(plan.filtered, target, chosen, request.remove_overlapped)
        negatives = [image_id for image_id in plan.negatives if f"{split}/{image_id}.jpg" in there]
        _write_or_remove(negatives_file(request.root, split), "".join(f"{each}\n" for each in negatives))
    _warn_of_other_tables(request.root, report)
    failed = "".join(f"{key}\t{reason}\n" for key, reason in sorted(outcome.failures.items()))
    _write_or_remove(request.root / FAILED_FILE, failed)
    if not outcome.interrupted and not outcome.fault:
        _write_attribution(request, there, progress)
    _write(request.root / REPORT_FILE, json.dumps(_report_values(request, report, there), indent=1) + "\n")


def _images_there(root: Path, report: Report, outcome: Outcome) -> Set[str]:
    """The planned images that are in the folder, whole."""
    keys = _keys(report)
    if outcome.done == len(keys):
        return {key for key in keys if key not in outcome.failures}
    # The download ended early: what an earlier run brought was not looked at.
    return {key for key in keys if _is_whole(root / key)}


def _is_whole(path: Path) -> bool:
    try:
        check_image(path)
    except Broken:
        return False
    return True


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode("utf-8"))
    part.replace(path)


def _write_or_remove(path: Path, text: str) -> None:
    if text:
        _write(path, text)
    elif path.exists():
        path.unlink()


def _warn_of_other_tables(root: Path, report: Report) -> None:
    for split, path in find_tables(root).items():
        if split not in report.splits and path.name.startswith("sub-"):
            log.warning("%s is of an earlier run; its classes count too when this folder is read", path)


def _report_values(request: Request, report: Report, there: Set[str]) -> Dict[str, Any]:
    outcome = report.outcome
    assert outcome is not None
    options = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()
    }
    return {
        "complete": report.complete,
        "classes": report.classes,
        "splits": {
            split: {
                "images with the classes": plan.available,
                "chosen": len(plan.images),
                "negatives": len(plan.negatives),
                "there": sum(key.startswith(f"{split}/") for key in there),
                "boxes": report.boxes[split],
                "per class": {name: asdict(count) for name, count in plan.counts.items()},
            }
            for split, plan in report.splits.items()
        },
        "downloaded": outcome.downloaded,
        "already there": outcome.already_there,
        "bytes": outcome.received,
        "seconds": round(outcome.seconds, 3),
        "interrupted": outcome.interrupted,
        "fault": outcome.fault,
        "failed": dict(sorted(outcome.failures.items())),
        "options": options,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _write_attribution(request: Request, there: Set[str], progress: Progress) -> None:
    """Who made the images and under which licence, for the splits whose metadata is at hand."""
    rows = []
    for split in request.splits:
        name = source_urls(request.version, split)["image info"].rsplit("/", 1)[1]
        path = request.root / name
        if request.attribution and not path.is_file():
            try:
                path = _get(request, "image info", split, name, progress)
            except UserError as error:
                log.warning("no attribution of %s: %s", split, error)
        if path.is_file():
            rows += _attribution_rows(path, split, there)
    if not rows:
        log.info("%s is not written; --attribution fetches the authors and licences", ATTRIBUTION_FILE)
        return
    target = request.root / ATTRIBUTION_FILE
    part = target.with_name(target.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ATTRIBUTION_COLUMNS)
        writer.writerows(sorted(rows))
    part.replace(target)


def _attribution_rows(path: Path, split: str, there: Set[str]) -> List[List[str]]:
    column = column_numbers(path, ("ImageID", "License", "Author"))
    wanted = {key.split("/")[1][: -len(".jpg")].encode() for key in there if key.startswith(f"{split}/")}
    rows = []
    for _, line in lines(path):
        # The id stands first and without quotes; a title may hold anything.
        if line.split(b",", 1)[0] in wanted:
            row = fields(line)
            if len(row) > max(column.values()):
                rows.append([row[column[name]] if name in column else "" for name in ATTRIBUTION_COLUMNS])
    return rows
