"""The CSV reader: layouts, columns, rows, and whatever text there is."""

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vision.data import open_dataset
from vision.data.csv_rows import csv_parts, is_csv, read_csv
from vision.errors import UserError

HEIGHT, WIDTH = 60, 80
HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
ROW = "a.jpg,80,60,cat,10,20,40,50\n"


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((HEIGHT, WIDTH, 3), 99, np.uint8))[1].tobytes())


def text(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding=encoding, newline="")


@pytest.fixture
def root(tmp_path):
    """One image with a cat."""
    text(tmp_path / "train_labels.csv", HEAD + ROW)
    picture(tmp_path / "images/a.jpg")
    return tmp_path


def codes(dataset):
    return [finding.code for finding in dataset.findings]


def test_a_header_alone(root):
    text(root / "train_labels.csv", HEAD)
    assert read_csv(root, "train").samples == []
    with pytest.raises(UserError, match="not one usable image"):
        open_dataset(root, "train")


def test_a_whole_file_has_no_findings(root):
    dataset = read_csv(root, "train")
    (sample,) = dataset.samples
    assert dataset.findings == [] and (sample.id, sample.size) == ("a", (HEIGHT, WIDTH))
    np.testing.assert_array_equal(sample.boxes, [[10, 20, 40, 50]])
    assert dataset.classes == ("BACKGROUND", "cat") and sample.labels.tolist() == [1]


@pytest.mark.parametrize(
    "files, images, split, parts",
    [
        (["train_labels.csv", "test_labels.csv"], "images", "test", ["train", "test"]),
        (["train.csv", "test.csv"], "train", "train", ["train", "test"]),
        (["data/train_labels.csv", "data/test_labels.csv"], "images/train", "train", ["train", "test"]),
        (["train/_annotations.csv", "valid/_annotations.csv"], "valid", "test", ["train", "val"]),
        (["annotations/train.csv"], "images", "train", ["train"]),
    ],
)
def test_layouts(tmp_path, files, images, split, parts):
    for file in files:
        text(tmp_path / file, HEAD + ROW)
    picture(tmp_path / images / "a.jpg")
    assert is_csv(tmp_path) and csv_parts(tmp_path) == parts
    assert open_dataset(tmp_path, split, strict=True).num_objects == 1


def test_one_file_for_everything_is_divided(tmp_path):
    text(tmp_path / "annotations.csv", HEAD + "".join(ROW.replace("a.jpg", f"{n}.jpg") for n in range(10)))
    for n in range(10):
        picture(tmp_path / f"{n}.jpg")
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    assert (len(train), len(test)) == (8, 2) and codes(test) == ["random-split"]


@pytest.mark.parametrize(
    "head, row",
    [
        ("class,xmin,ymin,xmax,ymax,filename", "cat,10,20,40,50,a.jpg"),
        ("Filename,Width,Height,Class,XMin,YMin,XMax,YMax", "a.jpg,80,60,cat,10,20,40,50"),
        ("image_name;label;x_min;y_min;x_max;y_max", "a.jpg;cat;10;20;40;50"),
        ("filename\tclass\txmin\tymin\txmax\tymax", "a.jpg\tcat\t10\t20\t40\t50"),
        ("filename, class, xmin, ymin, xmax, ymax", "a.jpg, cat, 10.0, 20.0, 40, 5e1"),
        ('"filename","class","xmin","ymin","xmax","ymax"', '"a.jpg","cat","10","20","40","50"'),
        ("filename,class,xmin,ymin,xmax,ymax", "C:\\photos\\a.jpg,cat,10,20,40,50"),
    ],
)
@pytest.mark.parametrize("end, encoding", [("\n", "utf-8"), ("\r\n", "utf-8-sig"), ("\n", "utf-16")])
def test_columns(root, head, row, end, encoding):
    text(root / "train_labels.csv", end.join([head, row, "", ""]), encoding)
    (sample,) = open_dataset(root, "train", strict=True).samples
    np.testing.assert_array_equal(sample.boxes, [[10, 20, 40, 50]])


def test_flags(root):
    head = HEAD.strip() + ",difficult,iscrowd\n"
    text(
        root / "train_labels.csv",
        head + "".join(ROW.strip() + f",{d},{g}\n" for d, g in ((0, 0), (1, 0), (0, 1))),
    )
    (sample,) = open_dataset(root, "train").samples
    assert sample.difficult.tolist() == [False, True, False] and sample.group.tolist() == [False, False, True]


@pytest.mark.parametrize("row", ["b.jpg,80,60,,,,,", "b.jpg,,,,,,,"])
def test_a_row_of_a_name_alone_is_an_image_without_objects(root, row):
    picture(root / "images/b.jpg")
    text(root / "train_labels.csv", HEAD + ROW + row + "\n")
    dataset = open_dataset(root, "train", strict=True)
    assert {s.id: len(s.labels) for s in dataset.samples} == {"a": 1, "b": 0}


def test_images_beside_a_roboflow_csv_are_images_without_objects(tmp_path):
    text(tmp_path / "train/_annotations.csv", HEAD + ROW)
    for name in ("a.jpg", "a.png", "b.jpg"):
        picture(tmp_path / "train" / name)
    dataset = open_dataset(tmp_path, "train", strict=True)
    assert {s.id: len(s.labels) for s in dataset.samples} == {"a": 1, "a.png": 0, "b": 0}
    assert codes(dataset) == ["no-rows"] and "2 images" in dataset.findings[0].value


def test_other_images_say_nothing(root):
    picture(root / "images/b.jpg")
    assert len(open_dataset(root, "train", strict=True)) == 1


def test_the_numbering_does_not_hang_on_the_part(root):
    text(root / "test_labels.csv", HEAD + ROW.replace("cat", "ant"))
    train, test = open_dataset(root, "train"), open_dataset(root, "test")
    assert train.classes == test.classes == ("BACKGROUND", "ant", "cat") and train.samples[
        0
    ].labels.tolist() == [2]
    text(root / "labels.txt", "cat\nzebra\nant\n")
    assert open_dataset(root, "test").classes == ("BACKGROUND", "cat", "zebra", "ant")


@pytest.mark.parametrize(
    "row, code, where",
    [
        ("a.jpg,80,60,cat,10,20,40", "bad-row", "line 2"),
        ("a.jpg", "bad-row", "line 2"),
        (",80,60,cat,10,20,40,50", "bad-row", "line 2"),
        ("..,80,60,cat,10,20,40,50", "bad-row", "line 2"),
        ("a.jpg,80,60,cat,10,20,,50", "no-box", "line 2"),
        ("a.jpg,80,60,,10,20,40,50", "no-name", "line 2"),
        ("a.jpg,80,60,cat,ten,20,40,50", "bad-number", "line 2"),
        ("a.jpg,80,60,cat,nan,20,40,50", "bad-number", "line 2"),
        ("a.jpg,80,60,cat,1e999,20,40,50", "bad-number", "line 2"),
        ("a.jpg,80,60,cat,0.1,0.2,0.4,0.5", "fraction-box", "line 2"),
        ("a.jpg,80,60,cat,40,50,10,20", "inverted-box", "line 2"),
        ("a.jpg,80,60,cat,200,20,240,50", "outside-box", "line 2"),
        ("a.jpg,80,60,cat,10,20,10,50", "empty-box", "line 2"),
        ("a.jpg,80,60,cat,10,20,400,50", "clipped-box", "line 2"),
        ("b.jpg,80,60,cat,10,20,40,50", "missing-image", "line 2"),
        ("../images/b.jpg,80,60,cat,10,20,40,50", "missing-image", "line 2"),
        ('"' + "x" * 200_000 + '",1,1,cat,1,2,3,4', "bad-row", "line 2"),
        ("b\0.jpg,80,60,cat,10,20,40,50", "missing-image", "line 2"),
    ],
)
def test_rows(root, row, code, where):
    text(root / "train_labels.csv", HEAD + row + "\n" + ROW)
    dataset = read_csv(root, "train")
    assert codes(dataset) == [code] and dataset.findings[0].where.startswith(where)
    assert dataset.findings[0].file.endswith("train_labels.csv") and len(str(dataset.findings[0])) < 500
    assert len(dataset) == 1 and dataset.samples[0].boxes[-1].tolist() == [10, 20, 40, 50]


def test_a_missing_column_is_named(root):
    text(root / "train_labels.csv", "filename,class,xmin,ymin,xmax\na.jpg,cat,1,2,3\n")
    with pytest.raises(UserError, match="no CSV with the columns"):
        open_dataset(root, "train", "csv")


@pytest.mark.parametrize("name", ["mine.csv", "mine_labels.csv", "annotations/mine.csv"])
def test_one_file_of_any_name_is_divided(tmp_path, name):
    text(tmp_path / name, HEAD + "".join(ROW.replace("a.jpg", f"{n}.jpg") for n in range(10)))
    for n in range(10):
        picture(tmp_path / f"images/{n}.jpg")
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    assert (len(train), len(test)) == (8, 2) and codes(train) == codes(test) == ["random-split"]
    assert csv_parts(tmp_path) == [] and len(open_dataset(tmp_path, "mine")) == 10


@pytest.mark.parametrize("typo, meant", [("xmn", "xmin"), ("klass", "class"), ("file_nam", "filename")])
@pytest.mark.parametrize("beside", [False, True])
def test_a_misspelt_column_is_named(root, typo, meant, beside):
    """Left out silently, "there is no split train" would be all that anybody hears."""
    if beside:
        text(root / "test_labels.csv", HEAD + ROW)
    text(root / "train_labels.csv", HEAD.replace(meant, typo) + ROW)
    with pytest.raises(UserError, match=f"train_labels.csv: line 1: no column '{meant}', but '{typo}'"):
        open_dataset(root, "train")
    text(root / "train_labels.csv", "picture,tag,left,xmn\n")  # a table of something else
    assert is_csv(root) == beside


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.text(alphabet=st.sampled_from("a.jpgct,\"';0123456789-e\n\r\x00é/\\"), max_size=150))
def test_whatever_the_rows_are(root, content):
    text(root / "train_labels.csv", HEAD + ROW + content)
    dataset = read_csv(root, "train")
    for sample in dataset.samples:
        assert np.isfinite(sample.boxes).all() and sample.boxes.min(initial=0) >= 0
