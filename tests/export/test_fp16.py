"""Half precision in the graph: the body in float16, inputs, outputs and the tail in float32."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vision.errors import UserError
from vision.export.fp16 import census, float32_steps, to_fp16
from vision.export.onnx import Plan, export, preprocessed
from vision.export.quantize import session
from vision.export.tail import Step, entrance, tail
from vision.export.verify import painted

pytest.importorskip("onnxruntime")

CLASSES = ("BACKGROUND", "disc", "square", "star")


def run(model, blob):
    return session(model, 1).run(None, {model.graph.input[0].name: blob})


def step(name, op, inputs, outputs):
    return Step(name, op, inputs.split(), outputs.split())


SSD = [
    step("norm", "Mul", "image k", "a"),
    step("conv", "Conv", "a w", "b"),
    step("act", "Relu", "b", "c"),
    step("head", "Conv", "c w2", "d"),
    step("turn", "Transpose", "d", "e"),
    step("flat", "Reshape", "e shape", "f"),
    step("soft", "Softmax", "f", "scores"),
    step("cut", "Slice", "f", "g"),
    step("join", "Concat", "g g", "boxes"),
]


@pytest.mark.parametrize(
    "steps, expected",
    [
        ([], set()),
        ([step("act", "Relu", "x", "y")], set()),  # no convolution: there is no body to speak of
        (SSD[:4], set()),
        (SSD[:6], set()),  # copying behind the last convolution loses nothing
        (SSD, {"soft", "cut", "join"}),  # but copying of decoded boxes would
    ],
)
def test_the_tail_begins_where_computing_begins_after_the_last_convolution(steps, expected):
    assert tail(steps) == expected


def test_the_entrance_ends_at_the_first_convolution():
    assert entrance([]) == set()
    assert entrance(SSD) == {"norm"}


def graph(nodes, constants, channels=2):
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, channels, 4, 4))],
        tensors,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def conv(name, x, weight, y):
    return helper.make_node("Conv", [x, weight], [y], name=name)


def test_an_output_of_the_body_is_float32_all_the_same():
    model = graph([conv("c", "x", "w", "y")], {"w": np.ones((3, 2, 1, 1))}, channels=3)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert census(half)["c"] == ("FLOAT16",)
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4)
    np.testing.assert_allclose(run(half, x)[0], run(model, x)[0], atol=2e-3)


def test_weights_beyond_float16_stay_in_float32():
    nodes = [conv("large", "x", "w", "a"), conv("fits", "a", "v", "y")]
    model = graph(nodes, {"w": np.full((2, 2, 1, 1), 1e5), "v": np.full((2, 2, 1, 1), 1e-5)})
    assert float32_steps(model) == {"large"}
    half = to_fp16(model)
    assert census(half)["large"] == ("FLOAT",) and census(half)["fits"] == ("FLOAT16",)
    x = np.full((1, 2, 4, 4), 0.5, np.float32)
    assert np.isfinite(run(half, x)[0]).all()


def test_kept_nodes_are_kept_and_unknown_ones_refused():
    model = graph([conv("c", "x", "w", "a"), conv("d", "a", "v", "y")],
                  {"w": np.ones((2, 2, 1, 1)), "v": np.ones((2, 2, 1, 1))})  # fmt: skip
    assert census(to_fp16(model, ["d"]))["d"] == ("FLOAT",)
    with pytest.raises(UserError, match="no node is called e"):
        to_fp16(model, ["e"])
    with pytest.raises(UserError, match="float16 already"):
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        to_fp16(model)


def test_sums_of_squares_do_not_overflow():
    """The norm of VGG's first map: 300 squared is beyond float16."""
    nodes = [
        conv("first", "x", "w", "a"),
        helper.make_node("Mul", ["a", "a"], ["b"], name="square"),
        helper.make_node("ReduceSum", ["b", "axes"], ["c"], name="sum", keepdims=1),
        helper.make_node("Sqrt", ["c"], ["d"], name="root"),
        helper.make_node("Div", ["a", "d"], ["e"], name="norm"),
        conv("second", "e", "v", "y"),
    ]
    model = graph(nodes, {"w": np.full((2, 2, 1, 1), 300), "v": np.ones((2, 2, 1, 1))})
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    x = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_allclose(run(to_fp16(model), x)[0], run(model, x)[0], rtol=2e-3)


@pytest.mark.parametrize(
    "name, opset", [("mb2-ssd-lite", 11), ("mb3-large-ssd-lite", 17), ("sq-ssd-lite", 13)]
)
def test_every_net_in_half_precision(name, opset, lively):
    size = (96, 128)
    net = lively(name, size=size)
    spec = type(net.spec.input)(*size, net.spec.input.mean, net.spec.input.std)
    model = export(net, CLASSES, spec, Plan(opset=opset)).model
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    types = census(half)
    assert all(types[n.name] == ("FLOAT16",) for n in half.graph.node if n.op_type == "Conv")
    assert all(
        types[n.name] == ("FLOAT",) for n in half.graph.node if n.op_type in ("Softmax", "Exp", "Sqrt")
    )
    for value in [*half.graph.input, *half.graph.output]:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert len(half.SerializeToString()) < 0.6 * len(model.SerializeToString())
    blob = preprocessed(spec, painted(1))
    for exact, rounded in zip(run(model, blob), run(half, blob)):
        assert exact.shape == rounded.shape and rounded.dtype == np.float32
        assert np.abs(exact - rounded).max() < 0.05


@pytest.mark.parametrize(
    "plan", [Plan(form="uint8"), Plan(form="raw"), Plan(suppress=True), Plan(form="nms")]
)
def test_every_form_in_half_precision(plan, small, small_input):
    model = export(small, CLASSES, small_input, plan).model
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    blob = preprocessed(small_input, painted(1))
    if plan.form == "uint8":
        assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
        blob = np.zeros((1, 96, 128, 3), np.uint8) + 90
    for exact, rounded in zip(run(model, blob), run(half, blob)):
        assert exact.dtype == rounded.dtype
        if plan.form in ("uint8", "raw"):
            assert np.abs(exact - rounded).max() < 0.05
