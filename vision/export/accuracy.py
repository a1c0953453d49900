"""What reduced precision costs, on the user's own photographs, before anything is handed out.

A graph in FP16, INT8 or FP8 is run in ONNX Runtime beside the float32 one; its mAP must keep a share of the other's
(99 % by default). Where it does not, each convolution is rounded alone to see which ones hurt, and `auto` keeps those
in higher precision, as few as suffice. No torch: a board can do this as well as the machine that trained.
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import onnx

from vision.card import METADATA_KEY, ModelCard, make_self_test, test_image, write_sidecar
from vision.data import open_dataset, recognised
from vision.data.images import read_image
from vision.data.sample import Dataset, Sample
from vision.detector import Detector
from vision.errors import UserError
from vision.evaluation.inference import SCORE_THRESHOLD, detect_samples, mean_ap
from vision.export.files import write_bytes
from vision.export.quantize import (
    KINDS,
    Histogram,
    calibrate,
    convolutions,
    prepared,
    reduced,
    session,
)
from vision.export.retarget import opset_of
from vision.runtimes.exported import NAMES, Exported, ExportedRun
from vision.spec import make_priors

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

PRECISIONS = ("fp32", "fp16", "int8", "fp8", "auto")
"""auto: INT8, with as many convolutions kept in higher precision as the accuracy wants; else FP16."""

ACCURACY = 0.99
"""Share of the float32 mAP that must be left."""

CALIBRATION_IMAGES = 100
"""Few are enough: scales are one number for a whole layer."""

PROBED = 8
"""Images on which convolutions are rounded one by one."""

BATCH = 4
"""Images at once, where the graph takes any number."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

SELF_TEST = {"fp16": 0.03, "int8": 0.15, "fp8": 0.25}
"""Tolerance of the self-test: another runtime rounds at other places."""


# --- images -------------------------------------------------------------------------------------------------


@dataclass
class Material:
    """Images to calibrate with and to measure on.

    Attributes:
        name: for people.
        calibration: image files.
        evaluation: annotated images, or images without objects where `annotated` is False; None without any.
    """

    name: str
    calibration: List[Path] = field(default_factory=list)
    evaluation: Optional[Dataset] = None
    annotated: bool = False


def open_material(
    calib: PathLike = "", verify: PathLike = "", images: int = CALIBRATION_IMAGES
) -> Optional[Material]:
    """What `--calib` and `--verify` name: a data set (calibrated with its train split, measured on its test split),
    or a plain folder of images (calibrated with them; measured by agreement with float32). None without both.

    Raises UserError for a folder that does not exist or holds no image.
    """
    if not calib and not verify:
        return None
    material = Material(str(calib or verify))
    source = Path(calib or verify)
    if not source.is_dir():
        raise UserError(f"--calib {source}: no such folder; name a data set, or a folder of images")
    if recognised(source):
        train = open_dataset([str(source)], "train")
        material.calibration = [sample.path for sample in _spread(train.samples, images)]
        material.evaluation, material.annotated = open_dataset([str(source)], "test"), True
    else:
        files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise UserError(f"--calib {source}: holds no image ({' '.join(SUFFIXES)}) and is no data set")
        material.calibration = _spread(files, images)
        material.evaluation = Dataset(
            source.name, ("BACKGROUND",), [_unknown(p) for p in _spread(files, images)]
        )
    if verify and Path(verify) != source:
        material.evaluation, material.annotated = open_dataset([str(verify)], "test"), True
    if not material.calibration:
        raise UserError(f"--calib {source}: its train split holds no image")
    return material


def _spread(things: Sequence[Any], count: int) -> List[Any]:
    """At most `count` of them, from everywhere."""
    if len(things) <= count:
        return list(things)
    return [things[i] for i in np.unique(np.linspace(0, len(things) - 1, count).astype(int))]


def _unknown(path: Path) -> Sample:
    nothing = np.zeros(0, bool)
    return Sample(
        path.name, path, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), nothing, nothing.copy()
    )


# --- running a graph ----------------------------------------------------------------------------------------


def detector_of(model: onnx.ModelProto, card: ModelCard, threads: int = 0) -> Detector:
    """A graph in memory as a Detector, in ONNX Runtime on the CPU."""
    runner = session(model, threads)
    outputs = NAMES[card.form]
    name = model.graph.input[0].name
    priors = make_priors(card.priors, card.cells, card.input.size) if card.form == "raw" else None
    exported = Exported(
        Path(f"{card.net}.onnx"),
        card.net,
        card.classes,
        card.input,
        card.form,
        None if card.dynamic_batch else card.batch_size,
        name,
        outputs,
        priors,
        card.variances,
        card,
    )
    run = ExportedRun(exported, lambda blob: runner.run(list(outputs), {name: blob}), "onnxruntime")
    layout = "bytes" if card.form == "uint8" else "planes"
    return Detector(run, card.input, card.classes, card.net, BATCH, layout)


def as_truth(detector: Detector, dataset: Dataset, threshold: float) -> Dataset:
    """The images with what the float32 net finds in them as their objects: then mAP measures agreement."""
    samples = []
    for sample, found in zip(dataset.samples, detect_samples(detector, dataset.samples, threshold)):
        flags = np.zeros(len(found), bool)
        samples.append(
            dataclasses.replace(
                sample, boxes=found.boxes, labels=found.labels, difficult=flags, group=flags.copy()
            )
        )
    return Dataset(dataset.name, detector.classes, samples)


# --- the gate -----------------------------------------------------------------------------------------------


@dataclass
class Reduction:
    """A net in reduced precision, and what is known of it.

    Attributes:
        model: with the card in its metadata.
        card: of it; `precision` says which.
        full, mean_ap: mAP of float32 and of this; None where nothing was measured.
        annotated: measured against annotations, not against what float32 finds.
        kept: convolutions that were not rounded, of how many (`convolutions`).
        sensitivity: (convolution, error) from the worst on, where it was looked at.
    """

    model: onnx.ModelProto
    card: ModelCard
    full: Optional[float] = None
    mean_ap: Optional[float] = None
    annotated: bool = False
    kept: Tuple[str, ...] = ()
    convolutions: int = 0
    sensitivity: List[Tuple[str, float]] = field(default_factory=list)

    @property
    def share(self) -> Optional[float]:
        """mAP as a share of that in float32; None where there is none."""
        if self.full is None or self.mean_ap is None:
            return None
        return self.mean_ap / self.full if self.full > 0 else 1.0

    def __str__(self) -> str:
        word = self.card.precision.upper()
        if self.kept:
            word += f" ({len(self.kept)} of {self.convolutions} convolutions kept: {', '.join(self.kept)})"
        if self.share is None:
            return f"{word}: accuracy not measured; give --calib a data set with annotations"
        if not self.annotated:
            return f"{word}: agrees with float32 to {100 * (self.mean_ap or 0):.1f} % (mAP against its detections)"
        return f"{word}: mAP {self.mean_ap:.4f}, float32 {self.full:.4f} ({100 * self.share:.1f} %)"


def reduce(
    model: onnx.ModelProto,
    card: ModelCard,
    precision: str,
    material: Optional[Material] = None,
    accuracy: float = ACCURACY,
    keep: Sequence[str] = (),
    body: str = "float32",
    say: Optional[Callable[[str], None]] = None,
) -> Reduction:
    """A float32 export in reduced precision, measured.

    Args:
        model, card: what `vision.export.onnx.export` or a file of it gave.
        precision: one of PRECISIONS.
        material: images; INT8 and FP8 cannot do without.
        accuracy: share of the float32 mAP that must be left; 0 lets everything pass. Only looked at where the
            material is annotated.
        keep: nodes that stay in higher precision.
        body: "float16" for strongly typed TensorRT: what is not INT8 or FP8 is then FP16.
        say: is told of progress, in lines.

    Raises UserError, naming the convolutions that hurt most, when too little accuracy is left.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if card.precision != "fp32":
        raise UserError(f"the file is {card.precision.upper()} already; give the one in float32")
    if card.target == "detectnet" and precision != "fp32":
        raise UserError(
            "NVIDIA's detectNet wants a float32 file and chooses the precision itself: leave out --precision, or "
            "--target detectnet"
        )
    work = _Work(model, card, material, body, say or log.info)
    if precision == "auto":
        return work.auto(accuracy, keep)
    result = work.measured(precision, keep)
    if _passes(result, accuracy):
        return result
    if precision in KINDS:
        result.sensitivity = work.sensitivity(precision, keep)
        worst = [name for name, _ in result.sensitivity[:8]]
        advice = (
            f"Keep the worst in higher precision: --precision auto, or --keep {' '.join([*keep, *worst])}"
        )
    else:
        advice = "Take --precision fp32"
    raise UserError(
        f"{result}; at least {100 * accuracy:g} % are wanted. {advice}. To take it as it is: --accuracy 0"
    )


def _passes(result: Reduction, accuracy: float) -> bool:
    return result.share is None or not result.annotated or result.share >= accuracy


class _Work:
    """One net, its images, and what was already found out about both."""

    def __init__(
        self,
        model: onnx.ModelProto,
        card: ModelCard,
        material: Optional[Material],
        body: str,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.card, self.material, self.body, self.say = model, card, material, body, say
        self.reader = detector_of(model, card)
        self.histograms: Dict[int, Dict[str, Histogram]] = {}
        self.truth: Optional[Dataset] = None
        self.full: Optional[float] = None
        self.threshold = card.threshold if card.form == "nms" else SCORE_THRESHOLD

    def measured(self, precision: str, keep: Sequence[str]) -> Reduction:
        base = prepared(self.model, precision, self.body)
        made = reduced(base, precision, self._calibrated(base, precision), keep, self.body)
        card = described(made, self.card, precision)
        result = Reduction(made, card, kept=tuple(keep), convolutions=len(convolutions(base)))
        self._measure(result)
        write_card(made, result.card)
        return result

    def _calibrated(self, base: onnx.ModelProto, precision: str) -> Optional[Dict[str, Histogram]]:
        if precision not in KINDS:
            return None
        if self.material is None:
            raise UserError(
                f"{precision} needs images to find its scales with: --calib DIR, a folder of photographs like those "
                "that the net will see, or a data set"
            )
        opset = opset_of(base)  # names of nodes hang on it
        if opset not in self.histograms:
            files = self.material.calibration
            self.say(f"calibrating on {len(files)} images of {self.material.name}")
            self.histograms[opset] = calibrate(base, self._blobs(files))
        return self.histograms[opset]

    def _blobs(self, files: Sequence[Path]) -> Iterator[np.ndarray]:
        step = BATCH if self.card.dynamic_batch else self.card.batch_size
        for start in range(0, len(files), step):
            part = [read_image(path) for path in files[start : start + step]]
            if len(part) < step and not self.card.dynamic_batch:
                part += [part[-1]] * (step - len(part))
            yield self.reader.preprocess(part)

    def _measure(self, result: Reduction) -> None:
        data = self.material.evaluation if self.material else None
        if data is None or self.material is None:
            return
        if self.truth is None:
            self.truth = data if self.material.annotated else as_truth(self.reader, data, self.card.threshold)
            if self.material.annotated or any(len(sample.labels) for sample in self.truth.samples):
                self.full = mean_ap(self.reader, self.truth, self.threshold)
            else:
                where = f"at scores of {self.card.threshold:g} and more on {self.material.name}"
                self.say(f"in float32 the net finds nothing {where}: there is no agreement to measure")
        if self.full is None:
            return
        result.full, result.annotated = self.full, self.material.annotated
        result.mean_ap = mean_ap(detector_of(result.model, self.card), self.truth, self.threshold)
        if result.annotated:
            measured = {
                f"mAP {result.card.precision}": round(result.mean_ap, 4),
                "mAP fp32": round(self.full or 0, 4),
            }
            result.card = dataclasses.replace(result.card, metrics={**self.card.metrics, **measured})

    def sensitivity(self, precision: str, keep: Sequence[str] = ()) -> List[Tuple[str, float]]:
        """Every convolution rounded alone: (name, error of scores and boxes), the worst first."""
        base = prepared(self.model, precision, "float32")
        histograms = self._calibrated(base, precision)
        assert self.material is not None
        every = convolutions(base)
        self.say(f"looking for the convolutions that hurt: {len(every)}, one by one")
        blobs = list(self._blobs(_spread(self.material.calibration, PROBED)))
        names = list(NAMES[self.card.form])
        wanted = [session(base).run(names, {base.graph.input[0].name: blob}) for blob in blobs]
        errors = []
        for name in every:
            if name in keep:
                continue
            others = [other for other in every if other != name]
            single = session(reduced(base, precision, histograms, others))
            found = [single.run(names, {base.graph.input[0].name: blob}) for blob in blobs]
            errors.append((name, sum(_error(f, w) for f, w in zip(found, wanted)) / len(blobs)))
        return sorted(errors, key=lambda pair: -pair[1])

    def auto(self, accuracy: float, keep: Sequence[str]) -> Reduction:
        """INT8 with as few convolutions kept as suffice, else FP16."""
        result = self.measured("int8", keep)
        if not result.annotated:
            raise UserError(
                "--precision auto needs annotated images to choose by: give --calib a data set, or choose "
                "fp16 or int8 yourself"
            )
        self.say(str(result))
        if _passes(result, accuracy):
            return result
        order = self.sensitivity("int8", keep)
        count = 1
        while count <= len(order) // 2:
            kept = (*keep, *(name for name, _ in order[:count]))
            result = self.measured("int8", kept)
            result.sensitivity = order
            self.say(str(result))
            if _passes(result, accuracy):
                return result
            count *= 2
        self.say(
            "INT8 does not keep the accuracy, even with half of the convolutions in higher precision: FP16"
        )
        result = self.measured("fp16", ())
        if not _passes(result, accuracy):
            raise UserError(f"{result}; at least {100 * accuracy:g} % are wanted. Take --precision fp32")
        return result


def _error(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Of scores, and of the boxes that hold something."""
    if len(wanted) != 2 or wanted[0].shape != found[0].shape or wanted[0].ndim != 3:
        return float(len(found[0]) != len(wanted[0]))  # detections after NMS: how many there are
    scores = np.abs(found[0] - wanted[0]).sum()
    objects = wanted[0][:, :, 1:].max(axis=2, keepdims=True)
    return float((scores + (np.abs(found[1] - wanted[1]) * objects).sum()) / len(wanted[0]))


def described(model: onnx.ModelProto, card: ModelCard, precision: str) -> ModelCard:
    """The card of a reduced graph: its self-test is what it gives itself, with room for other roundings."""
    opset = opset_of(model)
    if precision == "fp32" or card.self_test is None:
        return dataclasses.replace(card, opset=opset, precision=precision)
    detector = detector_of(model, card)
    scores, boxes = detector.run(detector.preprocess([test_image(card.input.size)]))
    test = make_self_test(scores[0], boxes[0], SELF_TEST[precision])
    return dataclasses.replace(card, opset=opset, precision=precision, self_test=test)


def write_card(model: onnx.ModelProto, card: ModelCard) -> None:
    """Put the card into the graph's metadata, in place of an older one."""
    for each in list(model.metadata_props):
        if each.key == METADATA_KEY:
            model.metadata_props.remove(each)
    model.metadata_props.add(key=METADATA_KEY, value=card.to_json())


def write_reduced(path: PathLike, reduction: Reduction) -> Path:
    """Write a reduced graph beside the float32 one it came from: "best.onnx" -> "best-int8.onnx", with its JSON."""
    path = Path(path)
    output = path.with_name(f"{path.stem}-{reduction.card.precision}.onnx")
    write_bytes(output, reduction.model.SerializeToString(deterministic=True))
    write_sidecar(reduction.card, output)
    return output
