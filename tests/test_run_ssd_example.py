"""run_ssd_example.py from its command line."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vision import cli
from vision.checkpoint import Checkpoint, load, save
from vision.data.images import read_image
from vision.data.labels import write_labels
from vision.ssd import build

ROOT = Path(__file__).parents[1]
CLASSES = ("BACKGROUND", "cat", "dog")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("run_ssd_example", ROOT / "run_ssd_example.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_ssd_example"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to stand in: an untrained net, its bare weights, three photographs."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = build("sq-ssd-lite", len(CLASSES))
    spec = net.spec.input
    save(
        Checkpoint("sq-ssd-lite", net.options, CLASSES, 300, 300, spec.mean, spec.std, net.state_dict()),
        "net.pth",
    )
    torch.save(net.state_dict(), "bare.pth")
    write_labels("labels.txt", CLASSES)
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "c.png"):
        image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        (tmp_path / "photos" / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    Path("photos/notes.txt").write_text("not an image")
    return tmp_path


def run(script, capsys, *arguments):
    code = cli.run(script.main, [str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_published_command_line(script, capsys, work):
    code, out, _ = run(script, capsys, "sq-ssd-lite", "bare.pth", "labels.txt", "photos/a.png")
    assert code == 0
    assert "objects. The output image is run_ssd_example_output.jpg" in out
    assert read_image("run_ssd_example_output.jpg").shape == (40, 60, 3)


def test_a_checkpoint_needs_only_an_image(script, capsys, work):
    code, out, _ = run(
        script, capsys, "net.pth", "photos/a.png", "--output", "new/out.png", "--threshold", "0.05", "--top_k=2",
        "--json", "found.json",
    )  # fmt: skip
    assert code == 0
    (image,) = json.loads(Path("found.json").read_text())
    assert image["image"] == str(Path("photos/a.png")) and image["size"] == [40, 60]
    assert len(image["objects"]) == 4  # of two classes, two each
    assert "Found 4 objects. The output image is" in out
    for one in image["objects"]:
        assert f"{one['class']}    {one['score']:.3f}" in out
    drawn, before = read_image("new/out.png"), read_image("photos/a.png")
    assert drawn.shape == before.shape and (drawn != before).any()


def test_nothing_found(script, capsys, work):
    undecided = load("net.pth")
    for key, weights in undecided.state.items():
        if key.startswith("classification_headers"):
            weights.zero_()  # every class 1/3
    save(undecided, "undecided.pth")
    code, out, _ = run(script, capsys, "undecided.pth", "photos/a.png")
    assert code == 0 and "(nothing above 0.4)" in out and "Found 0 objects" in out
    assert re.search(r"The highest score is 0\.\d\d \(\w+, .*\); a lower --threshold shows more", out)
    assert Path("run_ssd_example_output.jpg").is_file()


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["photos"], ["a.jpg", "b.jpg", "c.jpg"]),
        (["photos/*.png"], ["a.jpg", "c.jpg"]),
        (["photos/a.png", "photos/c.png", "photos/a.png"], ["a.jpg", "c.jpg"]),
    ],
)
@pytest.mark.parametrize("output", [None, "pictures"])
def test_several_images(script, capsys, work, arguments, names, output):
    more = ["--output", output] if output else []
    code, out, _ = run(script, capsys, "net.pth", *arguments, *more, "--batch_size", "2")
    folder = Path(output or "run_ssd_example_output")
    assert code == 0 and sorted(path.name for path in folder.iterdir()) == names
    assert f"on {len(names)} images. The output images are in {folder}" in out


def test_equal_names_in_two_folders_do_not_meet(script, work):
    images = [Path("x/a.png"), Path("y/a.jpg"), Path("y/A.png")]
    outputs = script.name_outputs(images, "out")
    assert [path.as_posix() for path in outputs.values()] == ["out/a.jpg", "out/a_2.jpg", "out/A_3.jpg"]


def test_a_broken_image_does_not_stop_the_others(script, capsys, work):
    Path("photos/broken.jpg").write_bytes(b"not a photograph")
    code, out, error = run(script, capsys, "net.pth", "photos")
    assert code == 2 and "broken.jpg" in error and "on 3 images" in out


def test_images_are_never_written_over(script, capsys, work):
    Path("one").mkdir()
    Path("one/a.jpg").write_bytes(Path("photos/a.png").read_bytes())
    before = Path("one/a.jpg").read_bytes()
    for output in ("one", "one/a.jpg", "photos/../one"):
        code, _, error = run(script, capsys, "net.pth", "one/a.jpg", "--output", output)
        assert code == 2 and "would overwrite the image" in error
    assert Path("one/a.jpg").read_bytes() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "a model and an image are needed. Usage: run_ssd_example.py MODEL IMAGE"),
        (["net.pth"], "a model and an image are needed"),
        (["gone.pth", "photos"], "gone.pth: no such file"),
        (["sq-ssd-lite", "bare.pth", "labels.txt"], "sq-ssd-lite is no model file; as the name of a net"),
        (["sq-ssd", "bare.pth", "labels.txt", "photos"], "unknown net 'sq-ssd'; did you mean sq-ssd-lite"),
        (["bare.pth", "photos"], "give the name of the net and its labels"),
        (["net.pth", "gone.jpg"], "gone.jpg: no such file, folder or pattern"),
        (["net.pth", "gone/*.jpg"], "gone/*.jpg: no such file"),
        (["net.pth", "."], "no image in this folder"),
        (["net.pth", "photos", "--output", "x.jpg"], "3 images do not fit into one file"),
        (["net.pth", "photos", "--threshold", "2"], "score threshold 2.0"),
        (["net.pth", "photos", "--batch_size", "0"], "--batch_size 0"),
        (["net.pth", "photos/a.png", "--output", "net.pth/x.jpg"], "cannot be written"),
    ],
)
def test_mistakes(script, capsys, work, arguments, message):
    code, _, error = run(script, capsys, *arguments)
    assert code == 2 and error.startswith("error: ") and message in error
