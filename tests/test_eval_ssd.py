"""eval_ssd.py from its command line."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vision import cli
from vision.checkpoint import Checkpoint, save
from vision.data import open_dataset
from vision.data.shapes import write_shapes
from vision.ssd import build

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("eval_ssd", ROOT / "eval_ssd.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["eval_ssd"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A data set of ten pictures (two of them for the test), an untrained net, its bare weights."""
    folder = tmp_path_factory.mktemp("work")
    write_shapes(folder / "shapes", 10, seed=1)
    classes = open_dataset(folder / "shapes", "test").classes
    torch.manual_seed(0)
    net = build("mb2-ssd-lite", len(classes), (128, 128), width_mult=0.5)
    spec = net.spec.input
    save(
        Checkpoint("mb2-ssd-lite", net.options, classes, 128, 128, spec.mean, spec.std, net.state_dict()),
        folder / "net.pth",
    )
    torch.save(net.state_dict(), folder / "bare.pth")
    return folder


def run(script, capsys, *arguments):
    """Exit code, what was printed, what was complained about."""
    code = cli.run(script.main, [str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_nothing_given(script, capsys):
    code, _, error = run(script, capsys)
    assert code == 2 and error == "error: --trained_model is missing\n"


@pytest.mark.parametrize("package", ["numpy", "cv2"])
def test_a_missing_package_is_a_line(package):
    code = (
        f"import sys, runpy; sys.modules[{package!r}] = None; runpy.run_path('eval_ssd.py', {{}}, '__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: this needs {package}: pip install .\n")


def test_a_report_that_cannot_be_written_is_a_line(script, capsys, work, tmp_path):
    (tmp_path / "file").touch()
    options = "--trained_model", work / "net.pth", "--dataset", work / "shapes"
    code, _, error = run(script, capsys, *options, "--eval_dir", tmp_path / "file")
    assert (code, error) == (2, f"error: {tmp_path / 'file'}: File exists\n")


def test_model_and_data_are_enough(script, capsys, work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(
        script,
        capsys,
        "--trained_model",
        work / "net.pth",
        "--dataset",
        work / "shapes",
        "--json",
        "a/r.json",
    )
    assert code == 0 and ", 6 classes)" in out
    report = json.loads(Path("a/r.json").read_text(encoding="utf-8"))
    dataset = open_dataset(work / "shapes", "test")
    assert report["images"] == len(dataset) and [c["class"] for c in report["classes"]] == list(
        dataset.classes[1:]
    )
    # the original's lines
    for one in report["classes"]:
        assert f"\n{one['class']}: {'n/a' if one['ap'] is None else one['ap']}\n" in out
    assert f"\nAverage Precision Across All Classes:{report['mean_ap']}\n" in out
    files = {path.name for path in Path("eval_results").iterdir()}
    assert files == {"detections.jsonl"} | {f"det_test_{name}.txt" for name in dataset.classes[1:]}
    lines = Path("eval_results/detections.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["image"] for line in lines] == [sample.id for sample in dataset.samples]


def test_published_command_line(work, tmp_path):
    """The original's flags, in a process of its own."""
    command = [sys.executable, ROOT / "eval_ssd.py", "--net", "mb2-ssd-lite", "--mb2_width_mult", "0.5"]
    command += ["--trained_model", work / "bare.pth", "--label_file", work / "shapes" / "labels.txt"]
    command += ["--dataset_type", "voc", "--dataset", work / "shapes", "--use_cuda", "False"]
    command += ["--use_2007_metric", "True", "--nms_method", "hard", "--iou_threshold", "0.5"]
    command += ["--eval_dir", tmp_path / "results", "--resolution", "128"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Average Precision Across All Classes:" in done.stdout
    assert (tmp_path / "results" / "detections.jsonl").is_file()


@pytest.mark.parametrize(
    "flags, metric",
    [
        ([], "VOC 2007 AP (11 points) at IoU 0.5"),
        (["--use_2007_metric=False"], "VOC AP (area under the curve) at IoU 0.5"),
        (["--metric", "voc12", "--iou-threshold", "0.3"], "VOC AP (area under the curve) at IoU 0.3"),
        (["--metric", "coco", "--nms_method", "soft"], "COCO AP (IoU 0.50 to 0.95)"),
    ],
)
def test_metrics(script, capsys, work, tmp_path, flags, metric):
    required = ["--trained_model", work / "net.pth", "--dataset", work / "shapes", "--eval_dir", tmp_path]
    code, out, _ = run(script, capsys, *required, *flags, "--csv", tmp_path / "r.csv", "--batch_size", "1")
    assert code == 0 and metric in out
    assert (tmp_path / "r.csv").read_text().startswith("class,images,objects,ap")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--trained_model", "gone.pth"], "gone.pth: no such file"),
        (["--dataset", "gone"], "gone"),
        (["--split", "nonsense"], "nonsense"),
        (["--batch_size", "0"], "--batch_size 0 is below 1"),
        (["--iou_threshold", "2"], "--iou_threshold 2.0 is outside"),
        (["--resolution", "big"], "resolution 'big'"),
        (["--net", "mb1-ssd"], "is a mb2-ssd-lite, not a mb1-ssd"),
        (["--score_threshold", "1"], "score threshold 1.0"),
        (["--dataset_type", "yulo"], "'yulo'"),
    ],
)
def test_mistakes(script, capsys, work, tmp_path, flags, message):
    given = {"--trained_model": work / "net.pth", "--dataset": work / "shapes", "--eval_dir": tmp_path}
    given.update(zip(flags[::2], flags[1::2]))
    code, _, error = run(script, capsys, *(word for pair in given.items() for word in pair))
    assert code == 2 and error.startswith("error: ") and message in error


def test_data_with_other_classes(script, capsys, work, tmp_path):
    """A class that the model lacks is an error, or left out where that is asked for."""
    root = shutil.copytree(work / "shapes", tmp_path / "shapes")
    for file in (root / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<name>disc<", "<name>Disc<"))
    labels = (root / "labels.txt").read_text()
    (root / "labels.txt").write_text(labels.replace("disc", "Disc"))
    arguments = ["--trained_model", work / "net.pth", "--dataset", root, "--eval_dir", tmp_path / "out"]
    code, _, error = run(script, capsys, *arguments)
    assert code == 2 and "model lacks: Disc; did you mean 'disc'" in error
    code, out, _ = run(script, capsys, *arguments, "--ignore_missing_classes")
    assert code == 0 and "\nDisc: " not in out and "\nsquare: " in out
