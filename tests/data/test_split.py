"""`python -m vision.data split`: parts that are alike, the same for the same seed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision import cli
from vision.data import __main__ as command
from vision.data import open_dataset
from vision.data.sample import Dataset, Sample
from vision.data.shapes import write_shapes
from vision.data.split import divide, pooled, stratified
from vision.errors import UserError


def sample(name, *labels):
    count = len(labels)
    return Sample(
        name,
        Path(name),
        np.zeros((count, 4), np.float32),
        np.array(labels, np.int64),
        np.zeros(count, bool),
        np.zeros(count, bool),
    )


def run(capsys, *words):
    code = cli.run(command.main, [str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_nothing_to_divide():
    assert stratified(np.zeros((0, 3), bool), [0.5, 0.5], np.random.default_rng(0)).shape == (0,)
    with pytest.raises(UserError, match="1 images cannot be divided into 2"):
        divide(Dataset("d", ("BACKGROUND", "cat"), [sample("a", 1)]), {"train": 0.8, "test": 0.2})


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_in_every_part(seed):
    samples = [sample(f"cat{n}", 1) for n in range(90)] + [sample(f"owl{n}", 1, 2) for n in range(5)]
    samples += [sample(f"none{n}") for n in range(5)]
    parts = divide(Dataset("d", ("BACKGROUND", "cat", "owl"), samples), {"train": 80, "test": 20}, seed)
    names = {part: [s.id.rstrip("0123456789") for s in dataset.samples] for part, dataset in parts.items()}
    assert {part: names[part].count("owl") for part in parts} == {"train": 4, "test": 1}
    assert {part: names[part].count("none") for part in parts} == {"train": 4, "test": 1}
    assert {part: len(names[part]) for part in parts} == {"train": 80, "test": 20}


def test_better_than_chance_on_photographs(photographs):
    """Shares of images with each class, against the mean of 20 draws by chance alone."""
    data = [open_dataset(photographs / "bccd", split) for split in ("train", "test")]
    whole = pooled(dict(zip(("train", "test"), data)))
    holds = np.array([[(s.labels == label).any() for label in (1, 2, 3)] for s in whole.samples])

    def unevenness(part):
        shares = [holds[part == number].mean(axis=0) for number in (0, 1)]
        return np.abs(shares[0] - shares[1]).max()

    ours, chance = [], []
    for seed in range(5):
        ours.append(unevenness(stratified(holds, [0.8, 0.2], np.random.default_rng(seed))))
    for seed in range(20):
        chance.append(unevenness((np.random.default_rng(seed).random(len(holds)) < 0.2).astype(int)))
    assert np.mean(ours) < np.mean(chance) / 2 and max(ours) < 0.05


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=40),
    st.lists(st.floats(0.1, 1), min_size=2, max_size=4),
    st.integers(0, 5),
)
def test_every_image_is_in_one_part_and_the_seed_says_which(rows, ratios, seed):
    holds = np.array(rows, bool)
    shares = np.array(ratios) / sum(ratios)
    first = stratified(holds, shares, np.random.default_rng(seed))
    assert first.shape == (len(rows),) and first.min() >= 0 and first.max() < len(ratios)
    assert (first == stratified(holds, shares, np.random.default_rng(seed))).all()


def test_images_of_one_id_are_told_apart_and_one_file_counts_once():
    train = Dataset("d", ("BACKGROUND", "cat"), [sample("a", 1), sample("b", 1)])
    test = Dataset("d", ("BACKGROUND", "cat"), [sample("b", 1), sample("c")])
    assert [s.id for s in pooled({"train": train, "test": test}).samples] == ["a", "train/b", "c"]


@pytest.mark.parametrize("to", ["", "yolo"])
def test_the_command(to, tmp_path, capsys):
    source = write_shapes(tmp_path / "shapes", 30, seed=5)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    words = ["split", source, "--ratios", "0.6", "0.2", "0.2", "--seed", "4", *(["--to", to] if to else [])]
    code, out, error = run(capsys, *words)
    assert code == 0, error
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    target = tmp_path / "shapes-split"
    parts = [open_dataset(target, split) for split in ("train", "val", "test")]
    ids = [{s.id for s in part.samples} for part in parts]
    assert not ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2]
    assert (to or "voc") in parts[0].recognised[0] and "images with" in out
    assert out.count("objects, ") == 1  # of the whole, not of parts that are no more
    code, _, error = run(capsys, *words)
    assert code == 2 and "already holds" in error
    assert run(capsys, *words, "--output", tmp_path / "again")[0] == 0
    assert [
        {s.id for s in open_dataset(tmp_path / "again", split).samples} for split in ("train", "val", "test")
    ] == ids


def test_a_draw_that_is_not_used_is_not_told(tmp_path, capsys):
    source = write_shapes(tmp_path / "shapes", 10, seed=5)
    shutil.rmtree(str(source / "ImageSets"))
    next(iter((source / "Annotations").iterdir())).unlink()
    code, out, error = run(capsys, "split", source)
    assert (
        code == 0 and "random-split" not in out + error and out.count("missing-annotation") == 2
    )  # its line
    code, out, error = run(capsys, "convert", source, tmp_path / "converted", "--to", "coco")
    assert code == 0 and out.count("[random-split]") == (out + error).count("[random-split]") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--ratios", "0.5", "-1"], "above 0"),
        (["--ratios", "0.5", "nan"], "above 0"),
        (["--ratios", "1"], "different names"),
        (["--names", "train", "train"], "different names"),
        (["--names", "../x", "test"], "letters"),
        (["--seed", "-1"], "below 0"),
        (["--copy", "--link"], "one of them"),
    ],
)
def test_options_are_checked(words, message, tmp_path, capsys):
    code, _, error = run(capsys, "split", tmp_path, *words)
    assert code == 2 and message in error
