"""eval_ssd.py and run_ssd_example.py take exported files like checkpoints."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision import cli

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photographs_of_cats(tmp_path):
    """A VOC folder with three pictures, all of which hold a cat somewhere."""
    folder = tmp_path / "cats"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(folder / "JPEGImages" / f"{i}.jpg"), np.full((60, 90, 3), 80 * i, np.uint8))
        (folder / "Annotations" / f"{i}.xml").write_text(
            f"<annotation><filename>{i}.jpg</filename><size><width>90</width><height>60</height><depth>3</depth>"
            "</size><object><name>cat</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>60</xmax><ymax>50</ymax>"
            "</bndbox></object></annotation>"
        )
    (folder / "ImageSets/Main/test.txt").write_text("0\n1\n2\n")
    (folder / "labels.txt").write_text("cat\ndog\n")
    return folder


@pytest.mark.parametrize("runtime", ["auto", "opencv", "detectnet"])
def test_evaluation_of_an_exported_file(tiny, tmp_path, photographs_of_cats, runtime, capsys):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    report = tmp_path / "report.json"
    arguments = ["--model", path, "--dataset", photographs_of_cats, "--runtime", runtime, "--json", report]
    arguments += ["--eval_dir", tmp_path / "detections", "--provider", "cpu", "--threads", 1]
    assert cli.run(script("eval_ssd").main, [str(argument) for argument in arguments]) == 0
    assert "Average Precision Across All Classes" in capsys.readouterr().out
    assert json.loads(report.read_text())


def test_detection_with_an_exported_file(tiny, tmp_path, capsys):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((60, 90, 3), 80, np.uint8))
    arguments = [path, tmp_path / "photo.png", "--output", tmp_path / "out.png", "--threads", 1]
    assert cli.run(script("run_ssd_example").main, [str(argument) for argument in arguments]) == 0
    assert "onnxruntime" in capsys.readouterr().out and (tmp_path / "out.png").is_file()


def test_the_old_form_names_net_and_labels(tiny, tmp_path, capsys):
    """NET MODEL LABELS IMAGE with a file that says nothing of itself."""
    path = tiny.save(tmp_path / "tiny.onnx")
    (tmp_path / "labels.txt").write_text("BACKGROUND\ncat\ndog\n")
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((60, 90, 3), 80, np.uint8))
    arguments = ["mb1-ssd", path, tmp_path / "labels.txt", tmp_path / "photo.png"]
    arguments += ["--output", tmp_path / "out.png"]
    assert cli.run(script("run_ssd_example").main, [str(argument) for argument in arguments]) == 0
    capsys.readouterr()
    alone = [str(path), str(tmp_path / "photo.png")]
    assert cli.run(script("run_ssd_example").main, alone) == cli.EXIT_USER_ERROR
    assert "give its labels" in capsys.readouterr().err
