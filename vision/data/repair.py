"""A repaired copy of a data set, in its own format. The source is only read.

What the readers drop is left out, what they clip, swap or scale is written so; in addition damaged images, images that
are there twice, boxes that are there twice, and training images that are tested on are left out, class names that
differ in case, blanks or dashes only become one, and files are named by what they contain.
"""

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Set

import numpy as np

from vision.boxes import iou
from vision.data.check import PARTS, SAME_BOX, TESTED, Report, folded, objects_of_classes, read
from vision.data.content import KINDS
from vision.data.labels import with_background
from vision.data.sample import Dataset, Sample
from vision.data.write import WRITERS, write_dataset
from vision.errors import UserError

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that no XML may hold."""


def _new_names(report: Report) -> Dict[str, str]:
    """Class as read -> class of the copy, where they differ; names that readers did not know among them."""
    total: Dict[str, int] = {name: 0 for name in report.classes[1:]}
    for dataset in report.parts.values():
        for name, count in zip(report.classes[1:], objects_of_classes(dataset)[1:]):
            total[name] += int(count)
    leader: Dict[str, str] = {}
    for name in sorted(total, key=lambda each: -total[each]):
        leader.setdefault(folded(name), name)
    unknown = {re.sub(r" \(\d+ boxes\)$", "", f.value) for f in report.findings if f.code == "unknown-class"}
    names = [*total, *sorted(unknown)]
    return {name: leader[folded(name)] for name in names if leader.get(folded(name), name) != name}


def _renamed(report: Report) -> Report:
    """The report with classes that are only spelt differently made one."""
    new = _new_names(report)
    if not new:
        return report
    # Names that were unknown have to be asked for, or the readers drop their objects again.
    wide = read(
        replace(report.question, labels=[*report.classes[1:], *(n for n in new if n not in report.classes)])
    )
    classes = tuple(name for name in report.classes if name not in new)
    number = np.array([0] + [classes.index(new.get(name, name)) for name in wide.classes[1:]], np.int64)
    parts = {
        name: Dataset(part.name, classes, [replace(s, labels=number[s.labels]) for s in part.samples])
        for name, part in wide.parts.items()
    }
    return replace(report, classes=classes, parts=parts)


def _once(sample: Sample) -> Sample:
    """Without boxes that an earlier one of the class covers."""
    keep = np.ones(len(sample.labels), bool)
    overlap = iou(sample.boxes, sample.boxes) > SAME_BOX
    for number in range(len(keep)):
        before = keep[:number] & overlap[:number, number] & (sample.labels[:number] == sample.labels[number])
        keep[number] = not before.any()
    if keep.all():
        return sample
    return replace(
        sample,
        boxes=sample.boxes[keep],
        labels=sample.labels[keep],
        difficult=sample.difficult[keep],
        group=sample.group[keep],
    )


def _chosen(report: Report) -> Dict[str, List[Sample]]:
    """Samples of the copy: sound images, each once, and none of training that is tested on."""
    parts: Dict[str, List[Sample]] = {}
    tested: Set[str] = set()
    for name in (*TESTED, "train"):
        if name not in report.parts:
            continue
        seen = set(tested) if name == "train" else set()
        parts[name] = []
        for sample in report.parts[name].samples:
            known = report.looks.get(sample.path)
            digest = known.digest if known else str(sample.path)
            if (known and known.fault[0]) or digest in seen:
                continue
            seen.add(digest)
            parts[name].append(_once(sample))
        tested |= seen
    return parts


def _plain(name: str) -> str:
    """A class name that every format can hold."""
    return " ".join(_UNSEEN.sub("", name).replace(",", " ").split()) or "unnamed"


def _plain_names(report: Report, samples: List[Sample], folder: Path) -> List[Sample]:
    """Samples without blanks in their names; files whose suffix lies are copied into `folder` under the right one."""
    renamed = []
    for number, sample in enumerate(samples):
        kind = report.looks[sample.path].kind if sample.path in report.looks else ""
        path = sample.path
        if kind and path.suffix.lower() not in KINDS[kind]:
            path = folder / f"{number}{KINDS[kind][0]}"
            shutil.copyfile(str(sample.path), str(path))
        renamed.append(replace(sample, id=re.sub(r"\s+", "_", sample.id.strip()), path=path))
    return renamed


def repair(report: Report, target: Path) -> str:
    """Write the copy, in the format of the source (VOC for several roots); returns a line that says what it holds.

    Raises UserError when the target is there already, lies in the source, or cannot be written, and when nothing is
    left to write.
    """
    report = _renamed(report)
    parts = {name: samples for name, samples in _chosen(report).items() if samples}
    if not parts or len(report.classes) < 2:
        raise UserError(f"{target}: nothing to write, not one sound image with a class is left")
    classes = with_background([_plain(name) for name in report.classes[1:]], "the repaired copy")
    with tempfile.TemporaryDirectory() as named:
        datasets = {}
        for name in [name for name in PARTS if name in parts]:
            folder = Path(named) / name
            folder.mkdir()
            datasets[name] = Dataset(name, classes, _plain_names(report, parts[name], folder))
        kind = copy_format(report)
        notes = write_dataset(target, kind, datasets, report.question.roots)
    images = sum(map(len, datasets.values()))
    objects = sum(dataset.num_objects for dataset in datasets.values())
    left = "".join(f"; {count} {what}" for what, count in notes.items())
    return f"wrote {target} ({kind}): {images} images, {objects} objects, {len(classes) - 1} classes{left}"


def copy_format(report: Report) -> str:
    """The format of a copy."""
    return report.kinds[0] if len(report.kinds) == 1 and report.kinds[0] in WRITERS else "voc"
