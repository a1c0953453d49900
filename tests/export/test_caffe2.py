"""The writer of Caffe2's files: its table, its files, its command line. What Caffe2 itself says: tests/runtimes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))
import convert_to_caffe2_models
from vision import cli
from vision.caffe2_net import arguments, image_blob, messages, pair_named, read_net
from vision.card import read_card
from vision.data.labels import write_labels
from vision.errors import UserError
from vision.export import retarget
from vision.export.caffe2 import TABLE, convert, write_nets
from vision.export.onnx import Plan, export, weights_sha256

CLASSES = ("BACKGROUND", "disc", "square", "star")


def graph_of(nodes, constants=None, outputs=("scores", "boxes"), shape=(1, 3, 8, 8), name="input_0"):
    """A model that begins with one image."""
    constants = {key: np.asarray(value) for key, value in (constants or {}).items()}
    proto = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in outputs],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def two_outputs(*nodes):
    """Nodes up to a value `x`, and the two outputs behind it."""
    return [*nodes, helper.make_node("Relu", ["x"], ["scores"]), helper.make_node("Exp", ["x"], ["boxes"])]


def operators(nets):
    return {op.output[0]: op for op in nets.predict.op}


# --- the table ----------------------------------------------------------------------------------------------


# Written down from Caffe2's catalogue of operators: node, constants -> type and arguments.
ROWS = [
    ("Relu", {}, {}, "Relu", {}),
    ("Sqrt", {}, {}, "Sqrt", {}),
    ("Clip", {}, {"low": np.float32(0), "high": np.float32(6)}, "Clip", {"min": 0.0, "max": 6.0}),
    ("Mul", {}, {"by": np.float32([2])}, "Mul", {}),
    ("Sub", {}, {"by": np.float32([2])}, "Sub", {}),
    ("Div", {}, {"by": np.float32([2])}, "Div", {}),
    ("Softmax", {"axis": 3}, {}, "Softmax", {"axis": 3}),
    ("Transpose", {"perm": [0, 2, 3, 1]}, {}, "Transpose", {"axes": (0, 2, 3, 1)}),
    ("Reshape", {}, {"to": np.array([0, -1])}, "Reshape", {"shape": (0, -1)}),
    ("GlobalAveragePool", {}, {}, "AveragePool", {"global_pooling": 1, "order": b"NCHW"}),
    ("HardSigmoid", {"alpha": 0.25, "beta": 0.75}, {}, "HardSigmoid", {"alpha": 0.25, "beta": 0.75}),
    ("HardSigmoid", {"alpha": 0.25}, {}, "HardSigmoid", {"alpha": 0.25, "beta": 0.5}),
    (
        "MaxPool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {},
        "MaxPool",
        {"kernels": (3, 3), "strides": (2, 2), "pads": (0, 0, 1, 1), "order": b"NCHW"},
    ),
    (
        "Slice",
        {},
        {"from": np.array([1]), "to": np.array([2**63 - 1]), "axes": np.array([3])},
        "Slice",
        {"starts": (0, 0, 0, 1), "ends": (-1, -1, -1, -1)},
    ),
    (
        "Slice",
        {},
        {"from": np.array([0]), "to": np.array([2]), "axes": np.array([1])},
        "Slice",
        {"starts": (0, 0, 0, 0), "ends": (-1, 2, -1, -1)},
    ),
    ("ReduceSum", {"keepdims": 1}, {"axes": np.array([1])}, "ReduceSum", {"axes": (1,), "keepdims": 1}),
]


@pytest.mark.parametrize("op, attributes, constants, kind, expected", ROWS)
def test_operators_become(op, attributes, constants, kind, expected):
    node = helper.make_node(op, ["input_0", *constants], ["x"], **attributes)
    nets = convert(graph_of(two_outputs(node), constants), "net")
    assert nets.predict.op[0].type == kind and nets.predict.op[0].input[0] == "input_0"
    assert arguments(nets.predict.op[0]) == expected


def test_a_convolution_without_a_bias_gets_one():
    node = helper.make_node(
        "Conv", ["input_0", "w"], ["x"], pads=[1, 1, 1, 1], dilations=[2, 2], strides=[2, 1]
    )
    weight = np.arange(2 * 3 * 9, dtype=np.float32).reshape(2, 3, 3, 3)
    nets = convert(graph_of(two_outputs(node), {"w": weight}), "net")
    conv = nets.predict.op[0]
    assert arguments(conv) == {
        "kernels": (3, 3),
        "strides": (2, 1),
        "pads": (1, 1, 1, 1),
        "dilations": (2, 2),
        "group": 1,
        "order": b"NCHW",
    }
    fills = {op.output[0]: arguments(op) for op in nets.init.op}
    assert fills[conv.input[1]] == {"shape": (2, 3, 3, 3), "values": tuple(weight.reshape(-1))}
    assert fills[conv.input[2]] == {"shape": (2,), "values": (0.0, 0.0)}
    assert fills["input_0"] == {"shape": (1, 3, 8, 8), "value": 0.0}


def test_what_caffe2_wants_two_outputs_of():
    nodes = [
        helper.make_node("Reshape", ["input_0", "to"], ["flat"]),
        helper.make_node("Concat", ["flat", "flat"], ["x"], axis=1),
    ]
    nets = convert(graph_of(two_outputs(*nodes), {"to": np.array([0, -1])}), "net")
    reshape, concat = nets.predict.op[:2]
    assert list(reshape.output) == ["Reshape_0", "Reshape_0_old_shape"] and list(reshape.input) == ["input_0"]
    assert list(concat.output) == ["Concat_1", "Concat_1_split"] and arguments(concat) == {"axis": 1}


def test_a_foreign_name_of_the_image_becomes_input_0():
    nets = convert(graph_of(two_outputs(helper.make_node("Relu", ["image"], ["x"])), name="image"), "net")
    assert list(nets.predict.external_input) == ["input_0"] and nets.predict.op[0].input[0] == "input_0"


# (the nodes, what the message says)
REFUSED = [
    (helper.make_node("Tanh", ["input_0"], ["x"]), "outside the plain set: Tanh"),
    (
        helper.make_node("Max", ["input_0", "input_0"], ["x"]),
        r"no operator of Caffe2 is known here for Max \(",
    ),
    (
        helper.make_node("Min", ["input_0", "input_0"], ["x"]),
        r"no operator of Caffe2 is known here for Min \(",
    ),
    (helper.make_node("Slice", ["input_0", "low", "high", "two"], ["x"]), "Caffe2 cuts one at a time"),
    (helper.make_node("Slice", ["input_0", "minus", "ones", "axis"], ["x"]), "counted from the front"),
]
NUMBERS = {
    "low": np.array([0, 0]),
    "high": np.array([2, 2]),
    "two": np.array([1, 2]),
    "minus": np.array([-2]),
    "ones": np.array([8]),
    "axis": np.array([2]),
}


@pytest.mark.parametrize("node, message", REFUSED)
def test_what_is_not_known_is_refused_by_name(node, message):
    with pytest.raises(UserError, match=message):
        convert(graph_of(two_outputs(node), NUMBERS), "net")


@pytest.mark.parametrize(
    "model, message",
    [
        (graph_of(two_outputs(helper.make_node("Relu", ["input_0"], ["x"])), shape=(1, 1, 8, 8)), "an image"),
        (
            graph_of(two_outputs(helper.make_node("Relu", ["input_0"], ["x"])), shape=(1, 3, "h", 8)),
            "of fixed size",
        ),
        (
            graph_of([helper.make_node("Relu", ["input_0"], ["x"])], outputs=("x",)),
            "the graph gives x; for Caffe2",
        ),
    ],
)
def test_graphs_of_another_contract(model, message):
    with pytest.raises(UserError, match=message):
        convert(model, "net")


def test_the_table_is_a_part_of_the_plain_operators():
    assert set(TABLE) <= retarget.PLAIN


# --- a real net ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(small, small_input):
    return export(small, CLASSES, small_input, Plan(dynamic_batch=True))


@pytest.fixture(scope="module")
def nets(exported):
    return convert(exported.model, "small")


def test_norms_are_folded_and_weights_stand_in_the_init_net(nets, exported):
    kinds = {op.type for op in nets.predict.op}
    assert "SpatialBN" not in kinds and {op.type for op in nets.init.op} == {
        "ConstantFill",
        "GivenTensorFill",
    }
    assert list(nets.predict.external_input)[0] == "input_0"
    assert list(nets.predict.external_output) == ["scores", "boxes"]
    floats = sum(int(np.prod(t.dims)) for t in exported.model.graph.initializer if t.data_type == 1)
    held = sum(len(a.floats) for op in nets.init.op for a in op.arg)
    assert floats - 100 <= held <= floats + 100
    # Four bytes for each, and the names.
    assert held * 4 < len(nets.init.SerializeToString()) < held * 4.1 + 2e4


def test_the_same_net_is_the_same_bytes(nets, exported):
    again = convert(exported.model, "small")
    for one, other in zip(nets, again):
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_files(nets, tmp_path):
    written = write_nets(nets, tmp_path / "sub" / "small")
    pair = pair_named(tmp_path / "sub" / "small")
    assert [path.name for path in written] == [
        "small_init_net.pb",
        "small_init_net.pbtxt",
        "small_predict_net.pb",
        "small_predict_net.pbtxt",
    ]
    init, predict = read_net(pair.init), read_net(pair.predict)
    assert (init, predict) == tuple(nets)
    assert image_blob(pair, init, predict) == ("input_0", (1, 3, 96, 128))
    net = messages()["NetDef"]
    assert text_format.Parse(written[3].read_text(), net()) == predict
    text = written[1].read_text()
    shown = text_format.Parse(text, net())
    assert text.startswith("# The weights, arguments `values`, stand in small_init_net.pb only.\n")
    assert [op.output[0] for op in shown.op] == [op.output[0] for op in init.op]
    assert len(text) < 5e4 and not any(a.name == "values" for op in shown.op for a in op.arg)


def test_a_field_of_caffe2_that_is_not_described_survives():
    """`debug_info`, field 10 of an operator, as a newer Caffe2 writes it."""
    net = messages()["NetDef"]()
    net.op.add(type="Relu")
    content = net.op[0].SerializeToString() + b"\x52\x02hi"
    read = messages()["OperatorDef"]()
    read.ParseFromString(content)
    assert read.type == "Relu" and read.SerializeToString() == content


# --- the command line ---------------------------------------------------------------------------------------


def call(*words):
    return cli.run(convert_to_caffe2_models.main, [str(word) for word in words])


FIVE = [".onnx", "_init_net.pb", "_init_net.pbtxt", "_predict_net.pb", "_predict_net.pbtxt"]


def test_a_model_is_all_it_needs(small_checkpoint, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(small_checkpoint) == 0
    said = capsys.readouterr().out
    for ending in FIVE:
        assert (tmp_path / "models" / f"mb2-ssd-lite{ending}").is_file() and f"mb2-ssd-lite{ending}" in said
    card = read_card("models/mb2-ssd-lite_predict_net.pb")
    assert card.classes == CLASSES and card.input.size == (96, 128) and card.dynamic_batch
    assert card.target == "caffe2" and card.weights_sha256 == weights_sha256(small)
    assert (tmp_path / "models" / "labels.txt").read_text() == "\n".join(CLASSES) + "\n"
    assert read_card("models/mb2-ssd-lite.onnx").classes == CLASSES


def test_the_original_s_words(small, tmp_path, capsys):
    """NET MODEL LABELS, with bare weights."""
    import torch

    torch.save(small.state_dict(), tmp_path / "net.pth")
    write_labels(tmp_path / "names.txt", CLASSES)
    words = ["mb2-ssd-lite", tmp_path / "net.pth", tmp_path / "names.txt", "--mb2_width_mult", "0.5"]
    assert call(*words, "--output_dir", tmp_path / "out", "--resolution", "160x96") == 0
    card = read_card(tmp_path / "out" / "mb2-ssd-lite_predict_net.pb")
    assert card.input.size == (96, 160) and card.classes == CLASSES


def test_an_onnx_file_needs_no_torch(exported, tmp_path):
    (tmp_path / "fruit.onnx").write_bytes(exported.model.SerializeToString())
    root = Path(__file__).parents[2]
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnxruntime'] = None; sys.path.insert(0, sys.argv[1])\n"
        "import convert_to_caffe2_models as script; sys.exit(script.main(sys.argv[2:]))"
    )
    words = [str(root), str(tmp_path / "fruit.onnx"), "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"fruit{ending}").is_file() for ending in FIVE)
    assert (tmp_path / "fruit.onnx").read_bytes() == exported.model.SerializeToString()
    card = json.loads((tmp_path / "fruit_predict_net.pb.json").read_text())
    assert card["classes"] == list(CLASSES) and card["self_test"]


def test_a_foreign_onnx_file_needs_its_labels(exported, tmp_path, capsys):
    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    del model.metadata_props[:]
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    assert call(tmp_path / "x.onnx", "--output_dir", tmp_path / "out") == cli.EXIT_USER_ERROR
    assert "give its labels" in capsys.readouterr().err and not (tmp_path / "out").exists()
    write_labels(tmp_path / "names.txt", CLASSES)
    words = ["ssd-mobilenet", tmp_path / "x.onnx", tmp_path / "names.txt", "--output_dir", tmp_path / "out"]
    assert call(*words) == 0
    assert read_card(tmp_path / "out" / "ssd-mobilenet_predict_net.pb").input.mean == (127.0,) * 3


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "0 words are given. Usage: convert_to_caffe2_models.py MODEL"),
        (["mb1-ssd", "x.pth"], "2 words are given"),
        (["nothing.pth"], "nothing.pth"),
        (["nothing.onnx"], "nothing.onnx"),
        (["x.pth", "--resolution", "big"], "big"),
        (["cut.onnx"], "cut short"),
    ],
)
def test_wrong_words(words, message, tmp_path, monkeypatch, capsys, exported):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.onnx").write_bytes(exported.model.SerializeToString()[:5000])
    assert call(*words) == cli.EXIT_USER_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("plan, message", [(Plan(form="raw"), "without --raw"), (Plan(form="uint8"), "Cast")])
def test_other_forms_of_export(small, small_input, plan, message, tmp_path, capsys):
    model = export(small, CLASSES, small_input, plan).model
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    assert call(tmp_path / "net.onnx", "--output_dir", tmp_path / "out") == cli.EXIT_USER_ERROR
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
