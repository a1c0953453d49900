"""Files of weights, and how they get into a net: whole detectors, other class counts, backbones."""

import difflib
import functools
import logging
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch

from vision.errors import UserError
from vision.nets import imagenet
from vision.spec import BACKGROUND, net_names, net_spec
from vision.ssd import SSD, output_layer

log = logging.getLogger(__name__)

State = Dict[str, torch.Tensor]
PathLike = Union[str, Path]

SUFFIXES = (".pth", ".pt", ".ckpt")
WRAPPERS = ("state", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile

# --- reading ------------------------------------------------------------------------------------------------


def read_file(path: PathLike) -> Any:
    """What `torch.save` wrote, on the CPU; tensors and plain values only.

    Raises UserError for a missing or empty file, a web page or Git LFS pointer in place of the weights, a
    truncated or damaged file, and one that holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(_not_there(path))
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    _check_head(path, head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles; what is wrong with them is said below
            return torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if not found:
            raise UserError(f"{path} is damaged, or no weights file of PyTorch") from error
        raise UserError(
            f"{path} holds Python objects ({found.group(1)}), not only weights. Loading them could run any code, "
            "so it is refused. Where the file was made, save the weights alone: "
            "torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # whatever a damaged file makes of the reader
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} is damaged, or no weights file of PyTorch ({reason[0][:200]})") from error


def _not_there(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    what = f"{path} is a folder, not a weights file" if path.is_dir() else f"there is no file {path}"
    if not folder.is_dir():
        return f"{what}; nor a folder {folder}"
    names = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not names:
        return f"{what}; {folder} holds no {SUFFIXES[0]} file at all"
    near = difflib.get_close_matches(path.name, names, n=5, cutoff=0.3) or names[:5]
    return f"{what}; {folder} holds {', '.join(near)}" + (", ..." if len(names) > len(near) else "")


def _check_head(path: Path, head: bytes) -> None:
    """Refuse what is often found in place of weights."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise UserError(f"{path} is empty; the download or the disk failed. Get it again.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"{path} is a web page, not weights: the link has died or wants a log-in. Get it again."
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights; run git lfs pull")
    if head.startswith(b"PK") and not zipfile.is_zipfile(str(path)):
        raise UserError(f"{path} is cut off ({path.stat().st_size} bytes); the download or the disk failed")


def flat_state(content: Any, source: PathLike) -> State:
    """The state dict in what a file holds: bare, or wrapped, or with the prefixes of wrappers on its keys."""
    state = content
    for wrapper in WRAPPERS:
        inner = state.get(wrapper) if isinstance(state, dict) else None
        if isinstance(inner, dict):
            state = inner
            break
    tensors = {}
    if isinstance(state, dict):
        tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{source} holds no state dict (names and tensors) but {_describe(content)}")
    if len(tensors) < len(state):
        others = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
        log.warning("%s: entries that are no tensors are left out: %s", source, ", ".join(others[:5]))
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    return tensors


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"the entries {', '.join(map(str, list(content)[:5])) or '(none)'}"
    return f"a {type(content).__name__}"


# --- loading ------------------------------------------------------------------------------------------------


@dataclass
class LoadReport:
    """What came of a file of weights.

    Attributes:
        net, source: names, for people.
        matched, missing, unexpected: keys.
        wrong_shape: key -> (shape in the file, shape in the net).
        reused, fresh: classes whose rows of the heads were taken from the file, and those that start anew. Both
            are empty when the heads were taken whole.
        notes: sentences for people.
    """

    net: str
    source: str
    matched: List[str] = field(default_factory=list)
    missing: List[str] = field(default_factory=list)
    unexpected: List[str] = field(default_factory=list)
    wrong_shape: Dict[str, Tuple[Tuple[int, ...], Tuple[int, ...]]] = field(default_factory=dict)
    reused: List[str] = field(default_factory=list)
    fresh: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = [f"{self.net} from {self.source}: {len(self.matched)} tensors loaded"]
        if self.missing:
            lines.append(f"  {len(self.missing)} missing in the file: {_some(self.missing)}")
        if self.unexpected:
            lines.append(f"  {len(self.unexpected)} unknown to the net: {_some(self.unexpected)}")
        if self.wrong_shape:
            shapes = [f"{key} {list(a)}, net {list(b)}" for key, (a, b) in self.wrong_shape.items()]
            lines.append(f"  {len(shapes)} of another shape: {_some(shapes)}")
        lines += [f"  {note}" for note in self.notes]
        if self.reused or self.fresh:
            lines.append(
                f"  classes kept: {', '.join(self.reused)}; fresh: {', '.join(self.fresh) or 'none'}"
            )
        return "\n".join(lines)


def _some(names: Sequence[str], count: int = 4) -> str:
    return "; ".join(names[:count]) + ("; ..." if len(names) > count else "")


def count_classes(net: SSD, state: State) -> Optional[int]:
    """C of the net that wrote `state`, from the rows of its heads; None when they are not this kind of net's."""
    counts = set()
    for key, anchors in _class_tensors(net).items():
        rows = state[key].shape[0] if key in state and state[key].ndim else 0
        if rows < anchors or rows % anchors:
            return None
        counts.add(rows // anchors)
    return counts.pop() if len(counts) == 1 else None


def _class_tensors(net: SSD) -> Dict[str, int]:
    """Keys of the tensors whose rows are classes -> anchors per cell (A). Row = anchor * C + class."""
    found = {}
    for i, header in enumerate(net.classification_headers):
        last = output_layer(header)
        path = next(name for name, module in header.named_modules() if module is last)
        prefix = ".".join(part for part in ("classification_headers", str(i), path) if part)
        for kind in ("weight", "bias"):
            found[f"{prefix}.{kind}"] = net.spec.priors[i].per_cell
    return found


def load_weights(
    net: SSD,
    state: State,
    source: PathLike,
    classes: Optional[Sequence[str]] = None,
    state_classes: Optional[Sequence[str]] = None,
) -> LoadReport:
    """Put the weights of a whole detector into `net`.

    The class heads may be of other classes: rows of classes with the same name (case does not count, BACKGROUND
    always) are kept for every anchor, all others stay as they are in `net`. Without names, heads of the same
    class count are taken whole, and of heads of another count only BACKGROUND is.

    Args:
        source: names the file, for messages.
        classes, state_classes: of the net and of the file, BACKGROUND first.

    Raises UserError, and leaves the net as it is, when anything else is missing, unknown or of another shape,
    when names and heads disagree, and for weights that are not finite.
    """
    report = LoadReport(net.spec.name, str(source))
    of_classes = _class_tensors(net)
    trained_for = count_classes(net, state)
    rows = None
    if trained_for is not None:
        rows = _rows_to_keep(net, trained_for, classes, state_classes, report)
    placed = _place(net.state_dict(), state, report, apart=of_classes if rows is not None else {})
    if rows is not None and trained_for is not None:
        _place_class_rows(net, state, rows, trained_for, of_classes, placed)
        report.matched += list(of_classes)
    if not report.fits:
        raise UserError(f"these weights do not fit.\n{report}{_hint(net, state)}")
    _check_finite(placed, source)
    _copy(net, placed)
    return report


def _rows_to_keep(
    net: SSD,
    trained_for: int,
    classes: Optional[Sequence[str]],
    state_classes: Optional[Sequence[str]],
    report: LoadReport,
) -> Optional[Dict[int, int]]:
    """Class in the net -> class in the file; None to take the heads whole. Writes the report."""
    for names, count, whose in (
        (classes, net.num_classes, "the net"),
        (state_classes, trained_for, report.source),
    ):
        if names is not None and len(names) != count:
            raise UserError(
                f"{whose} has {count - 1} classes, but {len(names) - 1} names are given: {', '.join(names[1:])}"
            )
    named = classes is not None and state_classes is not None
    if not named and trained_for == net.num_classes:
        if classes is not None:
            report.notes.append(
                f"its {trained_for - 1} classes have no names; they are taken to be these, in order"
            )
        return None
    if named and list(classes or ()) == list(state_classes or ()):
        return None

    if trained_for != net.num_classes:
        report.notes.append(f"trained for {trained_for - 1} classes, this net has {net.num_classes - 1}")
    if not named:
        report.notes.append("the names of its classes are unknown, so only BACKGROUND is kept of the heads")
    new = list(classes or [BACKGROUND] + [f"class {i}" for i in range(1, net.num_classes)])
    old = {name.casefold(): i for i, name in enumerate(state_classes or ()) if i}
    rows = {0: 0}
    for i, name in enumerate(new):
        if i and named and name.casefold() in old:
            rows[i] = old[name.casefold()]
    report.reused = [new[i] for i in rows]
    report.fresh = [name for i, name in enumerate(new) if i not in rows]
    return rows


def _place(own: State, state: State, report: LoadReport, apart: Dict[str, int]) -> State:
    """Tensors of `state` that fit into `own`; fills the report. Keys in `apart` are dealt with elsewhere."""
    placed = {}
    for key, tensor in own.items():
        if key in apart:
            continue
        if key not in state:
            # Files from before PyTorch 0.4.1 do not count batches, and nothing here uses the count.
            if not key.endswith("num_batches_tracked"):
                report.missing.append(key)
        elif state[key].shape != tensor.shape:
            report.wrong_shape[key] = (tuple(state[key].shape), tuple(tensor.shape))
        else:
            placed[key] = state[key]
    report.matched += list(placed)
    report.unexpected += [key for key in state if key not in own]
    return placed


def _place_class_rows(
    net: SSD, state: State, rows: Dict[int, int], trained_for: int, of_classes: Dict[str, int], placed: State
) -> None:
    new, old = list(rows.keys()), list(rows.values())
    own = net.state_dict()
    for key, anchors in of_classes.items():
        mixed = own[key].detach().clone()
        rest = mixed.shape[1:]
        if state[key].shape[1:] != rest:
            raise UserError(
                f"{key} of the file is {list(state[key].shape)}, that of {net.spec.name} {list(mixed.shape)}; "
                "the file is of another net"
            )
        theirs = state[key].reshape(anchors, trained_for, *rest).to(mixed)
        mixed.view(anchors, net.num_classes, *rest)[:, new] = theirs[:, old]
        placed[key] = mixed


def _check_finite(placed: State, source: PathLike) -> None:
    for key, tensor in placed.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {key} holds NaN or infinite numbers; its training had failed")


def _copy(module: torch.nn.Module, placed: State) -> None:
    own = module.state_dict()
    with torch.no_grad():
        for key, tensor in placed.items():
            own[key].copy_(tensor)


def _hint(net: SSD, state: State) -> str:
    """What the file would fit, when that is easily said."""
    others = [name for name in nets_that_fit(state) if name != net.spec.name]
    if others:
        return f"\nThe file is of {' or '.join(others)}."
    if net.spec.name == "mb2-ssd-lite" and set(state) >= {k for k in net.state_dict() if "_tracked" not in k}:
        return f"\nThe file has another width: about width_mult {state['base_net.0.0.weight'].shape[0] / 32:.2f}."
    if net.spec.name == "vgg16-ssd" and "source_layer_add_ons.0.scale" in state:
        return "\nThe file has the paper's norm on conv4_3: conv4_3_norm l2."
    if not any(key.startswith("classification_headers.") for key in state):
        return "\nThe file is no whole detector; if it is a backbone, give it as the base net (--base_net)."
    return ""


def nets_that_fit(state: State) -> List[str]:
    """Names of the nets, in their default form, that have the trunk of `state` (keys and shapes)."""
    shapes = {key: t.shape for key, t in state.items()}
    return [name for name in net_names() if _trunk_shapes(name).items() <= shapes.items()]


@functools.lru_cache(maxsize=None)
def _trunk_shapes(name: str) -> Dict[str, torch.Size]:
    """Key -> shape of what every file of the net `name` holds, however many classes it is for."""
    with torch.device("meta"):
        own = SSD(net_spec(name), 2).state_dict()
    trunk = ("base_net.", "extras.", "regression_headers.", "source_layer_add_ons.")
    return {k: t.shape for k, t in own.items() if k.startswith(trunk) and not k.endswith("_tracked")}


# --- backbones ----------------------------------------------------------------------------------------------


def load_base_net(net: SSD, source: PathLike) -> LoadReport:
    """Put weights of a backbone into `net.base_net`; all else stays as it is.

    Args:
        source: a file with unprefixed keys ("0.0.weight"; a classifier is left out), a model of torchvision, a
            whole detector (of which the backbone is taken), or "torchvision" for a download.

    Raises UserError, and leaves the net as it is, when anything does not fit.
    """
    name = net.spec.name
    report = LoadReport(f"backbone of {name}", str(source))
    if str(source) == "torchvision":
        state = imagenet.download(name)
    else:
        state = flat_state(read_file(source), source)
    if imagenet.is_torchvision(name, state):
        state = imagenet.fold_normalisation(imagenet.from_torchvision(name, state), net.spec.input)
        report.notes.append("torchvision's keys and normalisation were translated")
    else:
        state = _backbone_only(state, report)
    placed = _place(net.base_net.state_dict(), state, report, apart={})
    if not report.fits:
        raise UserError(f"these weights do not fit.\n{report}{_mb3_reason(name)}")
    _check_finite(placed, source)
    _copy(net.base_net, placed)
    return report


def _backbone_only(state: State, report: LoadReport) -> State:
    """Keys as the backbone has them: prefixes off, heads and classifiers out."""
    for prefix in ("base_net.", "features.", "model."):
        inside = {key[len(prefix) :]: t for key, t in state.items() if key.startswith(prefix)}
        if inside:
            if prefix == "base_net.":
                report.notes.append("a whole detector; only its backbone is taken")
            return inside
    classifier = ("classifier.", "fc.", "head.")
    return {key: t for key, t in state.items() if not key.startswith(classifier)}


def _mb3_reason(name: str) -> str:
    if not name.startswith("mb3-"):
        return ""
    return "\nNo published MobileNetV3 fits this one: it is not the paper's net (see vision/nets/mobilenet_v3.py)."
