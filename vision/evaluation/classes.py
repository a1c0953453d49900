"""Evaluating a model on data that number the classes in their own way: classes are matched by name."""

import logging
from dataclasses import replace
from typing import Sequence, Tuple

import numpy as np

from vision.data.labels import suggest
from vision.data.sample import Sample
from vision.detector import Detections
from vision.errors import UserError

log = logging.getLogger(__name__)


def common_classes(
    model: Sequence[str], data: Sequence[str], ignore_missing: bool = False
) -> Tuple[str, ...]:
    """Classes to evaluate: those of the data, in their order, BACKGROUND first.

    Classes that only the model knows are left out, and logged: the data cannot say whether they are right.

    Args:
        model, data: class names, BACKGROUND first.
        ignore_missing: leave out the classes that the model lacks, too.

    Raises UserError for classes that the model lacks, and when no class is left.
    """
    missing = [name for name in data[1:] if name not in model]
    if missing and not ignore_missing:
        named = ", ".join(f"{name}{suggest(name, model[1:])}" for name in missing)
        raise UserError(
            f"the data hold classes that the model lacks: {named}\n"
            f"  model: {', '.join(model[1:])}\n  data: {', '.join(data[1:])}\n"
            "  Rename them in the data, or leave them out with --ignore_missing_classes."
        )
    common = (data[0],) + tuple(name for name in data[1:] if name in model)
    if len(common) < 2:
        raise UserError(
            "model and data have no class in common\n"
            f"  model: {', '.join(model[1:])}\n  data: {', '.join(data[1:])}"
        )
    if missing:
        log.warning("Not evaluated, for the model lacks them: %s", ", ".join(missing))
    extra = [name for name in model[1:] if name not in data]
    if extra:
        log.warning("Not evaluated, for the data lack them: %s", ", ".join(extra))
    return common


def detections_under(found: Detections, classes: Tuple[str, ...]) -> Detections:
    """Detections numbered by `classes`; those of other classes are left out."""
    keep, labels = _renumber(found.labels, found.classes, classes)
    return Detections(found.boxes[keep], found.scores[keep], labels, classes, found.size)


def sample_under(sample: Sample, numbered_by: Sequence[str], classes: Sequence[str]) -> Sample:
    """A sample, numbered so far by `numbered_by`, numbered by `classes`; other objects are left out."""
    keep, labels = _renumber(sample.labels, numbered_by, classes)
    return replace(
        sample,
        boxes=sample.boxes[keep],
        labels=labels,
        difficult=sample.difficult[keep],
        group=sample.group[keep],
    )


def _renumber(labels: np.ndarray, old: Sequence[str], new: Sequence[str]) -> Tuple[np.ndarray, np.ndarray]:
    """Which labels stay, and their new numbers."""
    number = {name: label for label, name in enumerate(new)}
    table = np.array([number.get(name, 0) for name in old], np.int64)
    renumbered = table[labels]
    keep = np.flatnonzero(renumbered)
    return keep, renumbered[keep]
