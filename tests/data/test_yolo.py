"""The YOLO reader: layouts, the YAML, rows, and whatever text there is."""

import sys

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vision.data import format_of, open_dataset
from vision.data.yolo import is_yolo, read_yaml, read_yolo, yolo_parts
from vision.errors import UserError

HEIGHT, WIDTH = 60, 80
ROW = "0 0.3125 0.5833333333 0.375 0.5\n"  # 10 20 40 50
BOX = [10, 20, 40, 50]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((HEIGHT, WIDTH, 3), 99, np.uint8))[1].tobytes())


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """One image with a cat."""
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    for part in ("train", "val"):
        picture(tmp_path / f"images/{part}/{part}.jpg")
        text(tmp_path / f"labels/{part}/{part}.txt", ROW)
    return tmp_path


def codes(dataset):
    return [finding.code for finding in dataset.findings]


def test_a_whole_set_has_no_findings(root):
    dataset = read_yolo(root, "train")
    (sample,) = dataset.samples
    assert dataset.findings == [] and (sample.id, sample.size) == ("train", (HEIGHT, WIDTH))
    np.testing.assert_allclose(sample.boxes, [BOX], atol=1e-4)
    assert dataset.classes == ("BACKGROUND", "cat", "dog") and sample.labels.tolist() == [1]
    assert yolo_parts(root) == ["train", "val"] and read_yolo(root, "test").samples[0].id == "val"


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_without_labels_it_is_an_image_without_objects(root, content):
    label = root / "labels/train/train.txt"
    label.unlink() if content is None else label.write_text(content)
    picture(root / "images/train/other.jpg")
    text(root / "labels/train/other.txt", ROW)
    dataset = open_dataset(root, "train", strict=True)
    assert {s.id: len(s.labels) for s in dataset.samples} == {"train": 0, "other": 1}


# --- the YAML -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "yaml, images, labels",
    [
        ("train: images/train\nnames: [cat]", "images/train", "labels/train"),
        ("path: .\ntrain: images/train\nnames: {0: cat}", "images/train", "labels/train"),
        ("path: /content/elsewhere\ntrain: images\nnames:\n  0: cat", "images", "labels"),
        (
            "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']",
            "train/images",
            "train/labels",
        ),
        ("train: ./train/images\nnames: ['cat']", "train/images", "train/labels"),
        ("path: data\ntrain: train/images\nnames: ['cat']", "data/train/images", "data/train/labels"),
        ("train: train\nnames: ['cat']", "train", "train"),
        ("train: [one/images, two/images]\nnames: ['cat']", "two/images", "two/labels"),
        ("train: train.txt\nnames: ['cat']", "images", "labels"),
        ("train: lists/train.txt\nnames: ['cat']", "images", "labels"),
        ("train: images/\nnames: ['cat']", "images/deep/down", "labels/deep/down"),
    ],
)
def test_where_a_yaml_leads(tmp_path, yaml, images, labels):
    text(tmp_path / "data.yaml", yaml)
    for folder in ("one/images", "two/images"):
        (tmp_path / folder).mkdir(parents=True)
    text(tmp_path / "train.txt", "./images/a.jpg\n\n")
    text(tmp_path / "lists/train.txt", "images/a.jpg\n")
    picture(tmp_path / images / "a.jpg")
    text(tmp_path / labels / "a.txt", ROW)
    dataset = open_dataset(tmp_path, "train", strict=True)
    assert dataset.num_objects == 1 and dataset.classes == ("BACKGROUND", "cat")


def test_absolute_paths_and_the_yaml_itself(root, tmp_path_factory):
    place = tmp_path_factory.mktemp("elsewhere")
    listing = place / "train.txt"
    listing.write_text(f"{root}/images/train/train.jpg\n")
    text(place / "mine.yml", f"path: {root}\ntrain: {listing}\nval: images/val\nnames: [cat]\n")
    for given_root in (place, place / "mine.yml"):
        dataset = open_dataset(given_root, "train", strict=True)
        assert [s.id for s in dataset.samples] == ["train"] and dataset.num_objects == 1
        assert len(open_dataset(given_root, "test")) == 1


def test_names_are_texts_whatever_yaml_makes_of_them(root):
    text(root / "data.yaml", "train: images/train\nnames:\n  0: no\n  1: 007\n  3: 2021-01-01\n")
    assert read_yolo(root, "train").classes == ("BACKGROUND", "no", "007", "2021-01-01")


def test_numbers_are_mapped_by_name(root):
    text(root / "data.yaml", "train: images/train\nnames: {5: cat, 2: dog}\n")
    text(root / "labels/train/train.txt", ROW.replace("0 ", "5 ", 1) + ROW.replace("0 ", "2 ", 1))
    dataset = open_dataset(root, "train", labels=["cat", "dog"])
    assert dataset.samples[0].labels.tolist() == [1, 2]
    assert read_yolo(root, "train").classes == ("BACKGROUND", "dog", "cat")


@pytest.mark.parametrize(
    "yaml, message",
    [
        ("train: images/train\nnames: 5", "`names` is 5"),
        ("train: images/train\nval: x", "has no `names`"),
        ("train: images/train\nnames: {cat: 0}", "cat: 0 is no class number"),
        ("train: images/train\nnames: {-1: cat}", "no class number"),
        ("train: images/train\nnames: [[cat]]", "a list is no class number"),
        ("train: nowhere\nnames: [cat]", "train: nowhere: not there"),
        ("names: [cat]\ntest:", "no train, val or test"),
        ("train: images/train\nnames: [cat\nval: x", "line 3"),
        ("names: &a [cat]\ntrain: *a", "alias"),
        ("train: 'x\nnames: [cat]\n", "not YAML"),
        ("names: " + "[" * 5000 + "\ntrain: x\n", "nested too deeply"),
        ("names: !!python/object/apply:os.system [exit]\ntrain: images/train\n", None),
        ("- names: x\n- train: y\n", "holds a list"),
    ],
)
def test_a_yaml_that_is_none(root, yaml, message):
    text(root / "data.yaml", yaml)
    if message is None:  # a tag makes no object: the list is read as one of texts
        assert read_yolo(root, "train").classes == ("BACKGROUND", "exit")
        return
    with pytest.raises(UserError, match=message) as caught:
        read_yolo(root, "train")
    assert "data.yaml" in str(caught.value) and len(str(caught.value)) < 1000


def test_a_huge_yaml_is_refused(root):
    text(root / "data.yaml", "names: [cat]\n# " + "x" * (1 << 20))
    with pytest.raises(UserError, match="over 256 KB"):
        read_yaml(root / "data.yaml")


def test_without_pyyaml_it_is_said(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UserError, match="pip install pyyaml"):
        open_dataset(root, "train")


# --- without a YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, labels, classes, strict",
    [
        ("images/train", "labels/train", "classes.txt", True),
        ("images/train", "labels/train", "labels/classes.txt", True),
        ("train/images", "train/labels", "classes.txt", True),
        ("images", "labels", "classes.txt", False),
        ("", "", "classes.txt", False),
        ("", "", "obj.names", False),
        ("train", "train", "train/_darknet.labels", True),
    ],
)
def test_bare_folders(tmp_path, images, labels, classes, strict):
    text(tmp_path / classes, "cat\ndog\n")
    picture(tmp_path / images / "a.jpg")
    text(tmp_path / labels / "a.txt", ROW)
    assert is_yolo(tmp_path)
    dataset = open_dataset(tmp_path, "train")
    assert dataset.num_objects == 1 and codes(dataset) == ([] if strict else ["random-split"])


@pytest.mark.parametrize(
    "data, train, images, strict",
    [
        # CVAT's "YOLO 1.1": neither data/ nor the lists' data/ is a folder of the export
        ("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/", "data/obj_train_data/a.jpg",
         "obj_train_data", False),
        ("train=train.txt\nvalid=train.txt\nnames=obj.names", "./obj/a.jpg", "obj", False),
        ("train = /home/me/x/train.txt\nnames = x/obj.names", "/home/me/darknet/data/obj/a.jpg", "obj", False),
        ("train = train.txt\nvalid = valid.txt\nnames = obj.names", "data\\obj\\a.jpg", "obj", True),
        ("train = train.txt\nvalid = nowhere.txt\nnames = nowhere.names", "images/a.jpg", "images", False),
    ],
)  # fmt: skip
def test_darknet(tmp_path, data, train, images, strict):
    text(tmp_path / "obj.data", data)
    text(tmp_path / "obj.names", "cat\ndog\n")
    text(tmp_path / "train.txt", train + "\n")
    text(tmp_path / "valid.txt", train.replace("a.jpg", "b.jpg"))
    for name in ("a", "b"):
        picture(tmp_path / images / f"{name}.jpg")
        text(tmp_path / images / f"{name}.txt", ROW)
    assert format_of(tmp_path).name == "yolo"
    dataset = open_dataset(tmp_path, "train")
    assert [sample.id for sample in dataset.samples] == ["a"] and dataset.num_objects == 1
    assert dataset.classes == ("BACKGROUND", "cat", "dog")
    assert codes(dataset) == ([] if strict else ["random-split"])
    assert yolo_parts(tmp_path) == (["train", "val"] if strict else [])


def test_a_data_file_that_leads_nowhere(tmp_path):
    text(tmp_path / "obj.data", "train = data/train.txt\nnames = data/obj.names\n")
    with pytest.raises(UserError, match="obj.data: train: data/train.txt: not there"):
        open_dataset(tmp_path, "train")


def test_numbers_without_names(tmp_path):
    picture(tmp_path / "images/train/a.jpg")
    text(tmp_path / "labels/train/a.txt", ROW)
    with pytest.raises(UserError, match="nothing names them.*classes.txt"):
        open_dataset(tmp_path, "train")
    assert open_dataset(tmp_path, "train", labels=["cat"]).num_objects == 1


def test_images_of_one_name_in_two_folders(tmp_path):
    text(tmp_path / "data.yaml", "train: [one/images, two/images]\nnames: [cat]")
    for folder in ("one", "two"):
        picture(tmp_path / folder / "images/a.jpg")
    text(tmp_path / "two/labels/a.txt", ROW)
    dataset = open_dataset(tmp_path, "train", strict=True)
    assert {s.id: len(s.labels) for s in dataset.samples} == {"one/images/a": 0, "two/images/a": 1}


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, code, box",
    [
        (ROW, None, BOX),
        ("0\t0.3125 0.5833333333\t0.375 0.5\r", None, BOX),
        ("0.0 0.3125 0.5833333333 0.375 0.5", None, BOX),
        ("0 0.125 0.333333333 0.5 0.333333333 0.5 0.833333333", None, BOX),  # a segment
        ("0 0.125 0.333333333 0.5 0.333333333 0.5 0.833333333 0.2 0.8333333", None, BOX),
        ("0 0.5 0.5 1 1", None, (0, 0, 80, 60)),
        ("0 0.3125 0.5833333333 -0.375 0.5", "inverted-box", BOX),
        ("0 0.5 0.5 1.5 1", "clipped-box", (0, 0, 80, 60)),
        ("0 1.6 0.5 0.2 0.5", "outside-box", None),
        ("0 0.5 0.5 0 0.5", "empty-box", None),
        ("0 25 35 30 30", "pixel-box", None),
        ("0 nan 0.5 0.5 0.5", "bad-number", None),
        ("0 0.5 0.5 1e999 0.5", "bad-number", None),
        ("0 half 0.5 0.5 0.5", "bad-number", None),
        ("0 0.1 0.1 nan 0.1 0.2 0.2", "bad-number", None),
        ("0 0.5 0.5 0.5", "bad-line", None),
        ("0 0.5 0.5 0.5 0.5 0.9", "bad-line", None),
        ("hello", "bad-line", None),
        ("0,0.5,0.5,0.5,0.5", "bad-line", None),
        ("7 0.5 0.5 0.5 0.5", "unknown-class", None),
        ("-1 0.5 0.5 0.5 0.5", "unknown-class", None),
        ("0.5 0.5 0.5 0.5 0.5", "unknown-class", None),
        ("cat 0.5 0.5 0.5 0.5", "unknown-class", None),
        ("9" * 400 + " 0.5 0.5 0.5 0.5", "unknown-class", None),
    ],
)
def test_rows(root, row, code, box):
    text(root / "labels/train/train.txt", row.rstrip("\n") + "\n1 0.5 0.5 0.5 0.5\n")
    dataset = read_yolo(root, "train")
    assert codes(dataset) == ([code] if code else [])
    for finding in dataset.findings:
        assert finding.file.endswith("train.txt") and "line 1" in finding.where and len(str(finding)) < 400
    np.testing.assert_allclose(
        dataset.samples[0].boxes, ([box] if box else []) + [(20, 15, 60, 45)], atol=1e-4
    )


def test_keypoints_are_passed_over(root):
    text(root / "data.yaml", "train: images/train\nkpt_shape: [2, 2]\nnames: [cat]")
    text(root / "labels/train/train.txt", ROW.strip() + " 0.9 0.9 0.95 0.99\n")
    np.testing.assert_allclose(open_dataset(root, "train", strict=True).samples[0].boxes, [BOX], atol=1e-4)


def test_a_label_file_of_bytes(root):
    (root / "labels/train/train.txt").write_bytes(bytes(range(256)) * 20)
    assert set(codes(read_yolo(root, "train"))) == {"bad-line"}


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.text(alphabet=st.sampled_from("0123456789.-+eE nai\n\t,\x00é"), max_size=120))
def test_whatever_the_rows_are(root, content):
    text(root / "labels/train/train.txt", content)
    (sample,) = read_yolo(root, "train").samples
    assert np.isfinite(sample.boxes).all() and sample.boxes.min(initial=0) >= 0


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.text(alphabet=st.sampled_from("abn:[]{}-&*!<|>'\"#%@`, \n\t?0.1/"), max_size=60))
def test_whatever_the_yaml_is(root, content):
    text(root / "data.yaml", "train: images/train\nnames: [cat]\n" + content)
    try:
        read_yolo(root, "train")
    except UserError as error:
        assert "data.yaml" in str(error)
