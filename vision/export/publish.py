"""From an export in memory to files: verified first, then put in place, all or none."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence, Tuple

import numpy as np

from vision.card import sidecar
from vision.data import Dataset, open_dataset
from vision.detector import Detector
from vision.evaluation.inference import SCORE_THRESHOLD
from vision.export.files import publish_labels, replaced, write_text
from vision.export.onnx import Exported, block_means
from vision.export.source import Source
from vision.export.verify import Verification, compare_mean_ap, painted, photographs, verify
from vision.runtimes.pytorch import TorchRun, pick_device

log = logging.getLogger(__name__)

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
"""Values of `--verify` that are no folder."""


@dataclass
class Published:
    """What stands on the disk.

    Attributes:
        model, card, labels: the ONNX file, the JSON beside it, the label file.
        verification: None when nobody wanted one.
        picture: one of those that were compared, RGB uint8; painted where there were no photographs.
    """

    model: Path
    card: Path
    labels: Path
    verification: Optional[Verification]
    picture: np.ndarray


def publish(exported: Exported, source: Source, output: Path, verification: str = "true") -> Published:
    """Verify an export and write the file, its JSON and its labels.

    Args:
        source: what was exported.
        output: where the ONNX file goes.
        verification: "true", "false", or the folder of a data set whose test split is evaluated on both.

    Raises UserError, and leaves what was there, when the export is not right or the disk refuses.
    """
    warn_of_detectnet(source.classes)
    result, pictures = None, painted()
    with replaced(output) as temporary:
        temporary.write_bytes(exported.model.SerializeToString(deterministic=True))
        word = verification.strip().lower()
        if word in YES:
            result = verify(exported, temporary, source.net, source.input, pictures)
        elif word not in NO:
            dataset = open_dataset([verification], "test")
            pictures = photographs(dataset)
            result = verify(exported, temporary, source.net, source.input, pictures)
            result.mean_ap = _mean_ap(exported, temporary, source, dataset)
    write_text(sidecar(output), exported.card.to_json() + "\n")
    labels = publish_labels(source.classes, output)
    return Published(output, sidecar(output), labels, result, pictures[0])


def _mean_ap(exported: Exported, path: Path, source: Source, dataset: Dataset) -> Tuple[float, float]:
    torch_run = TorchRun(source.net, pick_device("cpu"))
    given, trained = exported.card.input, source.input
    if given.size == trained.size:
        detector = Detector(torch_run, trained, source.classes, "torch")
    else:  # both see the same pixels
        detector = Detector(
            lambda blob: torch_run(block_means(blob, trained, given)), given, source.classes, "torch"
        )
    # A file with NMS inside gives nothing below its own threshold.
    threshold = exported.card.threshold if exported.card.form == "nms" else SCORE_THRESHOLD
    return compare_mean_ap(path, detector, dataset, threshold)


def warn_of_detectnet(classes: Sequence[str]) -> None:
    """NVIDIA's detectNet reads meaning into some names."""
    for name in classes[1:]:
        if name.lower() == "void":
            log.warning("class %r: NVIDIA's detectNet never shows a class of this name", name)
        elif len(name) > 10 and name[0] == "n" and name[9] == " ":
            log.warning(
                "class %r: NVIDIA's detectNet takes its first nine letters for an ImageNet number", name
            )
