"""Half precision in the graph: weights and body in float16, where it is safe; inputs and outputs stay float32.

TensorRT 11 and TensorRT-RTX know no precision flags: a graph runs in the types it is written in. TensorRT 8 must not
get such a graph (it misreads the bounds of a Clip in float16); there, and only there, the flag on the float32 graph
does the same. The onnx package is needed, torch is not.
"""

from typing import Dict, Iterable, List, Set, Tuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vision.errors import UserError
from vision.export.tail import Step, entrance, tail

LARGEST = 65504.0
"""Of float16."""

FLOAT32_OPS = frozenset(("Exp", "NonMaxSuppression", "Pow", "ReduceSum", "Softmax", "Sqrt", "TopK"))
"""Whose intermediate values overflow float16, or whose results must not be rounded, wherever they stand."""

ROUNDING = frozenset(("QuantizeLinear", "DequantizeLinear"))
"""They belong to the convolution behind them: a Cast between would keep TensorRT from computing it in eight bits."""


def steps_of(model: onnx.ModelProto) -> List[Step]:
    """The nodes of a graph for the rules of `vision.export.tail`. Every node needs a name of its own."""
    steps = [Step(n.name, n.op_type, list(n.input), list(n.output)) for n in model.graph.node]
    if len({step.name for step in steps}) != len(steps) or any(not step.name for step in steps):
        raise UserError("the graph has nodes without names of their own; export it with onnx_export.py")
    return steps


def float32_steps(model: onnx.ModelProto, keep: Iterable[str] = ()) -> Set[str]:
    """Names of the nodes that stay in float32: entrance, tail, unsafe operators, unsafe weights, and `keep`."""
    steps = steps_of(model)
    names = {step.name for step in steps}
    unknown = set(keep) - names
    if unknown:
        raise UserError(f"no node is called {', '.join(sorted(unknown)[:5])} in this graph")
    pairs = {step.name for step in steps if step.op in ROUNDING}
    stays = set(keep) | tail(steps) | (entrance(steps) - pairs)
    weights = {each.name: each for each in model.graph.initializer}
    for step in steps:
        square = step.op == "Mul" and len(set(step.inputs)) == 1  # of an L2 norm
        if (
            step.op in FLOAT32_OPS
            or square
            or any(_too_large(weights[name]) for name in step.inputs if name in weights)
        ):
            stays.add(step.name)
    return stays


def _too_large(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT:
        return False
    return bool((np.abs(numpy_helper.to_array(tensor)) > LARGEST).any())


def to_fp16(model: onnx.ModelProto, keep: Iterable[str] = ()) -> onnx.ModelProto:
    """The same net with its body in float16.

    Args:
        model: a float32 graph, nodes in an order in which they can run; QuantizeLinear and DequantizeLinear
            in it need opset 19.
        keep: names of nodes that stay in float32 besides (see `float32_steps`).

    Returns: a new model. Inputs, outputs, softmax, decoding and priors are float32 as before.

    Raises UserError for a name in `keep` that is no node, and for a graph that is not float32.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            raise UserError(f"{value.name} is float16 already; give the graph that onnx_export.py wrote")
    del graph.value_info[:]
    stays = float32_steps(model, keep)
    _Converter(result, stays).run()
    return result


class _Converter:
    """Walks over the nodes once; every value is known in the type that made it, and cast where another is wanted."""

    def __init__(self, model: onnx.ModelProto, stays: Set[str]) -> None:
        self.graph = model.graph
        self.stays = stays
        self.types = _types(model)
        self.constants: Dict[str, onnx.TensorProto] = {e.name: e for e in model.graph.initializer}
        self.nodes: List[onnx.NodeProto] = []
        self.made: Dict[Tuple[str, int], str] = {}
        self.extra: Dict[str, onnx.TensorProto] = {}
        self.outputs = {value.name for value in model.graph.output}

    def run(self) -> None:
        for node in list(self.graph.node):
            half = node.name not in self.stays
            wanted = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            for i, name in enumerate(node.input):
                if name and self.types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16):
                    node.input[i] = self._as(name, wanted)
            after: List[onnx.NodeProto] = []
            for i, name in enumerate(node.output):
                if self.types.get(name) != TensorProto.FLOAT or not half:
                    continue
                if name in self.outputs:
                    node.output[i] = name + ".half"
                    after.append(self._cast(name + ".half", name, TensorProto.FLOAT))
                else:
                    self.types[name] = TensorProto.FLOAT16
            self.nodes += [node, *after]
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        tensors = [t for t in [*self.graph.initializer, *self.extra.values()] if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(tensors)

    def _as(self, name: str, wanted: int) -> str:
        if self.types[name] == wanted:
            return name
        key = name, wanted
        if key not in self.made:
            self.made[key] = name + (".half" if wanted == TensorProto.FLOAT16 else ".full")
            if name in self.constants:
                value = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                self.extra[self.made[key]] = numpy_helper.from_array(value, self.made[key])
            else:
                self.nodes.append(self._cast(name, self.made[key], wanted))
        return self.made[key]

    @staticmethod
    def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [target], name=f"Cast_{target}", to=kind)


def _types(model: onnx.ModelProto) -> Dict[str, int]:
    """Element types of all values."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*inferred.input, *inferred.value_info]}
    types.update({v.name: v.type.tensor_type.elem_type for v in inferred.output})
    types.update({each.name: each.data_type for each in model.graph.initializer})
    return types


def census(model: onnx.ModelProto) -> Dict[str, Tuple[str, ...]]:
    """Node name -> element types of its floating-point inputs, for people and tests ("FLOAT16")."""
    types = _types(model)
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT8)
    return {
        node.name: tuple(
            sorted({TensorProto.DataType.Name(types[n]) for n in node.input if types.get(n) in kinds})
        )
        for node in model.graph.node
    }
