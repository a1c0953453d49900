"""What all runtimes of exported files share: what the file is, its forms turned into one, batches, the self-test."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from vision import boxes as box_math
from vision.card import ModelCard, read_card, test_image
from vision.data.labels import read_labels
from vision.detector import Detector
from vision.errors import UserError
from vision.onnx_header import Tensor, read_header
from vision.spec import ALIASES, InputSpec, make_priors

log = logging.getLogger(__name__)

PathLike = Union[str, Path]
Infer = Callable[[np.ndarray], Sequence[np.ndarray]]
"""blob of N images -> the outputs, in the order of `Exported.outputs`."""

NAMES = {
    "detectnet": ("scores", "boxes"),
    "uint8": ("scores", "boxes"),
    "raw": ("scores", "locations"),
    "nms": ("boxes", "scores", "labels", "images"),
}
"""Outputs of the forms, see `vision.card.FORMS`."""

OUT_OF_MEMORY = ("memory", "alloc")
"""Words by which runtimes say that there is not enough of it; each has exceptions of its own."""


@dataclass(frozen=True)
class Exported:
    """A file, as far as anybody must know it to run it.

    Attributes:
        path: of the file.
        net: what it is, for people.
        classes: names, BACKGROUND first.
        input: what the file's input expects.
        form: one of `vision.card.FORMS`.
        batch: N of a static graph, None for any N.
        input_name, outputs: names in the graph; outputs in the order of NAMES.
        priors: (P, 4) centres of the "raw" form, else None.
        variances: of the encoding of boxes.
        card: what the file says of itself, None for a foreign one.
    """

    path: Path
    net: str
    classes: Tuple[str, ...]
    input: InputSpec
    form: str
    batch: Optional[int]
    input_name: str
    outputs: Tuple[str, ...]
    priors: Optional[np.ndarray] = None
    variances: Tuple[float, float] = (0.1, 0.2)
    card: Optional[ModelCard] = None


# --- what the file is ---------------------------------------------------------------------------------------


def describe(
    path: PathLike,
    labels: Optional[PathLike] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    graph: Optional[Tuple[List[Tensor], List[Tensor]]] = None,
    **net_options: Any,
) -> Exported:
    """Bring together what an exported file says, what its graph shows and what the caller says.

    Args:
        path: the file.
        labels, size: label file and (height, width); needed where the file does not know them (the size only
            where the graph leaves it open), else they must agree.
        net: name; tells the normalisation of a file that does not know it.
        mean, std: the normalisation, likewise; of R, G, B in 0..255. Without either, (x - 127) / 128.
        graph: inputs and outputs; read from the file where it is ONNX.
        net_options: must agree with the file's.

    Raises UserError for a file that is damaged or no detector, and where the three contradict each other.
    """
    path = Path(path)
    card = read_card(path)
    if graph is None:
        header = read_header(path)
        graph = header.inputs, header.outputs
    inputs, outputs = graph
    if len(inputs) != 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise UserError(
            f"{path}: the graph has {len(inputs)} inputs ({names}); a detector has one, the image"
        )
    if card is None:
        return _foreign(path, inputs[0], outputs, labels, net, size, mean, std, net_options)
    _check_told(path, card, labels, net, size, mean, std, net_options)
    return _own(path, card, inputs[0], outputs)


def _own(path: Path, card: ModelCard, image: Tensor, outputs: Sequence[Tensor]) -> Exported:
    """A file that says what it is; its graph must agree."""
    shown = _image_size(image, "bytes" if card.form == "uint8" else "planes")
    for side, said in zip(shown, card.input.size):
        if side is not None and side != said:
            raise UserError(
                f"{path}: the graph takes images of {_sides(shown)} pixels, but the file says "
                f"{_sides(card.input.size)}; its metadata or JSON is of another export"
            )
    names = NAMES[card.form]
    found = {tensor.name: tensor for tensor in outputs}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{path}: the graph has no output {' and '.join(missing)} (it has {', '.join(found)}), which the form "
            f"{card.form!r} of its metadata or JSON needs; export it again"
        )
    if card.form != "nms":
        _check_classes(path, found["scores"], card.classes)
    priors = None
    if card.form == "raw":
        priors = make_priors(card.priors, card.cells, card.input.size)
        _check_priors(path, found["scores"], len(priors))
    return Exported(
        path,
        card.net,
        card.classes,
        card.input,
        card.form,
        None if card.dynamic_batch else (image.shape[0] if image.shape else None) or card.batch_size,
        image.name,
        names,
        priors,
        card.variances,
        card,
    )


def _foreign(
    path: Path,
    image: Tensor,
    outputs: Sequence[Tensor],
    labels: Optional[PathLike],
    net: Optional[str],
    size: Optional[Tuple[int, int]],
    mean: Optional[Sequence[float]],
    std: Optional[Sequence[float]],
    net_options: Dict[str, Any],
) -> Exported:
    """A file that says nothing of itself: of another program, or of an old export."""
    if net_options:
        raise UserError(f"{path}: an exported file has no option {', '.join(map(repr, net_options))}")
    form = "uint8" if image.dtype == "uint8" else "detectnet"
    if image.dtype not in ("uint8", "float32", ""):
        raise UserError(f"{path}: its input {image.name!r} is {image.dtype}; float32 or uint8 is needed")
    scores, boxes = _scores_and_boxes(path, outputs)
    shown = _image_size(image, "bytes" if form == "uint8" else "planes")
    lacking = ["its labels"] if labels is None else []
    if size is None and None in shown:
        lacking.append("the size of its input")
    if lacking:
        raise UserError(
            f"{path} says nothing of itself (it was not written by onnx_export.py): give {' and '.join(lacking)}"
        )
    assert labels is not None
    taken = tuple(side or told for side, told in zip(shown, size or shown))
    if size is not None and taken != tuple(size):
        raise UserError(f"{path} takes images of {_sides(shown)} pixels only, not {_sides(size)}")
    classes = read_labels(labels)
    _check_classes(path, scores, classes)
    normal_mean, normal_std = _normalisation(path, form, net, mean, std)
    return Exported(
        path,
        net or path.stem,
        classes,
        InputSpec(int(taken[0] or 0), int(taken[1] or 0), normal_mean, normal_std),
        form,
        image.shape[0] if image.shape else None,
        image.name,
        (scores.name, boxes.name),
    )


def _normalisation(
    path: Path,
    form: str,
    net: Optional[str],
    mean: Optional[Sequence[float]],
    std: Optional[Sequence[float]],
) -> Tuple[Any, Any]:
    if (mean is None) != (std is None):
        raise UserError(f"{path}: mean and std belong together; give both or neither")
    if mean is not None and std is not None:
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise UserError(f"{path}: mean {mean} and std {std} must be three numbers each, std not 0")
        return tuple(map(float, mean)), tuple(map(float, std))
    if form == "uint8":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if net is not None and ALIASES.get(net, net).startswith("vgg"):
        # The one family with another rule; its own file is on a floor that needs torch.
        return (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)
    usual = InputSpec()
    log.info("%s does not say its normalisation; (x - 127) / 128 is taken, the usual one", path)
    return usual.mean, usual.std


def _scores_and_boxes(path: Path, outputs: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
    """By their names, else by their shapes: (N, P, C) and (N, P, 4)."""
    named = {tensor.name: tensor for tensor in outputs}
    if "scores" in named and "boxes" in named:
        return named["scores"], named["boxes"]
    if len(outputs) == 2 and all(len(tensor.shape) in (0, 3) for tensor in outputs):
        first, second = outputs
        last = [tensor.shape[2] if tensor.shape else None for tensor in outputs]
        if last[1] == 4 and last[0] != 4:
            return first, second
        if last[0] == 4 and last[1] != 4:
            return second, first
    shown = ", ".join(
        f"{t.name} ({' x '.join(str(s or '?') for s in t.shape) or 'shape unknown'})" for t in outputs
    )
    raise UserError(
        f"{path} is no SSD with decoded boxes: it gives {shown}; needed are scores (N, priors, classes) and boxes "
        "(N, priors, 4)"
    )


def _image_size(image: Tensor, layout: str) -> Tuple[Optional[int], Optional[int]]:
    """(height, width) as far as the graph says them."""
    if len(image.shape) != 4:
        return None, None
    return image.shape[1:3] if layout == "bytes" else image.shape[2:4]  # type: ignore[return-value]


def _sides(size: Sequence[Optional[int]]) -> str:
    return " x ".join(str(side or "any") for side in size) + " (height x width)"


def _check_classes(path: Path, scores: Tensor, classes: Sequence[str]) -> None:
    count = scores.shape[2] if len(scores.shape) == 3 else None
    if count is not None and count != len(classes):
        raise UserError(
            f"{path}: the net scores {count} classes (background included) but {len(classes)} names are given: "
            f"{', '.join(classes[:10])}. Use the label file that was written when this net was trained."
        )


def _check_priors(path: Path, scores: Tensor, count: int) -> None:
    shown = scores.shape[1] if len(scores.shape) == 3 else None
    if shown is not None and shown != count:
        raise UserError(
            f"{path}: the net has {shown} priors but its metadata describes {count}; export it again"
        )


def _check_told(
    path: Path,
    card: ModelCard,
    labels: Optional[PathLike],
    net: Optional[str],
    size: Optional[Tuple[int, int]],
    mean: Optional[Sequence[float]],
    std: Optional[Sequence[float]],
    net_options: Dict[str, Any],
) -> None:
    """What is said beside the file must be what it says itself."""
    if net is not None and ALIASES.get(net, net) != card.net:
        raise UserError(f"{path} is a {card.net}, not a {net}; leave the name out, the file knows it")
    if size is not None and tuple(size) != card.input.size:
        raise UserError(
            f"{path} takes images of {_sides(card.input.size)} pixels, not {_sides(size)}. Leave the size out; for "
            "another one export the net again"
        )
    if labels is not None:
        told = read_labels(labels)
        if told != card.classes:
            raise UserError(
                f"the labels of {labels} differ from those in {path}; leave them out, the file knows them. In the "
                f"file: {', '.join(card.classes[:10])}. Given: {', '.join(told[:10])}."
            )
    for name, given, own in (("mean", mean, card.input.mean), ("std", std, card.input.std)):
        if given is not None and tuple(map(float, given)) != tuple(own):
            raise UserError(f"{path} was exported with {name} {own}, not {tuple(given)}; leave it out")
    for key, value in net_options.items():
        if key not in card.options:
            raise UserError(f"{path} is a {card.net}, which has no option {key!r}")
        if card.options[key] != value:
            raise UserError(f"{path} was exported with {key} {card.options[key]}, not {value}; leave it out")


# --- running it ---------------------------------------------------------------------------------------------


class ExportedRun:
    """A file in a runtime, as the callable that a Detector needs: batches as the graph wants them, one form.

    Args:
        model: the file.
        infer: calls the runtime.
        runtime: its name, for messages.
        batch: N of every call, None for any; the model's own by default.
    """

    def __init__(self, model: Exported, infer: Infer, runtime: str, batch: Optional[int] = None) -> None:
        self.model = model
        self.infer = infer
        self.runtime = runtime
        self.batch = batch or model.batch

    def __call__(self, blob: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        count, step = len(blob), self.batch or len(blob)
        parts = []
        for start in range(0, count, step):
            part = blob[start : start + step]
            missing = step - len(part)
            if missing:  # a static batch must be full
                part = np.concatenate([part, np.zeros((missing,) + part.shape[1:], part.dtype)])
            parts.append(self._unified(self._guarded(part), step)[:2])
        if len(parts) == 1:
            scores, boxes = parts[0]
        else:
            scores, boxes = _joined([part[0] for part in parts]), _joined([part[1] for part in parts])
        return scores[:count], boxes[:count]

    def _guarded(self, blob: np.ndarray) -> Sequence[np.ndarray]:
        """The outputs; what runtimes raise becomes a UserError."""
        try:
            return self.infer(blob)
        except UserError:
            raise
        except Exception as error:  # each runtime has kinds of its own
            raise _failed(self.model, self.runtime, blob, error) from error

    def _unified(self, outputs: Sequence[np.ndarray], images: int) -> Tuple[np.ndarray, np.ndarray]:
        """Scores (N, P, C) and corner boxes (N, P, 4), whatever the form."""
        model = self.model
        if model.form == "nms":
            return _spread(outputs, images, len(model.classes))
        scores, boxes = outputs
        if model.priors is not None:
            if boxes.shape[1:] != model.priors.shape:
                raise UserError(f"{model.path}: locations {boxes.shape} for {len(model.priors)} priors")
            boxes = box_math.decode(boxes, model.priors, model.variances)
        return scores, boxes


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Batches one behind the other; those of the "nms" form hold as many rows as their fullest image."""
    rows = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        if part.shape[1] < rows:
            part = np.pad(part, ((0, 0), (0, rows - part.shape[1]), (0, 0)))
        padded.append(part)
    return np.concatenate(padded)


def _spread(outputs: Sequence[np.ndarray], images: int, classes: int) -> Tuple[np.ndarray, np.ndarray]:
    """The "nms" form -> scores (N, K, C) and boxes (N, K, 4), K the detections of the fullest image.

    Every detection becomes a prior with one class, so that the one postprocess serves here as well: NMS finds
    nothing left to drop.
    """
    boxes, scores, labels, numbers = (np.asarray(output) for output in outputs)
    order = np.argsort(numbers, kind="stable")
    numbers, labels = numbers[order].astype(np.int64), labels[order].astype(np.int64)
    counts = np.bincount(numbers, minlength=images)
    place = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    most = max(int(counts.max(initial=0)), 1)
    spread_scores = np.zeros((images, most, classes), np.float32)
    spread_boxes = np.zeros((images, most, 4), np.float32)
    spread_scores[numbers, place, labels] = scores[order]
    spread_boxes[numbers, place] = boxes[order]
    return spread_scores, spread_boxes


def _failed(model: Exported, runtime: str, blob: np.ndarray, error: Exception) -> UserError:
    reason = first_line(error)
    if isinstance(error, MemoryError) or any(word in reason.lower() for word in OUT_OF_MEMORY):
        return too_big(model, runtime, len(blob), reason)
    return UserError(f"{model.path}: {runtime} failed on an input of {blob.shape}: {reason}")


def too_big(model: Exported, runtime: str, images: int, reason: str) -> UserError:
    """What to say when the memory does not suffice."""
    height, width = model.input.size
    return UserError(
        f"{model.path}: not enough memory to run {model.net} at {width} x {height} pixels with {images} "
        f"images at once in {runtime} ({reason}). Take a smaller batch size, resolution or net."
    )


def first_line(error: BaseException) -> str:
    """What an exception says, at most 200 characters of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def finish(
    model: Exported,
    infer: Infer,
    runtime: str,
    where: str,
    batch_size: int,
    batch: Optional[int] = None,
    slack: float = 1.0,
    hint: str = "",
) -> Detector:
    """The Detector of a loaded file, after its self-test.

    Args:
        runtime, where: for people ("onnxruntime 1.19", "CPU").
        batch_size: images at once.
        batch: see ExportedRun.
        slack: factor on the self-test's tolerance, for devices that round more.
        hint: what to do when the self-test fails.

    Raises UserError when the runtime does not give what the net gave at export, or (of a foreign file) what
    cannot be scores and boxes.
    """
    run = ExportedRun(model, infer, runtime, batch)
    layout = "bytes" if model.form == "uint8" else "planes"
    name = f"{model.net}, {runtime} on {where}"
    detector = Detector(run, model.input, model.classes, name, batch_size, layout)
    try:
        blob = detector.preprocess([test_image(model.input.size)])
    except MemoryError as error:
        raise too_big(model, runtime, 1, "for the image alone") from error
    scores, boxes = run(blob)
    if model.card is None:
        _check_plausible(model, scores, boxes)
    elif model.card.self_test is not None:
        test = model.card.self_test
        worst = test.worst(scores[0], boxes[0])
        if not worst <= test.tolerance * slack:
            raise UserError(
                f"{model.path}: {runtime} on {where} gives wrong results for this net: the self-test made at its "
                f"export is off by {worst:.2g}, {test.tolerance * slack:.2g} is allowed. {hint}".rstrip()
            )
        log.debug("%s: self-test off by %.2g", model.path, worst)
    if model.form == "nms" and model.card is not None:
        log.info(
            "%s has NMS inside: nothing below a score of %g comes out, whatever threshold is asked for",
            model.path,
            model.card.threshold,
        )
    return detector


def _check_plausible(model: Exported, scores: np.ndarray, boxes: np.ndarray) -> None:
    """Whether a foreign net's outputs can be class probabilities and corner boxes."""
    if scores.ndim != 3 or boxes.shape != scores.shape[:2] + (4,) or scores.shape[2] != len(model.classes):
        raise UserError(
            f"{model.path} is no SSD with decoded boxes for {len(model.classes)} classes: it gives scores "
            f"{scores.shape} and boxes {boxes.shape}; needed are (N, priors, classes) and (N, priors, 4)"
        )
    if not (np.isfinite(scores).all() and scores.min() >= -1e-3 and scores.max() <= 1.001):
        raise UserError(
            f"{model.path}: its scores are {scores.min():.3g}..{scores.max():.3g}, no probabilities; the softmax is "
            "missing in the graph"
        )
    upright = (boxes[..., 2:] >= boxes[..., :2]).all(axis=-1).mean()
    if upright < 0.9:
        raise UserError(
            f"{model.path}: {100 * (1 - upright):.0f} % of its boxes have a negative width or height: they are no "
            "corners x1, y1, x2, y2. Locations that are not decoded need the priors, which only files of "
            "onnx_export.py hold."
        )
