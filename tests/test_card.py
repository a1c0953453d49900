"""What an exported file says of itself, and the reader of ONNX headers."""

import json

import numpy as np
import pytest

from vision.card import (
    ModelCard,
    SelfTest,
    make_best_test,
    make_self_test,
    read_card,
    sidecar,
    test_image,
    write_sidecar,
)
from vision.errors import UserError
from vision.onnx_header import read_header
from vision.spec import InputSpec, PriorLayer

CLASSES = ("BACKGROUND", "Katze", "犬")
RNG = np.random.default_rng(0)
SCORES, BOXES = RNG.random((50, 3), np.float32), RNG.random((50, 4), np.float32)
CARD = ModelCard(
    net="mb2-ssd-lite",
    classes=CLASSES,
    input=InputSpec(240, 320, (123.5, 117.0, 104.0), (1.0, 2.0, 3.0)),
    options={"width_mult": 0.5},
    variances=(0.2, 0.3),
    form="raw",
    dynamic_batch=True,
    folded=True,
    priors=(PriorLayer(16, 60, 105, (2, 3)), PriorLayer(None, 105, 150, (2,))),
    cells=((15, 20), (8, 10)),
    opset=11,
    target="jp46",
    weights_sha256="0" * 64,
    data={"name": "bccd", "images": 364},
    metrics={"mean_ap": 0.5},
    self_test=make_self_test(SCORES, BOXES),
)


def changed(**values):
    return json.dumps({**json.loads(CARD.to_json()), **values})


# --- the card -----------------------------------------------------------------------------------------------


def test_a_card_survives_json():
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert ModelCard.from_json(CARD.to_json()).to_json() == CARD.to_json()
    small = ModelCard("mb1-ssd", ("BACKGROUND", "a"), InputSpec())
    assert ModelCard.from_json(small.to_json()) == small


def test_fields_of_later_programs_are_left_out():
    assert ModelCard.from_json(changed(sparkle=1)) == CARD


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not JSON"),
        (CARD.to_json()[:-40], "not JSON"),
        ("[]", "no model card"),
        ('{"images": []}', "no model card"),
        (changed(version=99), "version 99, this program reads 1; update it"),
        (changed(form="cubic"), "form 'cubic' .* is none of detectnet, raw, nms, uint8"),
        (changed(classes=[]), "BACKGROUND and at least one more are needed"),
        (changed(classes=["cat", "dog"]), "BACKGROUND and at least one more are needed"),
        (changed(input={"height": 0, "width": 3, "mean": [0, 0, 0], "std": [1, 1, 1]}), r"input of \(0, 3\)"),
        (changed(input={"height": 3, "width": 3, "mean": [0, 0, 0], "std": [1, 0, 1]}), "deviation of 0"),
        (changed(input={"height": 3, "width": 3, "mean": [0, 0], "std": [1, 1, 1]}), "damaged"),
        (changed(input={"height": 3}), "lacks 'width'"),
        (changed(priors=[], cells=[]), "does not name its priors"),
        (changed(cells=[[1, 1]]), "2 prior layers but 1 maps"),
        (changed(self_test={"tolerance": 1, "probes": [["locations", 0, 0, 0]]}), "damaged"),
        (changed(variances="ab"), "damaged"),
    ],
)
def test_damaged_cards(text, message):
    with pytest.raises(UserError, match="here.json: .*" + message):
        ModelCard.from_json(text, "here.json")


def test_a_card_without_its_net():
    content = json.loads(CARD.to_json())
    del content["net"]
    with pytest.raises(UserError, match="lacks 'net'"):
        ModelCard.from_json(json.dumps(content))


# --- beside and inside --------------------------------------------------------------------------------------


def test_beside_a_file(tmp_path):
    engine = tmp_path / "net.engine"
    assert read_card(engine) is None
    assert write_sidecar(CARD, engine) == sidecar(engine) == tmp_path / "net.engine.json"
    assert read_card(engine) == CARD
    sidecar(engine).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="net.engine.json: not UTF-8"):
        read_card(engine)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_sidecar(CARD, tmp_path / "nowhere" / "net.onnx")


# --- self-test ----------------------------------------------------------------------------------------------


def test_the_self_test_accepts_what_made_it_and_nothing_else():
    test = CARD.self_test
    assert len(test.probes) >= 8 and test.worst(SCORES, BOXES) == 0
    assert test.worst(SCORES + 0.5, BOXES) == pytest.approx(0.5, abs=1e-6)
    assert test.worst(SCORES[:10], BOXES[:10]) == float("inf")
    assert test.worst(SCORES * np.nan, BOXES) == float("inf")


def test_the_self_test_sees_a_wrong_last_map():
    wrong = BOXES.copy()
    wrong[-4:] += 0.01
    assert CARD.self_test.worst(SCORES, wrong) > CARD.self_test.tolerance


def test_one_prior_is_enough_for_a_self_test():
    assert make_self_test(SCORES[:1], BOXES[:1]).worst(SCORES[:1], BOXES[:1]) == 0
    assert SelfTest(()).worst(SCORES, BOXES) == 0


def test_the_test_of_the_best_does_not_care_for_the_order_of_rows():
    test, order = make_best_test(SCORES, BOXES), RNG.permutation(50)
    assert {(probe.prior, probe.column) for probe in test.probes if probe.output == "scores"} == {
        (-1, 1),
        (-2, 2),
    }
    assert test.worst(SCORES[order], BOXES[order]) == 0
    assert test.worst(SCORES, BOXES + 0.01) == pytest.approx(0.01, abs=1e-6)
    assert test.worst(SCORES[:, :2], BOXES) == float("inf")
    assert test.worst(SCORES[:0], BOXES[:0]) == float("inf")
    card = ModelCard("mb1-ssd", CLASSES, InputSpec(), suppressed=True, self_test=test)
    assert ModelCard.from_json(card.to_json()) == card


def test_the_test_of_the_best_leaves_out_what_rounding_decides():
    scores, boxes = np.float32([[0, 0.9, 0.1], [0, 0.9, 0.2]]), BOXES[:2]
    tied = make_best_test(scores, boxes)
    assert [probe for probe in tied.probes if probe.prior == -1] == [("scores", -1, 1, pytest.approx(0.9))]
    assert [probe.value for probe in make_best_test(scores, boxes, 0.5).probes if probe.prior == -2] == [0]
    assert not [probe for probe in make_best_test(scores, boxes, 0.201).probes if probe.prior == -2]


def test_the_test_image_is_the_same_everywhere():
    image = test_image((4, 5))
    assert image.dtype == np.uint8 and image.shape == (4, 5, 3)
    assert image[3].tolist() == [[0, 255, 9], [63, 255, 16], [127, 255, 23], [191, 255, 30], [255, 255, 37]]
    assert int(test_image((300, 300)).astype(np.int64).sum()) == TEST_IMAGE_SUM
    assert test_image((1, 1)).shape == (1, 1, 3)


TEST_IMAGE_SUM = 34369279


# --- ONNX headers -------------------------------------------------------------------------------------------


def test_header_of_an_onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    image = value("image", TensorProto.UINT8, ["batch", 3, None, 300])
    # Old exporters list weights among the inputs.
    weight = value("weight", TensorProto.FLOAT, [1000, 100])
    initializer = numpy_helper.from_array(np.zeros((1000, 100), np.float32), "weight")
    node = helper.make_node("Cast", ["image"], ["out"], to=TensorProto.INT64)
    graph = helper.make_graph(
        [node], "g", [weight, image], [value("out", TensorProto.INT64, None)], [initializer]
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)],
        ir_version=7,
        producer_name="me",
    )
    helper.set_model_props(model, {"a": "b", "names": "{0: '犬'}"})
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    header = read_header(tmp_path / "net.onnx")
    assert (header.ir_version, header.opset, header.producer) == (7, 13, "me")
    assert header.opsets == {"": 13, "com.microsoft": 1}
    assert [(t.name, t.dtype, t.shape) for t in header.inputs] == [("image", "uint8", (None, 3, None, 300))]
    assert [(t.name, t.dtype, t.shape) for t in header.outputs] == [("out", "int64", ())]
    assert header.metadata == {"a": "b", "names": "{0: '犬'}"}
    assert read_card(tmp_path / "net.onnx") is None
    onnx.save(model, str(tmp_path / "again.onnx"))
    assert read_header(tmp_path / "again.onnx") == header


def test_every_truncation_is_noticed(tmp_path):
    """Cut anywhere, a file is refused, or its header is whole (nothing but metadata was lost)."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    whole = helper.make_model(graph, ir_version=7).SerializeToString()
    refused = 0
    for length in range(len(whole)):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        try:
            header = read_header(tmp_path / "cut.onnx")
        except UserError:
            refused += 1
        else:
            assert header.inputs and header.outputs
    assert refused > 0.8 * len(whole)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_header(tmp_path / "net.onnx")
