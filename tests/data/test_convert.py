"""`python -m vision.data convert`: sources are only read, and nothing is written beside the target."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision import cli
from vision.data import __main__ as command
from vision.data import open_dataset
from vision.data.images import read_image
from vision.data.sample import Dataset, Sample
from vision.data.shapes import write_shapes
from vision.data.write import WRITERS, write_dataset
from vision.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("source") / "shapes", 12, seed=3)


def run(capsys, *words):
    """Exit code, what was printed, what was complained about."""
    code = cli.run(command.main, [str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def contents(folder):
    """Every path below a folder with its bytes' hash and time of change."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sample(path, name="a", boxes=((10, 10, 50, 40),), size=None):
    count = len(boxes)
    return Sample(
        name,
        path,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.ones(count, np.int64),
        *[np.zeros(count, bool)] * 2,
        size,
    )


def picture(path, height=60, width=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((height, width, 3), 99, np.uint8))[1].tobytes())
    return path


def test_nothing_given(capsys):
    assert run(capsys)[0] == 2
    code, _, error = run(capsys, "konvert")
    assert code == 2 and "did you mean 'convert'" in error
    with pytest.raises(SystemExit):
        run(capsys, "convert")
    assert "--to is missing" in run(capsys, "convert", "a", "b")[2]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_the_source_stays_and_the_copy_is_whole(kind, shapes, tmp_path, capsys):
    before = contents(shapes)
    code, out, error = run(capsys, "convert", shapes, tmp_path / "out", "--to", kind)
    assert code == 0, error
    assert contents(shapes) == before
    assert f"{shapes}: voc, splits trainval, test" in out and f"Written: {tmp_path / 'out'}, {kind}" in out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for split in ("train", "test"):
        ours, theirs = open_dataset(tmp_path / "out", split, strict=True), open_dataset(shapes, split)
        left_out = (
            sum(bool(len(s.labels) and s.difficult.all()) for s in theirs.samples) if kind == "yolo" else 0
        )
        assert len(ours) == len(theirs) - left_out
        assert not any(s.path.is_symlink() for s in ours.samples)
        for one in ours.samples:
            other = next(s for s in theirs.samples if s.id == one.id)
            assert one.path.read_bytes() == other.path.read_bytes()


def test_links(shapes, tmp_path, capsys):
    assert run(capsys, "convert", shapes, tmp_path / "out", "--to", "coco", "--link")[0] == 0
    samples = open_dataset(tmp_path / "out", "train").samples
    assert all(
        s.path.is_symlink() and s.path.resolve().parent == (shapes / "JPEGImages").resolve() for s in samples
    )
    assert (
        "--copy and --link"
        in run(capsys, "convert", shapes, tmp_path / "x", "--to", "coco", "--copy", "--link")[2]
    )


def test_a_target_in_use_or_in_the_source_is_refused(shapes, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(shapes.parent)
    for target, words in (
        (tmp_path / "full", "already holds"),
        (tmp_path / "file", "not a folder"),
        (shapes, "already holds"),
        (shapes / "inside", "lies in the source"),
        (shapes.parent, "already holds"),
    ):
        code, _, error = run(capsys, "convert", shapes, target, "--to", "yolo")
        assert code == 2 and words in error
    assert contents(shapes.parent) == before and (tmp_path / "full/mine.txt").read_text() == "mine"


def test_a_failure_leaves_nothing(shapes, tmp_path, monkeypatch):
    dataset = open_dataset(shapes, "train")
    gone = sample(picture(tmp_path / "gone.png"))
    gone.path.unlink()
    with pytest.raises(UserError, match="gone.png"):
        write_dataset(
            tmp_path / "out", "voc", {"train": Dataset("d", dataset.classes, [*dataset.samples, gone])}
        )

    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr("vision.data.write.shutil.copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        write_dataset(tmp_path / "out", "voc", {"train": dataset})
    assert list(tmp_path.iterdir()) == []


EVIL = [
    "../../x",
    "/etc/x",
    "..\\..\\x",
    "C:\\x",
    "..",
    ".",
    "",
    "a/../../x",
    "x\0y",
    "CON?",
    "a\nb",
    "l" * 400,
    "é/é",
]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_names_lead_nowhere_else(kind, tmp_path):
    path = picture(tmp_path / "source/p.png")
    samples = [sample(path, name) for name in EVIL]
    write_dataset(tmp_path / "work/deep/out", kind, {"train": Dataset("d", ("BACKGROUND", "cat"), samples)})
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all((tmp_path / "work/deep/out") in path.parents for path in everything if path.name != "p.png")
    assert len(open_dataset(tmp_path / "work/deep/out", "train", strict=True)) == len(EVIL)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_ids_that_clash_stay_apart(kind, tmp_path):
    path = picture(tmp_path / "p.png")
    classes = ("BACKGROUND", "cat")
    parts = {
        "train": Dataset("d", classes, [sample(path, "a"), sample(path, "A"), sample(path, "s/b")]),
        "test": Dataset("d", classes, [sample(path, "a"), sample(path, "s_b")]),
    }
    write_dataset(tmp_path / "out", kind, parts)
    assert (
        len(open_dataset(tmp_path / "out", "train")) == 3 and len(open_dataset(tmp_path / "out", "test")) == 2
    )


@pytest.mark.parametrize(
    "name", ["a b", "no", "1", "x: y", "it's", 'so "so"', "<b>&amp;", "#1", "größe", "- a", "{a}"]
)
@pytest.mark.parametrize("kind", list(WRITERS))
def test_class_names_of_all_kinds(kind, name, tmp_path):
    path = picture(tmp_path / "p.png")
    write_dataset(tmp_path / "out", kind, {"train": Dataset("d", ("BACKGROUND", name), [sample(path)])})
    dataset = open_dataset(tmp_path / "out", "train", strict=True)
    assert dataset.classes == ("BACKGROUND", name) and dataset.num_objects == 1


def exif_turned(path, height=60, width=80):
    """A JPEG of stored width x height with a red left edge, which EXIF turns by 90 degrees clockwise."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[:, : width // 4] = (0, 0, 255)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:])
    return path


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_photograph_annotated_upright_stays_so(kind, tmp_path):
    path = exif_turned(tmp_path / "p.jpg")
    # Upright it is 60 wide and 80 high, and the red part is its upper quarter.
    upright = sample(path, boxes=[(0, 0, 60, 20)], size=(80, 60))
    write_dataset(tmp_path / "out", kind, {"train": Dataset("d", ("BACKGROUND", "cat"), [upright])})
    (read,) = open_dataset(tmp_path / "out", "train").samples
    np.testing.assert_allclose(read.boxes, [[0, 0, 60, 20]], atol=0.01)
    image = read_image(read.path, size=read.size)
    assert image.shape[:2] == read.size == (80, 60)
    assert image[2:17, :, 0].mean() > 240 and image[23:, :, 0].mean() < 100


def test_files_of_other_tools_find_what_they_need(shapes, tmp_path):
    """The YAML and the JSON as Ultralytics and pycocotools read them."""
    parts = {split: open_dataset(shapes, split) for split in ("train", "test")}
    for kind in ("yolo", "coco"):
        write_dataset(tmp_path / kind, kind, parts)
    yaml = pytest.importorskip("yaml").safe_load((tmp_path / "yolo/data.yaml").read_text(encoding="utf-8"))
    assert yaml["names"] == dict(enumerate(parts["train"].classes[1:]))
    assert all((tmp_path / "yolo" / yaml[part]).is_dir() for part in ("train", "val", "test"))
    coco = pytest.importorskip("pycocotools.coco").COCO(
        str(tmp_path / "coco/annotations/instances_train.json")
    )
    assert (
        len(coco.getImgIds()) == len(parts["train"]) and len(coco.getAnnIds()) == parts["train"].num_objects
    )
    ours = parts["train"].samples[0]
    number = next(n for n, image in coco.imgs.items() if image["file_name"].startswith(ours.id))
    boxes = np.array([each["bbox"] for each in coco.loadAnns(coco.getAnnIds([number]))]).reshape(-1, 4)
    np.testing.assert_allclose(boxes[:, 2:], ours.boxes[:, 2:] - ours.boxes[:, :2], atol=1e-3)
    assert all(each["area"] > 0 for each in coco.anns.values())


def test_some_classes_only(shapes, tmp_path, capsys):
    name = open_dataset(shapes, "train").classes[2]
    (tmp_path / "labels.txt").write_text(name + "\n", encoding="utf-8")
    words = ("convert", shapes, tmp_path / "out", "--to", "coco", "--labels", tmp_path / "labels.txt")
    assert run(capsys, *words)[0] == 0
    whole = json.loads((tmp_path / "out/annotations/instances_train.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in whole["categories"]] == [name] and len(whole["images"]) == 10


def test_as_a_command(shapes, tmp_path):
    words = [
        sys.executable,
        "-m",
        "vision.data",
        "convert",
        str(shapes),
        str(tmp_path / "out"),
        "--to",
        "YOLO".lower(),
    ]
    done = subprocess.run(
        words, cwd=str(ROOT), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and "Written" in done.stdout, done.stderr


COMMANDS = [
    line.split()[3:]
    for page in sorted((ROOT / "docs").glob("*.md"))
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.startswith("python -m vision.data ")
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_of_the_pages_are_understood(words, monkeypatch):
    class Parsed(Exception):
        pass

    parse = cli.parse

    def only_parse(*arguments, **more):
        raise Parsed(parse(*arguments, **more))

    monkeypatch.setattr(cli, "parse", only_parse)
    with pytest.raises(Parsed):
        command.main(words)
