"""The whole downloader against real servers on loopback, with faults, and what it leaves in the folder."""

import csv
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from vision.data.images import check_image
from vision.data.open_images import read_open_images
from vision.errors import UserError
from vision.open_images.download import Report, Request, download

pytestmark = pytest.mark.usefixtures("quick")
HANDGUN, SHOTGUN, CAR, MAN = "/m/0gxl3", "/m/06nrc", "/m/0k4j", "/m/04yx4"


def fetch_guns(root: Path, front: Any, **options: Any) -> Report:
    values = {"class_names": "handgun, SHOTGUN", "retry": 3, "num_workers": 8, "timeout": 5.0, **options}
    return download(Request(root, base_url=front.url, endpoint_url=front.url, **values))


def table(root: Path, split: str) -> List[Dict[str, str]]:
    with (root / f"sub-{split}-annotations-bbox.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def image_files(root: Path) -> List[str]:
    return sorted(f"{path.parent.name}/{path.name}" for path in root.glob("*/*"))


def expected_keys(world: Any, *mids: str) -> List[str]:
    splits = ("train", "validation", "test")
    return sorted(
        {f"{split}/{image}.jpg" for split in splits for mid in mids for image in world.ids(split, mid)}
    )


def test_everything_promised_is_in_the_folder(root: Path, front: Any, world: Any) -> None:
    report = fetch_guns(root, front)
    assert report.complete
    assert sorted(path.name for path in root.iterdir()) == [
        "class-descriptions-boxable.csv",
        "download_report.json",
        "sub-test-annotations-bbox.csv",
        "sub-train-annotations-bbox.csv",
        "sub-validation-annotations-bbox.csv",
        "test",
        "test-annotations-bbox.csv",
        "train",
        "train-annotations-bbox.csv",
        "validation",
        "validation-annotations-bbox.csv",
    ]
    assert image_files(root) == expected_keys(world, HANDGUN, SHOTGUN)
    for key in image_files(root):
        assert (root / key).read_bytes() == world.images[key]
    full = (root / "validation-annotations-bbox.csv").read_text()
    assert full == world.csv["/v5/validation-annotations-bbox.csv"]
    rows = table(root, "validation")
    assert list(rows[0]) == (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
        "IsDepiction,IsInside,id,ClassName"
    ).split(",")
    assert {(each["LabelName"], each["id"], each["ClassName"]) for each in rows} == {
        (HANDGUN, HANDGUN, "Handgun"),
        (SHOTGUN, SHOTGUN, "Shotgun"),
    }
    # unknown stays unknown, and drawings are out
    assert {each["IsOccluded"] for each in rows if each["IsGroupOf"] == "0"} == {"-1"}
    assert {each["IsDepiction"] for each in table(root, "train")} == {"0"}
    saved = json.loads((root / "download_report.json").read_text())
    assert saved["complete"]
    assert saved["splits"]["train"]["there"] == 16
    assert saved["failed"] == {}


def test_the_reader_opens_what_the_downloader_wrote(root: Path, front: Any, world: Any) -> None:
    fetch_guns(root, front, negatives=4)
    dataset = read_open_images(root, "train")
    assert dataset.classes == ("BACKGROUND", "Handgun", "Shotgun")
    assert not dataset.findings
    first = dataset.samples[0]
    assert first.id == world.ids("train", HANDGUN)[0]
    assert first.boxes.tolist() == [[8.0, 12.0, 40.0, 36.0]]  # 0.1, 0.5 of 80 and 0.2, 0.6 of 60
    negatives = [sample for sample in dataset.samples if not len(sample.labels)]
    assert {sample.id for sample in negatives} < set(world.ids("train", CAR))


def test_a_second_run_fetches_nothing(root: Path, front: Any) -> None:
    fetch_guns(root, front)
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*.jpg")}
    front.requests.clear()
    report = fetch_guns(root, front)
    assert report.complete
    assert front.requests == []
    assert report.outcome is not None
    assert report.outcome.already_there == len(before)
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*.jpg")} == before


def test_an_image_that_was_cut_by_somebody_else_is_fetched_again(root: Path, front: Any) -> None:
    fetch_guns(root, front)
    cut, empty, *_ = sorted(root.glob("train/*.jpg"))
    cut.write_bytes(cut.read_bytes()[:-300])
    empty.write_bytes(b"")
    report = fetch_guns(root, front)
    assert report.complete
    assert report.outcome is not None
    assert report.outcome.downloaded == 2
    check_image(cut)
    check_image(empty)


PASSING_FAULTS = ["refuse", "hang", "500", "502", "503", "cut", "reset", "short", "garble"]
TIMEOUT = {fault: 1.0 if fault == "hang" else 5.0 for fault in PASSING_FAULTS}


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_a_passing_fault_costs_nothing(root: Path, front: Any, world: Any, fault: str) -> None:
    keys = expected_keys(world, HANDGUN, SHOTGUN)
    # Told to slow down, boto3's adaptive mode does, and hanging takes its time: one image is enough.
    for key in keys[:1] if fault in ("503", "hang") else keys[::3]:
        front.faults[f"/open-images-dataset/{key}"] = [fault, fault]
    front.faults["/v5/test-annotations-bbox.csv"] = [fault]
    assert fetch_guns(root, front, retry=5, timeout=TIMEOUT[fault]).complete
    assert image_files(root) == keys
    assert (root / "test-annotations-bbox.csv").read_text() == world.csv["/v5/test-annotations-bbox.csv"]
    assert not list(root.rglob("*.part*"))


@pytest.mark.parametrize("fault", [fault for fault in PASSING_FAULTS if fault != "503"])
def test_a_lasting_fault_is_listed_and_a_second_run_completes(
    root: Path, front: Any, world: Any, fault: str
) -> None:
    bad = expected_keys(world, HANDGUN, SHOTGUN)[4]
    front.faults[f"/open-images-dataset/{bad}"] = [fault] * 50
    report = fetch_guns(root, front, retry=1, timeout=TIMEOUT[fault])
    assert not report.complete
    assert report.outcome is not None
    assert list(report.outcome.failures) == [bad]
    assert (root / "failed.txt").read_text().startswith(f"{bad}\t")
    assert not (root / bad).exists()
    assert not list(root.rglob("*.part*"))
    split, image = bad[:-4].split("/")
    assert image not in {each["ImageID"] for each in table(root, split)}
    assert not read_open_images(root, split).findings

    front.faults.clear()
    assert fetch_guns(root, front).complete
    assert not (root / "failed.txt").exists()
    assert image in {each["ImageID"] for each in table(root, split)}


@pytest.mark.parametrize("status", ["404", "403"])
def test_an_image_that_is_not_in_the_bucket_is_asked_for_once(
    root: Path, front: Any, world: Any, status: str
) -> None:
    gone = expected_keys(world, HANDGUN)[0]
    front.faults[f"/open-images-dataset/{gone}"] = [status] * 50
    report = fetch_guns(root, front)
    assert report.outcome is not None
    assert list(report.outcome.failures) == [gone]
    assert "not in the bucket" in report.outcome.failures[gone]
    assert front.asked_for(gone) == 1


def test_without_a_connection_it_gives_up_soon(root: Path, front: Any, nobody: str) -> None:
    report = download(
        Request(
            root,
            "Handgun,Shotgun",
            base_url=front.url,
            endpoint_url=nobody,
            retry=1,
            num_workers=2,
            timeout=1.0,
        )
    )
    assert report.outcome is not None
    assert "no connection" in report.outcome.fault
    assert report.outcome.done < report.num_images
    assert table(root, "train") == []
    assert fetch_guns(root, front).complete


@pytest.mark.parametrize("option", ["base_url", "endpoint_url"])
def test_an_address_that_is_none_is_said_so(root: Path, front: Any, option: str) -> None:
    urls = {"base_url": front.url, "endpoint_url": front.url, option: "no address"}
    with pytest.raises(UserError, match="no address"):
        download(Request(root, "Handgun", retry=0, **urls))


def test_unknown_names_are_all_listed_before_any_big_file_is_fetched(root: Path, front: Any) -> None:
    with pytest.raises(UserError, match=r"Handgunn \(did you mean Handgun\?\); Blimp") as error:
        fetch_guns(root, front, class_names="Handgunn,Car,Blimp")
    assert "Car;" not in str(error.value)
    assert front.asked_for("annotations") == 0


def test_stats_only_fetches_no_image(root: Path, front: Any) -> None:
    report = fetch_guns(root, front, stats_only=True)
    assert report.outcome is None
    assert report.splits["train"].counts["Handgun"].images == 8
    assert front.asked_for("open-images-dataset") == 0
    assert not list(root.glob("sub-*"))


def test_the_same_seed_picks_the_same_images(tmp_path: Path, front: Any) -> None:
    roots = [tmp_path / name for name in "abc"]
    for path, seed in zip(roots, (5, 5, 6)):
        fetch_guns(path, front, max_images=9, seed=seed)
    a, b, c = map(image_files, roots)
    assert a == b != c
    assert len(a) == 9
    assert {key.split("/")[0] for key in a} == {"train", "validation", "test"}


def test_only_the_asked_splits(root: Path, front: Any) -> None:
    fetch_guns(root, front, splits=("val",))
    assert {key.split("/")[0] for key in image_files(root)} == {"validation"}
    assert front.asked_for("train") == front.asked_for("test-") == 0


def test_subclasses_count_as_the_asked_class(root: Path, front: Any, world: Any) -> None:
    with pytest.raises(UserError, match="no box of Person; .* try --expand_hierarchy"):
        fetch_guns(root, front, class_names="Person")
    with pytest.raises(UserError, match="no image is left of .* filters and caps exclude all"):
        fetch_guns(root, front, class_names="Man:group")
    fetch_guns(root, front, class_names="Person", expand_hierarchy=True)
    rows = table(root, "train")
    assert {(each["LabelName"], each["ClassName"]) for each in rows} == {(MAN, "Person")}
    assert image_files(root) == expected_keys(world, MAN)


def test_negatives_hold_none_of_the_classes(root: Path, front: Any, world: Any) -> None:
    fetch_guns(root, front, class_names="Handgun", negatives=6)
    negatives = [
        image
        for split in ("train", "validation", "test")
        for image in (root / f"sub-{split}-negatives.txt").read_text().split()
    ]
    assert len(negatives) == 6
    held = {key[:-4].split("/")[1] for key in expected_keys(world, HANDGUN)}
    assert not held & set(negatives)
    fetch_guns(root, front, class_names="Handgun")
    assert not list(root.glob("sub-*-negatives.txt"))


def test_attribution(root: Path, front: Any) -> None:
    fetch_guns(root, front)
    assert not (root / "attribution.csv").exists()
    fetch_guns(root, front, attribution=True)
    with (root / "attribution.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {f"{each['Subset']}/{each['ImageID']}.jpg" for each in rows} == set(image_files(root))
    assert {each["Author"] for each in rows} == {"Doe, J."}
    assert rows[0]["License"].startswith("https://licence/")


def test_a_half_written_box_file_of_an_older_tool_is_fetched_anew(root: Path, front: Any, world: Any) -> None:
    whole = world.csv["/2018_04/train/train-annotations-bbox.csv"]
    root.mkdir()
    (root / "train-annotations-bbox.csv").write_text(whole[:-30])
    assert fetch_guns(root, front).complete
    assert (root / "train-annotations-bbox.csv").read_text() == whole
    assert (root / "train-annotations-bbox.csv.broken").exists()


def test_box_files_that_are_there_are_used_whatever_their_version(root: Path, front: Any, world: Any) -> None:
    root.mkdir()
    for split in ("train", "validation", "test"):
        path = next(p for p in world.csv if p.endswith(f"{split}-annotations-bbox.csv"))
        (root / f"{split}-annotations-bbox.csv").write_text(world.csv[path])
    classes = "LabelName,DisplayName\n" + world.csv["/v5/class-descriptions-boxable.csv"]
    (root / "class-descriptions-boxable.csv").write_text(classes)
    assert fetch_guns(root, front).complete
    assert front.asked_for(".csv") == 0


def test_old_credentials_and_profiles_play_no_role(
    root: Path, front: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "a-profile-that-is-not-there")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "expired")
    assert fetch_guns(root, front).complete


def test_filter_file(root: Path, front: Any, world: Any) -> None:
    keys = expected_keys(world, HANDGUN, SHOTGUN)
    listed = root.with_name("out.txt")
    listed.write_text("\n".join([keys[0], keys[1][:-4].split("/")[1], ""]))
    fetch_guns(root, front, filter_file=str(listed))
    assert image_files(root) == keys[2:]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_names": ""}, "no class is named"),
        ({"splits": ("training",)}, "--splits"),
        ({"version": "v3"}, "--version"),
        ({"exclude": ("blurred",)}, "--exclude"),
        ({"num_workers": 0}, "--num_workers"),
        ({"filter_file": "not-there.txt"}, "not-there.txt"),
        ({"min_box_size": 1.5}, "--min_box_size"),
    ],
)
def test_wrong_options_are_named(root: Path, front: Any, options: Dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fetch_guns(root, front, **options)
    assert front.requests == []
