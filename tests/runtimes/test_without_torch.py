"""What a device has: an old or a new Python, the base package and one runtime, no torch.

The environments are made here, once, and kept in `.envs/` beside the tests' folder (git ignores it). Where the
interpreter or the packages are not to be had, the tests are skipped and say so.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.detector import Detections
from vision.runtimes import open_detector
from vision.spec import InputSpec

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.timeout(900)  # whoever comes first makes an environment

ROOT = Path(__file__).parents[2]
CLASSES = ("BACKGROUND", "cat", "dog", "bird")
THRESHOLD = 0.6

# JetPack 5 has Python 3.8, JetPack 6 has 3.10. OpenCV 4.8 is the oldest that runs nets without known faults.
PINS = {
    "3.8": ["numpy==1.24.4", "opencv-python-headless==4.8.1.78", "onnxruntime==1.19.2"],
    "3.10": ["numpy", "opencv-python-headless", "onnxruntime"],
}
NEWER = ("3.10", "3.11", "3.12", "3.13", "3.14")


def install_project(environments, python):
    """The package as a user installs it, with everything it asks for at hand already. Failing here is a fault."""
    source = python.parents[1] / "source"
    shutil.copytree(ROOT / "vision", source / "vision", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    done = environments.pip(python, "install", "--no-build-isolation", "--no-index", f"{source}[onnxruntime]")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    code = "import vision.runtimes, vision.card, vision.data, vision.evaluation.voc"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=python.parent)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["3.8", "3.10 or newer"])
def python(request, environments):
    """Runs a command line in one of the environments, with the package as it is now."""
    version = request.param
    if version not in PINS:
        version = next((v for v in NEWER if environments.interpreter(v)), "3.10")
    base = environments.interpreter(version)
    if base is None:
        pytest.skip(f"no Python {version} here that starts")
    path = environments.venv(
        version,
        base,
        ["setuptools>=64", "wheel", *PINS.get(version, PINS["3.10"])],
        then=lambda python: install_project(environments, python),
        hangs_on=[
            (ROOT / "pyproject.toml").read_text().split("[tool.ruff]")[0]
        ],  # what an installation depends on
    )
    return environments.runner(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory, lively, pictures):
    """A folder with an exported net and a photograph."""
    pytest.importorskip("onnx")
    export = pytest.importorskip("vision.export.onnx")
    folder = tmp_path_factory.mktemp("model")
    net = lively("mb2-ssd-lite", (300, 300), len(CLASSES))
    exported = export.export(net, CLASSES, InputSpec(300, 300, net.spec.input.mean, net.spec.input.std))
    (folder / "net.onnx").write_bytes(exported.model.SerializeToString())
    cv2.imwrite(str(folder / "photo.png"), pictures(1, seed=3)[0][..., ::-1])  # without loss
    return folder


SCRIPT = """
import importlib.util, json, sys
import cv2, numpy, onnxruntime
from vision.data.images import read_image
from vision.runtimes import open_detector

assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("onnx") is None
image = read_image(sys.argv[2])
found = {}
for runtime in ("auto", "onnxruntime", "opencv"):
    detector = open_detector(sys.argv[1], runtime)
    one = detector.detect(image, threshold=float(sys.argv[3]))
    found[runtime] = {
        "name": detector.name, "boxes": one.boxes.tolist(), "scores": one.scores.tolist(),
        "labels": one.labels.tolist(), "size": one.size,
    }
found["versions"] = [list(sys.version_info[:2]), numpy.__version__, cv2.__version__, onnxruntime.__version__]
print(json.dumps(found))
"""


def test_detections_are_the_same_there(python, model, same_detections):
    image = cv2.imread(str(model / "photo.png"))[..., ::-1]
    expected = open_detector(model / "net.onnx", "onnxruntime").detect(image, threshold=THRESHOLD)
    assert len(expected) >= 5
    found = json.loads(python("-c", SCRIPT, model / "net.onnx", model / "photo.png", THRESHOLD))
    assert "onnxruntime" in found["auto"]["name"]
    if found["versions"][0] == [3, 8]:
        assert found["versions"][1:] == ["1.24.4", "4.8.1", "1.19.2"]
    for runtime in ("auto", "onnxruntime", "opencv"):
        values = found[runtime]
        there = Detections(
            np.array(values["boxes"], np.float32).reshape(-1, 4),
            np.array(values["scores"], np.float32),
            np.array(values["labels"], np.int64),
            expected.classes,
            tuple(values["size"]),
        )
        assert same_detections(expected, there, THRESHOLD), runtime


def test_the_example_script_runs_there(python, model, tmp_path):
    out = python(
        ROOT / "run_ssd_example.py",
        model / "net.onnx",
        model / "photo.png",
        "--output",
        tmp_path / "out.png",
        "--json",
        tmp_path / "out.json",
    )
    assert "onnxruntime" in out
    assert cv2.imread(str(tmp_path / "out.png")).shape == cv2.imread(str(model / "photo.png")).shape
    assert json.loads((tmp_path / "out.json").read_text())[0]["objects"]


def test_a_damaged_file_is_a_clear_error_there(python, model, tmp_path):
    (tmp_path / "cut.onnx").write_bytes((model / "net.onnx").read_bytes()[:5000])
    python(ROOT / "run_ssd_example.py", tmp_path / "cut.onnx", model / "photo.png", code=2)


def test_the_doctor_is_content_there(python):
    out = python("-m", "vision.doctor")
    assert "works on cpu" in out and "exported files need neither" in out


def test_an_interpreter_that_does_not_start_is_none(tmp_path, monkeypatch, environments):
    shim = tmp_path / "python2.9"
    shim.write_text("#!/bin/sh\necho 'command not found'\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert environments.interpreter("2.9") is None
