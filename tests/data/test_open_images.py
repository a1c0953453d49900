"""The Open Images reader: numbering, fractions to pixels, attributes, and every finding."""

import itertools
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.data.open_images import (
    fields,
    header,
    is_open_images,
    is_set,
    lines,
    read_class_names,
    read_open_images,
)
from vision.errors import UserError

COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
HEIGHT, WIDTH = 40, 100


def row(image: str, name: str, box: str = "0.1,0.5,0.25,0.75", group: str = "0", mid: str = "/m/x") -> str:
    return f"{image},xclick,{mid},1,{box},0,0,{group},0,0,{mid},{name}"


def write(
    root: Path, tables: Dict[str, Sequence[str]], images: Optional[Dict[str, List[str]]] = None
) -> Path:
    """A folder with `sub-` files of these rows, and for each image that a row names (or `images`) a picture."""
    picture = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), 128, np.uint8))[1].tobytes()
    for split, rows in tables.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        text = "\n".join([COLUMNS + ",id,ClassName", *rows, ""])
        (root / f"sub-{split}-annotations-bbox.csv").write_text(text)
        named = {line.split(",")[0] for line in rows} if images is None else images.get(split, [])
        for image in filter(None, named):
            (root / split / f"{image}.jpg").write_bytes(picture)
    return root


def test_a_table_without_rows_is_a_set_without_samples(tmp_path: Path) -> None:
    dataset = read_open_images(write(tmp_path, {"train": []}), "train")
    assert dataset.samples == []
    assert dataset.classes == ("BACKGROUND",)


def test_fractions_become_pixels_and_groups_are_flagged(tmp_path: Path) -> None:
    write(tmp_path, {"train": [row("a", "Cat"), row("b", "Dog"), row("a", "Dog", "0,1,0,1", group="1")]})
    dataset = read_open_images(tmp_path, "train")
    assert [sample.id for sample in dataset.samples] == ["a", "b"]
    sample = dataset.samples[0]
    assert sample.boxes.tolist() == [[10.0, 10.0, 50.0, 30.0], [0.0, 0.0, 100.0, 40.0]]
    assert sample.labels.tolist() == [1, 2]
    assert sample.group.tolist() == [False, True]
    assert sample.size == (HEIGHT, WIDTH)
    assert dataset.findings == []


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_numbering_does_not_depend_on_the_split(tmp_path: Path, split: str) -> None:
    tables = {"train": [row("a", "Dog")], "validation": [row("b", "Ant")], "test": [row("c", "Cat")]}
    dataset = read_open_images(write(tmp_path, tables), split)
    assert dataset.classes == ("BACKGROUND", "Ant", "Cat", "Dog")
    assert (
        dataset.classes[dataset.samples[0].labels[0]] == {"train": "Dog", "val": "Ant", "test": "Cat"}[split]
    )


def test_split_names(tmp_path: Path) -> None:
    write(tmp_path, {"train": [row("a", "Cat")], "validation": [row("b", "Cat")]})
    for name, ids in {"Train": "a", "VAL": "b", "valid": "b", "validation": "b", "trainval": "ab"}.items():
        assert "".join(sample.id for sample in read_open_images(tmp_path, name).samples) == ids
    with pytest.raises(UserError, match="'test'; there are: train, validation"):
        read_open_images(tmp_path, "test")
    with pytest.raises(UserError, match="'training' is none of"):
        read_open_images(tmp_path, "training")


def test_a_given_class_list_is_the_numbering(tmp_path: Path) -> None:
    write(tmp_path, {"train": [row("a", "Cat"), row("a", "Dog"), row("b", "Dogs"), row("b", "Dogs")]})
    dataset = read_open_images(tmp_path, "train", classes=["BACKGROUND", "Zebra", "Dog"])
    assert dataset.classes == ("BACKGROUND", "Zebra", "Dog")
    assert [sample.labels.tolist() for sample in dataset.samples] == [[2], []]
    assert [(each.code, each.value) for each in dataset.findings] == [
        ("unknown-class", "Cat (1 boxes)"),
        ("unknown-class", "Dogs (2 boxes)"),
    ]
    assert "did you mean 'Dog'" in dataset.findings[1].action


@pytest.mark.parametrize("value", ["-1", "0", "", "-1.0", "yes", "nan"])
def test_unknown_never_becomes_true(tmp_path: Path, value: str) -> None:
    write(tmp_path, {"train": [row("a", "Cat", group=value)]})
    for rule in ("ignore", "keep", "drop"):
        sample = read_open_images(tmp_path, "train", groups=rule).samples[0]
        assert sample.group.tolist() == [False]


def test_group_rules(tmp_path: Path) -> None:
    rows = [row("a", "Cat"), row("a", "Cat", "0,1,0,1", group="1"), row("b", "Cat", group="1")]
    write(tmp_path, {"train": rows})

    def groups(rule: str) -> Dict[str, List[bool]]:
        return {s.id: s.group.tolist() for s in read_open_images(tmp_path, "train", groups=rule).samples}

    assert groups("ignore") == {"a": [False, True], "b": [True]}
    assert groups("keep") == {"a": [False, False], "b": [False]}
    assert groups("drop") == {"a": [False]}  # b would pass for an image without cats
    with pytest.raises(UserError, match="group rule 'use'"):
        groups("use")


def test_negatives(tmp_path: Path) -> None:
    write(tmp_path, {"train": [row("a", "Cat")]}, {"train": ["a", "n"]})
    (tmp_path / "sub-train-negatives.txt").write_text("n\r\n\ngone\n")
    dataset = read_open_images(tmp_path, "train")
    assert [(sample.id, len(sample.labels)) for sample in dataset.samples] == [("a", 1), ("n", 0)]
    assert dataset.samples[1].boxes.shape == (0, 4)
    assert [finding.code for finding in dataset.findings] == ["missing-image"]


BAD_BOXES = {
    # XMin,XMax,YMin,YMax of a 100 x 40 image: finding, box that remains
    "nan,0.5,0.2,0.6": ("bad-number", None),
    "0.1,inf,0.2,0.6": ("bad-number", None),
    "0.1,1e999,0.2,0.6": ("bad-number", None),
    "0.1,,0.2,0.6": ("bad-number", None),
    "0.1,O.5,0.2,0.6": ("bad-number", None),
    "10,50,10,30": ("pixel-box", None),
    "0.5,0.1,0.25,0.75": ("inverted-box", [10, 10, 50, 30]),
    "0.1,0.5,0.75,0.25": ("inverted-box", [10, 10, 50, 30]),
    "1.5,0.1,0.2,0.6": ("inverted-box", None),
    "1.1,1.5,0.2,0.6": ("outside-box", None),
    "-0.5,-0.1,0.2,0.6": ("outside-box", None),
    "-0.5,0.5,0.25,1.5": ("clipped-box", [0, 10, 50, 40]),
    "0.1,0.1,0.2,0.6": ("empty-box", None),
    "0.1,0.105,0.2,0.6": ("empty-box", None),
    "-0.005,0.5,0.25,0.75": ("", [0, 10, 50, 30]),
}


@pytest.mark.parametrize("text", BAD_BOXES)
def test_boxes_that_are_wrong(tmp_path: Path, text: str) -> None:
    code, expected = BAD_BOXES[text]
    write(tmp_path, {"train": [row("a", "Cat"), row("a", "Cat", text)]})
    dataset = read_open_images(tmp_path, "train")
    assert [finding.code for finding in dataset.findings] == [code] * bool(code)
    for finding in dataset.findings:
        assert finding.file == str(tmp_path / "sub-train-annotations-bbox.csv")
        assert finding.where == "line 3"
    np.testing.assert_allclose(
        dataset.samples[0].boxes[1:], [expected] if expected else np.zeros((0, 4)), atol=1e-4
    )


def test_rows_and_images_that_are_wrong(tmp_path: Path) -> None:
    rows = [
        row("a", "Cat"),
        "a,xclick,/m/x,1,0.1",
        "",
        row("gone", "Cat"),
        row("cut", "Cat"),
        row("text", "Cat"),
    ]
    write(tmp_path, {"train": rows}, {"train": ["a", "cut", "text"]})
    cut = tmp_path / "train/cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "train/text.jpg").write_text("<html>not found</html>")
    dataset = read_open_images(tmp_path, "train")
    assert [sample.id for sample in dataset.samples] == ["a"]
    assert [(finding.code, finding.where) for finding in dataset.findings] == [
        ("bad-row", "line 3"),
        ("missing-image", "line 5"),
        ("truncated-image", ""),
        ("unreadable-image", ""),
    ]


def test_a_name_in_the_table_cannot_leave_the_folder(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {"train": [row("../../secret", "Cat")]}, {})
    (tmp_path / "secret.jpg").write_bytes(b"")
    assert [finding.code for finding in read_open_images(root, "train").findings] == ["missing-image"]


def test_full_files_are_read_for_the_images_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, {"train": []}, {"train": ["a"]})
    (tmp_path / "sub-train-annotations-bbox.csv").unlink()
    rows = [row("a", "", mid="/m/1"), row("elsewhere", "", mid="/m/2"), row("a", "", mid="/m/unlisted")]
    text = "\n".join([COLUMNS, *(line.rsplit(",", 2)[0] for line in rows), ""])
    (tmp_path / "train-annotations-bbox.csv").write_text(text)
    with pytest.raises(UserError, match="class-descriptions-boxable"):
        read_open_images(tmp_path, "train")
    (tmp_path / "class-descriptions-boxable.csv").write_text("LabelName,DisplayName\n/m/1,Cat\n/m/2,Dog\n")
    dataset = read_open_images(tmp_path, "train")
    assert dataset.classes == ("BACKGROUND", "Cat")
    assert [sample.id for sample in dataset.samples] == ["a"]
    assert [finding.code for finding in dataset.findings] == ["unknown-class"]


def test_what_is_no_such_folder(tmp_path: Path) -> None:
    assert not is_open_images(tmp_path)
    with pytest.raises(UserError, match="open_images_downloader.py writes one"):
        read_open_images(tmp_path, "train")
    table = tmp_path / "sub-train-annotations-bbox.csv"
    table.write_text("")
    assert is_open_images(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        read_open_images(tmp_path, "train")
    table.write_text("filename,width,height,class,xmin\n")
    with pytest.raises(UserError, match=r"line 1: no column ImageID, XMin.*not an Open Images file"):
        read_open_images(tmp_path, "train")
    table.write_bytes(b"\0" * (3 << 20))
    with pytest.raises(UserError, match="over 1 MB long"):
        read_open_images(tmp_path, "train")


def test_bom_crlf_quotes_and_no_newline_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, {"train": [row("a", '"Nail, iron"'), row("b", " Cat ")]})
    table = tmp_path / "sub-train-annotations-bbox.csv"
    text = table.read_text().rstrip("\n").replace("\n", "\r\n")
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = read_open_images(tmp_path, "train")
    assert dataset.classes == ("BACKGROUND", "Cat", "Nail, iron")
    assert (len(dataset), dataset.findings) == (2, [])


@pytest.mark.parametrize("head", ["", "LabelName,DisplayName\n", "\ufeffLabelName,DisplayName\r\n", "\ufeff"])
def test_class_files_with_and_without_header(tmp_path: Path, head: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_bytes((head + '/m/1,Cat\n/m/2,"Nail, iron"\n\n').encode())
    assert read_class_names(path) == {"/m/1": "Cat", "/m/2": "Nail, iron"}


@pytest.mark.parametrize("text", ["", "LabelName,DisplayName\n", "<html></html>\n", "/m/1\n", '/m/1,"Cat\n'])
def test_what_is_no_class_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"classes\.csv"):
        read_class_names(path)


# --- properties ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_lines_are_those_of_the_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.bin"
    path.write_bytes(data)
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    read = list(lines(path))
    assert [number for number, _ in read] == list(range(1, len(expected) + 1))
    assert [line for _, line in read] == expected


@settings(deadline=None)
@given(st.binary(max_size=300).filter(lambda data: b"\n" not in data))
def test_any_line_has_fields(line: bytes) -> None:
    assert all(field == field.strip() for field in fields(line))


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r\n"), min_size=1))
)
def test_fields_come_back_from_the_csv_writer(words: List[str]) -> None:
    import csv
    import io

    words = [word.strip() for word in words]
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(words)
    assert fields(out.getvalue().encode()) == (words or [""])


JUNK = st.one_of(
    st.sampled_from(["", "nan", "-inf", "1e308", "-1", "0", "0.5", "1", "2", "../x", '"', "a,b", "\0", "ü"]),
    st.text(max_size=6),
    st.floats().map(str),
)


@settings(deadline=None)
@given(
    st.lists(st.lists(JUNK, min_size=8, max_size=16), max_size=6), st.sampled_from(["ignore", "keep", "drop"])
)
def test_junk_gives_findings_or_sane_boxes(
    tmp_path_factory: pytest.TempPathFactory, rows: List[List[str]], groups: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "junk"
    if not (root / "train/a.jpg").exists():
        write(root, {"train": []}, {"train": ["a"]})
    table = root / "sub-train-annotations-bbox.csv"
    text = "\n".join(",".join(["a", *cells]) for cells in rows)
    table.write_bytes((COLUMNS + ",id,ClassName\n" + text).encode("utf-8", "replace"))
    dataset = read_open_images(root, "train", groups=groups)
    for sample in dataset.samples:
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2] >= 0.99).all()
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
        assert ((sample.labels > 0) & (sample.labels < len(dataset.classes))).all()


@settings(deadline=None)
@given(st.text(max_size=8))
def test_only_one_is_set(text: str) -> None:
    try:
        expected = float(text) == 1
    except ValueError:
        expected = False
    assert is_set(text) is expected


def test_header_is_the_first_line_only(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a, b\n1,2\n")
    assert header(path) == ["a", "b"]
    assert list(itertools.islice(lines(path), 1)) == [(1, b"a, b")]
