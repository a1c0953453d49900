"""The doctor's look before a training: quick, and remembered until a file of the data changes.

What readers find is logged by them; this adds what only the whole set shows (images of the test among those of
training, boxes that are there twice, objects that no prior reaches). Verdicts are kept outside the data, which may be
read-only: in $VISION_CACHE, else the user's cache folder. A verdict holds for the names, lengths and times of all files
below the roots, and for the question that was asked.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from vision.data.check import Question, Report, glance, verdict
from vision.data.findings import ERROR, WARNING, severity
from vision.data.sample import Dataset, Finding
from vision.errors import UserError

VERSION = 2
"""Of the rules: a new one forgets old verdicts."""

REMEMBERED = 100
"""Verdicts that are kept, the newest ones."""


class Verdict(NamedTuple):
    """What is remembered: one line, how many errors there are, and those that the readers did not log."""

    line: str
    errors: int
    new_errors: List[str]


def cache_folder() -> Path:
    """Where verdicts are kept; made when something is written."""
    if os.environ.get("VISION_CACHE"):
        return Path(os.environ["VISION_CACHE"]) / "checks"
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "vision" / "checks"


def fingerprint(question: Question, parts: Dict[str, Dataset]) -> str:
    """Changes with any file below the roots (name, length, time of change) and with the question."""
    said = [VERSION, question.dataset_type, question.labels, question.seed, question.net, question.size]
    said += [(name, len(part), part.classes) for name, part in parts.items()]
    mixed = hashlib.sha256(repr(said).encode("utf-8", "surrogateescape"))
    for root in question.roots:
        for place, folders, names in os.walk(str(root)):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(place, name)  # noqa: PTH118  (a Path for each of a million files takes seconds)
                with contextlib.suppress(OSError):
                    stat = os.stat(path)  # noqa: PTH116
                    line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
                    mixed.update(line.encode("utf-8", "surrogateescape"))
    return mixed.hexdigest()


def _place(question: Question) -> Path:
    """The file of a verdict: one for each choice of roots."""
    roots = "\n".join(str(root.resolve()) for root in question.roots)
    return cache_folder() / (
        hashlib.sha256(roots.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".json"
    )


def _remembered(place: Path, print_of: str) -> Optional[Verdict]:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["fingerprint"] == print_of:
            return Verdict(str(kept["line"]), int(kept["errors"]), [str(each) for each in kept["new_errors"]])
    return None


def _remember(place: Path, print_of: str, found: Verdict) -> None:
    """Write it down where that is possible; a training does not end because it is not."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"fingerprint": print_of, **found._asdict()})
        handle, name = tempfile.mkstemp(dir=str(place.parent), suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(place)
        kept = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-REMEMBERED]:
            old.unlink()


def _judge(question: Question, parts: Dict[str, Dataset]) -> Verdict:
    classes = next(iter(parts.values())).classes
    logged: List[Finding] = list(dict.fromkeys(f for part in parts.values() for f in part.findings))
    report = glance(Report(question, classes, parts=dict(parts), findings=list(logged)))
    grave = [finding for finding in report.findings if severity(finding) in (ERROR, WARNING)]
    codes = ", ".join(f"{code} x {number}" for code, number in Counter(f.code for f in grave).most_common())
    new = [str(f) for f in report.findings[len(logged) :] if severity(f) == ERROR]
    return Verdict(verdict(report) + (f" ({codes})" if codes else ""), report.count(ERROR), new)


def check_before_training(question: Question, parts: Dict[str, Dataset], strict: bool = False) -> str:
    """Look over parts that are read already; one line that says what was found.

    Args:
        question: the roots, and the net and resolution of the run.
        parts: "train" and "test", under the same classes.
        strict: an error that the readers did not see ends the run, too.

    Raises UserError in strict mode.
    """
    print_of, place = fingerprint(question, parts), _place(question)
    found = _remembered(place, print_of)
    cached = found is not None
    if found is None:
        found = _judge(question, parts)
        _remember(place, print_of, found)
    if strict and found.new_errors:
        raise UserError("\n  ".join([f"{len(found.new_errors)} errors in the data:", *found.new_errors[:50]]))
    roots = " ".join(str(root) for root in question.roots)
    more = f"; python -m vision.data check {roots} names them" if "(" in found.line else ""
    return f"checked {found.line}{' (cached)' if cached else ''}{more}"
