"""The data doctor: everything that is wrong in a data set, named before the first step of a training.

    python -m vision.data check DIR [--resolution 512 --net mb2-ssd-lite --json FILE --fix COPY --pictures FOLDER]

Each finding has a code (the table is `vision.data.findings`, the page docs/doctor.md), the file, the line or object,
the value, and what is done about it. Exit codes: 0 no error, 1 at least one (with --strict: or a warning), 2 wrong use.
With --fix the exit code is that of the copy.
"""

import contextlib
import json
import logging
import os
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar

import numpy as np

from vision import cli
from vision.boxes import iou
from vision.data import format_of, without_objects
from vision.data.content import KINDS, Look, look, near_pairs
from vision.data.findings import CODES, ERROR, NOTE, SEVERITIES, WARNING, severity
from vision.data.images import SUFFIXES
from vision.data.labels import read_labels, suggest, with_background
from vision.data.reach import NETS, Reach, best_iou, priors_of, reach, stacked
from vision.data.sample import Dataset, Finding, Sample
from vision.errors import UserError
from vision.spec import parse_resolution

PARTS = ("train", "val", "test")
TESTED = ("val", "test")

TINY = 3.0
"""Pixels of the net's input: a side below this is hardly to be seen."""

SAME_BOX = 0.99
"""IoU above which two boxes are one."""

FEW = 10
IMBALANCE = 20
"""A class is rare with fewer training objects than FEW, or than one for IMBALANCE of the most frequent class."""

LOW_REACH = 0.5
FEWEST_JUDGED = 10
"""Objects of a size that say something about the priors."""

SHOWN = 5
"""Findings of each code that are printed."""

THREADS = min(16, 2 * (os.cpu_count() or 1))

In = TypeVar("In")
Out = TypeVar("Out")


# --- what is looked at --------------------------------------------------------------------------------------


@dataclass
class Question:
    """What is to be looked at, and for which net.

    Attributes:
        roots: folders that train together.
        dataset_type, labels, seed: as in `vision.data.open_dataset`.
        net, size: whose priors are held against the objects; input (height, width).
    """

    roots: List[Path]
    dataset_type: str = "auto"
    labels: Optional[Sequence[str]] = None
    seed: int = 0
    net: str = "mb1-ssd"
    size: Tuple[int, int] = (300, 300)


@dataclass
class Report:
    """What was found.

    Attributes:
        question: as asked.
        classes: BACKGROUND first; of all parts and roots.
        kinds: names of the formats of the roots, as far as they opened.
        parts: "train", "val", "test", as far as there are; what reads them is left in.
        findings: of the readers and of the doctor.
        looks: image file -> what its content tells (empty after a quick look).
        best: part -> best IoU of each object with a prior, in the order of the samples.
    """

    question: Question
    classes: Tuple[str, ...] = ()
    kinds: List[str] = field(default_factory=list)
    parts: Dict[str, Dataset] = field(default_factory=dict)
    findings: List[Finding] = field(default_factory=list)
    looks: Dict[Path, Look] = field(default_factory=dict)
    best: Dict[str, np.ndarray] = field(default_factory=dict)

    def count(self, wanted: str) -> int:
        """Findings of a severity."""
        return sum(severity(finding) == wanted for finding in self.findings)

    def exit_code(self, strict: bool = False) -> int:
        """0 fine, 1 not."""
        return int(self.count(ERROR) > 0 or (strict and self.count(WARNING) > 0))

    def reached(self, part: str) -> List[Reach]:
        """What the priors do for the objects of a part."""
        return reach(boxes_as_fractions(self.parts[part]), self.best[part], self.question.size)

    def to_json(self) -> Dict[str, Any]:
        """Plain values; `findings` with their severity."""
        parts = {}
        for name, dataset in self.parts.items():
            counts = objects_of_classes(dataset)
            parts[name] = {
                "images": len(dataset),
                "negatives": sum(not len(sample.labels) for sample in dataset.samples),
                "objects": dataset.num_objects,
                "objects_of_class": {each: int(counts[i]) for i, each in enumerate(self.classes) if i},
                "reach": [each._asdict() for each in self.reached(name)] if name in self.best else [],
            }
        return {
            "roots": [str(root) for root in self.question.roots],
            "formats": self.kinds,
            "net": self.question.net,
            "resolution": [self.question.size[1], self.question.size[0]],
            "classes": list(self.classes),
            "parts": parts,
            "counts": {each: self.count(each) for each in SEVERITIES},
            "findings": [
                {"severity": severity(each), **{k: str(v) for k, v in vars(each).items()}}
                for each in self.findings
            ],
        }


def objects_of_classes(dataset: Dataset) -> np.ndarray:
    """Objects of each class: int64 (C,)."""
    labels = [sample.labels for sample in dataset.samples]
    return np.bincount(np.concatenate(labels or [np.zeros(0, np.int64)]), minlength=len(dataset.classes))


def boxes_as_fractions(dataset: Dataset) -> np.ndarray:
    """All boxes below each other, corners as fractions of their images: float64 (G, 4)."""
    sized = [sample for sample in dataset.samples if sample.size is not None and len(sample.boxes)]
    return stacked(
        [sample.boxes / np.array(sample.size[::-1] * 2, np.float64) for sample in sized if sample.size]
    )


def in_threads(work: Callable[[In], Out], things: Sequence[In]) -> List[Out]:
    """`work` of every thing, in order. Reading and decoding let go of the interpreter, so threads are enough."""
    if len(things) < 2:
        return [work(thing) for thing in things]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, things))


# --- reading ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What readers log is in the findings already."""
    logger = logging.getLogger("vision.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _read_root(root: Path, report: Report) -> Dict[str, Dataset]:
    """The parts of one root. What keeps a part from being read becomes a finding."""
    question, findings = report.question, report.findings
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    labels = None if question.labels is None else with_background(list(question.labels))
    try:
        kind = format_of(root, question.dataset_type)
    except UserError as error:
        if question.dataset_type.lower() != "auto":
            raise
        findings.append(Finding("cannot-open", str(root), "", _without(root, str(error)), "nothing is read"))
        return {}
    parts: Dict[str, Dataset] = {}
    refused: Dict[str, str] = {}
    for name in PARTS:
        try:
            parts[name] = kind.read(root, name, labels, question.seed)
        except UserError as error:
            refused[name] = str(error)
    if not parts:
        # The first reason is about the file at fault; it names that file.
        file, reason = _blamed(root, list(refused.values())[0])
        findings.append(Finding("cannot-open", file, "", reason, "nothing is read"))
        return {}
    report.kinds.append(kind.name)
    for code, name in (("no-training", "train"), ("no-split", "test")):
        if name not in parts:
            findings.append(
                Finding(code, str(root), name, _without(root, refused[name]), "the part is not read")
            )
    return _told_apart(root, parts)


def _without(root: Path, reason: str) -> str:
    start = f"{root}: "
    return reason[len(start) :] if reason.startswith(start) else reason


def _blamed(root: Path, reason: str) -> Tuple[str, str]:
    """(file, rest) of a message that begins with the file at fault; the root where it does not."""
    name, colon, rest = reason.partition(": ")
    if colon and name.startswith(str(root)) and Path(name).exists():
        return name, rest
    return str(root), reason


def _paths(dataset: Dataset) -> List[str]:
    return [str(sample.path) for sample in dataset.samples]


def _told_apart(root: Path, parts: Dict[str, Dataset]) -> Dict[str, Dataset]:
    """Without a "val" that is only another name: of the test, or of a half of trainval."""
    if "val" in parts:
        twin = "test" in parts and _paths(parts["test"]) == _paths(parts["val"])
        half = (root / "ImageSets" / "Main" / "trainval.txt").is_file() and "train" in parts
        if twin or (half and set(_paths(parts["val"])) <= set(_paths(parts["train"]))):
            del parts["val"]
    return parts


def _joined(roots: Sequence[Dict[str, Dataset]]) -> Tuple[Tuple[str, ...], Dict[str, Dataset]]:
    """The parts of several roots as one, under the classes of all of them by name."""
    lists = [dataset.classes for parts in roots for dataset in parts.values()]
    if not lists:
        return (), {}
    same = all(classes == lists[0] for classes in lists)
    classes = lists[0] if same else with_background(sorted({name for each in lists for name in each[1:]}))
    parts: Dict[str, Dataset] = {}
    for name in PARTS:
        there = [part[name] for part in roots if name in part]
        if there:
            samples = []
            for dataset in there:
                number = np.array([classes.index(each) for each in dataset.classes], np.int64)
                samples += [replace(sample, labels=number[sample.labels]) for sample in dataset.samples]
            parts[name] = Dataset(" + ".join(each.name for each in there), classes, samples)
    return classes, parts


def read(question: Question) -> Report:
    """The parts as the readers give them, with their findings; no image is looked at closely.

    Raises UserError for a folder that is not there and for a type that is not known.
    """
    report = Report(question)
    with _quiet():
        roots = [_read_root(root, report) for root in question.roots]
    for parts in roots:
        for dataset in parts.values():
            report.findings += dataset.findings
    report.classes, report.parts = _joined(roots)
    report.findings = list(dict.fromkeys(report.findings))
    return report


# --- images -------------------------------------------------------------------------------------------------


def _look_at(report: Report, paths: Sequence[Path]) -> None:
    """Look at image files, and tell what is wrong with their content."""
    samples = {sample.path: sample for part in report.parts.values() for sample in part.samples}
    report.looks = dict(zip(paths, in_threads(look, paths)))
    for path, seen in report.looks.items():
        if seen.fault[0]:
            action = (
                "kept; OpenCV decodes what is left"
                if seen.thumbnail is not None
                else "kept; training stops at it"
            )
            action = "dropped" if seen.fault[0] != "damaged-image" else action
            report.findings.append(Finding(seen.fault[0], str(path), "", seen.fault[1], action))
            continue
        suffix = path.suffix.lower()
        if seen.kind and suffix not in KINDS[seen.kind]:
            value = f"{seen.kind} content under the name of {suffix}"
            report.findings.append(Finding("wrong-suffix", str(path), "", value, "read by its content"))
        if seen.quarter_turned and samples[path].size == seen.size and seen.size[0] != seen.size[1]:
            value = f"stored as {seen.size[1]} x {seen.size[0]}"
            action = "boxes taken in the pixels as stored"
            report.findings.append(Finding("exif-ignored", str(path), "", value, action))


def _files(report: Report) -> List[Path]:
    """All image files, each once."""
    return list(dict.fromkeys(sample.path for part in report.parts.values() for sample in part.samples))


def _same_size(paths: Sequence[Path]) -> List[Path]:
    """Files that share their length with another: only those can be the same."""
    lengths = {}
    for path in paths:
        with contextlib.suppress(OSError):
            lengths[path] = path.stat().st_size
    often = {length for length, count in Counter(lengths.values()).items() if count > 1}
    return [path for path, length in lengths.items() if length in often]


def _find_same(report: Report) -> None:
    """Images that occur twice: in a part, or in training and in a part that is tested on."""
    digests = {path: seen.digest or str(path) for path, seen in report.looks.items()}
    first: Dict[str, Dict[str, Path]] = {}
    for name, part in report.parts.items():
        first[name] = {}
        for sample in part.samples:
            known = first[name].setdefault(digests.get(sample.path, str(sample.path)), sample.path)
            if known != sample.path:
                report.findings.append(
                    Finding("duplicate-image", str(sample.path), "", f"the same as {known}", "kept")
                )
    if "train" not in first:
        return
    leaked = set()
    for name in [part for part in TESTED if part in first]:
        for digest in [each for each in first[name] if each in first["train"]]:
            ours, theirs = first["train"][digest], first[name][digest]
            leaked.add(theirs)
            value = f"in train and in {name}" if ours == theirs else f"the same as {theirs} in {name}"
            report.findings.append(Finding("leak", str(ours), "", value, "kept: results are too good"))
    _find_near(report, leaked)


def _find_near(report: Report, leaked: Iterable[Path]) -> None:
    """Images of training that nearly show one that is tested on."""
    ours = [path for path in dict.fromkeys(s.path for s in report.parts["train"].samples)]
    ours = [path for path in ours if path in report.looks and report.looks[path].thumbnail is not None]
    for name in [part for part in TESTED if part in report.parts]:
        theirs = [
            sample.path
            for sample in report.parts[name].samples
            if sample.path in report.looks and report.looks[sample.path].thumbnail is not None
        ]
        theirs = [path for path in theirs if path not in set(leaked)]
        thumbnails = [[report.looks[path].thumbnail for path in paths] for paths in (ours, theirs)]
        for mine, other in near_pairs(*thumbnails):  # type: ignore[arg-type]
            value = f"nearly the same as {theirs[other]} in {name}"
            report.findings.append(Finding("near-leak", str(ours[mine]), "", value, "kept"))


# --- boxes --------------------------------------------------------------------------------------------------


def _box_findings(sample: Sample, classes: Sequence[str], size: Tuple[int, int]) -> Iterator[Finding]:
    """Tiny boxes, and boxes that are there twice."""

    def told(number: int) -> str:
        return f"object {number + 1} ({classes[sample.labels[number]]})"

    def corners(number: int) -> str:
        return " ".join(f"{value:.1f}" for value in sample.boxes[number])

    if sample.size is not None:
        scale = np.array([size[1] / sample.size[1], size[0] / sample.size[0]])
        sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]) * scale
        for number in np.flatnonzero((sides.min(axis=1) < TINY) & ~sample.group).tolist():
            value = f"{sides[number, 0]:.1f} x {sides[number, 1]:.1f} pixels at {size[1]} x {size[0]}"
            yield Finding("tiny-box", str(sample.path), told(number), value, "kept")
    if len(sample.boxes) < 2:
        return
    overlap = np.triu(iou(sample.boxes, sample.boxes) > SAME_BOX, k=1)
    for one, other in np.argwhere(overlap).tolist():
        same = sample.labels[one] == sample.labels[other]
        code = "duplicate-box" if same else "two-classes"
        yield Finding(code, str(sample.path), f"{told(one)} and {told(other)}", corners(other), "kept")


def _find_boxes(report: Report) -> None:
    for dataset in report.parts.values():
        for sample in dataset.samples:
            report.findings += _box_findings(sample, report.classes, report.question.size)


def _find_reach(report: Report) -> None:
    """Sizes of objects that the priors hardly reach."""
    question = report.question
    try:
        priors = priors_of(question.net, question.size)
    except UserError:
        return  # the command line refuses these; a training does so in its own words, or has a net of its own
    at = f"{question.net} at {question.size[1]} x {question.size[0]}"
    for name, dataset in report.parts.items():
        report.best[name] = best_iou(boxes_as_fractions(dataset), priors)
        for row in report.reached(name) if name == "train" else []:
            if row.share < LOW_REACH and row.objects >= FEWEST_JUDGED:
                value = (
                    f"{row.share:.0%} of {row.objects} objects reach an IoU of 0.5 (mean {row.mean_iou:.2f})"
                )
                where = f"{row.size} objects, {name}, {at}"
                action = "kept: matched to their best prior alone"
                report.findings.append(Finding("low-reach", _root_of(report), where, value, action))


# --- names --------------------------------------------------------------------------------------------------


def folded(name: str) -> str:
    """A class name without case, blanks, dashes and underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _root_of(report: Report) -> str:
    return " ".join(str(root) for root in report.question.roots)


def _find_names(report: Report) -> None:
    """Names that are too much alike, or that other tools stumble over."""
    file = _root_of(report)
    alike: Dict[str, List[str]] = {}
    for name in report.classes[1:]:
        alike.setdefault(folded(name), []).append(name)
        if re.search(r"\s", name):
            report.findings.append(Finding("blank-in-class", file, f"class {name!r}", "", "kept"))
    for names in alike.values():
        if len(names) > 1:
            value = " and ".join(map(repr, names))
            report.findings.append(Finding("similar-classes", file, "", value, f"{len(names)} classes"))
    for path in _files(report):
        if re.search(r"\s", path.name):
            report.findings.append(Finding("blank-in-name", str(path), "", "", "kept"))


def _find_classes(report: Report) -> None:
    """Parts without images, classes without objects, and classes with too few."""
    file = _root_of(report)
    for name, dataset in report.parts.items():
        if not dataset.samples:
            action = "training refuses it"
            report.findings.append(Finding("empty-set", file, name, "not one usable image", action))
    if report.parts and len(report.classes) < 2:
        action = "training refuses it; give a label file"
        report.findings.append(Finding("no-objects", file, "", "no object, so no class", action))
        return
    train = report.parts.get("train")
    if train is not None and train.samples and not train.num_objects:
        value = without_objects(train.samples, report.kinds)
        report.findings.append(Finding("no-objects", file, "train", value, "training refuses it"))
        return  # that each class is without objects says no more
    counts = {name: objects_of_classes(dataset) for name, dataset in report.parts.items() if dataset.samples}
    if not counts:
        return
    total = np.sum(list(counts.values()), axis=0)
    most = max(counts["train"][1:], default=0) if "train" in counts else 0
    for label, name in list(enumerate(report.classes))[1:]:
        place = f"class {name!r}"
        if not total[label]:
            hint = suggest(name, [each for each in report.classes if each != name])
            action = f"kept{hint}" if hint else "kept: the net learns that it never occurs"
            report.findings.append(Finding("unused-class", file, place, "no object in any part", action))
            continue
        empty = [part for part in counts if not counts[part][label]]
        if empty:
            value = f"{total[label]} objects, but none in {' and '.join(empty)}"
            action = "kept: never learnt" if "train" in empty else "kept: not measured there"
            action += "; `python -m vision.data split` gives every part some of each class"
            report.findings.append(Finding("absent-class", file, place, value, action))
        if "train" in counts and 0 < counts["train"][label] < max(FEW, most / IMBALANCE):
            value = f"{counts['train'][label]} training objects; the most frequent class has {most}"
            report.findings.append(
                Finding("rare-class", file, place, value, "kept; --balance_data draws evenly")
            )


def _find_unlisted(report: Report) -> None:
    """Images in the folders of listed ones that no part lists."""
    listed = set(_files(report)) | {Path(finding.file) for finding in report.findings}
    told = {Path(finding.file).stem for finding in report.findings}
    for folder in dict.fromkeys(path.parent for path in _files(report)):
        with contextlib.suppress(OSError):
            left = sorted(
                path.name
                for path in folder.iterdir()
                if path.suffix.lower() in SUFFIXES and path not in listed and path.stem not in told
            )
            if left:
                value = f"{len(left)} images: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}"
                report.findings.append(Finding("unlisted-image", str(folder), "", value, "not read"))


# --- the whole ----------------------------------------------------------------------------------------------


def examine(question: Question) -> Report:
    """Read a data set and look at all of it. Raises UserError as `read` does."""
    report = read(question)
    _look_at(report, _files(report))
    return _judged(report)


def glance(report: Report) -> Report:
    """The same for parts that are read already, with a look only into files of the same length."""
    _look_at(report, _same_size(_files(report)))
    return _judged(report)


def _judged(report: Report) -> Report:
    for step in (_find_same, _find_boxes, _find_reach, _find_names, _find_classes, _find_unlisted):
        step(report)
    return report


# --- words --------------------------------------------------------------------------------------------------


def _part_lines(report: Report) -> List[str]:
    lines = []
    for name, dataset in report.parts.items():
        negatives = sum(not len(sample.labels) for sample in dataset.samples)
        lines.append(
            f"  {name:6}{len(dataset):7} images ({negatives} without objects){dataset.num_objects:9} objects"
        )
    if len(report.classes) > 1:
        counts = {name: objects_of_classes(dataset) for name, dataset in report.parts.items()}
        width = max([len(name) for name in report.classes[1:]] + [7])
        lines += ["", f"  {'objects':{width}}" + "".join(f"{name:>9}" for name in counts)]
        for label, name in list(enumerate(report.classes))[1:]:
            lines.append(f"  {name:{width}}" + "".join(f"{counts[part][label]:9}" for part in counts))
    return lines


def _reach_lines(report: Report) -> List[str]:
    part = "train" if "train" in report.best else next(iter(report.best), "")
    rows = report.reached(part) if part else []
    if not rows:
        return []
    height, width = report.question.size
    lines = ["", f"  the priors of {report.question.net} at {width} x {height}, on the objects of {part}:"]
    lines += [f"  {'':24}{'objects':>9}{'mean best IoU':>15}{'IoU >= 0.5':>12}"]
    bounds = {"small": "side < 32 pixels", "medium": "32 to 96", "large": "96 and more"}
    for row in rows:
        name = f"{row.size} ({bounds[row.size]})"
        lines.append(f"  {name:24}{row.objects:9}{row.mean_iou:15.2f}{row.share:12.0%}")
    return lines


def _finding_lines(report: Report, shown: Optional[int]) -> List[str]:
    lines = []
    for grade in SEVERITIES:
        of_grade = [finding for finding in report.findings if severity(finding) == grade]
        if not of_grade:
            continue
        lines += ["", f"{grade}s: {len(of_grade)}"]
        for code, number in Counter(finding.code for finding in of_grade).most_common():
            meaning = CODES[code].meaning if code in CODES else ""
            lines.append(f"  {code} x {number}: {meaning}")
            named = [finding for finding in of_grade if finding.code == code]
            lines += [f"      {finding.told()}" for finding in named[:shown]]
            if shown is not None and number > shown:
                lines.append(f"      ... and {number - shown} more (--all names them)")
    return lines


def told(report: Report, shown: Optional[int] = SHOWN) -> str:
    """For people: parts, classes, priors, and the findings by severity and code, so many of each (None: all)."""
    kinds = f" ({', '.join(report.kinds)})" if report.kinds else ""
    lines = (
        [_root_of(report) + kinds]
        + _part_lines(report)
        + _reach_lines(report)
        + _finding_lines(report, shown)
    )
    return "\n".join([*lines, "", verdict(report)])


def verdict(report: Report) -> str:
    """One line."""
    images = sum(len(dataset) for dataset in report.parts.values())
    counts = [(report.count(each), each) for each in (ERROR, WARNING, NOTE)]
    words = ", ".join(f"{number} {name}{'s' * (number != 1)}" for number, name in counts)
    return f"{images} images: {words}"


# --- the command line ---------------------------------------------------------------------------------------


@dataclass
class Options:
    """Options of `python -m vision.data check`."""

    folders: List[str] = cli.option(
        [], "data set folders; several train together", positional=True, metavar="DIR"
    )
    dataset_type: str = cli.option("auto", "name of the format; auto looks at the folder")
    labels: str = cli.option("", "label file (default: the data's own)", metavar="FILE")
    seed: int = cli.option(0, "of parts that have to be drawn")
    net: str = cli.option("mb1-ssd", f"whose priors are held against the objects: {', '.join(NETS)}")
    resolution: str = cli.option("300", "input of the net, 300 or WIDTHxHEIGHT")
    json: str = cli.option(
        "", "write the report as JSON (no value: to stdout, instead of words)", const="-", metavar="FILE"
    )
    fix: str = cli.option("", "write a repaired copy, in the same format, to this new folder", metavar="DIR")
    pictures: str = cli.option("", "write contact sheets and charts to this folder", metavar="DIR")
    strict: bool = cli.option(False, "warnings set the exit code too")
    all: bool = cli.option(False, f"print every finding, not only {SHOWN} of each code")

    def __post_init__(self) -> None:
        if not self.folders:
            raise UserError("no data set given: python -m vision.data check DIR")
        parse_resolution(self.resolution)
        priors_of(self.net, parse_resolution(self.resolution))

    def question(self) -> Question:
        """What to look at."""
        return Question(
            roots=[Path(folder).expanduser() for folder in self.folders],
            dataset_type=self.dataset_type,
            labels=read_labels(self.labels)[1:] if self.labels else None,
            seed=self.seed,
            net=self.net,
            size=parse_resolution(self.resolution),
        )


def _write_json(values: Dict[str, Any], where: str) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=True) + "\n"
    if where == "-":
        sys.stdout.write(text)
        return
    try:
        Path(where).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{where}: cannot be written ({error.strerror or error})") from error


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line. Returns 0, or 1 when there are errors. Raises UserError for wrong use."""
    from vision.data.charts import draw_pictures
    from vision.data.repair import copy_format, repair

    options = cli.parse(Options, argv, "Name everything that is wrong in a data set.")
    report = examine(options.question())
    values = report.to_json()
    lines = [told(report, None if options.all else SHOWN)]
    final = report
    if options.pictures:
        written = draw_pictures(report, Path(options.pictures).expanduser())
        lines += ["", *(f"wrote {path}" for path in written)]
        values["pictures"] = [str(path) for path in written]
    if options.fix:
        copy = Path(options.fix).expanduser()
        lines += ["", repair(report, copy)]
        final = examine(replace(report.question, roots=[copy], dataset_type=copy_format(report), labels=None))
        lines += [f"the copy has {verdict(final)}"]
        values["copy"] = final.to_json()
    if options.json:
        _write_json(values, options.json)
    if options.json != "-":
        sys.stdout.write("\n".join(lines) + "\n")
    return final.exit_code(options.strict)


if __name__ == "__main__":
    sys.exit(cli.run(main))
