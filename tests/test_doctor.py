"""The doctor: what it sees, what it advises, and that nothing broken brings it down."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vision import cli, doctor
from vision.card import test_image as make_test_image
from vision.errors import UserError
from vision.onnx_header import read_header
from vision.runtimes.specimen import CLASSES, PRIORS, truth, write_specimen
from vision.spec import InputSpec

ROOT = Path(__file__).parents[1]


# --- the tiny net -------------------------------------------------------------------------------------------


def test_the_specimen_is_a_whole_onnx_file(tmp_path):
    path = write_specimen(tmp_path / "net.onnx")
    header = read_header(path)
    assert header.opset == 11 and [t.shape for t in header.outputs] == [(1, PRIORS, 2), (1, PRIORS, 4)]
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(str(path), full_check=True)


def test_the_specimen_computes_what_numpy_says(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(write_specimen(tmp_path / "net.onnx")))
    blob = (make_test_image((32, 32)).astype(np.float32).transpose(2, 0, 1)[None] - 127) / 128
    scores, boxes = session.run(["scores", "boxes"], {"input_0": blob})
    expected = truth(InputSpec(32, 32))
    assert np.allclose(scores[0], expected[0], atol=1e-5) and np.allclose(boxes[0], expected[1], atol=1e-5)
    assert scores.shape[2] == len(CLASSES) and np.ptp(scores) > 0.1


# --- what it sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, name, target",
    [
        (
            "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref",
            "4.6.1 or later 4.6 (L4T 32.7.1)",
            "jp46",
        ),
        ("# R32 (release), REVISION: 4.4, GCID: 1", "4.4 (L4T 32.4.4)", "jp44"),
        ("# R35 (release), REVISION: 1.0, GCID: 1", "5.0.2 (L4T 35.1.0)", "jp5"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "5.1 (L4T 35.4.1)", "jp5"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "6.0 (L4T 36.3.0)", "jp6"),
        ("# R36 (release), REVISION: 4.3, GCID: 1", "6.1 or 6.2 (L4T 36.4.3)", "jp6"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "7.2 (L4T 39.2.0)", "jp7"),
        ("# R99 (release), REVISION: 1.0", "unknown (L4T 99.1.0)", "any"),
        ("", "unknown (/etc/nv_tegra_release is of an unknown form)", "any"),
    ],
)
def test_jetpack(text, name, target):
    assert doctor.jetpack(text) == (name, target)


BUILD = """
  GUI:                           {gui}
  Video I/O:
    FFMPEG:                      YES
      avcodec:                   YES (59.37.100)
    GStreamer:                   {gstreamer}
    v4l/v4l2:                    YES (linux/videodev2.h)

  NVIDIA CUDA:                   YES (ver 11.4, CUFFT CUBLAS FAST_MATH)
"""


def test_opencv_facts():
    facts = doctor.opencv_facts(BUILD.format(gui="GTK2", gstreamer="YES (1.16.2)"))
    assert facts["windows (GUI)"] == "YES (GTK2)" and facts["GStreamer"] == "YES (1.16.2)"
    assert facts["CUDA"].startswith("YES") and facts["FFMPEG"] == "YES"
    facts = doctor.opencv_facts(BUILD.format(gui="NONE", gstreamer="NO"))
    assert facts["windows (GUI)"] == facts["GStreamer"] == "no"
    assert set(doctor.opencv_facts("").values()) == {"no"}


def test_opencv_itself():
    import cv2

    assert doctor.attempt("package:cv2") == {
        "version": cv2.__version__,
        "facts": doctor.opencv_facts(cv2.getBuildInformation()),
    }


# --- trying -------------------------------------------------------------------------------------------------


def test_a_package_that_is_not_there():
    assert doctor.attempt("package:no_such_package") == {"there": False}


def test_a_package_that_is_broken(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("import missing_part_of_it")
    (tmp_path / "broken_two.py").write_text("raise OSError('libGL.so.1: cannot open\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "missing_part_of_it" in doctor.attempt("package:broken_one")["error"]
    assert doctor.attempt("package:broken_two") == {"error": "libGL.so.1: cannot open"}


@pytest.mark.parametrize(
    "source, message",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashed (illegal instruction)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (segmentation fault)"),
        ("import os; os._exit(3)", "ended with code 3: no answer"),
        ("import time; time.sleep(60)", "did not answer within 3 s"),
    ],
)
def test_a_crash_is_a_finding(tmp_path, monkeypatch, source, message):
    (tmp_path / "crashing.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if "sleep" in source:
        monkeypatch.setattr(doctor, "SECONDS", 3)
    assert doctor._in_a_process("package:crashing") == {"error": message}


@pytest.mark.parametrize("name", ["opencv", "onnxruntime", "openvino"])
def test_runtimes_are_really_tried(name, monkeypatch):
    found = doctor.attempt(name)
    if not found.get("there", True):
        pytest.skip(f"{name} is not installed")
    assert "" in [why for _, why in found["tries"]], found

    import vision.runtimes.specimen as specimen

    right = specimen.truth
    monkeypatch.setattr(specimen, "truth", lambda spec: tuple(array + 0.1 for array in right(spec)))
    assert all("gives wrong results" in why for _, why in doctor.attempt(name)["tries"])


# --- advice -------------------------------------------------------------------------------------------------

WELL = {"numpy": "1.26", "cv2": "4.8", "torch": "2.4"}
WORKS = {"pytorch": [("cpu", "")], "onnxruntime": [("cpu", "")], "opencv": [("cpu", "")]}
FACTS = {"windows (GUI)": "YES", "GStreamer": "YES", "FFMPEG": "YES"}


def test_nothing_to_do():
    assert doctor.advise(doctor.Report(packages=WELL, runtimes=WORKS, opencv=FACTS)) == []


@pytest.mark.parametrize(
    "packages, runtimes, facts, machine, advice",
    [
        ({"cv2": ""}, {}, {}, {}, "cv2 is missing: pip install opencv-python-headless"),
        (
            {"cv2": "broken: libGL.so.1: cannot open"},
            {},
            {},
            {},
            "opencv-python; pip install opencv-python-headless",
        ),
        ({"numpy": "broken: crashed (illegal instruction)"}, {}, {}, {}, "OPENBLAS_CORETYPE=ARMV8"),
        ({"cv2": "broken: numpy.core.multiarray failed to import"}, {}, {}, {}, 'pip install "numpy<2"'),
        ({"torch": ""}, {}, {}, {}, "exported files need neither"),
        ({"torchvision": "broken: operator torchvision::nms does not exist"}, {}, {}, {}, "belongs to torch"),
        ({}, {"onnxruntime": [("", "not installed")]}, {}, {}, "ONNX Runtime is faster than OpenCV"),
        (
            {},
            {"onnxruntime": [("", "not installed")], "opencv": [("cpu", "wrong")]},
            {},
            {},
            "nothing here runs exported files: pip install onnxruntime",
        ),
        (
            {},
            {"onnxruntime": [("cuda", "cannot use it and fell back to CPU"), ("cpu", "")]},
            {},
            {},
            "CUDA and cuDNN",
        ),
        (
            {},
            {"opencv": [("cpu", "gives wrong results")]},
            {},
            {},
            "opencv on cpu does not work: gives wrong results",
        ),
        ({}, {}, {"windows (GUI)": "no"}, {}, "shows no windows"),
        ({}, {}, {"GStreamer": "no"}, {"JetPack": "5.1"}, "has no GStreamer, which CSI cameras need"),
        ({}, {}, {}, {"GPU": "NVIDIA H200"}, "this PyTorch cannot use it"),
    ],
)
def test_advice(packages, runtimes, facts, machine, advice):
    report = doctor.Report(
        machine=machine,
        packages={**WELL, **packages},
        runtimes={**WORKS, **runtimes},
        opencv={**FACTS, **facts},
    )
    assert advice in "\n".join(doctor.advise(report))


# --- the whole ----------------------------------------------------------------------------------------------


def test_the_report(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "cv2", "no_such_package"))
    monkeypatch.setattr(doctor, "_runtimes", lambda: {"opencv": "cv2"})
    assert doctor.main(["--json", str(tmp_path / "report.json")]) == 0
    text = capsys.readouterr().out
    assert "works on cpu" in text and "no_such_package  not installed" in text and np.__version__ in text
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["runtimes"] == {"opencv": [["cpu", ""]]}
    with pytest.raises(UserError, match="cannot be written"):
        doctor.main(["--json", str(tmp_path / "nowhere" / "report.json")])


def test_without_numpy_and_opencv_it_still_speaks(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_in_a_process", lambda what: {"error": "No module named 'numpy'"})
    assert cli.run(doctor.main, []) == 1
    assert "numpy is broken: No module named 'numpy'" in capsys.readouterr().out


def test_it_imports_nothing_itself():
    code = "import sys, vision.doctor; print([m for m in ('numpy', 'cv2', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
