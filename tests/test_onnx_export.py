"""The command line of onnx_export.py: new and old."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import onnx_export
from vision import cli
from vision.card import read_card
from vision.checkpoint import Checkpoint, save
from vision.data.labels import write_labels
from vision.data.shapes import CLASSES as SHAPES
from vision.data.shapes import write_shapes
from vision.export.verify import painted
from vision.onnx_header import read_header
from vision.runtimes import open_detector
from vision.ssd import build

pytest.importorskip("onnxruntime")

CLASSES = ("BACKGROUND", "apple", "pear")


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A training folder, and the test inside its parent."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = build("mb2-ssd-lite", len(CLASSES), (96, 128), width_mult=0.5)
    spec = net.spec.input
    folder = tmp_path / "models" / "fruit"
    state = Checkpoint(
        "mb2-ssd-lite", {"width_mult": 0.5}, CLASSES, 96, 128, spec.mean, spec.std, net.state_dict()
    )
    save(state, folder / "best.pth")
    write_labels(folder / "labels.txt", CLASSES)
    return folder


def call(*arguments):
    return cli.run(onnx_export.main, [str(argument) for argument in arguments])


def test_a_model_is_all_it_needs(run_dir, capsys):
    assert call(run_dir / "best.pth") == 0
    said = capsys.readouterr().out
    output = run_dir / "best.onnx"
    assert re.search(r"verified on 3 images: scores within \d\.\de-\d\d, boxes within", said)
    line = next(line for line in said.splitlines() if "detectnet --model" in line)
    assert line.split() == [
        "detectnet",
        f"--model={output}",
        f"--labels={run_dir / 'labels.txt'}",
        "--input-blob=input_0",
        "--output-cvg=scores",
        "--output-bbox=boxes",
        "IMAGE",
        "OUTPUT",
    ]
    detector = open_detector(output)
    assert detector.classes == CLASSES and detector.input.size == (96, 128)
    assert read_header(output).opset == 11
    torch_found = open_detector(run_dir / "best.pth").detect(painted(1)[0], 0.1)
    found = detector.detect(painted(1)[0], 0.1)
    assert len(found) == len(torch_found)
    np.testing.assert_allclose(found.boxes, torch_found.boxes, atol=0.1)
    names = sorted(path.name for path in run_dir.iterdir())
    assert names == ["best.onnx", "best.onnx.json", "best.pth", "labels.txt"]


def test_a_folder_is_as_good(run_dir):
    assert call(run_dir, "--verify", "false") == 0
    assert (run_dir / "best.onnx").exists()


@pytest.mark.parametrize("spelling", ["--model-dir=models/fruit", "--model_dir=models/fruit"])
def test_the_command_line_of_jetson_inference(spelling, run_dir):
    """`onnx_export.py --model-dir=models/fruit`: the file stands in the folder under the net's name."""
    assert call(spelling, "--verify=false") == 0
    assert (run_dir / "mb2-ssd-lite.onnx").exists()


def test_every_old_flag(run_dir):
    bare = run_dir / "mb2-ssd-lite-Epoch-3-Loss-2.5.pth"
    net = build("mb2-ssd-lite", len(CLASSES))
    torch.save(net.state_dict(), bare)
    line = (
        "--net mb2-ssd-lite --input mb2-ssd-lite-Epoch-3-Loss-2.5.pth --output fruit.onnx --labels labels.txt "
        "--width 160 --height 96 --batch-size 2 --model-dir models/fruit --verify false"
    )
    assert call(*line.split()) == 0
    card = read_card(run_dir / "fruit.onnx")
    assert (card.net, card.input.size, card.batch_size, card.classes) == (
        "mb2-ssd-lite",
        (96, 160),
        2,
        CLASSES,
    )
    assert read_header(run_dir / "fruit.onnx").inputs[0].shape == (2, 3, 96, 160)


def test_mb1_ssd_goes_by_nvidias_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = build("mb1-ssd", len(CLASSES), (96, 96))
    spec = net.spec.input
    save(Checkpoint("mb1-ssd", {}, CLASSES, 96, 96, spec.mean, spec.std, net.state_dict()), "run/last.pth")
    assert call("--net=ssd-mobilenet", "--model-dir=run", "--verify=false") == 0
    assert Path("run/ssd-mobilenet.onnx").exists()
    Path("run/ssd-mobilenet.onnx").unlink()
    assert call("--model-dir=run", "--verify=false") == 0
    assert Path("run/ssd-mobilenet.onnx").exists()


def test_the_folders_labels_go_before_those_of_the_working_folder(run_dir):
    """The original took ./labels.txt silently; here a bare file takes what stands beside it."""
    write_labels("labels.txt", ("BACKGROUND", "left", "over"))
    net = build("mb2-ssd-lite", len(CLASSES))
    torch.save(net.state_dict(), run_dir / "bare.pth")
    assert call(run_dir / "bare.pth", "--verify=false") == 0
    assert read_card(run_dir / "bare.onnx").classes == CLASSES


@pytest.mark.parametrize(
    "flags, form, opset",
    [
        ("", "detectnet", 11),
        ("--opset 9", "detectnet", 9),
        ("--target jp46", "detectnet", 13),
        ("--target detectnet", "detectnet", 11),
        ("--raw", "raw", 11),
        ("--nms", "nms", 11),
        ("--uint8 --dynamic_batch", "uint8", 11),
        ("--uint8=true --dynamic-batch=false", "uint8", 11),
        ("--dynamic-batch --opset 17", "detectnet", 17),
    ],
)
def test_forms_and_targets(flags, form, opset, run_dir):
    assert call(run_dir / "best.pth", *flags.split(), "--output", "out/net.onnx", "--verify=false") == 0
    card = read_card("out/net.onnx")
    assert (card.form, card.opset) == (form, opset)
    assert card.dynamic_batch == ("--dynamic_batch" in flags or "--dynamic-batch " in flags)
    assert card.suppressed == card.folded == ("detectnet" in flags)
    assert card.input.size == ((192, 256) if "detectnet" in flags else (96, 128))
    assert card.self_test is not None and card.self_test.probes
    assert json.loads(Path("out/net.onnx.json").read_text())["form"] == form


def test_suppression_can_be_left_out(run_dir):
    assert call(run_dir / "best.pth", "--target=detectnet", "--suppress=false", "--verify=false") == 0
    card = read_card(run_dir / "best.onnx")
    assert card.folded and not card.suppressed


@pytest.mark.parametrize("flags, size", [("--oversample 1", (96, 128)), ("--oversample 3", (288, 384))])
def test_how_much_larger_the_images_are(flags, size, run_dir, capsys):
    assert call(run_dir / "best.pth", "--target=detectnet", *flags.split()) == 0
    assert read_card(run_dir / "best.onnx").input.size == size
    assert f"takes {size[1]} x {size[0]}" in capsys.readouterr().out


def test_bundle(run_dir, capsys):
    assert call(run_dir / "best.pth", "--bundle", "device", "--verify=false") == 0
    assert "Wrote device/" in capsys.readouterr().out
    assert {"model.onnx", "model.onnx.json", "labels.txt", "detect.py", "test.png", "expected.json"} <= {
        path.name for path in Path("device").iterdir()
    }


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "name a checkpoint, or the folder"),
        ("a.pth b.pth", "one model at a time, not a.pth, b.pth"),
        ("a.pth --input b.pth", "one model at a time"),
        ("a.pth", "there is no file a.pth"),
        ("models/fruit/best.pth --raw --nms", "--raw and --nms exclude each other"),
        ("models/fruit/best.pth --opset 99", "opset 99 is outside 9..23"),
        ("models/fruit/best.pth --oversample 9", "--oversample 9 is outside 1..4"),
        ("models/fruit/best.pth --uint8 --oversample 2", "--oversample does not go with --uint8"),
        ("models/fruit/best.pth --opset -1", "--opset -1 is below 0"),
        ("models/fruit/best.pth --output net.pb", "does not end with .onnx"),
        ("models/fruit/best.pth --net mb1-ssd", "is a mb2-ssd-lite, not a mb1-ssd"),
        ("models/fruit/best.pth --net mb9", "unknown net 'mb9'"),
        ("models/fruit/best.pth --width 7", "7x7.*outside 32..4096"),
        ("models/fruit/best.pth --resolution big", "'big' is neither"),
        ("models/fruit/best.pth --target detectnet --raw", "detectNet takes one image"),
        ("models/fruit/labels.txt", "labels.txt is damaged, or no weights"),
        ("--model-dir models", "models holds no checkpoint"),
        ("--model-dir nowhere", "nowhere is no folder"),
        ("models/fruit/best.pth --labels models/wrong.txt", "the labels differ"),
        ("models/fruit/best.pth --picture nowhere.png --bundle out --verify false", "nowhere.png"),
    ],
)
def test_mistakes(line, message, run_dir, capsys):
    write_labels("models/wrong.txt", ("BACKGROUND", "nut"))
    assert call(*line.split()) == cli.EXIT_USER_ERROR
    said = capsys.readouterr()
    assert re.search(message, said.err) and said.err.startswith("error: ")
    if "--bundle" not in line:
        assert not list(Path().rglob("*.onnx"))


def test_help_says_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        onnx_export.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    flags = "--net --input --output --labels --width --height --batch-size --model-dir --opset --target"
    for flag in [*flags.split(), "--dynamic_batch", "--raw", "--nms", "--uint8", "--verify", "--bundle"]:
        assert flag in said


# --- precision and engines ----------------------------------------------------------------------------------


def test_half_precision_is_a_second_file(run_dir, capsys):
    assert call(run_dir / "best.pth", "--verify", "false", "--precision", "fp16") == 0
    assert "FP16: accuracy not measured" in capsys.readouterr().out
    whole, half = run_dir / "best.onnx", run_dir / "best-fp16.onnx"
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert (read_card(whole).precision, read_card(half).precision) == ("fp32", "fp16")
    image = painted(1)[0]
    a, b = (open_detector(path).detect(image, 0.1) for path in (whole, half))
    assert abs(len(a) - len(b)) <= 0.1 * len(a) + 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--precision", "int8"], "int8 needs images to find its scales with: --calib"),
        (["--precision", "int8", "--calib", "nowhere"], "nowhere: no such folder"),
        (["--precision", "int8", "--calib", "models"], "holds no image"),
        (["--precision", "fp16", "--target", "detectnet"], "detectNet wants a float32 file"),
        (["--qat", "2"], "--qat trains on annotated images"),
        (["--accuracy", "99"], "it is a share, 0.99 for 99 %"),
    ],
)
def test_precision_that_cannot_be_had(arguments, message, run_dir, capsys):
    assert call(run_dir / "best.pth", "--verify", "false", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(run_dir.glob("*-*.onnx"))


def test_fine_tuning_with_rounding_tells_before_and_after(run_dir, capsys):
    data = write_shapes("shapes", 20)
    net = build("mb2-ssd-lite", 7, (96, 128), width_mult=0.5)
    spec, classes = net.spec.input, ("BACKGROUND", *SHAPES)
    options = {"width_mult": 0.5}
    save(
        Checkpoint("mb2-ssd-lite", options, classes, 96, 128, spec.mean, spec.std, net.state_dict()),
        run_dir / "best.pth",
    )
    words = ["--qat", 1, "--precision", "int8", "--calib", data, "--accuracy", 0, "--dynamic_batch"]
    assert call(run_dir / "best.pth", *words) == 0
    said = capsys.readouterr().out
    assert re.search(r"float32 before the fine-tuning: mAP 0\.\d{4}\n", said)
    assert re.search(r"INT8: mAP 0\.\d{4}, float32 0\.\d{4}", said)
    assert open_detector(run_dir / "best-int8.onnx").classes == classes


def test_an_engine_without_tensorrt(run_dir, capsys, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("vision.runtimes.tensorrt.SYSTEM_FOLDERS", ())
    assert call(run_dir / "best.pth", "--verify", "false", "--engine") == 2
    assert "TensorRT is not installed" in capsys.readouterr().err
    assert (run_dir / "best.onnx").exists() and not list(run_dir.glob("*.engine*"))
