"""The data doctor: its report, its copy, its pictures, its memory, and the numbers behind them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.boxes import centers_to_corners, iou
from vision.data import FORMATS, open_dataset, precheck
from vision.data.check import Options, Question, examine, main, told
from vision.data.content import jpeg_end, kind_of, look, near_pairs, png_end
from vision.data.findings import CODES, SEVERITIES, severity, table
from vision.data.images import Broken
from vision.data.reach import NETS, best_iou, priors_of, reach
from vision.data.sample import Finding
from vision.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def whole(sets, tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    return sets.WholeSet("voc", root).write(sets.sound())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISION_CACHE", str(tmp_path / "cache"))


# --- the table of codes -------------------------------------------------------------------------------------


def test_the_page_has_the_table_of_the_code():
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert table() in page, "write it anew: python -m vision.data.findings"


def test_every_code_that_a_reader_can_give_is_in_the_table():
    """The readers list theirs at their heads, between lines of "="."""
    listed = set()
    for path in (ROOT / "vision" / "data").glob("*.py"):
        parts = re.split(r"^={5,}.*$", path.read_text(encoding="utf-8"), flags=re.M)
        for line in "\n".join(parts[1:-1]).splitlines():
            names = re.match(r"([a-z]+-[a-z]+(?:, [a-z]+-[a-z]+)*) ", line)
            listed |= set(names.group(1).split(", ")) if names else set()
    assert len(listed) > 20
    assert listed <= set(CODES), f"say what these mean in vision.data.findings: {sorted(listed - set(CODES))}"


def test_codes_are_whole():
    for name, code in CODES.items():
        assert code.severity in SEVERITIES and re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert all(code) and "|" not in "".join(code)


@pytest.mark.parametrize(
    "code, action, grade",
    [
        ("empty-box", "dropped", "error"),
        ("inverted-box", "corners swapped", "warning"),
        ("inverted-box", "dropped", "error"),
        ("random-split", "split 80/20", "note"),
        ("of-tomorrow", "dropped", "error"),
        ("of-tomorrow", "kept", "warning"),
    ],
)
def test_severity(code, action, grade):
    assert severity(Finding(code, "file", "", "", action)) == grade


# --- files --------------------------------------------------------------------------------------------------


def test_the_end_of_a_jpeg(sets):
    data = sets.coded()
    assert jpeg_end(data) == len(data) - 2
    assert jpeg_end(data + b"behind the end \xff\xd9") == len(data) - 2
    for cut in (3, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(Broken) as caught:
            jpeg_end(data[:cut])
        assert caught.value.code == "truncated-image"


@pytest.mark.parametrize("options", [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
def test_the_end_of_a_jpeg_of_many_scans_or_restarts(sets, options):
    image = cv2.imdecode(np.frombuffer(sets.coded(), np.uint8), cv2.IMREAD_COLOR)
    data = cv2.imencode(".jpg", image, options)[1].tobytes()
    assert jpeg_end(data) == len(data) - 2
    with pytest.raises(Broken):
        jpeg_end(data[:-2])


def test_the_end_of_a_png(sets):
    data = sets.coded(suffix=".png")
    assert png_end(data) == png_end(data + b"IEND") == len(data)
    with pytest.raises(Broken) as caught:
        png_end(data[:-12])
    assert caught.value.code == "truncated-image"
    with pytest.raises(Broken) as caught:
        png_end(data[:60] + b"\0\1\2" + data[63:])
    assert caught.value.code == "damaged-image"


@pytest.mark.parametrize(
    "suffix, kind", [(".jpg", "JPEG"), (".png", "PNG"), (".bmp", "BMP"), (".tif", "TIFF"), (".webp", "WebP")]
)
def test_a_sound_file(sets, tmp_path, suffix, kind):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(sets.coded(suffix=suffix))
    seen = look(path)
    assert (seen.kind, seen.fault, seen.size) == (kind, ("", ""), (90, 120)) and len(seen.digest) == 64
    assert kind_of(b"") == "" and look(tmp_path / "none.jpg").fault[0] == "missing-image"


def test_photographs_are_whole_and_differ(photographs):
    looks = [look(path) for path in sorted((photographs / "bccd" / "JPEGImages").iterdir())[:40]]
    assert not any(seen.fault[0] for seen in looks)
    thumbnails = [seen.thumbnail for seen in looks]
    assert near_pairs(thumbnails[:20], thumbnails[20:]) == []
    assert near_pairs(thumbnails, thumbnails) == [(i, i) for i in range(40)]


def test_near_pairs_bear_saving_anew_and_resizing(photographs, tmp_path):
    path = sorted((photographs / "cards" / "JPEGImages").iterdir())[0]
    image = cv2.imread(str(path))
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    again = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    (tmp_path / "again.jpg").write_bytes(again)
    ours = [look(path).thumbnail]
    assert near_pairs(ours, [look(tmp_path / "again.jpg").thumbnail]) == [(0, 0)]
    assert near_pairs([], ours) == near_pairs(ours, []) == []


def test_flat_pictures_resemble_nothing():
    flat = [np.full((16, 16), 90, np.uint8), np.full((16, 16), 91, np.uint8)]
    assert near_pairs(flat, flat) == []


# --- priors -------------------------------------------------------------------------------------------------


def test_priors_are_those_of_the_nets():
    pytest.importorskip("torch")
    import vision.nets  # noqa: F401
    from vision.spec import make_priors, net_names, net_spec
    from vision.ssd import feature_sizes

    # A net may be one file alone; without a line in vision.data.reach its priors are not held against the data.
    assert set(NETS) <= set(net_names()) and len(NETS) >= 7
    for name in NETS:
        spec = net_spec(name)
        for size in ((300, 300), (512, 512), (384, 640), (301, 467)):
            expected = make_priors(spec.priors, feature_sizes(spec, size), size)
            np.testing.assert_array_equal(priors_of(name, size), expected, err_msg=f"{name} {size}")


def test_best_iou_is_that_of_all_pairs():
    assert best_iou(np.zeros((0, 4)), priors_of("mb1-ssd", (300, 300))).shape == (0,)
    low = np.random.default_rng(0).uniform(0, 0.6, (600, 2))
    boxes = np.concatenate([low, low + np.random.default_rng(1).uniform(0.02, 0.4, (600, 2))], axis=1)
    priors = priors_of("mb1-ssd", (300, 300))
    expected = iou(boxes, centers_to_corners(priors).astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(best_iou(boxes, priors), expected, atol=1e-5)


def test_reach_by_size():
    boxes = np.array([[0, 0, 0.1, 0.1], [0, 0, 0.2, 0.2], [0, 0, 0.9, 0.9]])
    rows = reach(boxes, np.array([0.2, 0.6, 0.7]), (300, 300))
    assert [(row.size, row.objects, row.share) for row in rows] == [
        ("small", 1, 0),
        ("medium", 1, 1),
        ("large", 1, 1),
    ]


@pytest.mark.parametrize("net, size", [("mb1-sdd", (300, 300)), ("vgg16-ssd", (40, 40))])
def test_what_has_no_priors_is_refused(net, size):
    with pytest.raises(UserError):
        priors_of(net, size)


# --- the report ---------------------------------------------------------------------------------------------


def test_bccd(photographs):
    report = examine(Question([photographs / "bccd"]))
    counts = [(f.code, severity(f), Path(f.file).name) for f in report.findings]
    assert counts == [
        ("empty-box", "error", "BloodImage_00338.xml"),
        ("empty-box", "error", "BloodImage_00343.xml"),
        ("low-reach", "warning", "bccd"),
    ]
    assert report.exit_code() == 1 and "282 objects" in told(report)
    large = examine(Question([photographs / "bccd"], net="vgg16-ssd", size=(512, 512)))
    assert large.reached("train")[0].mean_iou > 2 * report.reached("train")[0].mean_iou


def test_cards_are_sound(photographs):
    report = examine(Question([photographs / "cards"]))
    assert report.findings == [] and report.exit_code(strict=True) == 0


def test_exit_codes(whole, capsys):
    assert main([str(whole.root)]) == 0
    path = whole.image()
    path.write_bytes(cv2.imencode(".png", cv2.imread(str(path)))[1].tobytes())
    assert main([str(whole.root)]) == 0 and main([str(whole.root), "--strict"]) == 1
    path.unlink()
    assert main([str(whole.root)]) == 1
    for wrong in (
        ["/nowhere/at/all"],
        [],
        [str(whole.root), "--net", "x"],
        [str(whole.root), "--dataset_type", "x"],
    ):
        with pytest.raises(UserError):
            main(wrong)


def test_the_module_is_a_command(whole):
    words = [sys.executable, "-m", "vision.data", "check", str(whole.root), "--json"]
    code = "import sys; sys.modules['torch'] = None; from vision.data.check import main; sys.exit(main(sys.argv[1:]))"
    for command in (words, [sys.executable, "-c", code, *words[4:]]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and json.loads(done.stdout)["counts"]["error"] == 0, done.stderr


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_training_without_an_object(sets, tmp_path, capsys, kind):
    pictures = sets.sound()
    for picture in pictures:
        picture.things.clear()
    root = tmp_path / "none"
    root.mkdir()
    sets.WholeSet(kind, root).write(pictures)
    if kind == "yolo":
        shutil.rmtree(root / "labels")
    assert main([str(root)]) == 1
    words = capsys.readouterr().out
    with pytest.raises(UserError, match="6 images to train on, and not one object") as caught:
        open_dataset(root, "train")
    assert "no-objects x 1" in words and "unused-class" not in words and "did you mean" not in words
    for told_by in (words, str(caught.value)):
        assert str(root) in told_by and (kind != "yolo" or str(root / "labels/train/p0.txt") in told_by)
    assert len(open_dataset(root, "test")) == 3  # to test on, it may be


@pytest.mark.parametrize("part, done", [("train", "never learnt"), ("test", "not measured there")])
def test_a_class_that_a_part_lacks_says_how_to_divide(sets, tmp_path, part, done):
    pictures = sets.sound()
    for picture in pictures:
        picture.things = [thing for thing in picture.things if picture.part != part or thing.name == "cat"]
    sets.WholeSet("voc", tmp_path).write(pictures)
    (finding,) = [each for each in examine(Question([tmp_path])).findings if each.code == "absent-class"]
    assert done in finding.action and "python -m vision.data split" in finding.action


@pytest.mark.parametrize("kind", ["voc", "coco", "csv"])
def test_a_part_of_any_name_is_divided(sets, tmp_path, kind):
    root = tmp_path / "set"
    root.mkdir()
    pictures = sets.sound()
    for picture in pictures:
        picture.part = "mine"
    sets.WholeSet(kind, root).write(pictures)
    report = examine(Question([root]))
    assert [finding.code for finding in report.findings if severity(finding) != "warning"][
        0
    ] == "random-split"
    assert len(report.parts["train"]) == 7 and len(report.parts["test"]) == 2 and report.exit_code() == 0
    assert len(open_dataset(root, "mine")) == 9 and "not divided" in open_dataset(root, "train").recognised[0]


def test_what_was_looked_for_is_told_whole(tmp_path, capsys):
    for number in range(8):
        (tmp_path / f"{'something else ' * 4}{number}.txt").write_text("")
    assert main([str(tmp_path)]) == 1
    words = capsys.readouterr().out
    for known in FORMATS:
        assert f"{known.name}: {known.shows}" in words


def test_json_to_a_file_and_many_findings(whole, tmp_path, capsys):
    for number in range(6):
        whole.image(f"p{number}").unlink()
    place = tmp_path / "report.json"
    assert main([str(whole.root), "--json", str(place)]) == 1
    report = json.loads(place.read_text())
    assert sum(each["code"] == "missing-image" for each in report["findings"]) == 6
    words = capsys.readouterr().out
    assert "and 1 more" in words and "p5.xml" not in words
    assert main([str(whole.root), "--all"]) == 1
    assert "p5.xml" in capsys.readouterr().out


def test_two_roots_under_one_list_of_classes(sets, whole, tmp_path):
    pictures = sets.sound()
    for picture in pictures:
        picture.stem = "q" + picture.stem
        for thing in picture.things:
            thing.name = {"cat": "bird"}.get(thing.name, thing.name)
    other = tmp_path / "other"
    other.mkdir()
    sets.WholeSet("coco", other).write(pictures)
    report = examine(Question([whole.root, other]))
    assert report.classes == ("BACKGROUND", "bird", "cat", "dog") and report.kinds == ["voc", "coco"]
    assert len(report.parts["train"]) == 12
    codes = {finding.code for finding in report.findings}
    assert codes == {"duplicate-image", "unused-class"} or codes == {"duplicate-image"}


def test_trainval_holds_its_val(sets, whole):
    lists = whole.root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text())
    (lists / "train.txt").write_text("p0\np1\np2\np3\n")
    (lists / "val.txt").write_text("p4\np5\n")
    report = examine(Question([whole.root]))
    assert set(report.parts) == {"train", "test"} and len(report.parts["train"]) == 6
    assert not [finding for finding in report.findings if finding.code == "leak"]


# --- the copy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "inside", "..", "Annotations/deep"])
def test_a_copy_never_goes_into_the_source(whole, place):
    before = sorted(whole.root.rglob("*"))
    with pytest.raises(UserError):
        main([str(whole.root), "--fix", str(whole.root / place)])
    assert sorted(whole.root.rglob("*")) == before


def test_a_copy_keeps_what_is_good(whole, tmp_path, capsys):
    assert main([str(whole.root), "--fix", str(tmp_path / "copy")]) == 0
    for split in ("train", "test"):
        ours, theirs = open_dataset(whole.root, split), open_dataset(tmp_path / "copy", split)
        assert ours.classes == theirs.classes
        for one, other in zip(ours.samples, theirs.samples):
            assert one.id == other.id and one.path.read_bytes() == other.path.read_bytes()
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)
            np.testing.assert_array_equal(one.labels, other.labels)
    with pytest.raises(UserError, match="already"):
        main([str(whole.root), "--fix", str(tmp_path / "copy")])


def test_a_copy_renames_what_is_only_spelt_differently(sets, tmp_path, capsys):
    pictures = sets.sound()
    for picture, name in zip(pictures, ("CAT", " cat ", "catt")):
        picture.things[0].name = name
    root = tmp_path / "tree"
    root.mkdir()
    sets.WholeSet("voc", root).write(pictures)
    assert main([str(root), "--fix", str(tmp_path / "copy")]) == 0
    train = open_dataset(tmp_path / "copy", "train")
    assert train.classes == ("BACKGROUND", "cat", "dog")
    assert [len(sample.labels) for sample in train.samples] == [4, 4, 3, 4, 4, 4]  # "catt" would be a guess


# --- pictures -----------------------------------------------------------------------------------------------


def test_pictures(whole, tmp_path, capsys):
    assert main([str(whole.root), "--pictures", str(tmp_path / "seen")]) == 0
    names = {path.name for path in (tmp_path / "seen").iterdir()}
    assert names == {"train.jpg", "test.jpg", "classes.png", "boxes-train.png", "boxes-test.png"}
    for name in names:
        image = cv2.imread(str(tmp_path / "seen" / name))
        assert min(image.shape[:2]) > 150 and image.std() > 10


def test_pictures_of_many_classes_and_of_none(sets, tmp_path, capsys):
    pictures = sets.sound()
    for number, picture in enumerate(pictures):
        for other, thing in enumerate(picture.things):
            thing.name = f"a class with a long name {number} {other} \u00e9"
    (tmp_path / "many").mkdir()
    sets.WholeSet("csv", tmp_path / "many").write(pictures)
    main([str(tmp_path / "many"), "--pictures", str(tmp_path / "seen")])
    assert (tmp_path / "seen" / "boxes-train.png").is_file()
    (tmp_path / "none").mkdir()
    assert main([str(tmp_path / "none"), "--pictures", str(tmp_path / "unseen")]) == 1
    assert not (tmp_path / "unseen").exists()


# --- before training ----------------------------------------------------------------------------------------


def asked(whole, strict=False, net="mb1-ssd"):
    parts = {split: open_dataset(whole.root, split) for split in ("train", "test")}
    return precheck.check_before_training(Question([whole.root], net=net), parts, strict)


def test_a_verdict_is_remembered_until_a_file_changes(whole):
    first = asked(whole)
    assert first == "checked 9 images: 0 errors, 0 warnings, 0 notes"
    assert asked(whole) == first + " (cached)"
    assert asked(whole, net="vgg16-ssd") == first  # another question
    os.utime(whole.image(), ns=(1, 1))
    assert asked(whole, net="vgg16-ssd") == first
    (whole.image("p6", "test")).write_bytes(whole.image().read_bytes())
    found = asked(whole)
    assert "1 error" in found and "leak x 1" in found and "vision.data check" in found
    with pytest.raises(UserError, match="leak"):
        asked(whole, strict=True)
    (kept,) = precheck.cache_folder().iterdir()
    assert sorted(path.name for path in whole.root.iterdir()) == [
        "Annotations",
        "ImageSets",
        "JPEGImages",
        "labels.txt",
    ]
    kept.write_text('{"fingerprint": 7')
    assert "(cached)" not in asked(whole)


def test_a_cache_that_cannot_be_written_stops_nothing(whole, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VISION_CACHE", str(tmp_path / "file"))
    assert asked(whole) == asked(whole) == "checked 9 images: 0 errors, 0 warnings, 0 notes"


def test_training_says_it_in_one_line(whole, caplog):
    pytest.importorskip("torch")
    from vision.config import TrainConfig
    from vision.engine import open_data

    with caplog.at_level("INFO"):
        open_data(TrainConfig(datasets=[str(whole.root)]))
        open_data(TrainConfig(datasets=[str(whole.root)]))
        open_data(TrainConfig(datasets=[str(whole.root)], no_check=True))
    lines = [record.getMessage() for record in caplog.records if "checked" in record.getMessage()]
    assert [line.endswith("(cached)") for line in lines] == [False, True]


def test_options_are_checked():
    with pytest.raises(UserError):
        Options(folders=["x"], resolution="wide")
