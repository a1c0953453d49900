"""A trained net as one ONNX file that says everything of itself."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import warnings
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from vision.card import (
    FORMS,
    METADATA_KEY,
    ModelCard,
    SelfTest,
    make_best_test,
    make_self_test,
    test_image,
)
from vision.detector import Detector
from vision.errors import UserError
from vision.export import retarget as graphs
from vision.export.retarget import Graph, Node
from vision.export.wrappers import DETECTNET_INPUT, wrap
from vision.spec import InputSpec
from vision.ssd import SSD, Deployed

log = logging.getLogger(__name__)

INPUT, SCORES, BOXES, LOCATIONS, LABELS, IMAGES = (
    "input_0",
    "scores",
    "boxes",
    "locations",
    "labels",
    "images",
)

EXPORTERS = ("auto", "torchscript", "dynamo")
"""torch's two exporters; auto takes the first, and the second where torch no longer has the first."""


class Target(NamedTuple):
    """Where a file will run.

    Attributes:
        opset: what is written without `--opset`.
        newest: opset that runs there.
        nms, uint8: whether these forms run there.
    """

    opset: int
    newest: int
    nms: bool = False
    uint8: bool = False


# The parser of each JetPack's TensorRT: 7.1 and 8.0 to 8.2, 8.4 to 8.6, 10.
TARGETS: Dict[str, Target] = {
    "any": Target(11, graphs.NEWEST_OPSET, nms=True, uint8=True),
    "jp44": Target(11, 11),
    "jp46": Target(13, 13),
    "jp5": Target(17, 17, uint8=True),
    "jp6": Target(17, 20, uint8=True),
    "jp7": Target(17, graphs.NEWEST_OPSET, uint8=True),
    "detectnet": Target(11, 20),
}


@dataclass(frozen=True)
class Plan:
    """How a net is to be exported.

    Attributes:
        form: one of `vision.card.FORMS`.
        target: one of TARGETS.
        opset: 0 for the target's own.
        batch_size: N, where it is static.
        dynamic_batch: any N.
        suppress: unroll NMS into the graph (see `vision.export.wrappers.Suppressed`).
        candidates: for each class, of NMS in the graph.
        threshold, iou_threshold: recommended for detection, and built in where NMS is in the graph.
        exporter: one of EXPORTERS.
        oversample: the file takes images of so many times the width and height of the net, and averages blocks of
            pixels; for consumers that resize without interpolation.

    Raises UserError for values that make no sense, alone or together.
    """

    form: str = "detectnet"
    target: str = "any"
    opset: int = 0
    batch_size: int = 1
    dynamic_batch: bool = False
    suppress: bool = False
    candidates: int = 200
    threshold: float = 0.4
    iou_threshold: float = 0.45
    exporter: str = "auto"
    oversample: int = 1

    def __post_init__(self) -> None:
        for name, known in (("form", FORMS), ("target", tuple(TARGETS)), ("exporter", EXPORTERS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        graphs.check_opset(self.chosen_opset)
        target = TARGETS[self.target]
        if self.chosen_opset > target.newest:
            raise UserError(
                f"opset {self.opset} does not run on target {self.target}, whose newest is {target.newest}; "
                "leave --opset out"
            )
        for form, runs in (("nms", target.nms), ("uint8", target.uint8)):
            if self.form == form and not runs:
                raise UserError(f"--{form} does not run on target {self.target}; leave one of them out")
        if self.target == "detectnet" and (
            self.form != "detectnet" or self.dynamic_batch or self.batch_size != 1
        ):
            raise UserError(
                "detectNet takes one image in float32 and wants scores and boxes: leave out --raw, "
                "--dynamic_batch and a batch size other than 1, or --target detectnet"
            )
        if self.suppress and (
            self.form not in ("detectnet", "uint8") or self.dynamic_batch or self.batch_size != 1
        ):
            raise UserError("--suppress works on one image, with scores and boxes as outputs")
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size} is below 1")
        if self.dynamic_batch and self.batch_size != 1:
            raise UserError("--dynamic_batch takes any batch size: leave --batch_size out")
        if not 1 <= self.candidates <= 3840:
            raise UserError(f"{self.candidates} candidates for NMS are outside 1..3840 (TensorRT's limit)")
        if not 1 <= self.oversample <= 4:
            raise UserError(f"--oversample {self.oversample} is outside 1..4")
        if self.oversample > 1 and self.form in ("raw", "uint8"):
            raise UserError(f"--oversample does not go with --{self.form}; leave one of them out")
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold {self.threshold} is outside [0, 1)")
        if not 0 < self.iou_threshold < 1:
            raise UserError(f"IoU threshold {self.iou_threshold} is outside (0, 1)")

    @property
    def chosen_opset(self) -> int:
        """The opset that is written."""
        return self.opset or TARGETS[self.target].opset

    @property
    def allowed(self) -> FrozenSet[str]:
        """Operators beside the plain ones."""
        also: FrozenSet[str] = frozenset()
        if self.suppress:
            also |= graphs.SELECTING
        if self.form == "nms":
            also |= graphs.DETECTING
        if self.form == "uint8":
            also |= graphs.BYTES
        return also

    @property
    def outputs(self) -> Tuple[str, ...]:
        """Names of the file's outputs, in order."""
        if self.form == "raw":
            return SCORES, LOCATIONS
        if self.form == "nms":
            return BOXES, SCORES, LABELS, IMAGES
        return SCORES, BOXES


@dataclass
class Exported:
    """A net in ONNX, in memory.

    Attributes:
        model: with the card in its metadata.
        witness: the same graph with two more outputs, `all_scores` and `all_boxes`, before NMS; the model itself
            where there is no NMS in it.
        card: what the model says of itself.
        candidates: of the form "nms": boxes of each class and image that come out at most.
    """

    model: onnx.ModelProto
    witness: onnx.ModelProto
    card: ModelCard
    candidates: int = 200


ALL_SCORES, ALL_BOXES = "all_scores", "all_boxes"


def export(
    net: SSD,
    classes: Sequence[str],
    trained: InputSpec,
    plan: Optional[Plan] = None,
    data: Optional[Mapping[str, Any]] = None,
    metrics: Optional[Mapping[str, Any]] = None,
) -> Exported:
    """Export a net.

    Args:
        net: any SSD; it is put into eval mode and otherwise left as it is.
        classes: names, BACKGROUND first.
        trained: the image as the net was trained on it.
        data, metrics: plain values for the card.

    Raises UserError when classes and net disagree, or when torch's exporters fail.
    """
    plan = plan or Plan()
    if len(classes) != net.num_classes:
        raise UserError(
            f"the net scores {net.num_classes} classes (background included), but {len(classes)} names are given: "
            f"{', '.join(classes)}. Use the label file that was written when this net was trained."
        )
    net = net.eval()
    given = given_input(trained, plan)
    module = wrap(net, plan.form, trained, given, plan.suppress, plan.iou_threshold, plan.candidates)
    graph = graphs.read_graph(traced(module, example(given, plan), _traced_outputs(plan), plan))
    graphs.simplify(graph)
    _declare(graph, len(net.priors), net.num_classes, plan)
    if plan.form == "nms":
        _append_nms(graph, plan, len(net.priors), net.num_classes)
    models = []
    for outputs in (plan.outputs, (*plan.outputs, ALL_SCORES, ALL_BOXES)):
        models.append(graphs.written(graph, plan.chosen_opset, plan.allowed, outputs, net.spec.name))
        if not (plan.suppress or plan.form == "nms"):
            models.append(models[0])
            break
    card = make_card(net, classes, trained, plan, data or {}, metrics or {})
    write_metadata(models[0], card)
    return Exported(models[0], models[1], card, plan.candidates)


def given_input(trained: InputSpec, plan: Plan) -> InputSpec:
    """The image as the exported file will get it."""
    if plan.form == "uint8":
        mean, std = 0.0, 1.0
    elif plan.target == "detectnet":
        mean, std = DETECTNET_INPUT
    else:
        return larger(trained, plan.oversample)
    return dataclasses.replace(larger(trained, plan.oversample), mean=(mean,) * 3, std=(std,) * 3)


def larger(spec: InputSpec, factor: int) -> InputSpec:
    """The same for images of `factor` times the width and height."""
    return dataclasses.replace(spec, height=spec.height * factor, width=spec.width * factor)


def example(given: InputSpec, plan: Plan) -> torch.Tensor:
    """What is traced. Contiguous, or the exporters write the strides of the example into the graph."""
    height, width = given.size
    if plan.form == "uint8":
        return torch.zeros(plan.batch_size, height, width, 3, dtype=torch.uint8)
    return torch.zeros(plan.batch_size, 3, height, width)


def _traced_outputs(plan: Plan) -> Tuple[str, ...]:
    if plan.form == "nms":
        return ALL_SCORES, ALL_BOXES
    return (*plan.outputs, ALL_SCORES, ALL_BOXES) if plan.suppress else plan.outputs


def _declare(graph: Graph, priors: int, num_classes: int, plan: Plan) -> None:
    """Say the shapes of the outputs; the exporters leave some open that are known."""
    batch: Any = "N" if plan.dynamic_batch else plan.batch_size
    sides = {SCORES: num_classes, BOXES: 4, LOCATIONS: 4, ALL_SCORES: num_classes, ALL_BOXES: 4}
    rows = (num_classes - 1) * min(plan.candidates, priors) if plan.suppress else priors
    graph.outputs = [
        helper.make_tensor_value_info(
            value.name,
            TensorProto.FLOAT,
            [batch, rows if value.name in (SCORES, BOXES) else priors, sides[value.name]],
        )
        for value in graph.outputs
    ]


# --- torch's exporters --------------------------------------------------------------------------------------


def traced(module: nn.Module, images: torch.Tensor, outputs: Sequence[str], plan: Plan) -> onnx.ModelProto:
    """What one of torch's exporters makes of a module. Raises UserError when none can."""
    tried: List[str] = []
    for name, run in (("torchscript", _by_torchscript), ("dynamo", _by_dynamo)):
        if plan.exporter not in ("auto", name):
            continue
        try:
            with warnings.catch_warnings(), torch.no_grad(), _quiet():
                warnings.simplefilter(
                    "ignore"
                )  # on deprecation, and on Python numbers in shapes, which is meant
                return run(module, images, outputs, plan.dynamic_batch)
        except Exception as error:  # whatever they raise, and they raise many things
            reason = str(error).strip().splitlines() or [type(error).__name__]
            tried.append(f"{name}: {reason[0][:300]}")
            log.debug("exporter %s failed", name, exc_info=True)
    raise UserError(
        f"torch {torch.__version__} cannot export this net. {'; '.join(tried)}. Is onnx installed "
        "(and onnxscript, for the exporter called dynamo)?"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters report every step of theirs; only errors are wanted."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _by_torchscript(
    module: nn.Module, images: torch.Tensor, outputs: Sequence[str], dynamic: bool
) -> onnx.ModelProto:
    buffer = io.BytesIO()
    axes = {name: {0: "N"} for name in (INPUT, *outputs)} if dynamic else None
    torch.onnx.export(
        module,
        (images,),
        buffer,  # type: ignore[arg-type]  # what torch's own annotation forgets
        dynamo=False,
        opset_version=17,
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_axes=axes,
    )
    return onnx.load_from_string(buffer.getvalue())


def _by_dynamo(
    module: nn.Module, images: torch.Tensor, outputs: Sequence[str], dynamic: bool
) -> onnx.ModelProto:
    if dynamic:
        images = images.expand(
            2, *images.shape[1:]
        ).contiguous()  # an example of 1 would make the 1 a constant
    program = torch.onnx.export(
        module,
        (images,),
        dynamo=True,
        opset_version=18,
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_shapes=({0: torch.export.Dim("N")},) if dynamic else None,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for value in [*model.graph.input, *model.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_param"):
            first.dim_param = "N"
    return model


# --- NMS in the graph ---------------------------------------------------------------------------------------


def _append_nms(graph: Graph, plan: Plan, priors: int, num_classes: int) -> None:
    """Behind all scores and boxes: NonMaxSuppression, and what it selects, gathered (the form "nms")."""
    foreground = num_classes - 1
    numbers = {
        "most": plan.candidates,
        "image_column": 0,
        "class_column": 1,
        "prior_column": 2,
        "one": 1,
        "priors": priors,
        "foreground": foreground,
    }
    for name, value in numbers.items():
        graph.constants["nms." + name] = np.array(value, np.int64)
    graph.constants["nms.most"] = np.array([plan.candidates], np.int64)
    graph.constants["nms.iou"] = np.array([plan.iou_threshold], np.float32)
    graph.constants["nms.score"] = np.array([plan.threshold], np.float32)

    def add(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        graph.nodes.append(Node(op, list(inputs), [output], attributes))

    add("Slice", [ALL_SCORES], "nms.sliced", starts=[1], ends=[num_classes], axes=[2])
    add("Transpose", ["nms.sliced"], "nms.of_class", perm=[0, 2, 1])  # (N, C - 1, P)
    limits = ["nms.most", "nms.iou", "nms.score"]
    add("NonMaxSuppression", [ALL_BOXES, "nms.of_class", *limits], "nms.selected")  # (K, 3)
    for column in ("image", "class", "prior"):
        add("Gather", ["nms.selected", f"nms.{column}_column"], f"nms.{column}", axis=1)
    add("Add", ["nms.class", "nms.one"], LABELS)
    # Rows of the flattened boxes and scores.
    add("Mul", ["nms.image", "nms.priors"], "nms.first_box")
    add("Add", ["nms.first_box", "nms.prior"], "nms.box_row")
    add("Reshape", [ALL_BOXES], "nms.flat_boxes", shape=[-1, 4])
    add("Gather", ["nms.flat_boxes", "nms.box_row"], BOXES, axis=0)
    add("Mul", ["nms.image", "nms.foreground"], "nms.first_list")
    add("Add", ["nms.first_list", "nms.class"], "nms.list")
    add("Mul", ["nms.list", "nms.priors"], "nms.first_score")
    add("Add", ["nms.first_score", "nms.prior"], "nms.score_row")
    add("Reshape", ["nms.of_class"], "nms.flat_scores", shape=[-1])
    add("Gather", ["nms.flat_scores", "nms.score_row"], SCORES, axis=0)
    # An output has a name of its own; the column of images is also used inside.
    graph.constants["nms.zero"] = np.array(0, np.int64)
    add("Add", ["nms.image", "nms.zero"], IMAGES)
    graph.outputs = [
        helper.make_tensor_value_info(BOXES, TensorProto.FLOAT, ["K", 4]),
        helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["K"]),
        helper.make_tensor_value_info(LABELS, TensorProto.INT64, ["K"]),
        helper.make_tensor_value_info(IMAGES, TensorProto.INT64, ["K"]),
        *graph.outputs,
    ]


# --- what the file says of itself ---------------------------------------------------------------------------


def make_card(
    net: SSD,
    classes: Sequence[str],
    trained: InputSpec,
    plan: Plan,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> ModelCard:
    """The card of an export."""
    given = given_input(trained, plan)
    return ModelCard(
        net=net.spec.name,
        classes=tuple(classes),
        input=given,
        options=dict(net.options),
        variances=net.spec.variances,
        form=plan.form,
        dynamic_batch=plan.dynamic_batch,
        batch_size=plan.batch_size,
        folded=plan.form != "uint8" and (given.mean, given.std) != (trained.mean, trained.std),
        suppressed=plan.suppress,
        priors=net.spec.priors,
        cells=net.cells,
        threshold=plan.threshold,
        iou_threshold=plan.iou_threshold,
        opset=plan.chosen_opset,
        target=plan.target,
        weights_sha256=weights_sha256(net),
        data=dict(data),
        metrics=dict(metrics),
        self_test=self_test(net, trained, plan),
    )


def weights_sha256(net: nn.Module) -> str:
    """Of every tensor of the state dict with its name, type and shape, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype.str} {tuple(tensor.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def self_test(net: SSD, trained: InputSpec, plan: Plan) -> SelfTest:
    """What the net gives for the test image in torch. Rounded, so that another CPU writes the same file."""
    given = given_input(trained, plan)
    scores, boxes = run_torch(net, trained, [test_image(given.size)], given)
    if plan.form == "nms":
        made = make_best_test(scores[0], boxes[0], plan.threshold)
    elif plan.suppress:
        made = make_best_test(scores[0], boxes[0])
    else:
        made = make_self_test(scores[0], boxes[0])
    return dataclasses.replace(
        made, probes=tuple(probe._replace(value=round(probe.value, 4)) for probe in made.probes)
    )


def run_torch(
    net: SSD, trained: InputSpec, images: Sequence[np.ndarray], given: Optional[InputSpec] = None
) -> Tuple[np.ndarray, np.ndarray]:
    """RGB images of any sizes -> scores (N, P, C), boxes (N, P, 4), by the net as it was trained.

    Args:
        given: what the exported file takes; where that is larger, the net sees the means of blocks of its pixels.
    """
    if given is None or given.size == trained.size:
        blob = preprocessed(trained, images)
    else:
        blob = block_means(preprocessed(given, images), trained, given)
    with torch.inference_mode():
        scores, boxes = Deployed(net).eval()(torch.from_numpy(blob))
    return scores.numpy(), boxes.numpy()


def block_means(blob: np.ndarray, trained: InputSpec, given: InputSpec) -> np.ndarray:
    """What a file takes (N, 3, H * k, W * k) -> what its net sees (N, 3, H, W), in the normalisation of training."""
    mean, std = (np.array(v, np.float64).reshape(1, 3, 1, 1) for v in (given.mean, given.std))
    factor = given.height // trained.height
    blocks = blob.reshape(len(blob), 3, trained.height, factor, trained.width, factor)
    pixels = blocks.mean(axis=(3, 5), dtype=np.float64) * std + mean
    mean, std = (np.array(v, np.float64).reshape(1, 3, 1, 1) for v in (trained.mean, trained.std))
    return ((pixels - mean) / std).astype(np.float32)


def preprocessed(spec: InputSpec, images: Sequence[np.ndarray], layout: str = "planes") -> np.ndarray:
    """RGB images of any sizes -> the blob that a file with such an input takes."""
    return Detector(_not_run, spec, (), layout=layout).preprocess(images)


def _not_run(blob: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    raise NotImplementedError("only the preprocessing is used")


def write_metadata(model: onnx.ModelProto, card: ModelCard) -> None:
    """The card, and its most wanted lines once more for people who open the file in a viewer."""
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (card.input.mean, card.input.std))
    lines = {
        METADATA_KEY: card.to_json(),
        "net": card.net,
        "labels": "\n".join(card.classes),
        "input": f"{card.input.width} x {card.input.height} RGB, minus {mean}, divided by {std}",
        "form": card.form,
    }
    del model.metadata_props[:]
    for key, value in lines.items():
        model.metadata_props.add(key=key, value=value)
