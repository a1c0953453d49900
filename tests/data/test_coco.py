"""The COCO reader: layouts, what every entry may lack, and whatever JSON there is."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vision.data import open_dataset
from vision.data.coco import coco_parts, is_coco, read_coco
from vision.errors import UserError

HEIGHT, WIDTH = 60, 80
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def picture(path, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((height, width, 3), 99, np.uint8))[1].tobytes())


def image(number=1, name="a.jpg", **more):
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


def thing(bbox=(10, 20, 30, 30), category=3, on=1, **more):
    return {"id": 1, "image_id": on, "category_id": category, "bbox": list(bbox), **more}


def write(path, images, annotations, categories=CATEGORIES):
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(whole), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """One image with a cat."""
    write(tmp_path / "annotations/instances_train.json", [image()], [thing()])
    picture(tmp_path / "images/a.jpg")
    return tmp_path


def codes(dataset):
    return [finding.code for finding in dataset.findings]


def test_an_empty_file_of_no_images(tmp_path):
    write(tmp_path / "annotations/instances_train.json", [], [])
    dataset = read_coco(tmp_path, "train")
    assert dataset.samples == [] and dataset.classes == ("BACKGROUND", "cat", "dog")
    with pytest.raises(UserError, match="not one usable image"):
        open_dataset(tmp_path, "train")


def test_a_whole_file_has_no_findings(root):
    dataset = read_coco(root, "train")
    (sample,) = dataset.samples
    assert dataset.findings == [] and (sample.id, sample.size) == ("a", (HEIGHT, WIDTH))
    np.testing.assert_array_equal(sample.boxes, [[10, 20, 40, 50]])
    assert dataset.classes == ("BACKGROUND", "cat", "dog") and sample.labels.tolist() == [1]


# --- layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, images, split",
    [
        (
            ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
            "train2017",
            "train",
        ),
        (
            ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
            "images/train2017",
            "train",
        ),
        (["annotations/instances_train.json", "annotations/captions_train.json"], "images", "train"),
        (["train/_annotations.coco.json", "valid/_annotations.coco.json"], "train", "train"),
        (["valid/_annotations.coco.json", "train/_annotations.coco.json"], "valid", "test"),
        (["valid/_annotations.coco.json", "test/_annotations.coco.json"], "valid", "val"),
        (["train.json", "test.json"], "images", "test"),
        (["annotations/train_annotations.json", "annotations/val_annotations.json"], "", "train"),
        (["annotations/instances_minival.json"], "val", "test"),
        (["train/annotations.json"], "train/images", "train"),
    ],
)
def test_layouts(tmp_path, files, images, split):
    for file in files:
        write(tmp_path / file, [image()], [thing()])
    picture(tmp_path / images / "a.jpg")
    assert is_coco(tmp_path)
    dataset = open_dataset(tmp_path, split, strict=True)
    assert dataset.recognised[0].startswith(f"{tmp_path}: coco, splits ") and dataset.num_objects == 1


def test_one_file_for_everything_is_divided(tmp_path):
    images = [image(number, f"{number}.jpg") for number in range(20)]
    write(tmp_path / "annotations/instances_default.json", images, [thing(on=number) for number in range(20)])
    for number in range(20):
        picture(tmp_path / f"images/{number}.jpg")
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    assert (len(train), len(test)) == (16, 4) and codes(train) == ["random-split"]
    assert not {s.id for s in train.samples} & {s.id for s in test.samples} and coco_parts(tmp_path) == []
    other = open_dataset(tmp_path, "test", seed=1)
    assert {s.id for s in other.samples} != {s.id for s in test.samples}
    with pytest.raises(UserError, match="'minival'|'holdout'"):
        open_dataset(tmp_path, "holdout")


def test_one_file_of_any_name_is_divided(tmp_path):
    images = [image(number, f"{number}.jpg") for number in range(10)]
    write(tmp_path / "annotations/instances_mine.json", images, [thing(on=number) for number in range(10)])
    for number in range(10):
        picture(tmp_path / f"images/{number}.jpg")
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    assert (len(train), len(test)) == (8, 2) and codes(train) == codes(test) == ["random-split"]


def test_two_files_of_one_part_are_refused(root):
    write(root / "annotations/train.json", [], [])
    with pytest.raises(UserError, match="both annotate train"):
        open_dataset(root, "train")


def test_a_part_that_is_not_there(root):
    with pytest.raises(UserError, match="no split test or val; there is train.*vision.data split"):
        open_dataset(root, "test")


def test_trainval_keeps_ids_apart(root):
    write(root / "annotations/instances_val.json", [image()], [thing(category=7)])
    dataset = open_dataset(root, "trainval", strict=True)
    assert {s.id: s.labels.tolist() for s in dataset.samples} == {"train/a": [1], "val/a": [2]}


@pytest.mark.parametrize(
    "name, there",
    [
        ("sub/a.jpg", "images/sub/a.jpg"),
        ("sub\\a.jpg", "images/sub/a.jpg"),
        ("/home/me/a.jpg", "images/a.jpg"),
        ("C:\\photos\\a.jpg", "images/a.jpg"),
        ("../../a.jpg", "images/a.jpg"),
        ("A.JPG", "images/a.jpg"),
        ("b  c.jpg", "images/b  c.jpg"),
    ],
)
def test_where_an_image_is_looked_for(tmp_path, name, there):
    write(tmp_path / "annotations/instances_train.json", [image(name=name)], [thing()])
    picture(tmp_path / there)
    assert open_dataset(tmp_path, "train").samples[0].path.name.lower() == there.rsplit("/", 1)[1].lower()


def test_an_image_outside_the_root_is_never_read(tmp_path):
    picture(tmp_path / "secret.jpg")
    write(tmp_path / "set/annotations/instances_train.json", [image(name="../secret.jpg")], [thing()])
    assert codes(read_coco(tmp_path / "set", "train")) == ["missing-image"]


def test_names_that_differ_in_the_suffix_are_two_images(tmp_path):
    write(tmp_path / "train.json", [image(1, "a.jpg"), image(2, "a.png")], [thing(on=2)])
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "a.png")
    assert {s.id: len(s.labels) for s in open_dataset(tmp_path, "train").samples} == {"a.jpg": 0, "a.png": 1}


# --- classes ------------------------------------------------------------------------------------------------


def test_the_numbering_hangs_neither_on_ids_nor_on_the_part(tmp_path):
    write(tmp_path / "train.json", [image()], [thing(category=3)], CATEGORIES)
    write(
        tmp_path / "test.json",
        [image()],
        [thing(category=1)],
        [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    )
    picture(tmp_path / "a.jpg")
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    assert train.classes == test.classes == ("BACKGROUND", "cat", "dog")
    assert train.samples[0].labels.tolist() == [1] and test.samples[0].labels.tolist() == [2]


def test_a_file_may_lack_categories_of_another(tmp_path):
    names = ["owl", "cat", "ant"]
    full = [{"id": number, "name": name} for number, name in enumerate(names)]
    write(tmp_path / "train.json", [image()], [thing(category=2)], full)
    write(tmp_path / "test.json", [image()], [thing(category=0)], full[::2])
    picture(tmp_path / "a.jpg")
    assert open_dataset(tmp_path, "test").classes == ("BACKGROUND", *names)


def test_the_empty_super_category_of_roboflow_is_no_class(tmp_path):
    above = [{"id": 0, "name": "cells", "supercategory": "none"}]
    below = [
        {"id": 1, "name": "RBC", "supercategory": "cells"},
        {"id": 2, "name": "WBC", "supercategory": "cells"},
    ]
    write(tmp_path / "train/_annotations.coco.json", [image()], [thing(category=2)], above + below)
    picture(tmp_path / "train/a.jpg")
    assert open_dataset(tmp_path, "train").classes == ("BACKGROUND", "RBC", "WBC")
    write(tmp_path / "train/_annotations.coco.json", [image()], [thing(category=0)], above + below)
    assert open_dataset(tmp_path, "train").classes == ("BACKGROUND", "cells", "RBC", "WBC")


def test_two_ids_of_one_name_are_one_class(tmp_path):
    same = [{"id": 1, "name": "cat"}, {"id": 2, "name": " cat "}]
    write(tmp_path / "train.json", [image()], [thing(category=1), thing((40, 5, 20, 20), 2)], same)
    picture(tmp_path / "a.jpg")
    dataset = open_dataset(tmp_path, "train")
    assert dataset.classes == ("BACKGROUND", "cat") and dataset.samples[0].labels.tolist() == [1, 1]


# --- entries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, difficult, group",
    [
        ({}, False, False),
        ({"iscrowd": 1}, False, True),
        ({"iscrowd": True}, False, True),
        ({"iscrowd": "0"}, False, False),
        ({"iscrowd": -1}, False, False),
        ({"ignore": 1}, True, False),
        ({"difficult": 1, "iscrowd": 0}, True, False),
    ],
)
def test_flags(root, more, difficult, group):
    write(root / "annotations/instances_train.json", [image()], [thing(**more)])
    (sample,) = open_dataset(root, "train").samples
    assert (sample.difficult.tolist(), sample.group.tolist()) == ([difficult], [group])


@pytest.mark.parametrize(
    "entry, code, box",
    [
        (thing((10, 20, 30, 30)), None, (10, 20, 40, 50)),
        (thing((0, 0, WIDTH, HEIGHT)), None, (0, 0, 80, 60)),
        (thing((10, 20, 30, 41)), None, (10, 20, 40, 60)),
        (thing(("10", "20", "30", "30.5")), None, (10, 20, 40, 50.5)),
        (thing((10, 20, 30, 90)), "clipped-box", (10, 20, 40, 60)),
        (thing((40, 50, -30, -30)), "inverted-box", (10, 20, 40, 50)),
        (thing((200, 20, 30, 30)), "outside-box", None),
        (thing((10, 20, 0, 30)), "empty-box", None),
        (thing((0.1, 0.2, 0.3, 0.3)), "fraction-box", None),
        (thing((10, 20, float("nan"), 30)), "bad-number", None),
        (thing((10, 20, float("inf"), 30)), "bad-number", None),
        (thing((10, 20, 10**400, 30)), "bad-number", None),
        (thing((10, 20, None, 30)), "bad-number", None),
        (thing((10, 20, [5], 30)), "bad-number", None),
        (thing((10, 20, 30)), "no-box", None),
        ({**thing(), "bbox": None}, "no-box", None),
        ({**thing(), "bbox": {"x": 1}}, "no-box", None),
        ({**thing(), "bbox": [], "segmentation": [[10, 20, 40, 20, 40, 50]]}, None, (10, 20, 40, 50)),
        ({**thing(), "bbox": [], "segmentation": {"counts": [1], "size": [6, 8]}}, "no-box", None),
        (thing(category=99), "unknown-class", None),
        (thing(category=None), "no-name", None),
        (thing(category=[3]), "no-name", None),
        (thing(category="3"), None, (10, 20, 40, 50)),
        (thing(category=3.0), None, (10, 20, 40, 50)),
        ("not a mapping", "bad-annotation", None),
        (thing(on=5), "bad-annotation", None),
        (thing(on={"a": 1}), "bad-annotation", None),
    ],
)
def test_annotations(root, entry, code, box):
    good = {**thing((50, 5, 10, 10), 7), "id": 2}
    write(root / "annotations/instances_train.json", [image()], [entry, good])
    dataset = read_coco(root, "train")
    assert codes(dataset) == ([code] if code else [])
    for finding in dataset.findings:
        assert finding.file.endswith("instances_train.json") and len(str(finding)) < 600
    (sample,) = dataset.samples
    np.testing.assert_allclose(sample.boxes, ([box] if box else []) + [(50, 5, 60, 15)])


@pytest.mark.parametrize(
    "entry, code",
    [
        ({"id": 1}, "bad-annotation"),
        (image(name=""), "bad-annotation"),
        (image(name=".."), "bad-annotation"),
        (image(name=5), "bad-annotation"),
        (image(name="b\0c.jpg"), "bad-annotation"),
        (image(name="n" * 5000 + ".jpg"), "missing-image"),
        (image(name="\ud800.jpg"), "missing-image"),
        (image(width="wide"), None),
        (image(width=0, height=0), None),
        (image(width=50, height=60), "size-mismatch"),
        (image(name="sub/../a.jpg"), None),
    ],
)
def test_images(root, entry, code):
    write(root / "annotations/instances_train.json", [entry], [thing()])
    dataset = read_coco(root, "train")
    assert codes(dataset) == ([code] if code else [])
    str(dataset.findings).encode()  # can be printed
    assert len(dataset.samples) == (code in (None, "size-mismatch"))


def test_a_declared_size_of_the_same_shape_scales_the_boxes(root):
    write(
        root / "annotations/instances_train.json", [image(width=160, height=120)], [thing((20, 40, 60, 60))]
    )
    np.testing.assert_allclose(read_coco(root, "train").samples[0].boxes, [[10, 20, 40, 50]])


def test_an_image_twice_is_taken_once(root):
    write(root / "annotations/instances_train.json", [image(1), image(2)], [thing(on=1), thing(on=2)])
    dataset = read_coco(root, "train")
    assert codes(dataset) == ["duplicate-id"] and len(dataset) == 1


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", "line 1, column 1"),
        (b'{"images": [,]}', "line 1, column 13"),
        (b'{"images": [],\n "annotations": [],\n oops', "line 3"),
        (b"[1, 2]", "holds a list"),
        (b'"images"', "holds images"),
        (b'{"images": {}, "annotations": [], "categories": []}', "'images' is a mapping"),
        (b'{"annotations": [], "categories": []}', "no 'images'"),
        (b'{"images": [], "categories": [], "annotations": 5}', "'annotations' is 5"),
        (b'{"images": [], "annotations": []}', "no 'categories'"),
        (b'{"images": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"images": [' + b"9" * 5000 + b'], "x": }', "not JSON"),
        (b"\xff\xfe\x00\x01", "not JSON|line 1"),
        (
            b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "both",
        ),
    ],
)
def test_a_file_that_is_none(root, raw, message):
    (root / "annotations/instances_train.json").write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(root, "train")
    assert "instances_train.json" in str(caught.value)


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from([1, 3, "a.jpg"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = (
    "id",
    "image_id",
    "category_id",
    "bbox",
    "iscrowd",
    "segmentation",
    "file_name",
    "width",
    "height",
    "name",
)
entries = st.lists(
    st.one_of(anything, st.fixed_dictionaries({}, optional={key: anything for key in KEYS})), max_size=3
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(images=entries, annotations=entries, categories=entries)
def test_whatever_the_entries_are(root, images, annotations, categories):
    write(
        root / "annotations/instances_train.json",
        [image(), *images],
        [thing(), *annotations],
        [*CATEGORIES, *categories],
    )
    try:
        dataset = read_coco(root, "train")
    except UserError as error:
        assert "instances_train.json" in str(error)
        return
    str(dataset.findings).encode()
    for sample in dataset.samples:
        assert np.isfinite(sample.boxes).all() and sample.boxes.min(initial=0) >= 0
