"""Eight bits in the graph: explicit QuantizeLinear and DequantizeLinear round every convolution, INT8 or FP8.

A graph that says itself where and how it is rounded means the same to TensorRT from 8.0 to 11, TensorRT-RTX and ONNX
Runtime, with no calibration table and no flag of one version. What is rounded: the input of a convolution with one
scale, its weights with one for each output channel, both symmetric (zero point 0, the only kind TensorRT reads).
Biases stay as they are (TensorRT refuses INT32 ones), and so does everything else: softmax, decoding, priors.

Scales come from the user's own images: a histogram of every value's size, and the clipping point with the smallest
mean squared error. The onnx package and ONNX Runtime are needed, torch is not.

References: Wu et al. 2020, "Integer quantization for deep learning inference", sections 3 and 4 (symmetric, per
channel, calibration); Micikevicius et al. 2022, "FP8 formats for deep learning", section 3 (E4M3).
"""

from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vision.errors import UserError
from vision.export.fp16 import ROUNDING, to_fp16
from vision.export.retarget import (
    BYTES,
    DETECTING,
    IR_VERSIONS,
    NEWEST_OPSET,
    SELECTING,
    check_opset,
    opset_of,
    retarget,
)

BINS = 2048
"""Of a histogram; as many as TensorRT's own calibrators had."""

CANDIDATES = 96
"""Clipping points that are tried."""

SMALLEST_SCALE = 2.0**-14
"""The smallest float16 without loss of digits. A channel of smaller scale is 0 for all purposes."""


class Kind(NamedTuple):
    """An eight-bit type.

    Attributes:
        opset: the oldest that knows it, and the oldest in which its body may be float16.
        largest: its largest number.
        element: of ONNX.
    """

    opset: int
    half_opset: int
    largest: float
    element: int


KINDS: Dict[str, Kind] = {
    # Per-channel scales came with opset 13; TensorRT 8.0 reads nothing newer.
    "int8": Kind(13, 19, 127.0, TensorProto.INT8),
    "fp8": Kind(19, 19, 448.0, TensorProto.FLOAT8E4M3FN),
}


def round_int8(values: np.ndarray) -> np.ndarray:
    """To whole numbers -127..127, ties to even, as every runtime does it. (-128 is not used: it has no opposite.)"""
    return np.clip(np.rint(values), -127, 127)


def round_fp8(values: np.ndarray) -> np.ndarray:
    """To the numbers of E4M3 (3 bits behind the point, exponents -6..8, largest 448), ties to even, saturating."""
    values = np.clip(np.asarray(values, np.float64), -448.0, 448.0)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.abs(values)))
    step = np.exp2(np.clip(exponent, -6.0, 8.0) - 3.0)  # below 2**-6 the steps stay as they are
    return np.rint(values / step) * step


ROUND: Dict[str, Callable[[np.ndarray], np.ndarray]] = {"int8": round_int8, "fp8": round_fp8}


# --- calibration --------------------------------------------------------------------------------------------


class Histogram:
    """How often values of which size occur, of numbers that come in parts; the range grows by doubling."""

    def __init__(self, bins: int = BINS) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.top = 0.0
        self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count more numbers. Raises UserError for NaN and infinity."""
        sizes = np.abs(np.asarray(values, np.float32)).reshape(-1)
        highest = float(sizes.max(initial=0.0))
        if not np.isfinite(highest):
            raise UserError("calibration met NaN or infinite numbers: the weights are damaged")
        self.largest = max(self.largest, highest)
        if highest == 0.0:
            return
        if self.top == 0.0:
            self.top = highest
        while highest > self.top:
            half = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([half, np.zeros_like(half)])
            self.top *= 2
        self.counts += np.histogram(sizes, bins=len(self.counts), range=(0.0, self.top))[0]

    def clipping(self, kind: str, candidates: int = CANDIDATES) -> float:
        """The size above which numbers are best cut off: least mean squared error after rounding to `kind`."""
        if self.largest == 0.0:
            return 1.0
        centres = (np.arange(len(self.counts)) + 0.5) * (self.top / len(self.counts))
        there = self.counts > 0
        centres, weights = centres[there], self.counts[there].astype(np.float64)
        # What lies in the lowest bin is mostly exact zeros (behind a ReLU): no error, whatever the scale.
        largest, rounded = KINDS[kind].largest, ROUND[kind]
        best, least = self.largest, np.inf
        for share in np.linspace(1.0, 0.05, candidates):
            limit = self.largest * share
            scale = limit / largest
            error = float((weights * (rounded(centres / scale) * scale - centres) ** 2).sum())
            if error < least:
                best, least = limit, error
        return best


def convolutions(model: onnx.ModelProto) -> List[str]:
    """Names of the nodes that can be rounded: convolutions with constant weights."""
    weights = {each.name for each in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "Conv" and n.input[1] in weights]


def calibrate(
    model: onnx.ModelProto, batches: Iterable[np.ndarray], progress: Optional[Callable[[int], None]] = None
) -> Dict[str, Histogram]:
    """What goes into the convolutions of a float32 graph on these images.

    Args:
        batches: blobs of the graph's input.
        progress: called with the number of images seen so far.

    Returns: a Histogram for every input of a convolution, by the name of the value.

    Raises UserError where there is no image, and when the graph cannot be run.
    """
    rounded = set(convolutions(model))
    names = list(dict.fromkeys(n.input[0] for n in model.graph.node if n.name in rounded))
    if not names:
        raise UserError("the graph holds no convolution; there is nothing to quantise")
    inputs = {value.name for value in model.graph.input}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_value_info(n, onnx.TypeProto()) for n in names if n not in inputs)
    runner = session(probe)
    asked = [name for name in names if name not in inputs]
    histograms = {name: Histogram() for name in names}
    seen = 0
    for batch in batches:
        feed = {model.graph.input[0].name: batch}
        for name, value in [*zip(asked, runner.run(asked, feed)), *feed.items()]:
            if name in histograms:
                histograms[name].add(value)
        seen += len(batch)
        if progress is not None:
            progress(seen)
    if not seen:
        raise UserError("calibration needs images, and there are none")
    return histograms


def session(model: onnx.ModelProto, threads: int = 0) -> Any:
    """An InferenceSession on the CPU that computes a graph as it is written.

    A rounded graph is not optimised: ONNX Runtime's rewrites round it elsewhere, or not at all, and in 1.32 even the
    basic ones give other numbers for INT8 in a float16 body (four times the error of the rounding itself).

    Raises UserError when ONNX Runtime is missing or refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("reduced precision is checked in ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    levels = onnxruntime.GraphOptimizationLevel
    rounded = any(node.op_type in ROUNDING or node.op_type == "Cast" for node in model.graph.node)
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if rounded else levels.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # kinds differ by version
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the rounded graph: {reason[0][:300]}"
        ) from error


# --- the graph ----------------------------------------------------------------------------------------------


def prepared(model: onnx.ModelProto, precision: str, body: str = "float32") -> onnx.ModelProto:
    """The float32 graph in an opset that can say this precision. Node names are final from here on.

    Args:
        precision: "fp32", "fp16", or a name of KINDS.
        body: "float32" or "float16": what is not rounded to eight bits.

    Raises UserError for operators that this house does not write.
    """
    opset = opset_of(model)
    if precision in KINDS:
        kind = KINDS[precision]
        opset = max(opset, kind.half_opset if body == "float16" else kind.opset)
    check_opset(opset)
    if opset > NEWEST_OPSET:
        raise UserError(f"opset {opset} is newer than {NEWEST_OPSET}")
    fresh = retarget(model, opset, SELECTING | DETECTING | BYTES, model.graph.name or "ssd")
    fresh.ir_version = IR_VERSIONS[opset]
    return fresh


def quantize(
    model: onnx.ModelProto,
    histograms: Mapping[str, Histogram],
    precision: str = "int8",
    keep: Iterable[str] = (),
    body: str = "float32",
    stored: Optional[bool] = None,
) -> onnx.ModelProto:
    """Round the convolutions of a graph.

    Args:
        model: as `prepared` gives it.
        histograms: of `calibrate`, made with just this graph.
        precision: a name of KINDS.
        keep: names of convolutions that are not rounded.
        body: "float16" also halves everything between (see `vision.export.fp16`).
        stored: weights lie rounded in the file (a quarter of the size); else in float32 with a QuantizeLinear
            behind them, which TensorRT 8 wants. By default: rounded where the opset is 19 or newer.

    Raises UserError for an opset that is too old, an unknown name in `keep`, and a value without a histogram.
    """
    kind = KINDS[precision]
    opset = opset_of(model)
    needed = kind.half_opset if body == "float16" else kind.opset
    if opset < needed:
        raise UserError(f"{precision} with a {body} body needs opset {needed}, not {opset}")
    stored = opset >= 19 if stored is None else stored
    every = convolutions(model)
    unknown = set(keep) - set(every)
    if unknown:
        raise UserError(
            f"no convolution is called {', '.join(sorted(unknown)[:5])}; there are {every[0]}, ..."
        )
    chosen = set(every) - set(keep)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    writer = _Rounder(result, precision, stored)
    nodes = []
    for node in result.graph.node:
        if node.name in chosen:
            name = node.input[0]
            if name not in histograms:
                raise UserError(f"{node.name}: calibration has not seen its input {name}")
            scale = max(histograms[name].clipping(precision) / kind.largest, SMALLEST_SCALE)
            node.input[0] = writer.rounded_value(node.name, name, scale)
            node.input[1] = writer.rounded_weight(node.name, node.input[1])
            nodes += writer.taken()
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    used = {name for node in result.graph.node for name in node.input}
    tensors = [t for t in [*result.graph.initializer, *writer.tensors] if t.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(tensors)
    if body == "float16":
        return to_fp16(result)
    return result


class _Rounder:
    """Makes pairs of QuantizeLinear and DequantizeLinear, one for each use, as TensorRT 8 wants them."""

    def __init__(self, model: onnx.ModelProto, precision: str, stored: bool) -> None:
        self.precision = precision
        self.kind = KINDS[precision]
        self.stored = stored
        self.weights = {each.name: each for each in model.graph.initializer}
        self.tensors: List[onnx.TensorProto] = []
        self.nodes: List[onnx.NodeProto] = []

    def taken(self) -> List[onnx.NodeProto]:
        """The nodes made since last time."""
        nodes, self.nodes = self.nodes, []
        return nodes

    def rounded_value(self, conv: str, name: str, scale: float) -> str:
        parameters = self._parameters(f"{conv}.x", np.array(scale, np.float32))
        return self._pair(f"{conv}.x", name, parameters, {})

    def rounded_weight(self, conv: str, name: str) -> str:
        weight = numpy_helper.to_array(self.weights[name])
        largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)))
        scale = np.maximum(largest / self.kind.largest, SMALLEST_SCALE).astype(np.float32)
        if self.stored:
            # A float16 body will hold the scale in float16: round with what it will be multiplied with.
            scale = scale.astype(np.float16).astype(np.float32)
        parameters = self._parameters(f"{conv}.w", scale)
        if not self.stored:
            return self._pair(f"{conv}.w", name, parameters, {"axis": 0})
        values = ROUND[self.precision](weight / scale.reshape((-1,) + (1,) * (weight.ndim - 1)))
        self.tensors.append(_tensor(f"{conv}.w.values", values, self.kind.element))
        output = f"{conv}.w.dequantized"
        self._add("DequantizeLinear", [f"{conv}.w.values", *parameters], output, {"axis": 0})
        return output

    def _parameters(self, prefix: str, scale: np.ndarray) -> Tuple[str, str]:
        """Scale and zero point. TensorRT 8 wants the zero point said, though it is always 0."""
        names = f"{prefix}.scale", f"{prefix}.zero"
        self.tensors.append(numpy_helper.from_array(scale, names[0]))
        self.tensors.append(_tensor(names[1], np.zeros(scale.shape), self.kind.element))
        return names

    def _pair(self, prefix: str, name: str, parameters: Tuple[str, str], attributes: Dict[str, Any]) -> str:
        self._add("QuantizeLinear", [name, *parameters], f"{prefix}.quantized", attributes)
        self._add(
            "DequantizeLinear", [f"{prefix}.quantized", *parameters], f"{prefix}.dequantized", attributes
        )
        return f"{prefix}.dequantized"

    def _add(self, op: str, inputs: Sequence[str], output: str, attributes: Dict[str, Any]) -> None:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))


def _tensor(name: str, values: np.ndarray, element: int) -> onnx.TensorProto:
    """A constant of an eight-bit type; `values` are numbers of that type already."""
    if element == TensorProto.INT8:
        return numpy_helper.from_array(values.astype(np.int8), name)
    tensor = TensorProto(name=name, data_type=element, dims=values.shape)
    tensor.raw_data = fp8_bytes(values).tobytes()
    return tensor


def fp8_bytes(values: np.ndarray) -> np.ndarray:
    """Numbers of E4M3 -> their bytes: sign, 4 bits of exponent with bias 7, 3 bits behind the point."""
    values = np.asarray(values, np.float64)
    sizes = np.abs(values)
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.floor(np.log2(sizes)), -6.0, 8.0)
    eighths = np.rint(sizes / np.exp2(exponent - 3.0)).astype(np.int64)  # 8..15, below 8 for the smallest
    code = np.where(eighths < 8, eighths, ((exponent.astype(np.int64) + 7) << 3) + (eighths - 8))
    return (code | ((np.signbit(values) & (sizes > 0)).astype(np.int64) << 7)).astype(np.uint8)


def reduced(
    model: onnx.ModelProto,
    precision: str,
    histograms: Optional[Mapping[str, Histogram]] = None,
    keep: Iterable[str] = (),
    body: str = "float32",
    stored: Optional[bool] = None,
) -> onnx.ModelProto:
    """A `prepared` graph in any precision: "fp32", "fp16", "int8", "fp8"; see `quantize` and `to_fp16`."""
    if precision == "fp32":
        return model
    if precision == "fp16":
        return to_fp16(model, keep)
    if histograms is None:
        raise UserError(f"{precision} needs calibration images: give --calib with a folder or a data set")
    return quantize(model, histograms, precision, keep, body, stored)


def kept_types(model: onnx.ModelProto) -> Set[str]:
    """Names of the convolutions that are not rounded in a quantised graph."""
    makers = {value: node.op_type for node in model.graph.node for value in node.output}
    every = [n for n in model.graph.node if n.op_type == "Conv"]
    return {n.name for n in every if makers.get(n.input[0]) != "DequantizeLinear"}
