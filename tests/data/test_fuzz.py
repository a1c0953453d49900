"""Whatever bytes a file holds: a data set opens or is refused in words; nothing hangs or writes elsewhere.

A file of a whole set is replaced by made-up bytes, or has some of its own replaced.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vision.data import open_dataset
from vision.data.check import main
from vision.data.content import look
from vision.errors import UserError

FORMATS = ("voc", "coco", "yolo", "csv", "open_images")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
PATIENCE = 20.0
"""Seconds: far above what anything here takes, and far below a hang."""

FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers = st.one_of(
    st.floats(),
    st.integers(-(10**30), 10**30),
    st.sampled_from(["NaN", "inf", "-1e999", "1e308", "0x10", "１２", "1,5", "", "1_000", "9" * 5000]),
)
names = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["cat", "../../etc/passwd", "/etc/passwd", "..\\..\\x", "a" * 3000, "&amp;", "\0", "CON", "-1"]
    ),
)


@pytest.fixture(scope="module")
def whole_sets(sets, tmp_path_factory):
    """One sound set of each format; cases work on copies of them."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in FORMATS:
        (folder / kind).mkdir()
        sets.WholeSet(kind, folder / kind).write(sets.sound())
    return folder


def everything(root):
    return {path for path in root.rglob("*") if path.is_file()}


def survives(whole_sets, kind, file, raw):
    """Open, check and repair a set in which a file has other bytes. Only UserErrors may come out."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        shutil.copytree(str(whole_sets / kind), str(root))
        (root / file).write_bytes(raw)
        before = everything(Path(place))
        begun = time.monotonic()
        try:
            open_dataset(root, "train")
        except UserError as error:
            assert len(str(error)) < 20_000
        assert main([str(root), "--json", os.devnull]) in (0, 1)
        assert everything(Path(place)) == before
        try:
            assert main([str(root), "--json", os.devnull, "--fix", str(Path(place) / "copy")]) in (0, 1)
        except UserError as error:
            assert len(str(error)) < 20_000
        assert time.monotonic() - begun < PATIENCE
        new = everything(Path(place)) - before
        assert all(Path(place, "copy") in path.parents for path in new)


def file_of(sets, kind):
    return sets.WholeSet(kind, Path()).annotation()


# --- bytes --------------------------------------------------------------------------------------------------


def edited(raw, edits):
    """Some stretches of bytes replaced by others."""
    for place, length, new in edits:
        start = place % (len(raw) + 1)
        raw = raw[:start] + new + raw[start + length :]
    return raw


edits = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=6
)


@pytest.mark.parametrize("kind", FORMATS)
@FEW
@given(edits=edits)
def test_annotations_with_edits(kind, edits, sets, whole_sets):
    file = file_of(sets, kind)
    survives(whole_sets, kind, file, edited((whole_sets / kind / file).read_bytes(), edits))


@pytest.mark.parametrize(
    "kind, file",
    [
        ("voc", "ImageSets/Main/train.txt"),
        ("voc", "labels.txt"),
        ("yolo", "data.yaml"),
        ("coco", "labels.txt"),
    ],
)
@FEW
@given(raw=st.one_of(st.binary(max_size=200), names.map(lambda name: name.encode("utf-8", "surrogatepass"))))
def test_lists_of_any_bytes(kind, file, raw, whole_sets):
    survives(whole_sets, kind, file, raw)


@FEW
@given(edits=edits, suffix=st.sampled_from([".jpg", ".png", ".bmp", ".tif", ".webp"]))
def test_images_with_edits(edits, suffix, sets):
    data = cv2.imencode(suffix, cv2.imdecode(_bytes(sets.coded()), cv2.IMREAD_COLOR))[1].tobytes()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "image.jpg"
        path.write_bytes(edited(data, edits))
        seen = look(path)
        assert seen.fault[0] in ("", "unreadable-image", "truncated-image", "damaged-image")


def _bytes(data):
    import numpy as np

    return np.frombuffer(data, np.uint8)


# --- structures ---------------------------------------------------------------------------------------------


@FEW
@given(st.lists(st.tuples(names, st.lists(numbers, min_size=4, max_size=4)), max_size=4), numbers, names)
def test_voc_of_any_values(whole_sets, things, side, filename):
    from xml.sax.saxutils import escape

    lines = [
        f"<annotation><filename>{escape(filename)}</filename><size><width>{side}</width><height>9</height></size>"
    ]
    for name, box in things:
        tags = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
        lines.append(f"<object><name>{escape(name)}</name><bndbox>{tags}</bndbox></object>")
    text = "\n".join([*lines, "</annotation>"])
    survives(whole_sets, "voc", Path("Annotations/p0.xml"), text.encode("utf-8", "surrogatepass"))


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-(10**30), 10**30), names),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
entries = st.lists(
    st.one_of(
        values,
        st.fixed_dictionaries(
            {},
            optional={
                "id": values, "file_name": values, "image_id": values, "category_id": values, "bbox": values,
                "name": values, "width": values, "height": values, "segmentation": values, "iscrowd": values,
            },
        ),
    ),
    max_size=5,
)  # fmt: skip


@FEW
@given(st.fixed_dictionaries({"images": entries, "annotations": entries, "categories": entries}))
def test_coco_of_any_values(whole_sets, coco):
    raw = json.dumps(coco).encode("utf-8", "surrogatepass")
    survives(whole_sets, "coco", Path("annotations/instances_train.json"), raw)


@pytest.mark.parametrize("kind", ["csv", "open_images"])
@FEW
@given(rows=st.lists(st.lists(st.one_of(numbers, names), max_size=16), max_size=5))
def test_rows_of_any_values(kind, rows, sets, whole_sets):
    file = file_of(sets, kind)
    raw = (whole_sets / kind / file).read_bytes()
    text = "\n".join(",".join(str(value) for value in row) for row in rows)
    survives(whole_sets, kind, file, raw + text.encode("utf-8", "surrogatepass"))


@FEW
@given(rows=st.lists(st.lists(st.one_of(numbers, names), max_size=9), max_size=5))
def test_yolo_lines_of_any_values(rows, sets, whole_sets):
    text = "\n".join(" ".join(str(value) for value in row) for row in rows)
    survives(whole_sets, "yolo", file_of(sets, "yolo"), text.encode("utf-8", "surrogatepass"))


# --- bombs --------------------------------------------------------------------------------------------------

DEEP = 200_000
XML_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {x} "{f"&{y};" * 10}">' for x, y in zip("bcdefghijk", "abcdefghij"))
    + "]><annotation><object><name>&k;</name></object></annotation>"
)
YAML_BOMB = 'a: &a ["x","x"]\n' + "".join(
    f"{x}: &{x} [{','.join([f'*{y}'] * 9)}]\n" for x, y in zip("bcdefghijkl", "abcdefghijk")
)
COCO = Path("annotations/instances_train.json")
BOMBS = [
    ("voc", Path("Annotations/p0.xml"), XML_BOMB.encode()),
    ("voc", Path("Annotations/p0.xml"), XML_BOMB.encode("utf-16")),
    ("voc", Path("Annotations/p0.xml"), b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>'),
    ("voc", Path("Annotations/p0.xml"), b"<annotation>" * DEEP),
    (
        "voc",
        Path("Annotations/p0.xml"),
        b"<annotation>" + b"<object>" * 2000 + b"</object>" * 2000 + b"</annotation>",
    ),
    ("voc", Path("Annotations/p0.xml"), b'<?xml version="1.0" encoding="no-such"?><annotation/>'),
    ("voc", Path("ImageSets/Main/train.txt"), b"../../../../etc/passwd\n/etc/passwd\n" + b"x" * 100_000),
    ("voc", Path("labels.txt"), b"cat\n" * 1000),
    ("coco", COCO, b"[" * DEEP),
    ("coco", COCO, b'{"images": ' * DEEP),
    ("coco", COCO, b'{"images": [{"id": ' + b"9" * 100_000 + b'}], "annotations": [], "categories": []}'),
    (
        "coco",
        COCO,
        b'{"images": [{"id": 1, "file_name": "p0.jpg", "height": 1e999}], "annotations": [], "categories": []}',
    ),
    ("yolo", Path("data.yaml"), YAML_BOMB.encode()),
    ("yolo", Path("data.yaml"), b"train: " + b"[" * DEEP),
    ("yolo", Path("data.yaml"), b"!!python/object/apply:os.system ['touch owned']\n"),
    ("yolo", Path("data.yaml"), b"train: ../../../..\nnames: [cat, dog]\n"),
    ("yolo", Path("labels/train/p0.txt"), b"0 " + b"0.5 " * 100_001),
    ("csv", Path("train_labels.csv"), b'filename,class,xmin,ymin,xmax,ymax\n"' + b"x" * 300_000),
    ("open_images", Path("sub-train-annotations-bbox.csv"), b"x" * 2_000_000),
    (
        "open_images",
        Path("sub-train-annotations-bbox.csv"),
        b"ImageID,ImageID,XMin,XMax,YMin,YMax,ClassName\na,b,0,1,0,1\n",
    ),
]


@pytest.mark.parametrize(
    "kind, file, raw", BOMBS, ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(BOMBS)]
)
def test_bombs(kind, file, raw, whole_sets):
    if kind == "yolo":
        pytest.importorskip("yaml")
    survives(whole_sets, kind, file, raw)
