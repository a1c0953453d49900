"""Detections as files: the original's `det_test_<class>.txt`, and JSON lines that lose nothing."""

import json
import re
from pathlib import Path
from typing import Dict, List, Sequence, Union
from urllib.parse import quote

from vision.data.sample import Sample
from vision.detector import Detections

JSON_LINES = "detections.jsonl"


def write_detections(
    folder: Union[str, Path], detections: Sequence[Detections], samples: Sequence[Sample]
) -> List[Path]:
    """Write the detections of all samples; the folder is made.

    `det_test_<class>.txt`, one for every class, in VOC's form: lines "image score x1 y1 x2 y2", pixels counted
    from 1. The form splits at blanks, so white space in an image's id is written as in a URL (%20), and what a
    file name cannot hold in a class's name as "_". `detections.jsonl` has one line for each image, everything as
    it is, pixels counted from 0. A byte of a file's name that is no UTF-8 is written as Python does, "\\udcdf", which
    is JSON too.

    Returns: the paths written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    classes = detections[0].classes if detections else ()
    lines: Dict[str, List[str]] = {name: [] for name in classes[1:]}
    images = []
    for found, sample in zip(detections, samples):
        image = re.sub(r"\s", lambda blank: quote(blank.group()), sample.id)
        objects = []
        for name, score, box in found:
            corners = " ".join(f"{value + 1:.4f}" for value in box.tolist())
            lines[name].append(f"{image} {score:.8g} {corners}\n")
            objects.append(
                {"class": name, "score": round(score, 8), "box": [round(v, 4) for v in box.tolist()]}
            )
        line = {"image": sample.id, "path": str(sample.path), "size": list(found.size), "objects": objects}
        images.append(json.dumps(line, ensure_ascii=False) + "\n")

    written = [folder / JSON_LINES]
    written[0].write_text("".join(images), encoding="utf-8", errors="backslashreplace")
    for stem, name in _file_stems(classes[1:]).items():
        written.append(folder / f"det_test_{stem}.txt")
        written[-1].write_text("".join(lines[name]), encoding="utf-8", errors="backslashreplace")
    return written


def _file_stems(names: Sequence[str]) -> Dict[str, str]:
    """File-name stem -> class name; two names never share a stem, whatever the file system's case."""
    stems: Dict[str, str] = {}
    for name in names:
        plain = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", name)
        stem, number = plain, 2
        while stem.lower() in (known.lower() for known in stems):
            stem, number = f"{plain}_{number}", number + 1
        stems[stem] = name
    return stems
