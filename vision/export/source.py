"""Which checkpoint to export, and what is known of it."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

from vision.checkpoint import open_net, read_state
from vision.data.labels import read_labels
from vision.errors import UserError
from vision.spec import InputSpec
from vision.ssd import SSD
from vision.weights import SUFFIXES, nets_that_fit

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

BEST = "best.pth"
LABEL_FILES = ("labels.txt", "voc-model-labels.txt", "open-images-model-labels.txt")
"""What training writes beside its checkpoints, here and in the older tools."""

_LOSS = re.compile(r"-(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)$")


@dataclass
class Source:
    """A trained net.

    Attributes:
        path: of the checkpoint.
        net: ready for inference.
        classes: names, BACKGROUND first.
        input: the image it was trained on.
        data, metrics: what the checkpoint says of its training, plain values.
    """

    path: Path
    net: SSD
    classes: Tuple[str, ...]
    input: InputSpec
    data: Dict[str, Any] = field(default_factory=dict)
    metrics: Dict[str, Any] = field(default_factory=dict)


def best_checkpoint(folder: PathLike) -> Path:
    """The best checkpoint of a training folder.

    `best.pth`, else the one with the highest recorded mAP, else the one with the smallest loss at the end of its
    name ("mb1-ssd-Epoch-9-Loss-2.31.pth"), else the only one. Raises UserError when there is no telling.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; --model_dir names the folder that training wrote")
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise UserError(
            f"{folder} holds no checkpoint ({' '.join(SUFFIXES)}); has training finished an epoch?"
        )
    if folder / BEST in files:
        return folder / BEST
    measured = {path: value for path in files for value in [_recorded_mean_ap(path)] if value is not None}
    if measured:
        best = max(measured, key=lambda path: measured[path])
        log.info("%s has the highest recorded mAP of %s (%.4f)", best.name, folder, measured[best])
        return best
    losses = {path: float(match.group(1)) for path in files for match in [_LOSS.search(path.stem)] if match}
    if losses:
        best = min(losses, key=lambda path: losses[path])
        log.info("%s has the smallest loss of %s (%g)", best.name, folder, losses[best])
        return best
    if len(files) == 1:
        return files[0]
    raise UserError(
        f"{folder} holds {', '.join(path.name for path in files[:5])}; none records its mAP or has its loss in the "
        "name. Name one."
    )


def _recorded_mean_ap(path: Path) -> Optional[float]:
    try:
        checkpoint = read_state(path)[1]
    except UserError as error:
        log.warning("passed over: %s", error)
        return None
    value = checkpoint.metrics.get("mAP") if checkpoint else None
    return float(value) if isinstance(value, (int, float)) else None


def open_source(
    path: PathLike,
    net: Optional[str] = None,
    labels: Optional[PathLike] = None,
    size: Optional[Tuple[int, int]] = None,
    **options: Any,
) -> Source:
    """A checkpoint, or bare weights with what can be found out about them.

    Args:
        net: name; of bare weights it is told by their shapes where only one net has them.
        labels: label file; of bare weights, else the one that training wrote beside them.
        size: (height, width), should it differ from the checkpoint's or the net's own.
        options: of the net; None is not given.

    Raises UserError.
    """
    path = Path(path)
    state, checkpoint = read_state(path)
    if checkpoint is None:
        if net is None:
            net = _recognised(path, state)
        if labels is None:
            labels = _labels_beside(path)
    classes = read_labels(labels) if labels is not None else None
    ssd, names, spec = open_net(path, net=net, classes=classes, size=size, **options)
    if checkpoint is None:
        return Source(path, ssd, names, spec)
    metrics = {
        key: value for key, value in checkpoint.metrics.items() if isinstance(value, (int, float, str))
    }
    return Source(path, ssd, names, spec, _data_of(checkpoint.training), metrics)


def _recognised(path: Path, state: Any) -> str:
    fitting = nets_that_fit(state)
    if len(fitting) != 1:
        raise UserError(
            f"{path} holds bare weights that fit {' and '.join(fitting) or 'no net in its default form'}; say "
            "which net it is with --net"
        )
    log.info("%s holds bare weights; they are those of %s", path.name, fitting[0])
    return fitting[0]


def _labels_beside(path: Path) -> Path:
    for name in LABEL_FILES:
        if (path.parent / name).is_file():
            log.info("labels: %s", path.parent / name)
            return path.parent / name
    raise UserError(
        f"{path} holds bare weights without class names, and there is no {LABEL_FILES[0]} beside it: give the label "
        "file that training wrote with --labels"
    )


def _data_of(training: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """What a checkpoint says of its data. Names only: an exported file carries no paths of the machine."""
    training = training or {}
    known = training.get("data")
    if isinstance(known, dict):
        return known
    folders = (training.get("config") or {}).get("datasets") or []
    return {"name": ", ".join(Path(folder).name for folder in folders)} if folders else {}
