"""One clean graph for every ONNX opset from 9 to 23, whichever exporter drew it.

Exporters leave constants as nodes, idle Identity and Cast nodes, local paths in metadata, and write the opset
they like. Here the graph is read into a form without opsets (every parameter an attribute), simplified, checked
against a fixed set of plain operators, and written anew for one opset, with the same names and bytes every time.

Two rewrites change nothing in the mathematics and keep OpenCV from wrong results:

- A default `beta` of HardSigmoid is not written. OpenCV 5.0 takes HardSigmoid(1/6, 0.5) times *anything* for
  HardSwish, which breaks squeeze-and-excite.
- A K x K convolution on a map of 1 x 1 becomes the 1 x 1 convolution of the only tap that meets data. OpenCV 4.7
  to 4.12 computes depthwise ones there wrongly.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vision.errors import UserError

OLDEST_OPSET, NEWEST_OPSET = 9, 23

IR_VERSIONS = {
    9: 4,
    10: 5,
    11: 6,
    12: 7,
    13: 7,
    14: 7,
    15: 8,
    16: 8,
    17: 8,
    18: 8,
    19: 9,
    20: 9,
    21: 10,
    22: 10,
    23: 11,
}
"""The IR version that came out with each opset: old runtimes refuse a newer one, whatever the opset."""

PLAIN = frozenset(
    "Add Clip Concat Conv Div Exp GlobalAveragePool HardSigmoid HardSwish MaxPool Max Min Mul ReduceSum Relu "
    "Reshape Slice Softmax Sqrt Sub Transpose".split()
)
"""What any net of this house needs. TensorRT from 7.1, OpenCV and onnxruntime run all of it."""

SELECTING = frozenset(("Gather", "MatMul", "TopK"))
"""Also allowed where NMS is unrolled into the graph; TensorRT has parsed these since version 5."""

DETECTING = frozenset(("Cast", "Gather", "NonMaxSuppression"))
"""Also allowed where the graph ends with detections (onnxruntime)."""

BYTES = frozenset(("Cast",))
"""Also allowed where the graph begins with bytes."""

PRODUCER = "vision"

_SMALL = 64
"""Constants of at most so many numbers are shared between nodes."""


@dataclass
class Node:
    """One operator. `inputs` are names of values; parameters of canonical operators are `attributes`."""

    op: str
    inputs: List[str]
    outputs: List[str]
    attributes: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """A graph without an opset.

    Attributes:
        nodes: in an order in which they can run.
        constants: values that are known.
        inputs, outputs: as in ONNX, with types and shapes.
        shapes: of values, as far as known; None for a dimension that is not.
        types: ONNX element types of values, as far as known.
    """

    nodes: List[Node]
    constants: Dict[str, np.ndarray]
    inputs: List[onnx.ValueInfoProto]
    outputs: List[onnx.ValueInfoProto]
    shapes: Dict[str, Tuple[Optional[int], ...]] = field(default_factory=dict)
    types: Dict[str, int] = field(default_factory=dict)


def retarget(
    model: onnx.ModelProto, opset: int, also: FrozenSet[str] = frozenset(), graph_name: str = "ssd"
) -> onnx.ModelProto:
    """`model` written anew for `opset`; inputs, outputs and results stay as they are.

    Args:
        model: a float32 graph, opset 9 or newer, all weights inside.
        also: operators that are allowed beside PLAIN.
        graph_name: of the graph, for people.

    Raises UserError for an opset out of range and for an operator, a domain or a data type outside the set.
    """
    graph = read_graph(model)
    simplify(graph)
    return written(graph, opset, also, [value.name for value in graph.outputs], graph_name)


def written(
    graph: Graph, opset: int, also: FrozenSet[str], outputs: Sequence[str], graph_name: str = "ssd"
) -> onnx.ModelProto:
    """The part of a canonical graph that makes `outputs`, in the language of `opset`; see `retarget`."""
    check_opset(opset)
    of_name = {value.name: value for value in graph.outputs}
    part = replace(graph, outputs=[of_name[name] for name in outputs])
    _sort(part)
    _refuse_others(part, PLAIN | also, opset)
    return _write(part, opset, graph_name)


def check_opset(opset: int) -> None:
    """Raises UserError for one that nothing here writes."""
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UserError(f"opset {opset} is outside {OLDEST_OPSET}..{NEWEST_OPSET}")


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the standard operators. Raises UserError when there is none, or other domains are used."""
    found = {entry.domain: entry.version for entry in model.opset_import}
    used = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if used:
        raise UserError(f"the graph has operators of the domain {', '.join(sorted(used))}")
    version = found.get("", found.get("ai.onnx"))
    if version is None:
        raise UserError("the file does not say the opset of its operators")
    return version


# --- reading ------------------------------------------------------------------------------------------------


def read_graph(model: onnx.ModelProto) -> Graph:
    """The graph in canonical form: constants folded, parameters as attributes, idle nodes gone."""
    if model.functions:
        raise UserError(f"the graph calls functions of its own ({model.functions[0].name})")
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise UserError(f"the graph has opset {opset}; {OLDEST_OPSET} is the oldest that is read")
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    shapes, types = _inferred(model)
    graph = Graph([], constants, inputs, list(model.graph.output), shapes, types)
    renamed: Dict[str, str] = {}
    for proto in model.graph.node:
        _read_node(graph, proto, opset, renamed)
    _rename_outputs(graph, renamed)
    return graph


def _inferred(model: onnx.ModelProto) -> Tuple[Dict[str, Tuple[Optional[int], ...]], Dict[str, int]]:
    shapes, types = {}, {}
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
    for each in model.graph.initializer:
        shapes[each.name], types[each.name] = tuple(each.dims), each.data_type
    return shapes, types


def _read_node(graph: Graph, proto: onnx.NodeProto, opset: int, renamed: Dict[str, str]) -> None:
    inputs = [renamed.get(name, name) for name in proto.input]
    attributes = {each.name: helper.get_attribute_value(each) for each in proto.attribute}
    constant = all(name in graph.constants for name in inputs if name)
    if proto.op_type == "Constant" or (constant and inputs):
        for name, value in zip(proto.output, _evaluate(proto, inputs, graph.constants, opset)):
            graph.constants[name] = value
            graph.shapes[name] = value.shape
            graph.types[name] = helper.np_dtype_to_tensor_dtype(value.dtype)
    elif _is_idle(graph, proto.op_type, inputs, attributes):
        renamed[proto.output[0]] = inputs[0]
    else:
        node = Node(proto.op_type, inputs, list(proto.output), attributes)
        _canonical(graph, node, opset)
        graph.nodes.append(node)


def _evaluate(
    proto: onnx.NodeProto, inputs: Sequence[str], constants: Dict[str, np.ndarray], opset: int
) -> List[np.ndarray]:
    known = OrderedDict((old, constants[new]) for old, new in zip(proto.input, inputs) if old)
    arguments = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in known.items()
    ]
    results = [helper.make_value_info(name, onnx.TypeProto()) for name in proto.output]
    small = helper.make_graph([proto], "constant", arguments, results)
    model = helper.make_model(
        small, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSIONS[min(opset, 23)]
    )
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, dict(known))]


def _is_idle(graph: Graph, op: str, inputs: Sequence[str], attributes: Dict[str, Any]) -> bool:
    if op in ("Identity", "Dropout"):
        return True
    if op == "Cast":
        return graph.types.get(inputs[0]) == attributes["to"]
    return False


def _rename_outputs(graph: Graph, renamed: Dict[str, str]) -> None:
    """A graph's output that an idle node made is made by what stood before it."""
    for value in graph.outputs:
        source = renamed.get(value.name)
        if source is None:
            continue
        if any(source == other.name for other in [*graph.inputs, *graph.outputs]):
            raise UserError(f"the output {value.name} is the same value as {source}")
        for node in graph.nodes:
            node.inputs = [value.name if name == source else name for name in node.inputs]
            node.outputs = [value.name if name == source else name for name in node.outputs]


# Canonical forms: where opsets disagree on what is an input and what an attribute, it becomes an attribute.


def _canonical(graph: Graph, node: Node, opset: int) -> None:
    rank = len(graph.shapes[node.inputs[0]]) if node.inputs[0] in graph.shapes else None
    take = _CANONICAL.get(node.op)
    if take is not None:
        take(graph, node, opset)
    for name in ("axis", "axes"):  # negative ones came with opset 11
        value = node.attributes.get(name)
        if value is not None and rank is not None:
            size = rank
            fixed = [int(v) + size if v < 0 else int(v) for v in np.atleast_1d(value)]
            node.attributes[name] = fixed if name == "axes" else fixed[0]


def _constant_input(graph: Graph, node: Node, position: int) -> Optional[np.ndarray]:
    """The value of an input that must be known, or None when it is not given."""
    if position >= len(node.inputs) or not node.inputs[position]:
        return None
    name = node.inputs[position]
    if name not in graph.constants:
        raise UserError(f"input {position} of {node.op} ({node.outputs[0]}) is not a constant")
    return graph.constants[name]


def _clip(graph: Graph, node: Node, opset: int) -> None:
    if opset >= 11:
        bounds = [_constant_input(graph, node, 1), _constant_input(graph, node, 2)]
        values = [None if b is None else float(b) for b in bounds]
    else:
        values = [node.attributes.get("min"), node.attributes.get("max")]
    node.inputs = node.inputs[:1]
    node.attributes = {name: v for name, v in zip(("min", "max"), values) if v is not None}


def _slice(graph: Graph, node: Node, opset: int) -> None:
    if opset >= 10:
        given = [_constant_input(graph, node, i) for i in range(1, 5)]
        values = [None if g is None else [int(v) for v in g] for g in given]
    else:
        values = [node.attributes.get(name) for name in ("starts", "ends", "axes")] + [None]
    starts, ends, axes, steps = values
    assert starts is not None and ends is not None
    if steps and set(steps) != {1}:
        raise UserError(f"Slice ({node.outputs[0]}) has steps {steps}; only 1 can be written for every opset")
    node.inputs = node.inputs[:1]
    # Runtimes with 32-bit indices read "to the end" as they like; 2**31 - 1 is the same to all.
    ends = [min(int(end), 2**31 - 1) for end in ends]
    node.attributes = {
        "starts": list(starts),
        "ends": ends,
        "axes": list(axes if axes is not None else range(len(starts))),
    }


def _reduce(graph: Graph, node: Node, opset: int) -> None:
    by_input = {"ReduceSum": 13}.get(node.op, 18)
    axes = node.attributes.get("axes")
    if opset >= by_input:
        given = _constant_input(graph, node, 1)
        axes = None if given is None else [int(v) for v in given]
    if axes is None:
        raise UserError(f"{node.op} ({node.outputs[0]}) does not name its axes")
    shape = graph.shapes.get(node.inputs[0], ())
    axes = sorted(axis + len(shape) if axis < 0 else axis for axis in axes)
    keepdims = node.attributes.get("keepdims", 1)
    node.inputs = node.inputs[:1]
    if node.op == "ReduceMean" and axes == [2, 3] and len(shape) == 4 and keepdims:
        node.op, node.attributes = "GlobalAveragePool", {}
    else:
        node.attributes = {"axes": axes, "keepdims": keepdims}


def _reshape(graph: Graph, node: Node, opset: int) -> None:
    shape = _constant_input(graph, node, 1)
    assert shape is not None
    if 0 in shape and node.attributes.get("allowzero"):
        raise UserError(f"Reshape ({node.outputs[0]}) to an empty tensor")
    node.inputs = node.inputs[:1]
    node.attributes = {"shape": [int(v) for v in shape]}


def _softmax(graph: Graph, node: Node, opset: int) -> None:
    rank = len(graph.shapes[node.inputs[0]])
    axis = node.attributes.get("axis", -1 if opset >= 13 else 1) % rank
    if axis != rank - 1:
        # Below opset 13 it ran over all axes from this one on.
        raise UserError(
            f"Softmax ({node.outputs[0]}) over axis {axis} of {rank}; only the last means the same"
        )
    node.attributes = {"axis": axis}


def _max_pool(graph: Graph, node: Node, opset: int) -> None:
    if len(node.outputs) > 1:
        raise UserError(f"MaxPool ({node.outputs[0]}) with indices")
    kernel = list(node.attributes["kernel_shape"])
    strides = list(node.attributes.get("strides", [1] * len(kernel)))
    pads = list(node.attributes.get("pads", [0] * (2 * len(kernel))))
    if (
        set(node.attributes.get("dilations", [1])) != {1}
        or node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
    ):
        raise UserError(f"MaxPool ({node.outputs[0]}) with dilations or automatic padding")
    if node.attributes.get("ceil_mode"):
        # Rounding up is the same as padding the end so far that the last window fits; opset 9 knows only that.
        sides = graph.shapes[node.inputs[0]][2:]
        for i, side in enumerate(sides):
            if side is None:
                raise UserError(f"MaxPool ({node.outputs[0]}) rounds up a side that is not known")
            inner = side + pads[i] + pads[len(kernel) + i] - kernel[i]
            pads[len(kernel) + i] += -inner % strides[i]
    node.attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}


def _conv(graph: Graph, node: Node, opset: int) -> None:
    weight = _constant_input(graph, node, 1)
    assert weight is not None
    _constant_input(graph, node, 2)
    if node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise UserError(f"Conv ({node.outputs[0]}) with automatic padding")
    axes = weight.ndim - 2
    node.attributes = {
        "kernel_shape": list(weight.shape[2:]),
        "strides": list(node.attributes.get("strides", [1] * axes)),
        "pads": list(node.attributes.get("pads", [0] * (2 * axes))),
        "dilations": list(node.attributes.get("dilations", [1] * axes)),
        "group": int(node.attributes.get("group", 1)),
    }


def _hard_sigmoid(graph: Graph, node: Node, opset: int) -> None:
    if abs(node.attributes.get("beta", 0.5) - 0.5) < 1e-7:
        node.attributes.pop("beta", None)


def _top_k(graph: Graph, node: Node, opset: int) -> None:
    if opset >= 10:
        given = _constant_input(graph, node, 1)
        assert given is not None
        count = int(given.reshape(-1)[0])
    else:
        count = int(node.attributes["k"])
    if not node.attributes.get("largest", 1) or not node.attributes.get("sorted", 1):
        raise UserError(f"TopK ({node.outputs[0]}) of the smallest, or unsorted")
    node.inputs = node.inputs[:1]
    node.attributes = {"axis": node.attributes.get("axis", -1), "k": count}


def _batch_norm(graph: Graph, node: Node, opset: int) -> None:
    if node.attributes.get("training_mode") or len(node.outputs) > 1:
        raise UserError(f"BatchNormalization ({node.outputs[0]}) in training mode; call eval() first")
    for position in range(1, 5):
        _constant_input(graph, node, position)
    node.attributes = {"epsilon": float(node.attributes.get("epsilon", 1e-5))}


def _squeeze(graph: Graph, node: Node, opset: int) -> None:
    """Squeeze and Unsqueeze are Reshape, when at most one side of the result is unknown."""
    shape = graph.shapes.get(node.outputs[0])
    if shape is None or sum(side is None for side in shape) > 1:
        raise UserError(f"{node.op} ({node.outputs[0]}) of a shape that is not known")
    node.op, node.inputs = "Reshape", node.inputs[:1]
    node.attributes = {"shape": [-1 if side is None else side for side in shape]}


def _cast(graph: Graph, node: Node, opset: int) -> None:
    node.attributes = {"to": node.attributes["to"]}  # `saturate` and later ones are about eight-bit floats


def _power(graph: Graph, node: Node, opset: int) -> None:
    exponent = graph.constants.get(node.inputs[1])
    if exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0:
        node.op, node.inputs = "Mul", [node.inputs[0], node.inputs[0]]


_CANONICAL: Dict[str, Callable[[Graph, Node, int], None]] = {
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "HardSigmoid": _hard_sigmoid,
    "MaxPool": _max_pool,
    "Pow": _power,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "TopK": _top_k,
    "Unsqueeze": _squeeze,
}


# --- simplifying --------------------------------------------------------------------------------------------


def simplify(graph: Graph) -> None:
    """The rewrites that hold for every opset."""
    _spread_batch_norms(graph)
    for node in graph.nodes:
        if node.op == "Conv":
            _shrink_kernel(graph, node)


def _spread_batch_norms(graph: Graph) -> None:
    """Into the convolution before, when nothing else sees its result; else into one Mul and one Add."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    uses = [name for node in graph.nodes for name in node.inputs] + [value.name for value in graph.outputs]
    nodes: List[Node] = []
    renamed: Dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        if node.op != "BatchNormalization":
            nodes.append(node)
            continue
        x, output = node.inputs[0], node.outputs[0]
        scale, offset, mean, variance = (graph.constants[n].astype(np.float64) for n in node.inputs[1:5])
        factor = scale / np.sqrt(variance + node.attributes["epsilon"])
        shift = offset - mean * factor
        maker = makers.get(x)
        if maker is not None and maker.op == "Conv" and uses.count(x) == 1:
            _fold(graph, maker, factor, shift, output)
            maker.outputs = [output]
            makers[output] = maker
            graph.shapes[output] = graph.shapes.get(x, ())
        else:
            names = [output + ".factor", output + ".shift"]
            for name, value in zip(names, (factor, shift)):
                graph.constants[name] = value.astype(np.float32).reshape(1, -1, 1, 1)
            nodes.append(Node("Mul", [x, names[0]], [output + ".scaled"]))
            nodes.append(Node("Add", [output + ".scaled", names[1]], [output]))
    graph.nodes = nodes


def _fold(graph: Graph, conv: Node, factor: np.ndarray, shift: np.ndarray, name: str) -> None:
    weight = graph.constants[conv.inputs[1]].astype(np.float64)
    bias = graph.constants[conv.inputs[2]].astype(np.float64) if len(conv.inputs) > 2 else 0.0
    graph.constants[name + ".weight"] = (weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))).astype(
        np.float32
    )
    graph.constants[name + ".bias"] = (bias * factor + shift).astype(np.float32)
    conv.inputs = [conv.inputs[0], name + ".weight", name + ".bias"]


def _shrink_kernel(graph: Graph, node: Node) -> None:
    """On one pixel, with one pixel out, one tap of the kernel meets data and all others meet padding."""
    shape = graph.shapes.get(node.inputs[0], ())
    out = graph.shapes.get(node.outputs[0], ())
    kernel, pads = node.attributes["kernel_shape"], node.attributes["pads"]
    if shape[2:] != (1, 1) or out[2:] != (1, 1) or kernel == [1, 1]:
        return
    taps = []
    for pad, dilation, side in zip(pads, node.attributes["dilations"], kernel):
        if pad % dilation or pad // dilation >= side:
            return
        taps.append(pad // dilation)
    y, x = taps
    name = node.inputs[1] + ".tap"
    graph.constants[name] = np.ascontiguousarray(graph.constants[node.inputs[1]][:, :, y : y + 1, x : x + 1])
    node.inputs[1] = name
    node.attributes.update(kernel_shape=[1, 1], pads=[0, 0, 0, 0], strides=[1, 1], dilations=[1, 1])


def _sort(graph: Graph) -> None:
    """Only what the outputs need, each node after those it needs, in an order that does not depend on the file."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    done: Dict[int, None] = {}
    ordered: List[Node] = []
    for value in graph.outputs:
        stack: List[Tuple[Node, int]] = []
        if value.name in makers and id(makers[value.name]) not in done:
            stack.append((makers[value.name], 0))
        while stack:
            node, position = stack.pop()
            if id(node) in done:
                continue
            if position < len(node.inputs):
                stack.append((node, position + 1))
                before = makers.get(node.inputs[position])
                if before is not None and id(before) not in done:
                    stack.append((before, 0))
            else:
                done[id(node)] = None
                ordered.append(node)
    graph.nodes = ordered


def _refuse_others(graph: Graph, allowed: FrozenSet[str], opset: int) -> None:
    refused = sorted({node.op for node in graph.nodes} - allowed)
    if refused:
        where = next(node for node in graph.nodes if node.op == refused[0])
        raise UserError(
            f"the graph has operators outside the plain set: {', '.join(refused)} (the first makes "
            f"{where.outputs[0]}). Not every runtime has them; change the net, or add them to "
            "vision.export.retarget after a check."
        )
    if opset < 10 and any(node.op == "NonMaxSuppression" for node in graph.nodes):
        raise UserError("NonMaxSuppression came with opset 10; give --opset 10 or newer")
    for name, value in graph.constants.items():
        used = any(
            name in node.inputs for node in graph.nodes if node.op in ("Conv", "Add", "Mul", "Sub", "Div")
        )
        if used and value.dtype not in (np.float32, np.int64):
            raise UserError(f"the constant {name} is {value.dtype}; the graph must be float32")


# --- writing ------------------------------------------------------------------------------------------------


class _Writer:
    """Nodes and constants under their final names.

    Nodes are Conv_0, Relu_1, ...; a value has the name of its node; a constant that of the node that first uses
    it and of what it is there ("Conv_0.weight").
    """

    def __init__(self, graph: Graph, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self.nodes: List[onnx.NodeProto] = []
        self.constants: OrderedDict[str, np.ndarray] = OrderedDict()
        fixed = [value.name for value in [*graph.inputs, *graph.outputs]]
        self.names: Dict[str, str] = {name: name for name in fixed}
        self.shared: Dict[Tuple[str, Tuple[int, ...], bytes], str] = {}

    def constant(self, value: np.ndarray, node: str, role: str) -> str:
        value = np.asarray(value, order="C")  # not ascontiguousarray, which makes 1-D of 0-D
        key = (value.dtype.str, value.shape, value.tobytes() if value.size <= _SMALL else b"")
        if value.size <= _SMALL and key in self.shared:
            return self.shared[key]
        name = f"{node}.{role}"
        self.constants[name] = value
        self.shared[key] = name
        return name

    def add(self, op: str, inputs: Sequence[Any], outputs: Sequence[str], **attributes: Any) -> None:
        """One node. `inputs`: names in the graph, or (role, array) for constants made here."""
        name = f"{op}_{len(self.nodes)}"
        roles = _ROLES.get(op, ())
        wired = []
        for i, each in enumerate(inputs):
            if isinstance(each, tuple):
                wired.append(self.constant(each[1], name, each[0]))
            elif each in self.graph.constants:
                role = roles[i] if i < len(roles) else f"input_{i}"
                if each not in self.names:
                    self.names[each] = self.constant(self.graph.constants[each], name, role)
                wired.append(self.names[each])
            else:
                wired.append(self.names[each] if each else "")
        made = []
        for i, each in enumerate(outputs):
            made.append(self.names.setdefault(each, name if i == 0 else f"{name}.{i}"))
        known = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, wired, made, name=name, **known))


_ROLES = {"Conv": ("x", "weight", "bias")}


def _write(graph: Graph, opset: int, graph_name: str) -> onnx.ModelProto:
    """The canonical graph in the language of one opset."""
    writer = _Writer(graph, opset)
    for node in graph.nodes:
        lower = _LOWER.get(node.op, _lower_as_is)
        lower(writer, node)
    tensors = [numpy_helper.from_array(value, name) for name, value in writer.constants.items()]
    proto = helper.make_graph(
        writer.nodes,
        graph_name,
        [_bare(value) for value in graph.inputs],
        [_bare(value) for value in graph.outputs],
        tensors,
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = IR_VERSIONS[opset]
    model.producer_name = PRODUCER
    model.ClearField("producer_version")
    return model


def _bare(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Name, type and shape; no documentation, no metadata."""
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
    return helper.make_tensor_value_info(value.name, tensor.elem_type, shape)


def _lower_as_is(writer: _Writer, node: Node) -> None:
    writer.add(node.op, node.inputs, node.outputs, **node.attributes)


def _lower_clip(writer: _Writer, node: Node) -> None:
    if writer.opset < 11:
        writer.add("Clip", node.inputs, node.outputs, **node.attributes)
        return
    bounds: List[Any] = []
    for name in ("min", "max"):
        value = node.attributes.get(name)
        bounds.append("" if value is None else (name, np.array(value, np.float32)))
    while bounds and bounds[-1] == "":
        bounds.pop()
    writer.add("Clip", [*node.inputs, *bounds], node.outputs)


def _lower_slice(writer: _Writer, node: Node) -> None:
    if writer.opset < 10:
        writer.add("Slice", node.inputs, node.outputs, **node.attributes)
        return
    parts = [(name, np.array(node.attributes[name], np.int64)) for name in ("starts", "ends", "axes")]
    writer.add("Slice", [*node.inputs, *parts], node.outputs)


def _lower_reduce_sum(writer: _Writer, node: Node) -> None:
    axes, keepdims = node.attributes["axes"], node.attributes["keepdims"]
    if writer.opset < 13:
        writer.add("ReduceSum", node.inputs, node.outputs, axes=axes, keepdims=keepdims)
    else:
        given = ("axes", np.array(axes, np.int64))
        writer.add("ReduceSum", [*node.inputs, given], node.outputs, keepdims=keepdims)


def _lower_reshape(writer: _Writer, node: Node) -> None:
    shape = ("shape", np.array(node.attributes["shape"], np.int64))
    writer.add("Reshape", [*node.inputs, shape], node.outputs)


def _lower_hard_swish(writer: _Writer, node: Node) -> None:
    if writer.opset >= 14:
        writer.add("HardSwish", node.inputs, node.outputs)
        return
    x, output = node.inputs[0], node.outputs[0]
    writer.add("HardSigmoid", [x], [output + ".gate"], alpha=1.0 / 6.0)
    writer.add("Mul", [x, output + ".gate"], [output])


def _lower_top_k(writer: _Writer, node: Node) -> None:
    axis, count = node.attributes["axis"], node.attributes["k"]
    if writer.opset < 10:
        writer.add("TopK", node.inputs, node.outputs, axis=axis, k=count)
    else:
        writer.add("TopK", [*node.inputs, ("k", np.array([count], np.int64))], node.outputs, axis=axis)


_LOWER: Dict[str, Callable[[_Writer, Node], None]] = {
    "Clip": _lower_clip,
    "HardSwish": _lower_hard_swish,
    "ReduceSum": _lower_reduce_sum,
    "Reshape": _lower_reshape,
    "Slice": _lower_slice,
    "TopK": _lower_top_k,
}
