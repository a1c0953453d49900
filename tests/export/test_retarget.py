"""The retargeting pass, operator by operator: the same numbers at every opset, and nothing but plain operators."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vision.errors import UserError
from vision.export.retarget import IR_VERSIONS, NEWEST_OPSET, OLDEST_OPSET, SELECTING, opset_of, retarget

onnxruntime = pytest.importorskip("onnxruntime")

OPSETS = (9, 10, 11, 12, 13, 14, 17, 18, 20, 23)
X = np.random.default_rng(0).normal(0, 3, (2, 3, 7, 8)).astype(np.float32)


def model(nodes, opset, shape=X.shape, constants=None, outputs=("y",), ir_version=None):
    """A model of `nodes`: x float32 -> outputs; `constants` by name."""
    given = {} if constants is None else constants
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version or IR_VERSIONS[opset]
    )
    inferred = onnx.shape_inference.infer_shapes(made)
    assert all(value.type.tensor_type.elem_type for value in inferred.graph.output)
    return inferred


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def run(made, x=X):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def operators(made):
    return [each.op_type for each in made.graph.node]


i64 = lambda *values: np.array(values, np.int64)  # noqa: E731
f32 = np.float32
K3 = np.random.default_rng(1).normal(0, 1, (4, 3, 3, 3)).astype(f32)
BN = {
    "scale": f32([1.1, 0.9, 1.2]),
    "offset": f32([0.1, -0.2, 0.3]),
    "mean": f32([0.5, 0, -0.5]),
    "variance": f32([1, 2, 0.5]),
}
BN4 = {key: np.concatenate([value, value[:1]]) for key, value in BN.items()}

# name: (nodes, opset they are in, constants, operators expected at opset 11)
CASES = {
    "relu": ([node("Relu", "x")], 9, {}, ["Relu"]),
    "clip by attributes": ([node("Clip", "x", min=0.0, max=6.0)], 9, {}, ["Clip"]),
    "clip by inputs": ([node("Clip", ["x", "a", "b"])], 13, {"a": f32(0), "b": f32(6)}, ["Clip"]),
    "clip without a maximum": ([node("Clip", ["x", "a"])], 17, {"a": f32(0.5)}, ["Clip"]),
    "clip without a minimum": ([node("Clip", ["x", "", "b"])], 17, {"b": f32(0.5)}, ["Clip"]),
    "slice by attributes": ([node("Slice", "x", starts=[1], ends=[2**62], axes=[3])], 9, {}, ["Slice"]),
    "slice by inputs": (
        [node("Slice", ["x", "s", "e", "a", "t"])],
        13,
        {"s": i64(1), "e": i64(2**63 - 1), "a": i64(-1), "t": i64(1)},
        ["Slice"],
    ),
    "slice of all axes": (
        [node("Slice", ["x", "s", "e"])],
        13,
        {"s": i64(0, 0, 1, 1), "e": i64(2, 3, 5, -1)},
        ["Slice"],
    ),
    "mean by attributes": ([node("ReduceMean", "x", axes=[-1, 2])], 13, {}, ["GlobalAveragePool"]),
    "mean by inputs": ([node("ReduceMean", ["x", "a"])], 18, {"a": i64(2, 3)}, ["GlobalAveragePool"]),
    "sum by attributes": ([node("ReduceSum", "x", axes=[1])], 9, {}, ["ReduceSum"]),
    "sum by inputs": ([node("ReduceSum", ["x", "a"], keepdims=0)], 13, {"a": i64(-3)}, ["ReduceSum"]),
    "hard swish": ([node("HardSwish", "x")], 14, {}, ["HardSigmoid", "Mul"]),
    "hard sigmoid": ([node("HardSigmoid", "x", alpha=1 / 6, beta=0.5)], 9, {}, ["HardSigmoid"]),
    "hard sigmoid of another kind": (
        [node("HardSigmoid", "x", alpha=0.3, beta=0.4)],
        9,
        {},
        ["HardSigmoid"],
    ),
    "pool that rounds up": (
        [node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)],
        12,
        {},
        ["MaxPool"],
    ),
    "pool with padding that rounds up": (
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[3, 2], pads=[1, 1, 0, 1], ceil_mode=1)],
        12,
        {},
        ["MaxPool"],
    ),
    "softmax of before 13": ([node("Softmax", "x", axis=3)], 11, {}, ["Softmax"]),
    "softmax of today": ([node("Softmax", "x")], 13, {}, ["Softmax"]),
    "square": ([node("Pow", ["x", "two"])], 13, {"two": f32(2)}, ["Mul"]),
    "unsqueeze": ([node("Unsqueeze", ["x", "a"])], 13, {"a": i64(0, -1)}, ["Reshape"]),
    "squeeze": (
        [
            node("ReduceSum", ["x", "a"], ["s"]),
            node("Squeeze", ["s", "a"]),
        ],
        13,
        {"a": i64(1)},
        ["ReduceSum", "Reshape"],
    ),
    "reshape": ([node("Reshape", ["x", "s"])], 14, {"s": i64(0, -1)}, ["Reshape"]),
    "constants": (
        [
            node("Constant", [], ["c"], value=numpy_helper.from_array(f32([2.0]))),
            node("Sqrt", ["c"], ["d"]),
            node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
            node("Mul", ["x", "e"]),
        ],
        17,
        {},
        ["Mul"],
    ),
    "idle nodes": (
        [
            node("Identity", ["x"], ["a"]),
            node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
            node("Relu", ["b"], ["c"]),
            node("Identity", ["c"]),
        ],
        17,
        {},
        ["Relu"],
    ),
    "unused nodes": (
        [node("Exp", ["x"], ["z"]), node("Relu", ["x"]), node("Sqrt", ["z"], ["w"])],
        17,
        {},
        ["Relu"],
    ),
    "norm behind a convolution": (
        [
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c", *BN4], epsilon=0.01),
        ],
        17,
        {"w": K3, **BN4},
        ["Conv"],
    ),
    "norm of its own": (
        [node("Relu", ["x"], ["r"]), node("BatchNormalization", ["r", *BN])],
        9,
        BN,
        ["Relu", "Mul", "Add"],
    ),
    "norm behind a convolution that others use too": (
        [
            node("Conv", ["x", "w", "b"], ["c"]),
            node("BatchNormalization", ["c", *BN4], ["n"]),
            node("Add", ["c", "n"]),
        ],
        17,
        {"w": K3, "b": f32([1, 2, 3, 4]), **BN4},
        ["Conv", "Mul", "Add", "Add"],
    ),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_numbers_at_every_opset(case, opset):
    nodes, source, constants, expected = CASES[case]
    made = model(nodes, source, constants=constants)
    written = retarget(made, opset)
    onnx.checker.check_model(written, full_check=True)
    assert opset_of(written) == opset and written.ir_version == IR_VERSIONS[opset]
    np.testing.assert_allclose(run(written)[0], run(made)[0], rtol=1e-5, atol=1e-5)
    if opset == 11:
        assert operators(written) == expected


@pytest.mark.parametrize("opset", OPSETS)
def test_top_k(opset):
    nodes = [
        node("TopK", ["x", "k"], ["v", "i"], axis=-1),
        node("Gather", ["table", "i"], axis=0),
    ]
    made = model(nodes, 13, constants={"k": i64(3), "table": np.arange(8, dtype=f32)})
    written = retarget(made, opset, SELECTING)
    np.testing.assert_array_equal(run(written)[0], np.argsort(-X, axis=-1, kind="stable")[..., :3])


def test_retargeting_twice_changes_nothing():
    nodes, source, constants, _ = CASES["norm behind a convolution that others use too"]
    once = retarget(model(nodes, source, constants=constants), 11)
    for opset in OPSETS:
        there = retarget(once, opset)
        assert retarget(there, 11).SerializeToString() == once.SerializeToString()


def test_a_graph_without_operators_is_refused():
    with pytest.raises(UserError, match="the output y is the same value as x"):
        retarget(model([node("Identity", ["x"])], 17), 11)


# --- what is refused ----------------------------------------------------------------------------------------

REFUSED = {
    "foreign operator": ([node("Sin", ["x"])], {}, "operators outside the plain set: Sin .the first makes y"),
    "shapes at run time": (
        [node("Shape", ["x"], ["s"]), node("Cast", ["s"], to=TensorProto.FLOAT)],
        {},
        "Cast, Shape",
    ),
    "pool that knows where": (
        [node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])],
        {},
        "MaxPool .y. with indices",
    ),
    "steps": (
        [node("Slice", ["x", "s", "e", "a", "t"])],
        {"s": i64(0), "e": i64(7), "a": i64(2), "t": i64(2)},
        "has steps",
    ),
    "softmax over channels": ([node("Softmax", ["x"], axis=1)], {}, "Softmax .y. over axis 1 of 4"),
    "bounds that are computed": (
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Clip", ["x", "", "m"])],
        {},
        "input 2 of Clip .y. is not a constant",
    ),
    "doubles": (
        [
            node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
            node("Mul", ["d", "c"], ["e"]),
            node("Cast", ["e"], to=TensorProto.FLOAT),
        ],
        {"c": np.float64(2)},
        "Cast",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case):
    nodes, constants, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        retarget(model(nodes, 17, constants=constants), 11)


@pytest.mark.parametrize("opset", [OLDEST_OPSET - 1, NEWEST_OPSET + 1, 0, -3])
def test_opset_out_of_range(opset):
    with pytest.raises(UserError, match=f"opset {opset} is outside 9..23"):
        retarget(model([node("Relu", ["x"])], 17), opset)


def test_other_domains_are_refused():
    made = model([node("Relu", ["x"])], 17)
    made.graph.node[0].domain = "com.microsoft"
    with pytest.raises(UserError, match="operators of the domain com.microsoft"):
        retarget(made, 11)


# --- the traps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 23])
def test_clip_bounds_are_scalars(opset):
    nodes, source, constants, _ = CASES["clip by attributes"]
    written = retarget(model(nodes, source, constants=constants), opset)
    assert [list(each.dims) for each in written.graph.initializer] == [[], []]


def test_the_default_of_hard_sigmoid_is_not_written():
    nodes, source, constants, _ = CASES["hard sigmoid"]
    (written,) = retarget(model(nodes, source, constants=constants), 20).graph.node
    assert [each.name for each in written.attribute] == ["alpha"]
    nodes, source, constants, _ = CASES["hard sigmoid of another kind"]
    (written,) = retarget(model(nodes, source, constants=constants), 20).graph.node
    assert sorted(each.name for each in written.attribute) == ["alpha", "beta"]


@pytest.mark.parametrize(
    "kernel, pads, dilation, shrunk",
    [
        (3, 1, 1, True),
        (5, 2, 1, True),
        (3, 2, 2, True),
        (1, 0, 1, False),
    ],
)
@pytest.mark.parametrize("group", [1, 4])
def test_a_kernel_on_one_pixel_becomes_its_centre_tap(kernel, pads, dilation, shrunk, group):
    rng = np.random.default_rng(2)
    weight = rng.normal(0, 1, (4, 4 // group, kernel, kernel)).astype(f32)
    convolution = node("Conv", ["x", "w"], pads=[pads] * 4, dilations=[dilation] * 2, group=group)
    made = model([convolution], 13, (2, 4, 1, 1), {"w": weight})
    written = retarget(made, 11)
    x = rng.normal(0, 1, (2, 4, 1, 1)).astype(f32)
    np.testing.assert_allclose(run(written, x)[0], run(made, x)[0], rtol=1e-6, atol=1e-6)
    shapes = [list(each.dims) for each in written.graph.initializer]
    assert shapes == [[4, 4 // group, 1, 1]]
    assert (shapes != [list(weight.shape)]) == shrunk


def test_a_kernel_that_grows_one_pixel_stays():
    made = model([node("Conv", ["x", "w"], pads=[2, 2, 2, 2])], 13, (1, 3, 1, 1), {"w": K3})
    written = retarget(made, 11)
    assert list(written.graph.initializer[0].dims) == [4, 3, 3, 3]
    x = np.ones((1, 3, 1, 1), f32)
    np.testing.assert_allclose(run(written, x)[0], run(made, x)[0], rtol=1e-6)


def test_weights_among_the_inputs_of_old_files_leave_them():
    made = model([node("Mul", ["x", "c"])], 9, constants={"c": f32([2])})
    made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1]))
    assert [each.name for each in retarget(made, 11).graph.input] == ["x"]


def test_names_are_of_this_house_and_nothing_of_the_exporter_stays():
    nodes, source, constants, _ = CASES["norm behind a convolution"]
    made = model(nodes, source, constants=constants)
    made.doc_string = made.graph.doc_string = "of /home/somebody"
    made.producer_version = "2.0"
    for each in made.graph.node:
        each.doc_string = 'File "/home/somebody/net.py"'
        each.name = "/home/somebody"
    made.metadata_props.add(key="path", value="/home/somebody")
    made.graph.node[0].metadata_props.add(key="stack_trace", value="/home/somebody")
    written = retarget(made, 13)
    assert b"somebody" not in written.SerializeToString()
    assert not written.graph.value_info and not written.metadata_props and not written.producer_version
    assert [each.name for each in written.graph.node] == ["Conv_0"]
    assert [each.name for each in written.graph.initializer] == ["Conv_0.weight", "Conv_0.bias"]


def test_small_constants_are_written_once():
    nodes = [
        node("Clip", ["x"], ["a"], min=0.0, max=6.0),
        node("Exp", ["a"], ["b"]),
        node("Clip", ["b"], ["y"], min=0.0, max=6.0),
    ]
    written = retarget(model(nodes, 9), 11)
    assert len(written.graph.initializer) == 2
    assert all(re.fullmatch(r"Clip_0\.(min|max)", each.name) for each in written.graph.initializer)
