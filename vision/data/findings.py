"""Every code that a finding can have: how grave it is, what it means, what is done, and what a repaired copy gets.

Readers and the doctor (`vision.data.check`) make findings, and this table is the only place that says what they are.
The table in docs/doctor.md is written from it: `python -m vision.data.findings`.
"""

import sys
from typing import Dict, NamedTuple

from vision.data.sample import Finding

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
"""Error: something is lost, or a result would be wrong. Warning: used, but look at it. Note: a decision or a fact."""


class Code(NamedTuple):
    """What a code stands for.

    Attributes:
        severity: one of SEVERITIES.
        meaning: what was found.
        done: on reading, for training and evaluation.
        repaired: what `--fix` writes.
    """

    severity: str
    meaning: str
    done: str
    repaired: str


_LEFT_OUT = "left out"
_AS_READ = "as read"

CODES: Dict[str, Code] = {
    # the set as a whole
    "cannot-open": Code(
        ERROR,
        "the folder is no data set of a known format, or its outer files are broken",
        "nothing is read",
        "no copy",
    ),
    "no-training": Code(ERROR, "there is no part to train on", "refused", _AS_READ),
    "no-split": Code(
        WARNING,
        "there is no part to test on (`python -m vision.data split` makes one)",
        "refused where a run wants to validate",
        _AS_READ,
    ),
    "empty-set": Code(ERROR, "a part without one usable image", "refused", "no copy of it"),
    "no-objects": Code(
        ERROR,
        "the training part has images, but not one object, or nothing names a class",
        "refused",
        "as read; no copy without a class",
    ),
    "random-split": Code(
        NOTE,
        "nobody has divided the data: images go to training and test by a hash of seed and name",
        "80 % and 20 %",
        "the parts are written down",
    ),
    "duplicate-id": Code(WARNING, "an image is listed or annotated twice in a part", "taken once", "once"),
    "missing-listed": Code(
        ERROR,
        "a split file names an image of which there is neither annotation nor image file",
        "dropped",
        _LEFT_OUT,
    ),
    "missing-annotation": Code(
        ERROR,
        "an image of the part has no annotation file (that is not the same as one without objects)",
        "dropped",
        _LEFT_OUT,
    ),
    "unlisted-image": Code(NOTE, "images in the folder that no part lists", "not read", _LEFT_OUT),
    "no-rows": Code(
        NOTE, "images beside a CSV that no row of it names", "kept: images without objects", _AS_READ
    ),
    # files of annotations
    "bad-xml": Code(ERROR, "malformed, or no VOC annotation", "dropped", _LEFT_OUT),
    "unsafe-xml": Code(
        ERROR,
        "declares a DOCTYPE or ENTITY (VOC needs none; a kilobyte of entities can fill the memory)",
        "dropped",
        _LEFT_OUT,
    ),
    "bad-row": Code(ERROR, "a row of a CSV lacks fields", "dropped", _LEFT_OUT),
    "bad-line": Code(ERROR, "a line of a label file is not what the format wants", "dropped", _LEFT_OUT),
    "bad-annotation": Code(
        ERROR, "an entry of the annotation file is not what the format wants", "dropped", _LEFT_OUT
    ),
    # image files
    "missing-image": Code(ERROR, "no image file for an annotation", "dropped", _LEFT_OUT),
    "unreadable-image": Code(ERROR, "empty, or no image", "dropped", _LEFT_OUT),
    "truncated-image": Code(
        ERROR,
        "the file stops early; OpenCV would fill the rest with grey and say nothing",
        "dropped",
        _LEFT_OUT,
    ),
    "damaged-image": Code(
        ERROR,
        "the file has its end, but not all before it: a checksum fails, or it does not decode",
        "kept: only the doctor looks so closely",
        _LEFT_OUT,
    ),
    "several-images": Code(WARNING, "more than one image file fits an annotation", "one taken", "that one"),
    "wrong-suffix": Code(
        WARNING,
        "the content is of another kind than the name says",
        "read by its content",
        "named by its content",
    ),
    "exif-rotated": Code(
        NOTE,
        "the annotation fits the photograph turned upright by its EXIF tag",
        "turned upright on reading",
        _AS_READ,
    ),
    "exif-ignored": Code(
        NOTE,
        "the EXIF tag asks for a quarter turn that the annotation does not have",
        "boxes taken in the pixels as stored",
        _AS_READ,
    ),
    "size-mismatch": Code(
        WARNING,
        "the declared width and height are not the file's",
        "boxes scaled if the aspect ratio is the same, else taken as they are",
        "with the file's size",
    ),
    "duplicate-image": Code(
        WARNING, "two image files of a part are the same, byte for byte", "kept", "the first one only"
    ),
    "leak": Code(
        ERROR,
        "the same image, byte for byte, in training and in a part that is tested on",
        "kept: scores on that part are too good",
        "left out of training",
    ),
    "near-leak": Code(
        WARNING,
        "nearly the same image in training and in a part that is tested on (resized, saved anew, the next of a film)",
        "kept: look at both",
        _AS_READ,
    ),
    # objects
    "no-name": Code(ERROR, "an object without a class name", "dropped", _LEFT_OUT),
    "no-box": Code(ERROR, "an object without its four corners", "dropped", _LEFT_OUT),
    "bad-number": Code(
        ERROR, "a corner is no number, NaN, infinite or beyond a million", "dropped", _LEFT_OUT
    ),
    "fraction-box": Code(
        ERROR, "corners between 0 and 1: fractions where the format wants pixels", "dropped", _LEFT_OUT
    ),
    "pixel-box": Code(
        ERROR, "corners beyond 2: pixels where the format wants fractions", "dropped", _LEFT_OUT
    ),
    "unknown-class": Code(
        ERROR,
        "a name that is not among the classes; the nearest one is suggested",
        "dropped",
        "renamed where it differs in case, blanks or dashes only; else left out",
    ),
    "inverted-box": Code(
        WARNING,
        "minimum and maximum exchanged",
        "swapped when both corners lie in the image, else dropped",
        _AS_READ,
    ),
    "outside-box": Code(ERROR, "wholly outside the image", "dropped", _LEFT_OUT),
    "clipped-box": Code(
        WARNING, "partly outside the image, by more than one pixel", "clipped to the image", "clipped"
    ),
    "empty-box": Code(ERROR, "narrower or lower than one pixel", "dropped", _LEFT_OUT),
    "tiny-box": Code(
        WARNING,
        "a side below 3 pixels at the training resolution: hardly anything to see there",
        "kept",
        _AS_READ,
    ),
    "duplicate-box": Code(WARNING, "two boxes of a class with an IoU above 0.99", "kept", "once"),
    "two-classes": Code(NOTE, "two boxes of different classes with an IoU above 0.99", "kept", _AS_READ),
    # classes and priors
    "similar-classes": Code(
        WARNING,
        "two classes whose names differ in case, blanks or dashes only",
        "two classes",
        "the one with more objects takes both",
    ),
    "blank-in-class": Code(
        NOTE, "a class name with a blank in it; other tools may split it", "kept", _AS_READ
    ),
    "blank-in-name": Code(
        NOTE,
        "an image file with a blank in its name; other tools may split it",
        "kept",
        "an underscore for the blank",
    ),
    "unused-class": Code(
        WARNING,
        "a class of the label file without one object",
        "kept: the net learns it never occurs",
        _AS_READ,
    ),
    "absent-class": Code(
        WARNING,
        "a class with objects in one part and none in another",
        "kept: it is not learnt, or not measured (`python -m vision.data split` divides by class)",
        _AS_READ,
    ),
    "rare-class": Code(
        WARNING,
        "fewer than 10 training objects, or under a twentieth of the most frequent class",
        "kept; --balance_data draws evenly",
        _AS_READ,
    ),
    "low-reach": Code(
        WARNING,
        "objects of one size to fewer than half of which some prior comes with an IoU of 0.5",
        "kept: they are matched to their best prior alone; a larger --resolution helps small ones",
        _AS_READ,
    ),
}


def severity(finding: Finding) -> str:
    """How grave; a box that was rescued by swapping its corners is a warning, one that was lost an error."""
    if finding.code not in CODES:
        return ERROR if finding.action.startswith("dropped") else WARNING
    known = CODES[finding.code].severity
    return (
        ERROR
        if known == WARNING and finding.action.startswith("dropped") and "box" in finding.code
        else known
    )


def table() -> str:
    """The codes as a table in Markdown."""
    lines = ["| code | severity | what was found | on reading | with `--fix` |", "|---|---|---|---|---|"]
    lines += [
        f"| `{name}` | {code.severity} | {code.meaning} | {code.done} | {code.repaired} |"
        for name, code in CODES.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
