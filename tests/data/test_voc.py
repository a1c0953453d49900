"""The VOC reader on real photographs, and on trees broken in every way that people break them."""

import cv2
import numpy as np
import pytest

from vision.data import Dataset, format_of, open_dataset, summary
from vision.data.voc import read_voc, voc_parts
from vision.errors import UserError

HEIGHT, WIDTH = 60, 80


def coded(suffix=".jpg", height=HEIGHT, width=WIDTH):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


def thing(name="cat", corners=(11, 21, 41, 51), difficult="<difficult>0</difficult>"):
    tags = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name>{difficult}<bndbox>{tags}</bndbox></object>"


def xml(*things, size=(HEIGHT, WIDTH), filename="one.jpg"):
    declared = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    return f"<annotation>\n<filename>{filename}</filename>\n{declared}\n{''.join(things)}\n</annotation>"


@pytest.fixture
def tree(tmp_path):
    """A whole VOC tree with one image, one.jpg, that shows a cat; tests break it."""
    root = tmp_path / "tree"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "JPEGImages/one.jpg").write_bytes(coded())
    (root / "Annotations/one.xml").write_text(xml(thing()))
    (root / "ImageSets/Main/trainval.txt").write_text("one\n")
    (root / "labels.txt").write_text("cat\ndog\n")
    return root


def codes(dataset: Dataset):
    return [finding.code for finding in dataset.findings]


# --- what is right ------------------------------------------------------------------------------------------


def test_a_whole_tree_has_no_findings(tree):
    dataset = read_voc(tree, "train")
    (sample,) = dataset.samples
    assert dataset.findings == [] and dataset.classes == ("BACKGROUND", "cat", "dog")
    assert sample.id == "one" and sample.size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(sample.boxes, [[10, 20, 40, 50]])  # VOC counts pixels from 1
    assert sample.labels.tolist() == [1] and sample.labels.dtype == np.int64
    assert not sample.difficult.any() and not sample.group.any()


def test_bccd(photographs):
    dataset = open_dataset(photographs / "bccd", "train")
    assert dataset.classes == ("BACKGROUND", "RBC", "WBC", "Platelets")
    assert (len(dataset), dataset.num_objects) == (292, 3941)
    found = [(finding.code, finding.file[-8:], finding.where) for finding in dataset.findings]
    assert found == [
        ("empty-box", "0338.xml", "object 13 (RBC)"),
        ("empty-box", "0343.xml", "object 4 (RBC)"),
    ]
    assert "504" in dataset.findings[0].value
    test = open_dataset(photographs / "bccd", "test")
    assert len(test) == 72 and not {s.id for s in test.samples} & {s.id for s in dataset.samples}


def test_cards_with_capital_suffixes(photographs):
    dataset = open_dataset(photographs / "cards", "test")
    assert len(dataset) == 67 and dataset.findings == []
    assert {sample.path.suffix for sample in dataset.samples} >= {".JPG"}


def test_an_xml_without_objects_is_a_negative(tree):
    (tree / "Annotations/one.xml").write_text(xml())
    dataset = read_voc(tree, "train")
    (sample,) = dataset.samples
    assert sample.boxes.shape == (0, 4) and sample.boxes.dtype == np.float32 and dataset.findings == []
    assert "1 of them without objects" in summary(dataset)


@pytest.mark.parametrize(
    "tag, flag",
    [
        ("", False),
        ("<difficult/>", False),
        ("<difficult>1</difficult>", True),
        ("<difficult> 0 </difficult>", False),
    ],
)
def test_difficult(tree, tag, flag):
    (tree / "Annotations/one.xml").write_text(xml(thing(difficult=tag)))
    (sample,) = read_voc(tree, "train").samples
    assert sample.difficult.tolist() == [flag]


@pytest.mark.parametrize("name", ["one.JPG", "one.jpeg", "one.Png", "one.bmp", "one.TIF", "one.webp"])
def test_image_suffixes_in_any_case(tree, name):
    (tree / "JPEGImages/one.jpg").unlink()
    (tree / "JPEGImages" / name).write_bytes(coded(name[name.index(".") :].lower()))
    (sample,) = read_voc(tree, "train").samples
    assert sample.path.name == name and sample.size == (HEIGHT, WIDTH)


def test_the_filename_tag_helps_when_stems_differ(tree):
    (tree / "JPEGImages/one.jpg").rename(tree / "JPEGImages/photo 7.JPG")
    (tree / "Annotations/one.xml").write_text(xml(thing(), filename="C:\\photos\\photo 7.JPG"))
    (sample,) = read_voc(tree, "train").samples
    assert sample.path.name == "photo 7.JPG"


def test_the_filename_tag_does_not_beat_the_stem(tree):
    (tree / "JPEGImages/other.jpg").write_bytes(coded())
    (tree / "Annotations/one.xml").write_text(xml(thing(), filename="other.jpg"))
    (sample,) = read_voc(tree, "train").samples
    assert sample.path.name == "one.jpg"


# --- classes ------------------------------------------------------------------------------------------------


def test_without_labels_txt_classes_come_from_all_annotations(tree):
    (tree / "labels.txt").unlink()
    (tree / "Annotations/two.xml").write_text(xml(thing("zebra"), thing("ant")))
    for split in ("train", "trainval"):
        assert read_voc(tree, split).classes == ("BACKGROUND", "ant", "cat", "zebra")


def test_the_numbering_does_not_hang_on_the_split(tree):
    (tree / "labels.txt").unlink()
    (tree / "JPEGImages/two.jpg").write_bytes(coded())
    (tree / "Annotations/two.xml").write_text(xml(thing("ant"), filename="two.jpg"))
    (tree / "ImageSets/Main/test.txt").write_text("two\n")
    train, test = read_voc(tree, "train"), read_voc(tree, "test")
    assert train.classes == test.classes == ("BACKGROUND", "ant", "cat")
    assert train.samples[0].labels.tolist() == [2] and test.samples[0].labels.tolist() == [1]


def test_given_classes_win(tree):
    dataset = read_voc(tree, "train", classes=["dog", "cat"])
    assert dataset.classes == ("BACKGROUND", "dog", "cat") and dataset.samples[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    "name, hint", [("Cat", "'cat'"), ("cats", "'cat'"), ("cat:9,9,9::", "'cat'"), ("xylophone", None)]
)
def test_an_unknown_class_is_dropped_with_a_hint(tree, name, hint):
    (tree / "Annotations/one.xml").write_text(xml(thing(name), thing("dog")))
    dataset = read_voc(tree, "train")
    (finding,) = dataset.findings
    assert finding.code == "unknown-class" and finding.value == name and "object 1" in finding.where
    assert ("did you mean " + hint in finding.action) if hint else ("did you mean" not in finding.action)
    assert dataset.samples[0].labels.tolist() == [2]


# --- boxes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "corners, code, box",
    [
        ((1, 1, 80, 60), None, (0, 0, 79, 59)),
        ((0, 0, 80, 60), None, (0, 0, 79, 59)),  # 0-based tools: one pixel over the border is no fault
        ((1, 1, 81, 61), None, (0, 0, 80, 60)),
        (("11.5", "21.25", "41", "51"), None, (10.5, 20.25, 40, 50)),
        ((504, 337, 504, 337), "empty-box", None),
        ((11, 21, 11, 51), "empty-box", None),
        ((11, 21, "11.5", 51), "empty-box", None),
        ((80, 21, 80, 51), "empty-box", None),
        ((41, 51, 11, 21), "inverted-box", (10, 20, 40, 50)),
        ((41, 21, 11, 51), "inverted-box", (10, 20, 40, 50)),
        ((41, 21, -30, 51), "inverted-box", None),
        ((-20, -30, 41, 51), "clipped-box", (0, 0, 40, 50)),
        ((11, 21, 200, 51), "clipped-box", (10, 20, 80, 50)),
        ((100, 21, 140, 51), "outside-box", None),
        ((-50, 21, -10, 51), "outside-box", None),
        ((-3, 21, 1, 51), "outside-box", None),
        ((81, 21, 90, 51), "outside-box", None),
        (("nan", 21, 41, 51), "bad-number", None),
        (("inf", 21, 41, 51), "bad-number", None),
        (("1e300", 21, 41, 51), "bad-number", None),
        (("left", 21, 41, 51), "bad-number", None),
        (("", 21, 41, 51), "no-box", None),
        ((0.1, 0.2, 0.5, 0.75), "fraction-box", None),
    ],
)
def test_boxes(tree, corners, code, box):
    (tree / "Annotations/one.xml").write_text(xml(thing(corners=corners), thing("dog")))
    dataset = read_voc(tree, "train")
    (sample,) = dataset.samples
    assert codes(dataset) == ([code] if code else [])
    if code:
        assert dataset.findings[0].where == "object 1 (cat)" and dataset.findings[0].file.endswith("one.xml")
    boxes = ([box] if box else []) + [(10, 20, 40, 50)]
    np.testing.assert_allclose(sample.boxes, boxes)
    assert sample.labels.tolist() == [1, 2][-len(boxes) :]


@pytest.mark.parametrize(
    "broken, code",
    [
        ("<object><name>cat</name></object>", "no-box"),
        ("<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>", "no-box"),
        ("<object><bndbox/></object>", "no-name"),
        ("<object><name>  </name></object>", "no-name"),
        # A part's box is not the object's.
        ("<object><name>cat</name><part><bndbox><xmin>1</xmin></bndbox></part></object>", "no-box"),
    ],
)
def test_objects_without_name_or_box(tree, broken, code):
    (tree / "Annotations/one.xml").write_text(xml(broken, thing()))
    dataset = read_voc(tree, "train")
    assert codes(dataset) == [code] and len(dataset.samples[0].labels) == 1


# --- XML files ----------------------------------------------------------------------------------------------

BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'


@pytest.mark.parametrize(
    "raw, code, where",
    [
        (b"", "bad-xml", "line 1"),
        (b"<annotation>\n<object>\n</annotation>", "bad-xml", "line 3"),
        (b"\x00\x01\x02", "bad-xml", "line 1"),
        (b"<svg></svg>", "bad-xml", "line 1"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "bad-xml", "line 1"),
        (BOMB.encode(), "unsafe-xml", ""),
        (BOMB.replace("1.0", '1.0" encoding="utf-16').encode("utf-16"), "unsafe-xml", ""),
    ],
)
def test_an_xml_that_is_none(tree, raw, code, where):
    (tree / "Annotations/one.xml").write_bytes(raw)
    dataset = read_voc(tree, "train")
    (finding,) = dataset.findings
    assert (
        dataset.samples == [] and (finding.code, finding.where) == (code, where) and "one.xml" in finding.file
    )


@pytest.mark.parametrize("line", ["one", "one.jpg", "JPEGImages/one.jpg"])
def test_a_missing_xml_is_no_negative(tree, line):
    (tree / "Annotations/one.xml").unlink()
    (tree / "ImageSets/Main/trainval.txt").write_text(line)
    dataset = read_voc(tree, "train")
    assert dataset.samples == [] and codes(dataset) == ["missing-annotation"]
    assert dataset.findings[0].file.endswith("one.xml")
    assert "without objects" in dataset.findings[0].action


# --- image files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, code",
    [
        (b"", "unreadable-image"),
        (b"<!DOCTYPE html><html>404</html>", "unreadable-image"),
        (b'{"error": 403}', "unreadable-image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "unreadable-image"),
        (b"\xff\xd8", "truncated-image"),
        (coded()[:100], "truncated-image"),
        (coded()[: len(coded()) // 2], "truncated-image"),
        (coded()[: len(coded()) // 2] + bytes(3000), "truncated-image"),
        (coded(".png")[: len(coded(".png")) // 2], "truncated-image"),
        (coded(".bmp")[:-50], "truncated-image"),
        (coded() + bytes(200000), None),  # a film behind the photograph
        (coded(".png"), None),  # a PNG that is called .jpg
    ],
)
def test_image_files(tree, raw, code):
    (tree / "JPEGImages/one.jpg").write_bytes(raw)
    dataset = read_voc(tree, "train")
    assert codes(dataset) == ([code] if code else []) and len(dataset) == (0 if code else 1)
    if code:
        assert dataset.findings[0].file.endswith("one.jpg")


def test_a_missing_image_says_where_it_was_looked_for(tree):
    (tree / "JPEGImages/one.jpg").rename(tree / "JPEGImages/one.gif")
    dataset = read_voc(tree, "train")
    assert codes(dataset) == ["missing-image"] and dataset.samples == []
    assert "JPEGImages" in dataset.findings[0].action and ".webp" in dataset.findings[0].action


def test_two_images_for_one_annotation(tree):
    (tree / "JPEGImages/one.png").write_bytes(coded(".png"))
    dataset = read_voc(tree, "train")
    assert codes(dataset) == ["several-images"] and dataset.samples[0].path.name == "one.jpg"


@pytest.mark.parametrize(
    "declared, box, code",
    [
        (None, (10, 20, 40, 50), None),
        ((0, 0), (10, 20, 40, 50), None),
        ((HEIGHT * 2, WIDTH * 2), (5, 10, 20, 25), "size-mismatch"),
        ((HEIGHT, WIDTH * 2), (10, 20, 40, 50), "size-mismatch"),
        ((WIDTH, HEIGHT), (10, 20, 40, 50), "size-mismatch"),  # turned, but no EXIF says so
    ],
)
def test_sizes_that_disagree(tree, declared, box, code):
    (tree / "Annotations/one.xml").write_text(xml(thing(), size=declared))
    dataset = read_voc(tree, "train")
    assert codes(dataset) == ([code] if code else [])
    np.testing.assert_allclose(dataset.samples[0].boxes, [box])
    assert dataset.samples[0].size == (HEIGHT, WIDTH)


# --- split files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "there, split, chosen",
    [
        ("train trainval test val", "train", "trainval"),
        ("train val test", "train", "train"),
        ("default", "default", "default"),
        ("train val trainval", "test", "val"),
        ("train val trainval", "train", "train"),  # trainval holds val, which is what is tested on
        ("trainval default", "train", "trainval"),
        ("trainval mine", "mine", "mine"),
    ],
)
def test_which_split_file_is_read(tree, there, split, chosen):
    (tree / "ImageSets/Main/trainval.txt").unlink()
    for name in there.split():
        (tree / f"JPEGImages/{name}.jpg").write_bytes(coded())
        (tree / f"Annotations/{name}.xml").write_text(xml(thing()))
        (tree / f"ImageSets/Main/{name}.txt").write_text(f"{name}\n")
    dataset = read_voc(tree, split)
    assert [sample.id for sample in dataset.samples] == [chosen]
    assert codes(dataset) == []


@pytest.mark.parametrize("name", ["default", "all", "mine"])
def test_one_list_of_everything_is_divided(tree, name):
    names = [f"image{number}" for number in range(10)]
    for each in names:
        (tree / f"JPEGImages/{each}.jpg").write_bytes(coded())
        (tree / f"Annotations/{each}.xml").write_text(xml(thing()))
    (tree / "ImageSets/Main/trainval.txt").unlink()
    (tree / f"ImageSets/Main/{name}.txt").write_text("\n".join(names))
    train, test = (open_dataset(tree, split) for split in ("train", "test"))
    ids = [{sample.id for sample in part.samples} for part in (train, test)]
    assert [len(each) for each in ids] == [8, 2] and ids[0] | ids[1] == set(names)
    assert train.findings == test.findings and codes(train) == ["random-split"]  # one line says both
    assert "8 images for training, 2 for test" in train.findings[0].action


@pytest.mark.parametrize("split", ["test", "trainvall"])
def test_a_missing_split_file_lists_those_there_are(tree, split):
    with pytest.raises(UserError, match=r"trainval\.txt"):
        read_voc(tree, split)


@pytest.mark.parametrize(
    "text, ids",
    [
        ("", []),
        ("\n \n", []),
        ("one\r\na b\r\n", ["one", "a b"]),
        ("\ufeffone\n", ["one"]),
        ("one.jpg\na b.JPG\n", ["one", "a b"]),
        ("JPEGImages/one.jpg\nsome\\folder\\a b\n", ["one", "a b"]),
        ("one  1\na b -1\n", ["one"]),
        ("one -1\na b  0\n", ["a b"]),
        ("one\none\n", ["one"]),
    ],
)
def test_lines_of_a_split_file(tree, text, ids):
    (tree / "JPEGImages/a b.jpg").write_bytes(coded())
    (tree / "Annotations/a b.xml").write_text(xml(thing()))
    (tree / "ImageSets/Main/trainval.txt").write_bytes(text.encode())
    dataset = read_voc(tree, "train")
    assert [sample.id for sample in dataset.samples] == ids
    assert codes(dataset) == (["duplicate-id"] if text.count("one\n") > 1 else [])


def test_images_in_folders(tree):
    for kind, suffix, raw in (("JPEGImages", "jpg", coded()), ("Annotations", "xml", xml(thing()).encode())):
        (tree / kind / "day 1").mkdir()
        (tree / kind / f"day 1/one.{suffix}").write_bytes(raw)
    (tree / "ImageSets/Main/trainval.txt").write_text("one\nday 1/one\n")
    assert [sample.id for sample in read_voc(tree, "train").samples] == ["one", "day 1/one"]


def without_split_files(tree, names):
    for name in names:
        (tree / f"JPEGImages/{name}.jpg").write_bytes(coded())
        (tree / f"Annotations/{name}.xml").write_text(xml(thing()))
    (tree / "ImageSets/Main/trainval.txt").unlink()
    (tree / "ImageSets/Main").rmdir()
    (tree / "ImageSets").rmdir()


def test_without_split_files_images_are_split_and_it_is_said(tree):
    without_split_files(tree, [f"image{number}" for number in range(19)])
    train, test = read_voc(tree, "train"), read_voc(tree, "test")
    ids = [{sample.id for sample in part.samples} for part in (train, test)]
    assert len(ids[0]) == 16 and len(ids[1]) == 4 and not ids[0] & ids[1]
    assert codes(train) == ["random-split"] and "80/20" in summary(train) and train.findings == test.findings
    assert {sample.id for sample in read_voc(tree, "test", seed=0).samples} == ids[1]
    assert {sample.id for sample in read_voc(tree, "test", seed=1).samples} != ids[1]
    with pytest.raises(UserError, match="train or test"):
        read_voc(tree, "mine")


# --- layouts ------------------------------------------------------------------------------------------------


def lay_out(root, places):
    """Images and XML at (image, XML) paths without suffixes; an XML "" is left out."""
    for image, annotation in places:
        for name, raw in (
            (f"{image}.jpg", coded()),
            (f"{annotation}.xml" if annotation else "", xml(thing()).encode()),
        ):
            if name:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(raw)


@pytest.mark.parametrize(
    "images, annotations, lists",
    [
        ("images", "annotations", ""),
        ("images", "Annotations", ""),
        ("JPEGimages", "ANNOTATIONS", ""),
        ("jpegimages", "annotations", "ImageSets/Main"),
        ("Images", "annotations", "imagesets/main"),
        (".", ".", ""),
        (".", ".", "ImageSets/Main"),
    ],
)
def test_folders_by_other_names(tmp_path, images, annotations, lists):
    names = ["a", "b", "c", "d", "e"]
    lay_out(tmp_path, [(f"{images}/{name}", f"{annotations}/{name}") for name in names])
    if lists:
        (tmp_path / lists).mkdir(parents=True)
        for part, text in (("train", "a\nb\nc\nd\n"), ("test", "e\n")):
            (tmp_path / lists / f"{part}.txt").write_text(text)
    assert format_of(tmp_path).name == "voc" and voc_parts(tmp_path) == (["train", "test"] if lists else [])
    train, test = (open_dataset(tmp_path, split, strict=True) for split in ("train", "test"))
    assert sorted(sample.id for part in (train, test) for sample in part.samples) == names
    assert train.num_objects == 4 and codes(train) == ([] if lists else ["random-split"])


@pytest.mark.parametrize(
    "images, annotations", [("", ""), ("images/", "annotations/"), ("JPEGImages/", "Annotations/")]
)
def test_folders_are_the_parts(tmp_path, images, annotations):
    for part in ("train", "valid", "test"):
        lay_out(tmp_path, [(f"{images}{part}/{part}", f"{annotations}{part}/{part}")])
    lay_out(tmp_path, [(f"{images}train/bare", "")])
    assert voc_parts(tmp_path) == ["train", "val", "test"] and format_of(tmp_path).name == "voc"
    for split, folder in (("test", "test"), ("val", "valid"), ("valid", "valid")):
        dataset = open_dataset(tmp_path, split, strict=True)
        assert [sample.id for sample in dataset.samples] == [f"{folder}/{folder}"]
    train = open_dataset(tmp_path, "train")
    assert [sample.id for sample in train.samples] == ["train/train"] and codes(train) == [
        "missing-annotation"
    ]
    with pytest.raises(UserError, match="no split mine"):
        read_voc(tmp_path, "mine")


def test_images_without_xml_are_one_finding(tmp_path):
    lay_out(tmp_path, [(name, name if name in "abcde" else "") for name in "abcdefgh"])
    train, test = (open_dataset(tmp_path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 1) and train.findings == test.findings
    missing = train.findings[1]
    assert (missing.code, missing.value) == ("missing-annotation", "3 images without an XML, the first f")
    assert "without objects write an XML" in missing.action


@pytest.mark.parametrize("raw", [b"", b"<annotations><image/></annotations>", b"<project/>"])
def test_an_xml_that_is_none_makes_no_set(tmp_path, raw):
    lay_out(tmp_path, [("a", "a"), ("images/a", "annotations/a")])
    for path in tmp_path.rglob("*.xml"):
        path.write_bytes(raw)
    with pytest.raises(UserError, match="not a data set"):
        open_dataset(tmp_path, "train")


def test_what_is_another_format_stays_so(tmp_path):
    """LabelImg writes both formats into one folder; so do converters."""
    lay_out(tmp_path, [("a", "a")])
    (tmp_path / "classes.txt").write_text("cat")
    assert format_of(tmp_path).name == "yolo"
    lay_out(tmp_path / "both", [("images/a", "annotations/a")])
    (tmp_path / "both/labels").mkdir()
    assert format_of(tmp_path / "both").name == "yolo"


# --- roots --------------------------------------------------------------------------------------------------


def test_folders_that_are_no_voc_tree(tree, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="did you mean .*tree"):
        open_dataset(tmp_path, "train")
    with pytest.raises(UserError, match="no folder Annotations and no folder JPEGImages"):
        open_dataset(tree / "ImageSets", "train", "voc")


@pytest.mark.parametrize("written", ["voc", "VOC", " Voc ", "auto"])
def test_the_type_in_any_case(tree, written):
    assert len(open_dataset(tree, "train", written)) == 1


def test_an_unknown_type_is_refused(tree):
    with pytest.raises(UserError, match="did you mean 'voc'"):
        open_dataset(tree, "train", "vocs")


@pytest.fixture
def other(tmp_path):
    """A second tree, whose one.jpg shows an ant and whose labels are of another order."""
    root = tmp_path / "other"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "JPEGImages/one.jpg").write_bytes(coded())
    (root / "Annotations/one.xml").write_text(xml(thing("ant")))
    (root / "ImageSets/Main/trainval.txt").write_text("one\n")
    (root / "labels.txt").write_text("dog\nant\n")
    return root


def test_several_roots_join_by_name_whatever_their_order(tree, other):
    one, two = open_dataset([tree, other], "train"), open_dataset([other, tree], "train")
    assert one.classes == two.classes == ("BACKGROUND", "ant", "cat", "dog")
    assert {s.id: s.labels.tolist() for s in one.samples} == {"tree/one": [2], "other/one": [1]}
    assert {s.id: s.labels.tolist() for s in two.samples} == {"tree/one": [2], "other/one": [1]}


def test_roots_that_agree_keep_their_order(tree, other):
    (tree / "labels.txt").write_text("dog\ncat\nant\n")
    (other / "labels.txt").write_text("BACKGROUND\ndog\ncat\nant\n")
    assert open_dataset([tree, other], "train").classes == ("BACKGROUND", "dog", "cat", "ant")


def test_given_labels(tree, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("dog,cat")
    for labels in (path, str(path), ["dog", "cat"]):
        assert open_dataset(tree, "train", labels=labels).classes == ("BACKGROUND", "dog", "cat")


def test_no_root_or_the_same_root_twice(tree):
    with pytest.raises(UserError, match="no data set"):
        open_dataset([], "train")
    with pytest.raises(UserError, match="twice"):
        open_dataset([tree, tree / "../tree"], "train")


def test_a_set_without_a_usable_image_says_why(tree):
    (tree / "JPEGImages/one.jpg").unlink()
    with pytest.raises(UserError, match="not one usable image(.|\n)*missing-image"):
        open_dataset(tree, "train")


def test_a_set_without_a_class_is_refused(tree):
    (tree / "labels.txt").unlink()
    (tree / "Annotations/one.xml").write_text(xml())
    with pytest.raises(UserError, match="no class"):
        open_dataset(tree, "train")


def test_strict_lists_every_fault(tree):
    (tree / "Annotations/one.xml").write_text(xml(thing(), thing(corners=(9, 9, 9, 9)), thing("cow")))
    assert codes(open_dataset(tree, "train")) == ["empty-box", "unknown-class"]
    with pytest.raises(UserError, match="2 faults(.|\n)*object 2(.|\n)*object 3"):
        open_dataset(tree, "train", strict=True)


def test_strict_lets_decisions_pass(tree):
    without_split_files(tree, ["two", "three"])
    assert codes(open_dataset(tree, "train", strict=True)) == ["random-split"]


def test_summary_counts_and_names(tree):
    (tree / "Annotations/one.xml").write_text(xml(thing(), *[thing(corners=(9, 9, 9, 9))] * 5))
    said = summary(open_dataset(tree, "train"))
    assert "1 images" in said and "5 x empty-box" in said and "and 2 more" in said
    assert "no object in this split" in said  # of the dogs
