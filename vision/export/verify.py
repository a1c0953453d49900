"""Proof that an exported file gives what the net gave: ONNX Runtime against torch."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import onnx

from vision import boxes as box_math
from vision.data.images import read_image
from vision.data.sample import Dataset
from vision.data.shapes import paint_picture
from vision.detector import Detector
from vision.errors import UserError
from vision.evaluation.inference import SCORE_THRESHOLD, mean_ap
from vision.export.onnx import ALL_BOXES, ALL_SCORES, INPUT, Exported, preprocessed, run_torch
from vision.export.retarget import IR_VERSIONS, opset_of
from vision.runtimes import open_detector
from vision.spec import InputSpec, make_priors
from vision.ssd import SSD

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

TOLERANCE = 1e-4
"""On scores, and on boxes in fractions of the image."""

FLIPPED = 0.005
"""Share of the boxes that NMS may decide otherwise: an IoU within rounding of the threshold."""

MAP_TOLERANCE = 0.001
"""On mAP: 0.1 points."""

PHOTOGRAPHS = 8
"""Images of a data set whose raw scores and boxes are compared."""


@dataclass
class Verification:
    """What was compared.

    Attributes:
        images: how many.
        scores, boxes: largest absolute differences of scores and of boxes in fractions.
        flipped: boxes that NMS in the graph decided otherwise than ours, and `decided`, of how many.
        mean_ap: of torch and of the file, or None.
    """

    images: int = 0
    scores: float = 0.0
    boxes: float = 0.0
    flipped: int = 0
    decided: int = 0
    mean_ap: Optional[Tuple[float, float]] = None
    lines: List[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"verified on {self.images} images: scores within {self.scores:.1e}, boxes within {self.boxes:.1e} "
            "of torch"
        )
        if self.decided:
            text += f"; NMS in the graph agrees on {self.decided - self.flipped} of {self.decided} boxes"
        if self.mean_ap is not None:
            text += f"; mAP {self.mean_ap[0]:.4f} in torch, {self.mean_ap[1]:.4f} from the file"
        return text


def painted(count: int = 3, seed: int = 0) -> List[np.ndarray]:
    """Pictures to compare on where there are no photographs: RGB uint8, of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = [(240, 320), (480, 360), (333, 500)]
    return [paint_picture(rng, sizes[i % len(sizes)], 4).image for i in range(count)]


def photographs(dataset: Dataset, count: int = PHOTOGRAPHS) -> List[np.ndarray]:
    """Images of a data set, spread over it."""
    picked = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    return [read_image(dataset.samples[i].path, size=dataset.samples[i].size) for i in picked]


def verify(
    exported: Exported,
    path: PathLike,
    net: SSD,
    trained: InputSpec,
    images: Optional[Sequence[np.ndarray]] = None,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Check the file at `path` and run it against the net it came from.

    Args:
        exported: what was written there.
        net, trained: what was exported, and the image as it was trained on it.
        images: RGB uint8 of any sizes; painted ones where there are none.

    Raises UserError when ONNX Runtime is not installed, and where the file is not valid or gives other numbers.
    """
    check_graph(onnx.load(str(path), load_external_data=False), exported)
    images = list(images) if images else painted()
    result = Verification(len(images))
    session = _session(Path(path).read_bytes(), str(path))
    witness = session
    if exported.witness is not exported.model:
        witness = _session(exported.witness.SerializeToString(deterministic=True), str(path))
    step = exported.card.batch_size
    if exported.card.dynamic_batch:
        step = len(images)
        _compare(exported, session, witness, net, trained, images[:1], result)
    for start in range(0, len(images), step):
        batch = list(images[start : start + step])
        batch += [images[0]] * (step - len(batch))
        _compare(exported, session, witness, net, trained, batch, result)
    for what, worst in (("scores", result.scores), ("boxes", result.boxes)):
        if not worst <= tolerance:
            raise UserError(
                f"{path}: the exported {what} differ from torch by {worst:.2g}; {tolerance:g} is allowed. Try "
                "another --opset or --exporter, and tell us."
            )
    if result.flipped > FLIPPED * result.decided + 1:
        raise UserError(
            f"{path}: NMS in the graph decides {result.flipped} of {result.decided} boxes otherwise than ours"
        )
    return result


def check_graph(model: onnx.ModelProto, exported: Exported) -> None:
    """ONNX's own checker, strict shape inference, and what this house promises of its files."""
    plan_opset = exported.card.opset
    outside = [
        each.name for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL
    ]
    if outside:
        raise UserError(f"the exported file keeps {len(outside)} weights elsewhere ({outside[0]}, ...)")
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # several kinds, of C++ origin
        raise UserError(f"the exported graph is not valid ONNX: {str(error).strip()[:400]}") from error
    if opset_of(model) != plan_opset or model.ir_version != IR_VERSIONS[plan_opset]:
        raise UserError(
            f"the exported file has opset {opset_of(model)} and IR {model.ir_version}, not opset {plan_opset}"
        )
    declared = {value.name: _shape(value) for value in model.graph.output}
    for value in inferred.graph.output:
        if _shape(value) != declared[value.name]:
            raise UserError(f"output {value.name} is declared {declared[value.name]} but is {_shape(value)}")


def _shape(value: onnx.ValueInfoProto) -> Tuple[Any, ...]:
    return tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)


def _session(content: bytes, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "verifying needs ONNX Runtime: pip install onnxruntime, or give --verify false"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # kinds differ by version
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name}: ONNX Runtime {onnxruntime.__version__} cannot load it: {reason[0][:300]}"
        ) from error


# --- numbers ------------------------------------------------------------------------------------------------


def _compare(
    exported: Exported,
    session: Any,
    witness: Any,
    net: SSD,
    trained: InputSpec,
    images: Sequence[np.ndarray],
    result: Verification,
) -> None:
    card = exported.card
    layout = "bytes" if card.form == "uint8" else "planes"
    blob = preprocessed(card.input, images, layout)
    own = _run(session, blob)
    seen = _run(witness, blob)
    if witness is not session:
        _check_same(own, seen)
    scores = seen.get(ALL_SCORES, seen["scores"])
    if card.form == "raw":
        priors = make_priors(card.priors, card.cells, card.input.size)
        boxes = box_math.decode(seen["locations"], priors, card.variances)
    else:
        boxes = seen.get(ALL_BOXES, seen["boxes"])
    expected_scores, expected_boxes = run_torch(net, trained, images, card.input)
    result.scores = max(result.scores, _worst(scores, expected_scores))
    result.boxes = max(result.boxes, _worst(boxes, expected_boxes))
    if card.suppressed:
        _count_suppressed(own, scores, boxes, card.iou_threshold, result)
    elif card.form == "nms":
        _count_selected(own, scores, boxes, exported, result)


def _run(session: Any, blob: np.ndarray) -> Dict[str, np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: blob})))


def _worst(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise UserError(f"the exported file gives {a.shape}, torch {b.shape}")
    worst = float(np.abs(a - b).max(initial=0.0))
    return worst if worst == worst else float("inf")


def _check_same(own: Dict[str, np.ndarray], seen: Dict[str, np.ndarray]) -> None:
    for name, value in own.items():
        if value.shape != seen[name].shape or np.abs(value - seen[name]).max(initial=0) > TOLERANCE:
            raise UserError(f"output {name} changes when others are asked for as well; please tell us")


def _count_suppressed(
    own: Dict[str, np.ndarray],
    scores: np.ndarray,
    boxes: np.ndarray,
    iou_threshold: float,
    result: Verification,
) -> None:
    """NMS by our own rule on the same numbers, candidate by candidate."""
    classes = scores.shape[2] - 1
    candidates = own["scores"].shape[1] // classes
    rows = own["scores"].reshape(classes, candidates, classes + 1)
    for label in range(1, classes + 1):
        order = np.argsort(-scores[0, :, label], kind="stable")[:candidates]
        values = scores[0, order, label]
        keep = box_math.suppress(boxes[0, order][None], iou_threshold)[0]
        counted = values > SCORE_THRESHOLD
        wrong = np.abs(rows[label - 1, :, label] - values * keep) > TOLERANCE
        result.flipped += int((wrong & counted).sum())
        result.decided += int(counted.sum())


def _count_selected(
    own: Dict[str, np.ndarray],
    scores: np.ndarray,
    boxes: np.ndarray,
    exported: Exported,
    result: Verification,
) -> None:
    """The detections of every image and class, as sets of scores."""
    card = exported.card
    for image in range(len(scores)):
        _, expected, labels = box_math.select(
            scores[image],
            boxes[image],
            card.threshold,
            card.iou_threshold,
            top_k=exported.candidates,
            candidate_size=scores.shape[1],
        )
        mine = own["images"] == image
        found = set(zip(own["labels"][mine].tolist(), own["scores"][mine].tolist()))
        wanted = set(zip(labels.tolist(), expected.tolist()))
        result.flipped += len(found ^ wanted)
        result.decided += len(wanted)


# --- mAP ----------------------------------------------------------------------------------------------------


def compare_mean_ap(
    path: PathLike, torch_detector: Detector, dataset: Dataset, threshold: float = SCORE_THRESHOLD
) -> Tuple[float, float]:
    """mAP (VOC, 11 points, IoU 0.5) of the net in torch and of the exported file, through the whole pipeline.

    Raises UserError when they differ by more than 0.1 points, or the data has nothing to find.
    """
    detectors = torch_detector, open_detector(path, "onnxruntime")
    values = [mean_ap(detector, dataset, threshold) for detector in detectors]
    if not abs(values[0] - values[1]) <= MAP_TOLERANCE:
        raise UserError(
            f"{path}: mAP {values[1]:.4f} on {dataset.name}, but {values[0]:.4f} in torch; at most "
            f"{MAP_TOLERANCE:g} is allowed"
        )
    return values[0], values[1]
