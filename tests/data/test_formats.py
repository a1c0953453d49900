"""All formats alike: what is recognised, round trips between any two, several roots, labels that do not fit."""

import itertools
import logging
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.data import FORMATS, format_of, open_dataset, summary
from vision.data.balance import balanced, repeat_factors
from vision.data.convert import read_parts
from vision.data.sample import Dataset, Sample
from vision.data.write import WRITERS, write_dataset
from vision.errors import UserError

HEIGHT, WIDTH = 300, 400
CLASSES = ("BACKGROUND", "cat", "Trafic light", "größe: <&>")
NAMES = [known.name for known in FORMATS]


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """One image file, which all samples share."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return path


def sample_of(picture, name, objects):
    """`objects`: (label, corners, difficult, group)."""
    return Sample(
        name,
        picture,
        np.array([box for _, box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for label, _, _, _ in objects], np.int64),
        np.array([difficult for _, _, difficult, _ in objects], bool),
        np.array([group for _, _, _, group in objects], bool),
        (HEIGHT, WIDTH),
    )


@pytest.fixture
def parts(picture):
    """A training and a test part, with an image without objects and one of difficult and group boxes."""
    train = [
        sample_of(
            picture,
            "a b",
            [
                (1, (10.25, 20.5, 100, 120), False, False),
                (2, (5, 6, 70, 80), False, False),
                (3, (0, 0, 400, 300), False, False),
            ],
        ),
        sample_of(picture, "empty", []),
        sample_of(picture, "flags", [(1, (1, 2, 30, 40), True, False), (2, (50, 60, 70, 80), False, True)]),
    ]
    test = [sample_of(picture, "t", [(2, (5, 5, 50.75, 60.125), False, False)])]
    return {
        part: Dataset(part, CLASSES, list(samples)) for part, samples in (("train", train), ("test", test))
    }


def by_name(dataset):
    """Id -> list of (class, corners, difficult, group)."""
    return {
        sample.id: [
            (dataset.classes[label], box, difficult, group)
            for label, box, difficult, group in zip(
                sample.labels, sample.boxes.tolist(), sample.difficult.tolist(), sample.group.tolist()
            )
        ]
        for sample in dataset.samples
    }


def carried(kind, objects):
    """What is left of (class, corners, difficult, group) in a format (the table at the head of `vision.data.write`).

    None where the image is left out.
    """
    if kind == "yolo":
        kept = [each for each in objects if not (each[2] or each[3])]
        return kept if kept or not objects else None
    if kind == "voc":
        return [(name, box, difficult or group, False) for name, box, difficult, group in objects]
    if kind == "open_images":
        return [(name, box, False, difficult or group) for name, box, difficult, group in objects]
    return objects


def check(read, expected):
    assert set(read) == set(expected)
    for name, objects in expected.items():
        assert [each[0] for each in read[name]] == [each[0] for each in objects]
        assert [each[2:] for each in read[name]] == [each[2:] for each in objects]
        for ours, theirs in zip(read[name], objects):
            np.testing.assert_allclose(ours[1], theirs[1], atol=0.01, rtol=0)


# --- recognition --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_written_is_recognised_and_told(kind, parts, tmp_path):
    write_dataset(tmp_path / "set", kind, parts)
    assert format_of(tmp_path / "set").name == kind
    assert [known.name for known in FORMATS if known.recognises(tmp_path / "set")] == [kind]
    train = open_dataset(tmp_path / "set", "train", strict=True)
    said = summary(train)
    assert f"{kind}, splits train, " in said and "1 of them without" in said
    assert f"{2 if kind == 'yolo' else 3} images" in said  # YOLO has no flags
    for name in train.classes[1:]:
        assert name in said


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("spelt", [str.upper, str.title, lambda name: f" {name.replace('_', '-')} "])
def test_the_type_in_any_case(kind, spelt, parts, tmp_path):
    write_dataset(tmp_path / "set", kind, parts)
    assert len(open_dataset(tmp_path / "set", "test", spelt(kind))) == 1


def test_two_types_in_one_folder_are_said(parts, tmp_path, caplog):
    write_dataset(tmp_path / "set", "voc", parts)
    write_dataset(tmp_path / "other", "yolo", parts)
    (tmp_path / "other/data.yaml").rename(tmp_path / "set/data.yaml")
    with caplog.at_level(logging.WARNING):
        assert format_of(tmp_path / "set").name == "voc"
    assert "also looks like yolo" in caplog.text


def test_a_folder_of_nothing_known_says_what_was_looked_for(tmp_path):
    (tmp_path / "photos.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path, "train")
    for words in ("photos.txt", *NAMES, "data.yaml"):
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", NAMES)
def test_a_set_one_folder_further_down_is_named(kind, parts, tmp_path):
    write_dataset(tmp_path / "above/set", kind, parts)
    with pytest.raises(UserError, match="did you mean .*set"):
        open_dataset(tmp_path / "above", "train")


# --- round trips --------------------------------------------------------------------------------------------


@st.composite
def objects_of_an_image(draw):
    """Boxes of at least a pixel, anywhere in the image, with float32 corners."""
    objects = []
    for _ in range(draw(st.integers(0, 4))):
        width = draw(st.floats(1.25, WIDTH, width=32))
        height = draw(st.floats(1.25, HEIGHT, width=32))
        x = draw(st.floats(0, float(np.float32(WIDTH - width)), width=32, allow_subnormal=False))
        y = draw(st.floats(0, float(np.float32(HEIGHT - height)), width=32, allow_subnormal=False))
        flag = draw(st.sampled_from([(False, False), (False, False), (True, False), (False, True)]))
        objects.append(
            (draw(st.integers(1, 3)), (x, y, min(x + width, WIDTH), min(y + height, HEIGHT)), *flag)
        )
    return objects


@pytest.mark.parametrize("first, second", list(itertools.product(NAMES, NAMES)))
@settings(max_examples=4, deadline=None, derandomize=True)
@given(images=st.lists(objects_of_an_image(), min_size=1, max_size=3))
def test_round_trip(first, second, images, picture):
    # One object in the open, so that no format is left without a class.
    images = [*images, [(label, (10, 10, 20 + label, 30), False, False) for label in (1, 2, 3)]]
    samples = [sample_of(picture, f"image {number}", objects) for number, objects in enumerate(images)]
    whole = Dataset("set", CLASSES, samples)
    folder = Path(tempfile.mkdtemp())
    try:
        write_dataset(folder / "first", first, {"train": whole, "test": whole}, link=True)
        write_dataset(folder / "second", second, read_parts(folder / "first", strict=True), link=True)
        expected = by_name(whole)
        for kind in (first, second):
            expected = {name: carried(kind, objects) for name, objects in expected.items()}
            expected = {name: objects for name, objects in expected.items() if objects is not None}
        train, test = (open_dataset(folder / "second", part, strict=True) for part in ("train", "test"))
        assert train.classes == test.classes and set(train.classes) == set(CLASSES)
        check({name.replace("train_", ""): o for name, o in by_name(train).items()}, expected)
        check({name.replace("test_", ""): o for name, o in by_name(test).items()}, expected)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", NAMES)
def test_sides_of_a_pixel_survive(kind, picture, tmp_path):
    """A side that is one pixel, up to rounding, is neither dropped nor taken for a fraction."""
    boxes = [(k + 0.3, 7.7 * k, k + 0.3 + 1, 7.7 * k + 1) for k in range(1, 30)] + [
        (399, 299, 400, 300),
        (0, 0, 1, 1),
    ]
    whole = Dataset("s", CLASSES, [sample_of(picture, "a", [(1, box, False, False) for box in boxes])])
    write_dataset(tmp_path / "set", kind, {"train": whole})
    (sample,) = open_dataset(tmp_path / "set", "train", strict=True).samples
    np.testing.assert_allclose(sample.boxes, whole.samples[0].boxes, atol=0.01)


# --- several roots, classes ---------------------------------------------------------------------------------


def test_roots_of_all_types_train_together_whatever_their_order(parts, tmp_path):
    orders = [("cat", "dog", "owl"), ("owl", "cat"), ("dog", "owl"), ("owl", "dog", "cat"), ("cat", "ant")]
    roots = []
    for kind, names in zip(NAMES, orders):
        numbered = {
            part: Dataset(
                part, ("BACKGROUND", *names), [_under(sample, len(names)) for sample in dataset.samples]
            )
            for part, dataset in parts.items()
        }
        write_dataset(tmp_path / kind, kind, numbered)
        roots.append(tmp_path / kind)
    seen = set()
    for order in (roots, roots[::-1], roots[2:] + roots[:2]):
        for split in ("train", "test"):
            dataset = open_dataset(order, split)
            assert dataset.classes == ("BACKGROUND", "ant", "cat", "dog", "owl")
            seen.add((split, repr(sorted((s.id, s.labels.tolist()) for s in dataset.samples))))
            assert len(dataset.recognised) == len(roots)
    assert len(seen) == 2


def _under(sample, count):
    return Sample(
        sample.id,
        sample.path,
        sample.boxes,
        (sample.labels - 1) % count + 1,
        *[sample.difficult, sample.group, sample.size],
    )


@pytest.mark.parametrize("kind", NAMES)
def test_given_labels_number_the_classes(kind, parts, tmp_path):
    write_dataset(tmp_path / "set", kind, parts)
    dataset = open_dataset(tmp_path / "set", "test", labels=["zebra", "Trafic light"])
    assert dataset.classes == ("BACKGROUND", "zebra", "Trafic light")
    assert dataset.samples[0].labels.tolist() == [2]
    train = open_dataset(tmp_path / "set", "train", labels=["zebra", "Trafic light"])
    assert len(train) == len(
        open_dataset(tmp_path / "set", "train")
    )  # what has no object of these classes is an image without objects
    unknown = [finding for finding in train.findings if finding.code == "unknown-class"]
    assert {finding.value.split(" (")[0] for finding in unknown} == {"cat", "größe: <&>"}


@pytest.mark.parametrize("kind", NAMES)
def test_labels_that_do_not_fit_at_all(kind, parts, tmp_path):
    write_dataset(tmp_path / "set", kind, parts)
    with pytest.raises(UserError, match="did you mean 'Traffic-Light'"):
        open_dataset(tmp_path / "set", "test", labels=["Cat", "Traffic-Light"])


# --- negatives, balance, groups -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_balance_and_repeats_work_for_every_format(kind, picture, tmp_path):
    cats = [sample_of(picture, f"cat{n}", [(1, (10, 10, 90, 90), False, False)]) for n in range(8)]
    others = [
        sample_of(picture, "light", [(2, (10, 10, 90, 90), False, False)]),
        sample_of(picture, "none", []),
    ]
    write_dataset(tmp_path / "set", kind, {"train": Dataset("s", CLASSES[:3], cats + others)})
    dataset = open_dataset(tmp_path / "set", "train")
    chosen = [sample.id for sample in balanced(dataset).samples]
    assert len(chosen) == 3 and {"light", "none"} <= set(chosen)
    factors = dict(zip([sample.id for sample in dataset.samples], repeat_factors(dataset, 0.4)))
    assert factors["light"] == pytest.approx(2.0) and factors["cat0"] == factors["none"] == 1


@pytest.mark.parametrize("kind", ["coco", "csv", "open_images"])
def test_groups(kind, picture, tmp_path):
    samples = [
        sample_of(
            picture, "both", [(1, (10, 10, 90, 90), False, False), (1, (100, 100, 300, 200), False, True)]
        ),
        sample_of(picture, "group", [(1, (10, 10, 90, 90), False, True)]),
        sample_of(picture, "none", []),
    ]
    write_dataset(tmp_path / "set", kind, {"train": Dataset("s", CLASSES[:2], samples)})
    ids = {}
    for rule in ("ignore", "keep", "drop"):
        dataset = open_dataset(tmp_path / "set", "train", groups=rule)
        ids[rule] = {sample.id: sample.group.tolist() for sample in dataset.samples}
    assert ids["ignore"] == {"both": [False, True], "group": [True], "none": []}
    assert ids["keep"] == {"both": [False, False], "group": [False], "none": []}
    assert ids["drop"] == {"both": [False], "none": []}  # "group" would pass for an image without objects
    with pytest.raises(UserError, match="--groups"):
        open_dataset(tmp_path / "set", "train", groups="use")


def test_every_format_can_be_written():
    assert set(WRITERS) == set(NAMES)
