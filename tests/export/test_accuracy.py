"""The gate: what reduced precision costs on annotated photographs, and what is done when it costs too much."""

import dataclasses
import json

import cv2
import numpy as np
import onnx
import pytest

from vision.card import METADATA_KEY, read_card, sidecar
from vision.data.sample import Dataset, Sample
from vision.errors import UserError
from vision.export import accuracy
from vision.export.accuracy import Material, open_material, reduce, write_reduced
from vision.export.onnx import Plan, export
from vision.export.quantize import convolutions, kept_types
from vision.export.verify import painted
from vision.runtimes import open_detector

pytest.importorskip("onnxruntime")

CLASSES = ("BACKGROUND", "disc", "square", "star")


@pytest.fixture(scope="module")
def exported(small, small_input):
    return export(small, CLASSES, small_input, Plan(dynamic_batch=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures without annotations."""
    place = tmp_path_factory.mktemp("pictures")
    for i, picture in enumerate(painted(4)):
        cv2.imwrite(str(place / f"{i}.png"), picture[..., ::-1])
    return place


@pytest.fixture(scope="module")
def material(folder, exported):
    """The pictures, annotated with what the float32 net finds: its mAP is 1."""
    plain = open_material(folder)
    detector = accuracy.detector_of(exported.model, exported.card)
    truth = accuracy.as_truth(detector, plain.evaluation, 0.6)
    assert sum(len(sample.labels) for sample in truth.samples) > 10
    return Material("made up", plain.calibration[:2], truth, True)


def call(exported, precision, material, **more):
    said = []
    return reduce(exported.model, exported.card, precision, material, say=said.append, **more), said


# --- images -------------------------------------------------------------------------------------------------


def test_no_material_is_none():
    assert open_material() is None


def test_a_folder_of_images(folder, tmp_path):
    found = open_material(folder, images=2)
    assert len(found.calibration) == 2 and not found.annotated and len(found.evaluation) == 2
    (tmp_path / "readme.txt").write_text("")
    for place, message in ((tmp_path, "holds no image"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(UserError, match=message):
            open_material(place)


def test_a_data_set_is_calibrated_on_one_part_and_measured_on_the_other(photographs):
    found = open_material(photographs / "bccd", images=10)
    assert found.annotated and len(found.calibration) == 10 and len(found.evaluation) == 72
    measured = {sample.path for sample in found.evaluation.samples}
    assert not measured & set(found.calibration)
    mixed = open_material(photographs / "cards", photographs / "bccd", images=3)
    assert "cards" in str(mixed.calibration[0]) and mixed.evaluation.name == found.evaluation.name


def test_a_net_that_finds_nothing_is_reduced_unmeasured(exported, folder):
    shy = dataclasses.replace(exported, card=dataclasses.replace(exported.card, threshold=0.9999))
    result, said = call(shy, "int8", open_material(folder))
    assert result.mean_ap is None and "accuracy not measured" in str(result)
    assert any("in float32 the net finds nothing at scores of 0.9999" in line for line in said)


# --- the gate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_a_reduced_net_is_measured_and_says_so(precision, exported, material, tmp_path):
    result, _ = call(exported, precision, material, accuracy=0)
    assert result.full == pytest.approx(1.0, abs=0.02) and result.annotated
    assert 0.3 < result.mean_ap <= 1.0 and result.share == pytest.approx(result.mean_ap / result.full)
    assert str(result).startswith(f"{precision.upper()}: mAP")
    path = write_reduced(tmp_path / "net.onnx", result)
    assert path.name == f"net-{precision}.onnx"
    card = read_card(path)
    assert card.precision == precision and card == result.card
    assert card.metrics[f"mAP {precision}"] == pytest.approx(result.mean_ap, abs=1e-4)
    if precision != "fp8":
        detector = open_detector(path, "onnxruntime")  # and its self-test holds
        assert len(detector.detect(painted(1)[0], 0.3))
    if precision == "int8":  # what was measured is what runs: the same numbers to the bit
        blob = detector.preprocess(painted(2))
        as_written = accuracy.session(result.model).run(None, {result.model.graph.input[0].name: blob})
        for a, b in zip(detector.run(blob), as_written):
            np.testing.assert_array_equal(a, b)


def test_images_without_annotations_measure_agreement(exported, folder):
    result, _ = call(exported, "int8", open_material(folder), accuracy=0.99)
    assert not result.annotated and 0 < result.mean_ap < 0.99, "which nobody is refused for"
    assert "agrees with float32 to" in str(result)


def test_half_precision_needs_no_images(exported):
    result, _ = call(exported, "fp16", None)
    assert result.mean_ap is None and "accuracy not measured" in str(result)


def test_too_much_lost_names_the_convolutions(exported, material, monkeypatch):
    monkeypatch.setattr(accuracy, "PROBED", 1)
    with pytest.raises(
        UserError, match="INT8: mAP .* at least 100 % are wanted.*--keep Conv_.*--accuracy 0"
    ) as error:
        call(exported, "int8", material, accuracy=1.0)
    names = str(error.value).split("--keep ")[1].split(".")[0].split()
    assert len(set(names)) == 8 and set(names) <= set(convolutions(accuracy.prepared(exported.model, "int8")))


def test_half_precision_that_loses_too_much_says_to_stay(exported, material, monkeypatch):
    values = iter([1.0, 0.9])
    monkeypatch.setattr(accuracy, "mean_ap", lambda *arguments: next(values))
    with pytest.raises(
        UserError, match="FP16: mAP 0.9000, float32 1.0000 .90.0 %.; at least 99 % .*--precision fp32"
    ):
        call(exported, "fp16", material)


@pytest.fixture
def judged(monkeypatch):
    """mAP by how many convolutions are kept; the order of the worst is that of the graph."""

    def make(enough, half=1.0):
        monkeypatch.setattr(
            accuracy._Work,
            "sensitivity",
            lambda self, precision, keep=(): [
                (name, 1.0 / (i + 1))
                for i, name in enumerate(convolutions(accuracy.prepared(self.model, "int8")))
            ],
        )

        def measure(self, result):
            result.annotated, result.full = True, 1.0
            lost = result.card.precision == "int8" and len(result.kept) < enough
            result.mean_ap = 0.5 if lost else (half if result.card.precision == "fp16" else 1.0)

        monkeypatch.setattr(accuracy._Work, "_measure", measure)

    return make


def test_auto_keeps_as_few_as_suffice(exported, material, judged):
    judged(3)
    result, said = call(exported, "auto", material)
    every = convolutions(accuracy.prepared(exported.model, "int8"))
    assert result.kept == tuple(every[:4]) and kept_types(result.model) == set(every[:4])
    assert [line.split()[0] for line in said if line.startswith("INT8")] == ["INT8:", "INT8", "INT8", "INT8"]
    judged(0)
    assert call(exported, "auto", material)[0].kept == ()


def test_auto_ends_with_half_precision(exported, material, judged):
    judged(1000)
    result, said = call(exported, "auto", material)
    assert result.card.precision == "fp16" and "even with half of the convolutions" in said[-1]
    judged(1000, half=0.1)
    with pytest.raises(UserError, match="Take --precision fp32"):
        call(exported, "auto", material)


def test_auto_needs_annotations(exported, folder):
    with pytest.raises(UserError, match="auto needs annotated images"):
        call(exported, "auto", open_material(folder))


@pytest.mark.parametrize(
    "precision, changes, message",
    [
        ("bf16", {}, "precision 'bf16' is none of"),
        ("int8", {"precision": "fp16"}, "is FP16 already"),
        ("fp16", {"target": "detectnet"}, "detectNet wants a float32 file"),
        ("int8", {}, "int8 needs images to find its scales with: --calib"),
    ],
)
def test_what_cannot_be_reduced(precision, changes, message, exported):
    import dataclasses

    card = dataclasses.replace(exported.card, **changes)
    with pytest.raises(UserError, match=message):
        reduce(exported.model, card, precision)


def test_nothing_to_find_is_no_measure(exported, folder):
    nothing = np.zeros(0, bool)
    empty = Sample(
        "0", folder / "0.png", np.zeros((0, 4), np.float32), np.zeros(0, np.int64), nothing, nothing
    )
    with pytest.raises(UserError, match="holds no object"):
        call(exported, "fp16", Material("x", [], Dataset("x", CLASSES, [empty]), True))


# --- the sensitivity itself ---------------------------------------------------------------------------------


def test_a_spoilt_convolution_is_found(exported, material, monkeypatch):
    """One channel a thousand times larger than the rest leaves the others of its input without digits."""
    monkeypatch.setattr(accuracy, "PROBED", 1)
    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    base = accuracy.prepared(model, "int8")
    name = convolutions(base)[20]
    conv = next(n for n in base.graph.node if n.name == name)
    calibrated = accuracy._Work.__dict__["_calibrated"]

    def spoil(self, graph, precision):
        histograms = calibrated(self, graph, precision)
        histogram = histograms[conv.input[0]]
        histogram.clipping = lambda kind: 300 * histogram.largest
        return histograms

    monkeypatch.setattr(accuracy._Work, "_calibrated", spoil)
    work = accuracy._Work(model, exported.card, material, "float32", lambda line: None)
    order = work.sensitivity("int8")
    assert order[0][0] == name and order[0][1] > 2 * order[1][1]
    assert all(a[1] >= b[1] for a, b in zip(order, order[1:]))


def test_the_card_in_the_graph_is_the_one_beside_it(exported, material, tmp_path):
    result, _ = call(exported, "int8", material, accuracy=0)
    path = write_reduced(tmp_path / "net.onnx", result)
    inside = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert json.loads(inside[METADATA_KEY]) == json.loads(sidecar(path).read_text())
