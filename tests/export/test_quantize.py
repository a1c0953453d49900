"""INT8 and FP8 in the graph: the rounding itself, calibration, and where QuantizeLinear stands."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from vision.errors import UserError
from vision.export.fp16 import census
from vision.export.onnx import Plan, export, preprocessed
from vision.export.quantize import (
    KINDS,
    Histogram,
    calibrate,
    convolutions,
    fp8_bytes,
    kept_types,
    prepared,
    quantize,
    reduced,
    round_fp8,
    round_int8,
    session,
)
from vision.export.retarget import opset_of
from vision.export.verify import painted

pytest.importorskip("onnxruntime")
ml_dtypes = pytest.importorskip("ml_dtypes")

CLASSES = ("BACKGROUND", "disc", "square", "star")


@pytest.fixture(scope="module")
def model(small, small_input):
    return export(small, CLASSES, small_input, Plan(dynamic_batch=True)).model


@pytest.fixture(scope="module")
def blobs(small_input):
    return [preprocessed(small_input, painted(2, seed=s)) for s in range(3)]


@pytest.fixture(scope="module")
def ready(model, blobs):
    """(precision, body) -> the prepared graph and its histograms."""
    known = {}

    def make(precision, body="float32"):
        key = precision, body
        if key not in known:
            base = prepared(model, precision, body)
            known[key] = base, calibrate(base, blobs)
        return known[key]

    return make


# --- rounding -----------------------------------------------------------------------------------------------


def test_rounding_to_whole_numbers():
    values = [-200, -128, -127.5, -0.5, 0.5, 1.5, 126.6, 300]
    assert round_int8(np.array(values)).tolist() == [-127, -127, -127, 0, 0, 2, 127, 127]


def test_rounding_to_fp8_leaves_its_numbers_alone():
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)  # without NaN
    numbers = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(round_fp8(numbers), numbers)
    np.testing.assert_array_equal(fp8_bytes(numbers), np.where(codes == 128, 0, codes))  # one zero is enough


@settings(deadline=None)
@given(st.lists(st.floats(-440, 440, width=32), min_size=1, max_size=50))
def test_rounding_to_fp8_is_that_of_another_implementation(values):
    array = np.array(values, np.float32)
    there = array.astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(round_fp8(array), there.astype(np.float64))


def test_fp8_saturates():
    np.testing.assert_array_equal(round_fp8(np.array([500.0, -1e9, 0.0])), [448, -448, 0])


# --- calibration --------------------------------------------------------------------------------------------


def test_a_histogram_of_nothing_has_a_scale():
    assert Histogram().clipping("int8") == 1.0
    histogram = Histogram()
    histogram.add(np.zeros(5))
    assert histogram.counts.sum() == 0 and histogram.clipping("fp8") == 1.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-50, 50, width=32), max_size=20), min_size=1, max_size=5))
def test_a_histogram_loses_no_number(parts):
    histogram = Histogram(64)
    for part in parts:
        histogram.add(np.array(part))
    numbers = [abs(v) for part in parts for v in part]
    assert histogram.largest == pytest.approx(max(numbers, default=0.0))
    assert histogram.largest <= histogram.top or not numbers
    # Zeros that came before the first other number have no bin yet.
    assert sum(v > 0 for v in numbers) <= histogram.counts.sum() <= len(numbers)


def test_clipping_forgets_a_lone_outlier():
    values = np.append(np.random.default_rng(0).normal(0, 1, 200_000), 40.0)
    histogram = Histogram()
    histogram.add(values)
    limit = histogram.clipping("int8")

    def error(bound):
        return ((round_int8(values * 127 / bound) * bound / 127 - values) ** 2).sum()

    assert limit < 25 and error(limit) < error(40.0) / 1.9
    assert all(error(limit) <= 1.02 * error(bound) for bound in np.linspace(2, 40, 50))


def test_clipping_leaves_even_numbers_alone():
    histogram = Histogram()
    histogram.add(np.linspace(-2, 2, 10_001))
    assert histogram.clipping("int8") == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_weights_are_found_at_calibration(bad):
    with pytest.raises(UserError, match="NaN or infinite"):
        Histogram().add(np.array([1.0, bad]))


def test_calibration_without_images_is_refused(model):
    with pytest.raises(UserError, match="needs images"):
        calibrate(model, [])


def test_calibration_sees_every_input(model, blobs, ready):
    base, histograms = ready("int8")
    names = {n.input[0] for n in base.graph.node if n.op_type == "Conv"}
    assert set(histograms) == names and len(convolutions(base)) > 30
    assert histograms["input_0"].largest == pytest.approx(max(np.abs(b).max() for b in blobs))


# --- the graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision, body, opset",
    [("int8", "float32", 13), ("int8", "float16", 19), ("fp8", "float32", 19), ("fp8", "float16", 19)],
)
def test_rounded_nets(precision, body, opset, ready, blobs):
    base, histograms = ready(precision, body)
    rounded = reduced(base, precision, histograms, body=body)
    onnx.checker.check_model(rounded, full_check=True)
    assert opset_of(rounded) == opset

    tensors = {t.name: t for t in rounded.graph.initializer}
    makers = {v: n for n in rounded.graph.node for v in n.output}
    takers = [name for n in rounded.graph.node for name in n.input]
    for node in rounded.graph.node:
        if node.op_type == "Conv":
            assert makers[node.input[0]].op_type == makers[node.input[1]].op_type == "DequantizeLinear"
            assert takers.count(node.input[0]) == 1, "a pair for each use, which TensorRT 8 wants"
            assert tensors[node.input[2]].data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert len(node.input) == 3, "TensorRT 8 wants the zero point said"
            zero, scale = tensors[node.input[2]], numpy_helper.to_array(tensors[node.input[1]])
            assert zero.data_type == KINDS[precision].element
            assert not any(zero.raw_data) and (scale > 0).all()
    # Nothing behind the last convolution is rounded.
    for node in rounded.graph.node:
        if node.op_type in ("Softmax", "Exp", "Sub"):
            assert census(rounded)[node.name] == ("FLOAT",)
    body_types = {t for n in rounded.graph.node if n.op_type == "Conv" for t in census(rounded)[n.name]}
    assert body_types == ({"FLOAT16"} if body == "float16" else {"FLOAT"})

    exact, here = (session(m, 1).run(None, {"input_0": blobs[0]}) for m in (base, rounded))
    assert np.abs(exact[0] - here[0]).max() > 1e-4, "rounding must show"
    a, b = exact[0].ravel(), here[0].ravel()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.8, "and not spoil it, even with random weights"
    assert np.abs(exact[1] - here[1]).mean() < 0.05


def test_stored_weights_mean_the_same(ready, blobs):
    base, histograms = ready("int8", "float16")
    keep = convolutions(base)[:-1]  # errors would grow through this net of random weights
    sizes, results = [], []
    for stored in (False, True):
        sizes.append(len(quantize(base, histograms, "int8", stored=stored).SerializeToString()))
        rounded = quantize(base, histograms, "int8", keep, stored=stored)
        results.append(session(rounded, 1).run(None, {"input_0": blobs[0]}))
    assert sizes[1] < 0.5 * sizes[0]
    # Stored ones are rounded with a scale that float16 can hold.
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_a_float16_body_adds_little_to_the_rounding(ready, blobs):
    """ONNX Runtime's optimisations once made it four times as much; see `vision.export.quantize.session`."""
    errors = []
    base, histograms = ready("int8", "float16")
    exact = session(base, 1).run(None, {"input_0": blobs[0]})[1]
    for body in ("float32", "float16"):
        rounded = session(quantize(base, histograms, "int8", body=body), 1)
        errors.append(np.abs(rounded.run(None, {"input_0": blobs[0]})[1] - exact).mean())
    assert errors[1] < 1.5 * errors[0]


def test_weights_have_a_scale_for_each_channel(ready):
    base, histograms = ready("int8")
    rounded = quantize(base, histograms, "int8")
    weights = {t.name: numpy_helper.to_array(t) for t in rounded.graph.initializer}
    name = next(n for n in base.graph.node if n.op_type == "Conv").name
    scale, weight = weights[f"{name}.w.scale"], weights[f"{name}.weight"]
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    node = next(n for n in rounded.graph.node if n.name == f"{name}.w.quantized")
    assert [a.i for a in node.attribute if a.name == "axis"] == [0]


def test_kept_convolutions_stay_as_they_are(ready, blobs):
    base, histograms = ready("int8")
    every = convolutions(base)
    rounded = quantize(base, histograms, "int8", keep=every[:2])
    assert kept_types(rounded) == set(every[:2])
    untouched = quantize(base, histograms, "int8", keep=every)
    for a, b in zip(*(session(m, 1).run(None, {"input_0": blobs[0]}) for m in (base, untouched))):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(UserError, match="no convolution is called Conv_999"):
        quantize(base, histograms, "int8", keep=["Conv_999"])


def test_an_opset_that_cannot_say_it_is_refused(model, ready):
    _, histograms = ready("int8")
    with pytest.raises(UserError, match="int8 with a float32 body needs opset 13, not 11"):
        quantize(model, histograms, "int8")
    with pytest.raises(UserError, match="needs opset 19, not 13"):
        quantize(ready("int8")[0], histograms, "fp8")


def test_eight_bits_without_images_are_refused(model):
    with pytest.raises(UserError, match="needs calibration images: give --calib"):
        reduced(prepared(model, "int8"), "int8")
    assert reduced(model, "fp32") is model


def test_a_newer_opset_is_left_alone(model):
    from vision.export.retarget import retarget

    assert opset_of(prepared(retarget(model, 17), "int8")) == 17
    assert opset_of(prepared(model, "fp16")) == 11
