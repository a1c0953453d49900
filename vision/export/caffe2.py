"""A net as the two files of Caffe2, written without Caffe2: a table from plain ONNX operators to its operators."""

import hashlib
import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Union

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vision.caffe2_net import PAIR, image_blob, messages, pair_named
from vision.errors import UserError
from vision.export.files import write_bytes, write_text
from vision.export.retarget import retarget

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

OPSET = 9
"""In which the graph is read: the parameters of Clip and Slice are attributes there, as in Caffe2."""

INPUT, OUTPUTS = "input_0", ("scores", "boxes")


class Nets(NamedTuple):
    """A net of Caffe2, two `NetDef` messages.

    Attributes:
        init: makes the weights, and an image of zeros so that the graph can be created.
        predict: the graph.
    """

    init: Any
    predict: Any


def convert(model: onnx.ModelProto, name: str) -> Nets:
    """ONNX with plain operators and one image as input -> Caffe2.

    Args:
        model: with the outputs `scores` and `boxes`; of any opset that `vision.export.retarget` reads.
        name: of the net, for people.

    Raises UserError for another contract, and for an operator that TABLE does not have or cannot put so.
    """
    names = [value.name for value in model.graph.output]
    if sorted(names) != sorted(OUTPUTS):
        raise UserError(
            f"the graph gives {', '.join(names)}; for Caffe2 it must give {' and '.join(OUTPUTS)}: export it without "
            "--raw, --nms and --suppress"
        )
    graph = retarget(model, OPSET, graph_name=name).graph
    _name_input(graph)
    writer = _Writer(graph, name)
    for node in graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        write = TABLE.get(node.op_type)
        if write is None:
            raise UserError(
                f"no operator of Caffe2 is known here for {node.op_type} (it makes {node.output[0]}); known are "
                f"{', '.join(TABLE)}"
            )
        write(writer, node, attributes)
    return writer.finish()


def _name_input(graph: onnx.GraphProto) -> None:
    """One float32 image of a known size, and its blob `input_0`."""
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] if len(graph.input) == 1 else []
    if len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
        raise UserError(
            "for Caffe2 a graph must have one input, an image (N, 3, height, width) of fixed size"
        )
    if graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise UserError("for Caffe2 a graph must take float32: export it without --uint8")
    old = graph.input[0].name
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = INPUT
    graph.input[0].name = INPUT


class _Writer:
    """The two nets, growing."""

    def __init__(self, graph: onnx.GraphProto, name: str) -> None:
        self.graph = graph
        self.constants: Dict[str, np.ndarray] = {
            each.name: numpy_helper.to_array(each) for each in graph.initializer
        }
        self.ranks = _ranks(graph)
        self.used: List[str] = []
        net = messages()["NetDef"]
        # What Caffe2 runs operators one after the other with.
        self.init, self.predict = net(name=f"{name}_init", type="simple"), net(name=name, type="simple")

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **arguments: Any) -> None:
        """An operator of the predict net. Inputs that are constants get a place in the init net."""
        for name in inputs:
            if name in self.constants and name not in self.used:
                self.used.append(name)
        _add(self.predict, kind, inputs, outputs, arguments)

    def finish(self) -> Nets:
        image = self.graph.input[0]
        shape = [d.dim_value or 1 for d in image.type.tensor_type.shape.dim]
        _add(self.init, "ConstantFill", [], [image.name], {"shape": shape, "value": 0.0})
        for name in self.used:
            value = self.constants[name]
            # A number without sides becomes a list of one: nothing in Caffe2 needs the former.
            given = {"shape": list(value.shape or (1,)), "values": value.reshape(-1).astype(np.float32)}
            _add(self.init, "GivenTensorFill", [], [name], given)
        self.predict.external_input.extend([image.name, *self.used])
        self.predict.external_output.extend(OUTPUTS)
        self.init.external_output.extend([image.name, *self.used])
        digest = hashlib.sha256()
        for net in (self.init, self.predict):
            digest.update(net.SerializeToString(deterministic=True))
        for net in (self.init, self.predict):
            net.arg.add(name=PAIR, s=digest.hexdigest()[:16].encode())
        return Nets(self.init, self.predict)


def _add(
    net: Any, kind: str, inputs: Sequence[str], outputs: Sequence[str], arguments: Mapping[str, Any]
) -> None:
    op = net.op.add(type=kind, input=inputs, output=outputs)
    for name, value in arguments.items():
        argument = op.arg.add(name=name)
        if isinstance(value, str):
            argument.s = value.encode()
        elif isinstance(value, float):
            argument.f = value
        elif isinstance(value, int):
            argument.i = value
        elif isinstance(value, np.ndarray):
            argument.floats.extend(value.tolist())
        else:
            argument.ints.extend(int(each) for each in value)


def _ranks(graph: onnx.GraphProto) -> Dict[str, int]:
    """Number of sides of every value, as far as it is known."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    for value in model.graph.output:  # a foreign file may say anything
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model).graph
    tensors = [
        (v.name, v.type.tensor_type) for v in [*inferred.input, *inferred.value_info, *inferred.output]
    ]
    return {name: len(tensor.shape.dim) for name, tensor in tensors if tensor.HasField("shape")}


# --- the table ----------------------------------------------------------------------------------------------

Attributes = Dict[str, Any]


def _same(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    """The same name, inputs and meaning. Caffe2 broadcasts as NumPy does."""
    writer.add(node.op_type, node.input, node.output)


def _clip(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    bounds = {name: float(given[name]) for name in ("min", "max") if name in given}
    writer.add("Clip", node.input, node.output, **bounds)


def _concat(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    # The second output, the sides that were joined, is not optional.
    writer.add("Concat", node.input, [*node.output, f"{node.output[0]}_split"], axis=given["axis"])


def _conv(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    weight = writer.constants[node.input[1]]
    if weight.ndim != 4:
        raise UserError(
            f"Conv ({node.output[0]}) with a kernel of {weight.ndim - 2} sides; only 2 are written"
        )
    inputs = list(node.input)
    if len(inputs) == 2:  # not every engine of Caffe2 takes a convolution without a bias
        inputs.append(f"{node.output[0]}.bias")
        writer.constants[inputs[2]] = np.zeros(len(weight), np.float32)
    sides = {"kernels": given["kernel_shape"], "strides": given["strides"], "pads": given["pads"]}
    if set(given["dilations"]) != {1}:
        sides["dilations"] = given["dilations"]
    writer.add("Conv", inputs, node.output, **sides, group=given["group"], order="NCHW")


def _global_average_pool(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    writer.add("AveragePool", node.input, node.output, global_pooling=1, order="NCHW")


def _hard_sigmoid(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    alpha, beta = float(given.get("alpha", 0.2)), float(given.get("beta", 0.5))
    writer.add("HardSigmoid", node.input, node.output, alpha=alpha, beta=beta)


def _max_pool(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    # Rounding up became padding in `retarget`.
    sides = {"kernels": given["kernel_shape"], "strides": given["strides"], "pads": given["pads"]}
    writer.add("MaxPool", node.input, node.output, **sides, order="NCHW")


def _reduce_sum(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    writer.add("ReduceSum", node.input, node.output, axes=given["axes"], keepdims=given["keepdims"])


def _reshape(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    # 0 and -1 mean the same in both. The second output, the shape before, is not optional.
    shape = writer.constants[node.input[1]]
    writer.add("Reshape", node.input[:1], [*node.output, f"{node.output[0]}_old_shape"], shape=shape.tolist())


def _slice(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    if len(given["axes"]) != 1:
        raise UserError(f"Slice ({node.output[0]}) of {len(given['axes'])} axes; Caffe2 cuts one at a time")
    (axis,), (start,), (end,) = given["axes"], given["starts"], given["ends"]
    if start < 0 or end < 0:
        raise UserError(
            f"Slice ({node.output[0]}) from {start} to {end}; only counted from the front is written"
        )
    rank = writer.ranks.get(node.input[0])
    if rank is None:
        raise UserError(f"Slice ({node.output[0]}) of a value whose number of sides is not known")
    starts, ends = [0] * rank, [-1] * rank  # -1 is the end itself
    starts[axis] = start
    ends[axis] = -1 if end >= 2**31 - 1 else end
    writer.add("Slice", node.input, node.output, starts=starts, ends=ends)


def _softmax(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    # Over all sides from `axis` on; `retarget` lets only the last pass.
    writer.add("Softmax", node.input, node.output, axis=given["axis"])


def _transpose(writer: _Writer, node: onnx.NodeProto, given: Attributes) -> None:
    writer.add("Transpose", node.input, node.output, axes=given["perm"])


TABLE: Dict[str, Callable[[_Writer, onnx.NodeProto, Attributes], None]] = {
    "Add": _same,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _same,
    "Exp": _same,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "MaxPool": _max_pool,
    "Mul": _same,
    "ReduceSum": _reduce_sum,
    "Relu": _same,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Sqrt": _same,
    "Sub": _same,
    "Transpose": _transpose,
}
"""ONNX operator (opset 9, as `retarget` writes it) -> what writes it for Caffe2. Nothing else is written."""


# --- files --------------------------------------------------------------------------------------------------


def write_nets(nets: Nets, prefix: PathLike) -> List[Path]:
    """Write `<prefix>_init_net.pb`, `<prefix>_predict_net.pb` and each as text, `.pbtxt`. Returns the four.

    The text of the init net leaves out the weights, which would be ten times the file.

    Raises UserError when the disk refuses.
    """
    from google.protobuf import text_format

    prefix = Path(prefix)
    pair = pair_named(prefix)
    image_blob(pair, nets.init, nets.predict)  # that they belong together
    written = []
    for net, path in ((nets.init, pair.init), (nets.predict, pair.predict)):
        write_bytes(path, net.SerializeToString(deterministic=True))
        shown, head = net, ""
        if net is nets.init:
            shown, head = (
                _without_weights(net),
                f"# The weights, arguments `values`, stand in {path.name} only.\n",
            )
        text = path.with_suffix(".pbtxt")
        write_text(text, head + text_format.MessageToString(shown))
        written += [path, text]
    return written


def _without_weights(init: Any) -> Any:
    shown = messages()["NetDef"](name=init.name, type=init.type, arg=init.arg)
    shown.external_output.extend(init.external_output)
    for op in init.op:
        short = shown.op.add(type=op.type, output=op.output)
        short.arg.extend(each for each in op.arg if each.name != "values")
    return shown
