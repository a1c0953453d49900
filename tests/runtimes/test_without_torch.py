"""What a device has: an old or a new Python, the base package and one runtime, no torch.

The environments are made here, once, and kept in `.envs/` beside the tests' folder (git ignores it). Where the
interpreter or the packages are not to be had, the tests are skipped and say so.
"""

import hashlib
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

fcntl = pytest.importorskip("fcntl")  # the lock below
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.timeout(1800)  # whoever comes first makes an environment

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".envs"
CLASSES = ("BACKGROUND", "cat", "dog", "bird")
THRESHOLD = 0.6

# JetPack 5 has Python 3.8, JetPack 6 has 3.10. OpenCV 4.8 is the oldest that runs nets without known faults.
PINS = {
    "3.8": ["numpy==1.24.4", "opencv-python-headless==4.8.1.78", "onnxruntime==1.19.2"],
    "3.10": ["numpy", "opencv-python-headless", "onnxruntime"],
}
NEWER = ("3.10", "3.11", "3.12", "3.13", "3.14")


def interpreter(version):
    """A Python of this version that really starts, or None. (pyenv puts shims on PATH for those it will not run.)"""
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")))
    for path in filter(None, candidates):
        try:
            code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
            done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.stdout.strip() == version:
            return path
    return None


def pip(python, *arguments):
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command = [str(python), "-m", "pip", arguments[0], *quiet, *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500)


def make_environment(version, pins):
    """The Python of an environment with the base and its onnxruntime extra; made if it is not there."""
    base = interpreter(version)
    if base is None:
        pytest.skip(f"no Python {version} here that starts")
    project = (ROOT / "pyproject.toml").read_text().split("[tool.ruff]")[0]  # what an installation depends on
    key = hashlib.sha256("\n".join([*pins, project]).encode()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{version}-{key}"
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
        python = folder / "bin" / "python"
        if not (folder / "ready").exists():
            for old in ENVIRONMENTS.glob(f"{version}-*"):
                shutil.rmtree(old)
            subprocess.run([base, "-m", "venv", str(folder)], check=True, timeout=600)
            done = pip(python, "install", "setuptools>=64", "wheel", *pins)
            if done.returncode:
                shutil.rmtree(folder)
                pytest.skip(f"Python {version}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
            install_project(python, folder)
            (folder / "ready").touch()
    return python


def install_project(python, folder):
    """The package as a user installs it, with everything it asks for at hand already. Failing here is a fault."""
    source = folder / "source"
    shutil.copytree(ROOT / "vision", source / "vision", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    done = pip(python, "install", "--no-build-isolation", "--no-index", f"{source}[onnxruntime]")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    code = "import vision.runtimes, vision.card, vision.data, vision.evaluation.voc"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["3.8", "3.10 or newer"])
def python(request):
    """Runs a command line in one of the environments, with the package as it is now."""
    version = request.param
    if version not in PINS:
        version = next((v for v in NEWER if interpreter(v)), "3.10")
    path = make_environment(version, PINS.get(version, PINS["3.10"]))
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }

    def run(*arguments, code=0):
        done = subprocess.run(
            [str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


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


def test_an_interpreter_that_does_not_start_is_none(tmp_path, monkeypatch):
    shim = tmp_path / "python2.9"
    shim.write_text("#!/bin/sh\necho 'command not found'\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert interpreter("2.9") is None
