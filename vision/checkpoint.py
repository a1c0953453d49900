"""Checkpoints: a net with everything that is needed to use it or to go on training it, in plain values."""

import contextlib
import logging
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from vision.errors import UserError
from vision.spec import BACKGROUND, InputSpec, canonical_name, net_options, net_spec
from vision.ssd import SSD
from vision.weights import State, count_classes, flat_state, load_weights, read_file

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

FORMAT = "vision checkpoint"
VERSION = 1

KEPT = ("best.pth", "last.pth")
"""What a training keeps, beside bare weights under the original's names."""


@dataclass
class Checkpoint:
    """A trained net. Only plain values and tensors, so that reading one can run nothing.

    Attributes:
        net: registered name.
        options: of the net ("width_mult").
        classes: names, BACKGROUND first.
        height, width: of the input in pixels.
        mean, std: for each of R, G, B, in units of 0..255.
        state: the net's state dict.
        metrics: for people ("mean_ap").
        training: what going on needs (optimiser, schedule, randomness), or None.
    """

    net: str
    options: Dict[str, Any]
    classes: Tuple[str, ...]
    height: int
    width: int
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    state: State
    metrics: Dict[str, Any] = field(default_factory=dict)
    training: Optional[Dict[str, Any]] = None

    @property
    def input(self) -> InputSpec:
        """The image that the net takes."""
        return InputSpec(self.height, self.width, self.mean, self.std)


# --- writing ------------------------------------------------------------------------------------------------


def save(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write a checkpoint, whole or not at all; the folder is made.

    Raises UserError when the disk refuses, TypeError for values that are neither plain nor tensors.
    """
    content = {each.name: getattr(checkpoint, each.name) for each in fields(checkpoint)}
    _write({"format": FORMAT, "version": VERSION, **content}, Path(path))


def save_state(state: Mapping[str, torch.Tensor], path: PathLike) -> None:
    """Write a bare state dict, as the original did, whole or not at all."""
    _write(dict(state), Path(path))


def _write(content: Dict[str, Any], path: Path) -> None:
    content = _plain(content, path.name)
    # In the same folder, so that the renaming is one step; named by the process, so that two do not mix.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"cannot write {path}: {reason}; is the disk full or the folder not yours?"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _plain(value: Any, where: str) -> Any:
    """`value` with tensors on the CPU and numpy's scalars as Python's; TypeError for anything else."""
    if isinstance(value, np.generic):  # first: np.float64 is a float as well
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise TypeError(f"{where}: the key {key!r} is neither text nor a number")
        return {key: _plain(inner, f"{where}: {key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds plain values and tensors only")


# --- reading ------------------------------------------------------------------------------------------------


def read_state(path: PathLike) -> Tuple[State, Optional[Checkpoint]]:
    """The weights in a file, and the whole checkpoint if it is one of ours.

    Reads own checkpoints, bare state dicts, {"model": ...} and {"state_dict": ...} wrappers, and keys with the
    prefix of DataParallel. Raises UserError, see `vision.weights.read_file`.
    """
    content = read_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        checkpoint = _from_content(content, path)
        return checkpoint.state, checkpoint
    return flat_state(content, path), None


def load(path: PathLike) -> Checkpoint:
    """A checkpoint that `save` wrote. Raises UserError for anything else."""
    checkpoint = read_state(path)[1]
    if checkpoint is None:
        raise UserError(f"{path} holds bare weights, no checkpoint: its net, classes and size are not in it")
    return checkpoint


def _from_content(content: Dict[str, Any], path: PathLike) -> Checkpoint:
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} is a checkpoint of version {content.get('version')}, this program reads {VERSION}; update it"
        )
    names = [each.name for each in fields(Checkpoint)]
    absent = [name for name in names if name not in content]
    if absent:
        raise UserError(f"{path} is a checkpoint without {', '.join(absent)}; it is damaged")
    checkpoint = Checkpoint(**{name: content[name] for name in names})
    checkpoint.classes = tuple(checkpoint.classes)
    return checkpoint


# --- opening a net ------------------------------------------------------------------------------------------


def open_net(
    path: PathLike,
    net: Optional[str] = None,
    classes: Optional[Sequence[str]] = None,
    size: Optional[Tuple[int, int]] = None,
    **options: Any,
) -> Tuple[SSD, Tuple[str, ...], InputSpec]:
    """A trained net, ready for inference.

    Args:
        path: a checkpoint, which knows all of the following, or bare weights.
        net: name; needed for bare weights.
        classes: names, BACKGROUND first; needed for bare weights.
        size: (height, width) in pixels, should it differ from the checkpoint's or the net's own. For bare weights
            that of the checkpoints which training wrote beside them, where there are any.
        options: of the net; None is not given.

    Returns: the net in eval mode on the CPU, the classes, and the image that it takes.

    Raises UserError when something is needed and not given, when what is given contradicts the file, and for
    files that cannot be read.
    """
    state, checkpoint = read_state(path)
    given = {key: value for key, value in options.items() if value is not None}
    if checkpoint is None:
        checkpoint = _described(path, state, net, classes, given)
        size = size or _size_beside(Path(path), checkpoint)
    else:
        _check_agreement(path, checkpoint, net, classes, given)
    height, width = size or (checkpoint.height, checkpoint.width)
    ssd = SSD(net_spec(checkpoint.net, **checkpoint.options), len(checkpoint.classes), (height, width))
    ssd.options = {**net_options(checkpoint.net), **checkpoint.options}
    trained_for = count_classes(ssd, state)
    if trained_for is not None and trained_for != len(checkpoint.classes):
        raise UserError(
            f"{path} was trained for {trained_for} classes, but there are {len(checkpoint.classes)} labels "
            f"({_listed(checkpoint.classes)}), both with {BACKGROUND}. Give the label file that training wrote."
        )
    load_weights(ssd, state, path)
    return ssd.eval(), checkpoint.classes, InputSpec(height, width, checkpoint.mean, checkpoint.std)


def _described(
    path: PathLike,
    state: State,
    net: Optional[str],
    classes: Optional[Sequence[str]],
    options: Dict[str, Any],
) -> Checkpoint:
    """Bare weights and what the caller says about them."""
    if net is None or classes is None:
        wanted = " and ".join(
            what for what, given in (("the name of the net", net), ("its labels", classes)) if given is None
        )
        raise UserError(f"{path} holds bare weights, which say nothing of themselves: give {wanted}")
    spec = net_spec(net, **options)
    return Checkpoint(
        net=canonical_name(net),
        options=options,
        classes=tuple(classes),
        state=state,
        **asdict(spec.input),
    )


def _size_beside(path: Path, described: Checkpoint) -> Optional[Tuple[int, int]]:
    """(height, width) of a run whose bare weights these are; None where nothing beside them says so."""
    for name in KEPT:
        run = None
        # One that is not there or damaged says nothing, and is no fault of these weights.
        with contextlib.suppress(UserError):
            run = read_state(path.parent / name)[1]
        if run is None or run.net != described.net or run.classes != described.classes:
            continue
        if (run.height, run.width) != (described.height, described.width):
            log.info("%s: %d x %d, as %s beside it says", path.name, run.width, run.height, name)
        return run.height, run.width
    return None


def _check_agreement(
    path: PathLike,
    checkpoint: Checkpoint,
    net: Optional[str],
    classes: Optional[Sequence[str]],
    options: Dict[str, Any],
) -> None:
    """What is said beside a checkpoint must be what it says itself."""
    if net is not None and canonical_name(net) != checkpoint.net:
        raise UserError(
            f"{path} is a {checkpoint.net}, not a {net}; leave the name out, the checkpoint knows it"
        )
    if classes is not None and tuple(classes) != checkpoint.classes:
        ours, theirs = set(checkpoint.classes), set(classes)
        raise UserError(
            f"the labels differ from those of {path}; leave them out, the checkpoint knows them. "
            f"In the checkpoint: {_listed(checkpoint.classes)}. Given: {_listed(tuple(classes))}. "
            f"Only in one of them: {_listed(tuple(sorted(ours ^ theirs))) or 'none, the order differs'}."
        )
    known = {**net_options(checkpoint.net), **checkpoint.options}
    for key, value in options.items():
        if key not in known:
            raise UserError(f"{path} is a {checkpoint.net}, which has no option {key!r}")
        if known[key] != value:
            raise UserError(f"{path} was made with {key} {known[key]}, not {value}; leave it out")


def _listed(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
