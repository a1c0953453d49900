"""Deployment folders: what other programs read in them, and the example run without this package."""

import configparser
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vision.card import read_card, test_image
from vision.data.labels import read_labels
from vision.detector import Detector
from vision.errors import UserError
from vision.export.bundle import deepstream_config, triton_config, write_bundle
from vision.export.onnx import Plan, export, make_card
from vision.export.verify import painted
from vision.runtimes import open_detector
from vision.spec import InputSpec
from vision.ssd import build

pytest.importorskip("onnxruntime")

CLASSES = ("BACKGROUND", "disc", "square", "star")

FORMS = {
    "detectnet": Plan(threshold=0.2),
    "raw": Plan(form="raw", threshold=0.2),
    "nms": Plan(form="nms", threshold=0.2),
    "uint8": Plan(form="uint8", threshold=0.2),
    "any batch": Plan(dynamic_batch=True, threshold=0.2),
    "two at once": Plan(batch_size=2, threshold=0.2),
    "target detectnet": Plan(target="detectnet", suppress=True, threshold=0.2),
    "nothing found": Plan(threshold=0.99),
}


@pytest.fixture(params=FORMS, ids=str)
def bundle(request, small, small_input, tmp_path):
    plan = FORMS[request.param]
    exported = export(small, CLASSES, small_input, plan)
    model = tmp_path / "net.onnx"
    model.write_bytes(exported.model.SerializeToString())
    return write_bundle(tmp_path / "bundle", model, exported.card, painted(1)[0])


def test_the_example_gives_what_is_expected_without_this_package(bundle):
    """In a process of its own, in isolated mode: no PYTHONPATH, and `vision` cannot be imported."""
    code = (
        "import sys; sys.modules['vision'] = sys.modules['torch'] = None; sys.argv = ['detect.py', *sys.argv[1:]]; "
        "import runpy; runpy.run_path('detect.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("as expected\n")
    expected = json.loads((bundle / "expected.json").read_text())
    assert len(done.stdout.splitlines()) == len(expected["detections"]) + 1 > 2

    expected["detections"][0][1] += 0.5
    (bundle / "expected.json").write_text(json.dumps(expected))
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 1 and "NOT as expected" in done.stdout

    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.modules['onnxruntime'] = None; " + code],
        cwd=bundle,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install numpy opencv-python-headless onnxruntime" in done.stderr


def test_what_is_expected_is_what_we_detect(bundle):
    expected = json.loads((bundle / "expected.json").read_text())
    picture = cv2.cvtColor(cv2.imread(str(bundle / expected["picture"])), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(picture, painted(1)[0])
    found = open_detector(bundle / "model.onnx").detect(picture, expected["threshold"])
    assert [row[0] for row in expected["detections"]] == found.names
    np.testing.assert_allclose([row[1] for row in expected["detections"]], found.scores, atol=1e-4)
    np.testing.assert_allclose([row[2:] for row in expected["detections"]], found.boxes, atol=0.02)


def test_files_say_the_same(bundle):
    card = read_card(bundle / "model.onnx")
    assert read_labels(bundle / "labels.txt") == card.classes == CLASSES
    assert (bundle / "labels.txt").read_bytes().count(b"\n") == len(CLASSES)
    text = (bundle / "README.md").read_text()
    for name in re.findall(r"`([\w.]+\.\w+)`", text):
        assert (bundle / name).exists(), name
    assert ("detectnet --model=model.onnx" in text) == (
        card.form == "detectnet" and not card.dynamic_batch and card.batch_size == 1
    )
    assert (
        (bundle / "config_infer_primary.txt").exists() == ("DeepStream" in text) == (card.form == "detectnet")
    )


# --- normalisation in other people's words ------------------------------------------------------------------


def card_of(name, **settings):
    net = build(name, len(CLASSES), (300, 300) if name[0] == "v" else (96, 128))
    height, width = net.size
    spec = net.spec.input
    return make_card(net, CLASSES, InputSpec(height, width, spec.mean, spec.std), Plan(**settings), {}, {})


@pytest.mark.parametrize("target", ["any", "detectnet"])
@pytest.mark.parametrize("name", ["mb2-ssd-lite", "vgg16-ssd"])
def test_deepstream_normalises_as_the_file_wants_it(name, target):
    card = card_of(name, target=target)
    config = configparser.ConfigParser()
    config.read_string(deepstream_config(card))
    section = config["property"]
    scale = np.float32(section["net-scale-factor"])
    offsets = np.array([float(value) for value in section["offsets"].split(";")], np.float32)
    image = test_image(card.input.size)
    # nvinfer: y = net-scale-factor * (x - offsets), planes in the order of model-color-format (0 is RGB)
    assert section["model-color-format"] == "0" and section["maintain-aspect-ratio"] == "0"
    planes = ((image.astype(np.float32) - offsets) * scale).transpose(2, 0, 1)[None]
    ours = Detector(None, card.input, CLASSES).preprocess([image])
    np.testing.assert_allclose(planes, ours, atol=1e-6, rtol=1e-6)
    assert section["infer-dims"] == f"3;{card.input.height};{card.input.width}"
    assert int(section["num-detected-classes"]) == len(CLASSES)
    assert section["output-blob-names"] == "scores;boxes"
    assert float(config["class-attrs-all"]["nms-iou-threshold"]) == card.iou_threshold


@pytest.mark.parametrize("settings", [{"form": "raw"}, {"form": "nms"}, {"form": "uint8"}])
def test_deepstream_is_left_out_for_forms_it_cannot_run(settings):
    assert deepstream_config(card_of("mb2-ssd-lite", **settings)) is None


@pytest.mark.parametrize("name", ["mb2-ssd-lite", "vgg16-ssd"])
@pytest.mark.parametrize(
    "settings", [{}, {"target": "detectnet"}, {"form": "uint8"}, {"dynamic_batch": True}]
)
def test_triton(name, settings):
    card = card_of(name, **settings)
    text = triton_config(card)
    parameters = {
        key: np.array([float(v) for v in value.split()], np.float32)
        for key, value in re.findall(r'key: "(offsets|scale)" value: \{ string_value: "([^"]+)"', text)
    }
    image = test_image(card.input.size)
    if card.form != "uint8":
        planes = ((image.astype(np.float32) - parameters["offsets"]) * parameters["scale"]).transpose(2, 0, 1)
        ours = Detector(None, card.input, CLASSES).preprocess([image])[0]
        np.testing.assert_allclose(planes, ours, atol=1e-6, rtol=1e-6)
    shape = re.search(r'name: "input_0" data_type: (\w+) dims: \[ ([^\]]+) \]', text)
    sides = [int(side) for side in shape.group(2).split(",")]
    height, width = card.input.size
    expected = [height, width, 3] if card.form == "uint8" else [3, height, width]
    assert sides == (expected if card.dynamic_batch else [1, *expected])
    assert ("max_batch_size: 0" in text) != card.dynamic_batch
    assert shape.group(1) == ("TYPE_UINT8" if card.form == "uint8" else "TYPE_FP32")
    assert text.count("{") == text.count("}") and text.count("[") == text.count("]")


# --- the folder itself --------------------------------------------------------------------------------------


@pytest.fixture
def exported(small, small_input, tmp_path):
    made = export(small, CLASSES, small_input)
    (tmp_path / "net.onnx").write_bytes(made.model.SerializeToString())
    return tmp_path / "net.onnx", made.card


def test_an_older_bundle_is_replaced(exported, tmp_path):
    folder = write_bundle(tmp_path / "bundle", *exported, painted(1)[0])
    (folder / "left over.txt").write_text("x")
    write_bundle(tmp_path / "bundle", *exported, painted(2)[1])
    assert not (folder / "left over.txt").exists()
    assert cv2.imread(str(folder / "test.png")).shape == painted(2)[1].shape
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "net.onnx"]


def test_an_empty_folder_is_filled(exported, tmp_path):
    (tmp_path / "bundle").mkdir()
    assert (write_bundle(tmp_path / "bundle", *exported, painted(1)[0]) / "detect.py").exists()


def test_a_folder_of_somebody_else_is_left_alone(exported, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        write_bundle(tmp_path / "bundle", *exported, painted(1)[0])
    with pytest.raises(UserError, match="is a file"):
        write_bundle(exported[0], *exported, painted(1)[0])
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing(exported, tmp_path, monkeypatch):
    import vision.export.bundle as module

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        write_bundle(tmp_path / "bundle", *exported, painted(1)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
