"""Data sets with one fault each: the doctor finds it, training opens or refuses in words, and `--fix` mends it.

Each case starts from a whole set of nine pictures. `change` spoils what is written, `spoil` the files behind it.
"""

import json
import re
import shutil
from typing import Callable, NamedTuple, Optional

import cv2
import numpy as np
import pytest

from vision.data import open_dataset
from vision.data.check import main
from vision.data.findings import CODES
from vision.errors import UserError

FORMATS = ("voc", "coco", "yolo", "csv", "open_images")


class Case(NamedTuple):
    """One fault.

    Attributes:
        name: of the case.
        kind: format of the set.
        code: the finding that is due.
        file: what its file must end with; {image} and {annotation} stand for those of picture p0.
        change: of the list of pictures, before they are written.
        spoil: of the written set.
        fixed: exit code of the copy; None where none can be written.
        opens: whether training opens it.
        exit: exit code without --fix.
    """

    name: str
    kind: str
    code: str
    file: str
    change: Optional[Callable] = None
    spoil: Optional[Callable] = None
    fixed: Optional[int] = 0
    opens: bool = True
    exit: int = 1


# --- images, in every format --------------------------------------------------------------------------------


def cut(data: bytes, share=0.6) -> bytes:
    return data[: int(len(data) * share)]


def with_thumbnail(data: bytes) -> bytes:
    """A JPEG with another, whole one in its APP1 segment."""
    inner = cv2.imencode(".jpg", np.full((8, 8, 3), 90, np.uint8))[1].tobytes()
    segment = b"Exif\0\0" + inner
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


def to_suffix(data: bytes, suffix: str) -> bytes:
    return cv2.imencode(suffix, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[1].tobytes()


def flipped_bit(data: bytes) -> bytes:
    middle = data.index(b"IDAT") + 40
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def rewritten(work):
    """A spoiler that puts the bytes of p0 through `work`."""

    def spoil(whole):
        path = whole.image()
        path.write_bytes(work(path.read_bytes()))

    return spoil


def leak(whole):
    shutil.copyfile(whole.image("p7", "test"), whole.image())


def near_leak(whole):
    """The same photograph, saved anew and smaller."""
    image = cv2.imread(str(whole.image("p7", "test")))
    small = cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    small = cv2.resize(small, image.shape[1::-1])
    cv2.imwrite(str(whole.image()), small, [cv2.IMWRITE_JPEG_QUALITY, 80])


IMAGE_FAULTS = (
    ("missing", "missing-image", lambda whole: whole.image().unlink(), 1),
    ("empty", "unreadable-image", rewritten(lambda data: b""), 1),
    ("a page of HTML", "unreadable-image", rewritten(lambda data: b"<html>404</html>"), 1),
    ("noise", "unreadable-image", rewritten(lambda data: bytes(range(7, 250)) * 9), 1),
    ("cut JPEG", "truncated-image", rewritten(cut), 1),
    ("cut JPEG with a thumbnail", "truncated-image", rewritten(lambda data: cut(with_thumbnail(data))), 1),
    ("cut PNG", "truncated-image", rewritten(lambda data: cut(to_suffix(data, ".png"))), 1),
    ("cut BMP", "truncated-image", rewritten(lambda data: cut(to_suffix(data, ".bmp"))), 1),
    (
        "flipped bit in a PNG",
        "damaged-image",
        rewritten(lambda data: flipped_bit(to_suffix(data, ".png"))),
        1,
    ),
    ("PNG named jpg", "wrong-suffix", rewritten(lambda data: to_suffix(data, ".png")), 0),
    ("leak", "leak", leak, 1),
    ("near leak", "near-leak", near_leak, 0),
    ("twice", "duplicate-image", lambda whole: shutil.copyfile(whole.image("p1"), whole.image()), 0),
)


def image_file(name, kind, code):
    if code == "missing-image":
        # Where no annotation is left the list of images is; YOLO lists its folder, so nothing is missing there.
        return "{annotation}"
    return "p1.jpg" if code == "duplicate-image" else "p0.jpg"


IMAGE_CASES = [
    Case(f"{kind} {name}", kind, code, image_file(name, kind, code), spoil=spoil, exit=code_exit)
    for kind in FORMATS
    for name, code, spoil, code_exit in IMAGE_FAULTS
    if not (kind == "yolo" and code == "missing-image")
]

# --- boxes, in every format ---------------------------------------------------------------------------------


def boxed(*box):
    """Gives the first object of p0 another box."""

    def change(pictures):
        pictures[0].things[0].box = list(box)

    return change


def twin(name):
    """Puts a second object over the first of p0."""

    def change(pictures):
        first = pictures[0].things[0]
        pictures[0].things.append(type(first)(name, list(first.box)))

    return change


BOX_FAULTS = (
    ("inverted", "inverted-box", boxed(44, 42, 4, 6), 0),
    ("inverted and outside", "inverted-box", boxed(144, 42, 4, 6), 1),
    ("without area", "empty-box", boxed(20, 20, 20, 50), 1),
    ("outside", "outside-box", boxed(130, 100, 150, 140), 1),
    ("partly outside", "clipped-box", boxed(100, 60, 140, 85), 0),
    ("NaN", "bad-number", boxed(float("nan"), 6, 44, 42), 1),
    ("infinite", "bad-number", boxed(4, 6, float("inf"), 42), 1),
    ("tiny", "tiny-box", boxed(20, 20, 21.1, 60), 0),
    ("twice", "duplicate-box", twin("cat"), 0),
    ("under two names", "two-classes", twin("dog"), 0),
)


def box_file(kind, code):
    return "p0.jpg" if code in ("tiny-box", "duplicate-box", "two-classes") else "{annotation}"


BOX_CASES = [
    Case(f"{kind} box {name}", kind, code, box_file(kind, code), change=change, exit=code_exit)
    for kind in FORMATS
    for name, code, change, code_exit in BOX_FAULTS
    if not (name == "inverted and outside" and kind in ("coco", "yolo"))  # their sides would be negative
] + [
    Case("voc box huge", "voc", "bad-number", "{annotation}", change=boxed(4, 6, 1e9, 42)),
    Case("coco box huge", "coco", "bad-number", "{annotation}", change=boxed(4, 6, 1e9, 42)),
    Case("yolo box in pixels", "yolo", "pixel-box", "{annotation}", change=boxed(400, 600, 4400, 4200)),
    Case(
        "open_images box in pixels",
        "open_images",
        "pixel-box",
        "{annotation}",
        change=boxed(400, 600, 4400, 4200),
    ),
    Case("voc box in fractions", "voc", "fraction-box", "{annotation}", change=boxed(-0.9, -0.8, -0.3, -0.4)),
    Case("coco box in fractions", "coco", "fraction-box", "{annotation}", change=boxed(0.1, 0.2, 0.7, 0.6)),
    Case("csv box in fractions", "csv", "fraction-box", "{annotation}", change=boxed(0.1, 0.2, 0.7, 0.6)),
]

# --- names, lists and files ---------------------------------------------------------------------------------


def named(name, count=1):
    """Gives the first objects of the first pictures another name."""

    def change(pictures):
        for picture in pictures[:count]:
            picture.things[0].name = name

    return change


def replaced(old, new, count=1, path=None):
    """A spoiler of the annotation of p0: every match of a pattern."""

    def spoil(whole):
        file = whole.root / path if path else whole.annotation()
        text = file.read_text()
        assert re.search(old, text)
        file.write_text(re.sub(old, lambda match: new, text, count=count))

    return spoil


def written(text, path=None):
    """A spoiler that writes a file anew."""

    def spoil(whole):
        (whole.root / path if path else whole.annotation()).write_text(text)

    return spoil


def added(text, path=None):
    """A spoiler that appends to a file."""

    def spoil(whole):
        file = whole.root / path if path else whole.annotation()
        file.write_text(file.read_text() + text)

    return spoil


def labelled(whole):
    (whole.root / "labels.txt").write_text("cat\ndog\n")


def without(folder):
    def spoil(whole):
        shutil.rmtree(whole.root / folder)

    return spoil


def only_cats(parts):
    """No dog in these parts."""

    def change(pictures):
        for picture in pictures:
            if picture.part in parts:
                picture.things[:] = [thing for thing in picture.things if thing.name == "cat"]

    return change


def no_objects(pictures):
    for picture in pictures:
        picture.things.clear()


def three_birds(pictures):
    for picture in pictures[:3] + pictures[6:]:
        picture.things[0].name = "bird"


def small_ones(pictures):
    for picture in pictures:
        picture.things += [type(picture.things[0])("cat", [50 + 9 * i, 46, 54 + 9 * i, 50]) for i in range(5)]


def turned(pictures):
    """Sizes as of the photograph turned upright."""
    pictures[0].size = (120, 90)


def exif(whole):
    """Stored on its side, with the tag that turns it upright."""
    body = cv2.imencode(".jpg", np.random.default_rng(5).integers(0, 255, (90, 120, 3), np.uint8))[
        1
    ].tobytes()
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    tagged = body[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + body[2:]
    whole.image().write_bytes(tagged)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {x} "{f"&{y};" * 10}">' for x, y in zip("bcdefghij", "abcdefghi"))
    + "]><annotation><object><name>&j;</name></object></annotation>"
)
YAML_BOMB = 'a: &a ["x","x"]\n' + "".join(
    f"{x}: &{x} [*{y},*{y},*{y},*{y},*{y},*{y},*{y},*{y}]\n" for x, y in zip("bcdefghi", "abcdefgh")
)
DEEP = 100_000

VOC = "ImageSets/Main"
OTHER_CASES = [
    # VOC
    Case("voc XML cut", "voc", "bad-xml", "p0.xml", spoil=replaced(r"</annotation>", "")),
    Case("voc XML empty", "voc", "bad-xml", "p0.xml", spoil=written("")),
    Case("voc XML of another kind", "voc", "bad-xml", "p0.xml", spoil=written("<svg/>")),
    Case("voc XML deep", "voc", "bad-xml", "p0.xml", spoil=written("<a>" * DEEP)),
    Case("voc XML bomb", "voc", "unsafe-xml", "p0.xml", spoil=written(BOMB)),
    Case("voc XML missing", "voc", "missing-annotation", "p0.xml", spoil=lambda w: w.annotation().unlink()),
    Case(
        "voc listed, not there",
        "voc",
        "missing-listed",
        f"{VOC}/train.txt",
        spoil=added("ghost\n", f"{VOC}/train.txt"),
    ),
    Case(
        "voc listed twice",
        "voc",
        "duplicate-id",
        f"{VOC}/train.txt",
        spoil=added("p1\n", f"{VOC}/train.txt"),
        exit=0,
    ),
    Case("voc listed in both", "voc", "leak", "p0.jpg", spoil=added("p0\n", f"{VOC}/test.txt")),
    Case("voc misspelt class", "voc", "unknown-class", "p0.xml", change=named("catt")),
    Case("voc class in capitals", "voc", "unknown-class", "p0.xml", change=named("CAT")),
    Case("voc strange class", "voc", "unknown-class", "p0.xml", change=named("zeppelin")),
    Case("voc without a name", "voc", "no-name", "p0.xml", change=named("")),
    Case("voc without a box", "voc", "no-box", "p0.xml", spoil=replaced(r"<bndbox>.*?</bndbox>", "")),
    Case("voc corner missing", "voc", "no-box", "p0.xml", spoil=replaced(r"<xmax>.*?</xmax>", "")),
    Case(
        "voc corner in words",
        "voc",
        "bad-number",
        "p0.xml",
        spoil=replaced(r"<xmax>.*?</xmax>", "<xmax>wide</xmax>"),
    ),
    Case(
        "voc declared larger",
        "voc",
        "size-mismatch",
        "p0.xml",
        spoil=replaced("<width>120</width><height>90", "<width>240</width><height>180"),
        exit=0,
    ),
    Case(
        "voc declared square",
        "voc",
        "size-mismatch",
        "p0.xml",
        spoil=replaced("<width>120", "<width>90"),
        exit=0,
    ),
    Case("voc turned by EXIF", "voc", "exif-rotated", "p0.xml", change=turned, spoil=exif, exit=0),
    Case("voc EXIF not heeded", "voc", "exif-ignored", "p0.jpg", spoil=exif, exit=0),
    Case(
        "voc two files",
        "voc",
        "several-images",
        "p0.xml",
        spoil=lambda w: w.image(suffix=".png").write_bytes(to_suffix(w.image().read_bytes(), ".png")),
        exit=0,
    ),
    Case(
        "voc one list for both",
        "voc",
        "random-split",
        "voc",
        spoil=lambda w: (
            (w.root / VOC / "train.txt").rename(w.root / VOC / "default.txt"),
            (w.root / VOC / "test.txt").unlink(),
        ),
        exit=0,
    ),
    Case("voc no lists", "voc", "random-split", "voc", spoil=without("ImageSets"), exit=0),
    Case(
        "voc nothing for testing",
        "voc",
        "no-split",
        "voc",
        spoil=lambda w: (w.root / VOC / "test.txt").unlink(),
        opens=False,
        exit=0,
    ),
    Case(
        "voc empty list",
        "voc",
        "empty-set",
        "voc",
        spoil=written("", f"{VOC}/train.txt"),
        fixed=1,
        opens=False,
    ),
    Case(
        "voc no objects, no labels",
        "voc",
        "no-objects",
        "voc",
        change=no_objects,
        spoil=lambda w: (w.root / "labels.txt").unlink(),
        fixed=None,
        opens=False,
    ),
    Case("voc no images", "voc", "cannot-open", "voc", spoil=without("JPEGImages"), fixed=None, opens=False),
    Case(
        "voc one folder too high",
        "voc",
        "cannot-open",
        "voc",
        spoil=lambda w: [
            shutil.move(str(w.root / name), str(w.root / "inner" / name))
            for name in [(w.root / "inner").mkdir() or "JPEGImages", "Annotations", "ImageSets", "labels.txt"]
        ],
        fixed=None,
        opens=False,
    ),
    Case(
        "voc class without objects", "voc", "unused-class", "voc", spoil=added("bird\n", "labels.txt"), exit=0
    ),
    Case("voc class not in the test", "voc", "absent-class", "voc", change=only_cats(["test"]), exit=0),
    Case("voc class not in training", "voc", "absent-class", "voc", change=only_cats(["train"]), exit=0),
    Case(
        "voc rare class",
        "voc",
        "rare-class",
        "voc",
        change=three_birds,
        spoil=added("bird\n", "labels.txt"),
        exit=0,
    ),
    Case(
        "voc two spellings",
        "voc",
        "similar-classes",
        "voc",
        change=named("Cat", 2),
        spoil=lambda w: (w.root / "labels.txt").unlink(),
        exit=0,
    ),
    Case(
        "voc blank in a class",
        "voc",
        "blank-in-class",
        "voc",
        change=named("big cat", 9),
        spoil=added("big cat\n", "labels.txt"),
        exit=0,
    ),
    Case(
        "voc blank in a file",
        "voc",
        "blank-in-name",
        "p 0.jpg",
        change=lambda pictures: setattr(pictures[0], "stem", "p 0"),
        exit=0,
    ),
    Case(
        "voc image nobody lists",
        "voc",
        "unlisted-image",
        "JPEGImages",
        spoil=lambda w: w.image("extra").write_bytes(to_suffix(w.image("p3").read_bytes(), ".jpg")),
        exit=0,
    ),
    Case("voc too small for the priors", "voc", "low-reach", "voc", change=small_ones, exit=0),
    Case(
        "voc label file of one word twice",
        "voc",
        "cannot-open",
        "labels.txt",
        spoil=written("cat\ncat\n", "labels.txt"),
        fixed=None,
        opens=False,
    ),
    # COCO
    Case(
        "coco JSON cut",
        "coco",
        "cannot-open",
        "instances_train.json",
        spoil=lambda w: w.annotation().write_text(cut(w.annotation().read_text())),
        fixed=None,
        opens=False,
    ),
    Case(
        "coco JSON deep",
        "coco",
        "cannot-open",
        "instances_train.json",
        spoil=written('{"images": [], "annotations": [], "categories": ' + "[" * DEEP),
        fixed=None,
        opens=False,
    ),
    Case(
        "coco a list",
        "coco",
        "cannot-open",
        "instances_train.json",
        spoil=lambda w: w.annotation().write_text("[" + w.annotation().read_text() + "]"),
        fixed=None,
        opens=False,
    ),
    Case(
        "coco bbox of three", "coco", "no-box", "{annotation}", spoil=replaced(r'"bbox": \[4, ', '"bbox": [')
    ),
    Case(
        "coco bbox in words",
        "coco",
        "bad-number",
        "{annotation}",
        spoil=replaced(r'"bbox": \[4, ', '"bbox": ["four", '),
    ),
    Case(
        "coco image unknown",
        "coco",
        "bad-annotation",
        "{annotation}",
        spoil=replaced('"image_id": 0', '"image_id": 77'),
    ),
    Case(
        "coco image without name",
        "coco",
        "bad-annotation",
        "{annotation}",
        spoil=replaced('"file_name": "p0.jpg"', '"file_name": null'),
        fixed=0,
    ),
    Case(
        "coco image outside the folder",
        "coco",
        "missing-image",
        "{annotation}",
        spoil=replaced("p0.jpg", "../../../etc/passwd"),
        fixed=0,
    ),
    Case(
        "coco misspelt class", "coco", "unknown-class", "{annotation}", change=named("catt"), spoil=labelled
    ),
    Case(
        "coco declared larger",
        "coco",
        "size-mismatch",
        "{annotation}",
        spoil=replaced('"height": 90, "width": 120', '"height": 180, "width": 240'),
        exit=0,
    ),
    # YOLO
    Case("yolo line of words", "yolo", "bad-line", "{annotation}", spoil=added("cat at the left\n")),
    Case("yolo line of four", "yolo", "bad-line", "{annotation}", spoil=added("0 0.5 0.5 0.2\n")),
    Case("yolo class unknown", "yolo", "unknown-class", "{annotation}", change=named("catt")),
    Case(
        "yolo YAML broken",
        "yolo",
        "cannot-open",
        "data.yaml",
        spoil=written("train: [images\nnames: {", "data.yaml"),
        fixed=None,
        opens=False,
    ),
    Case(
        "yolo YAML bomb",
        "yolo",
        "cannot-open",
        "data.yaml",
        spoil=added(YAML_BOMB, "data.yaml"),
        fixed=None,
        opens=False,
    ),
    # CSV
    Case("csv short row", "csv", "bad-row", "{annotation}", spoil=added("p0.jpg,120,90,cat,4\n")),
    Case(
        "csv column missing",
        "csv",
        "no-training",
        "csv",
        spoil=replaced("xmax", "right"),
        fixed=1,
        opens=False,
    ),
    Case("csv misspelt class", "csv", "unknown-class", "{annotation}", change=named("catt"), spoil=labelled),
    Case(
        "csv declared larger",
        "csv",
        "size-mismatch",
        "{annotation}",
        spoil=replaced(r"p0.jpg,120,90", "p0.jpg,240,180", count=0),
        exit=0,
    ),
    # Open Images
    Case("open_images short row", "open_images", "bad-row", "{annotation}", spoil=added("p0,xclick,/m/0\n")),
    Case(
        "open_images words",
        "open_images",
        "bad-number",
        "{annotation}",
        spoil=added("p0,xclick,/m/0,1,a,b,c,d,0,0,0,0,0,/m/0,cat\n"),
    ),
    Case(
        "open_images column missing",
        "open_images",
        "cannot-open",
        "{annotation}",
        spoil=replaced("XMin", "Left"),
        fixed=None,
        opens=False,
    ),
    Case(
        "open_images empty table",
        "open_images",
        "cannot-open",
        "{annotation}",
        spoil=written(""),
        fixed=None,
        opens=False,
    ),
    Case(
        "open_images two spellings",
        "open_images",
        "similar-classes",
        "open_images",
        change=named("Cat", 2),
        exit=0,
    ),
]

CASES = IMAGE_CASES + BOX_CASES + OTHER_CASES


def found(folder, capsys, *options):
    """Exit code, and the report as JSON."""
    code = main([str(folder), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def listing(root):
    return {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def test_there_are_enough():
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert {case.code for case in CASES} <= set(CODES)
    assert {case.kind for case in CASES} == set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sound_set_has_no_finding(kind, sets, tmp_path, capsys):
    whole = sets.WholeSet(kind, tmp_path).write(sets.sound())
    code, report = found(whole.root, capsys, "--strict")
    assert report["findings"] == [] and code == 0
    assert report["parts"]["train"]["images"] == 6 and report["parts"]["train"]["objects"] == 24


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_one_fault(case, sets, tmp_path, capsys):
    if case.kind == "yolo":
        pytest.importorskip("yaml")
    pictures = sets.sound()
    if case.change:
        case.change(pictures)
    root = tmp_path / case.kind
    root.mkdir()
    whole = sets.WholeSet(case.kind, root).write(pictures)
    if case.spoil:
        case.spoil(whole)
    before = listing(root)

    copy = tmp_path / "copy"
    assert main([str(root)]) == case.exit  # in words
    words = capsys.readouterr().out
    if case.fixed is None:
        with pytest.raises(UserError):
            main([str(root), "--fix", str(copy)])
        assert not copy.exists()
        _, report = found(root, capsys)
    else:
        code, report = found(root, capsys, "--fix", str(copy))
        assert code == case.fixed, report["copy"]["findings"]
        left = {each["code"] for each in report["copy"]["findings"]}
        assert CODES[case.code].severity == "note" or case.code in LASTING or case.code not in left

    codes = {each["code"] for each in report["findings"]}
    assert case.code in codes <= set(CODES) and case.code in words
    expected = case.file.format(annotation=whole.annotation().relative_to(root).as_posix())
    files = [each["file"].replace("\\", "/") for each in report["findings"] if each["code"] == case.code]
    assert any(file.endswith(expected) for file in files), files

    if case.opens:
        assert len(open_dataset(root, "train")) and len(open_dataset(root, "test"))
    else:
        with pytest.raises(UserError):
            open_dataset(root, "train")
            open_dataset(root, "test")
    assert listing(root) == before
    assert {path.name for path in tmp_path.iterdir()} <= {case.kind, "copy"}


LASTING = {
    "near-leak",
    "tiny-box",
    "no-split",
    "no-training",
    "unused-class",
    "absent-class",
    "rare-class",
    "low-reach",
    "empty-set",
}
"""Faults that only people can mend."""
