"""open_images_downloader.py as users run it: flags, exit codes, Ctrl-C, a full disk, and on to the data set."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import cv2
import numpy as np
import pytest

from vision.data import open_dataset
from vision.data.images import check_image

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "open_images_downloader.py"


def command(root: Path, front: Any, *more: str) -> List[str]:
    servers = ["--base_url", front.url, "--endpoint-url", front.url]
    names = ["--class_names", "Handgun,Shotgun"]
    return [sys.executable, str(SCRIPT), "--root", str(root), *names, *servers, "--retry", "1", *more]


LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])
"""


HEARING = """
import os, signal, sys
# Tests that run in the background of a shell inherit an ignored SIGINT.
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def start() -> Iterator[Callable[[List[str]], "subprocess.Popen[str]"]]:
    """Starts a command; what has not ended with the test is killed."""
    running: List[subprocess.Popen[str]] = []

    def begin(words: List[str]) -> "subprocess.Popen[str]":
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(root: Path, front: Any, *more: str, largest_file: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run the script; `largest_file` bytes is what the system lets it write into one file."""
    words = command(root, front, *more)
    if largest_file:
        words = [sys.executable, "-c", LIMITED, str(largest_file), *words]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def whole_and_nothing_else(root: Path) -> None:
    """Every file in the image folders is a whole image under its own name."""
    for path in root.glob("*/*"):
        assert path.suffix == ".jpg"
        check_image(path)


def test_a_gun_detector_needs_two_commands(root: Path, front: Any) -> None:
    done = run(root, front, "--negatives=3", "--seed=4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Handgun" in done.stdout
    assert "29 of 29 images" in done.stdout
    assert "(29 fetched, 0 there already)" in done.stdout
    for split in ("train", "val", "test"):
        dataset = open_dataset(root, split, dataset_type="open_images")
        assert dataset.classes == ("BACKGROUND", "Handgun", "Shotgun")
        assert not dataset.findings
        assert dataset.num_objects > 0
    assert open_dataset(root, "train").classes == dataset.classes  # recognised without being told


def test_flags_of_both_old_tools(root: Path, front: Any, tmp_path: Path) -> None:
    listed = tmp_path / "out.txt"
    listed.write_text("0123456789abcdef\n")
    old = ["--num_workers", "4", "--filter_file", str(listed), "--remove_overlapped", "--include_depiction"]
    assert run(root, front, *old).returncode == 0
    new = ["--data", str(tmp_path / "b"), "--class-names", "handgun:~group:0.5", "--num-workers=4"]
    new += [
        "--remove-overlapped",
        "--include-depiction",
        "--max-images=5",
        "--max-annotations-per-class",
        "9",
    ]
    assert run(root, front, *new, "--stats-only").returncode == 0
    assert not list((tmp_path / "b").glob("sub-*"))
    done = run(root, front, *new, "--splits", "train", "test", "--expand-hierarchy", "--version", "V6")
    assert done.returncode == 0
    assert sorted(path.name for path in (tmp_path / "b").glob("sub-*")) == [
        "sub-test-annotations-bbox.csv",
        "sub-train-annotations-bbox.csv",
    ]


def test_wrong_use_is_exit_code_2(root: Path, front: Any) -> None:
    done = run(root, front, "--class_names", "Handgunn")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Open Images has no boxes of: Handgunn (did you mean Handgun?)")
    assert "Traceback" not in done.stderr
    front.faults["*"] = ["404"] * 9
    done = run(root.with_name("other"), front)
    assert done.returncode == 2
    assert "class-descriptions-boxable.csv: HTTP status 404" in done.stderr


def test_a_partial_failure_is_exit_code_3_and_a_second_run_completes(
    root: Path, front: Any, world: Any
) -> None:
    image = world.ids("train", "/m/0gxl3")[2]
    front.faults[f"/open-images-dataset/train/{image}.jpg"] = ["404"]
    done = run(root, front)
    assert done.returncode == 3
    assert (root / "failed.txt").read_text() == f"train/{image}.jpg\tnot in the bucket (NoSuchKey)\n"
    assert "1 images could not be had" in done.stderr
    assert run(root, front).returncode == 0
    assert not (root / "failed.txt").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_whole_images_and_true_tables(
    root: Path, front: Any, start: Any, number: int
) -> None:
    front.latency, front.quick = 1.5, 4  # a busy machine may be late with the signal
    process = start([sys.executable, "-c", HEARING, *command(root, front, "--num_workers", "2")])
    deadline = time.monotonic() + 60
    while len(list(root.glob("train/*.jpg"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; run the same command again to continue" in errors
    assert "Traceback" not in errors
    whole_and_nothing_else(root)
    there = {path.stem for path in root.glob("train/*.jpg")}
    assert 3 <= len(there) < 16
    assert {sample.id for sample in open_dataset(root, "train").samples} == there
    front.latency, front.quick = 0.0, 0
    done = run(root, front)
    assert done.returncode == 0
    assert len(list(root.glob("train/*.jpg"))) == 16


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_kill_leaves_nothing_half_written(root: Path, front: Any, start: Any) -> None:
    front.latency = 0.02
    process = start(command(root, front))
    deadline = time.monotonic() + 60
    while not list(root.glob("*/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    for path in root.glob("*/*.jpg"):
        check_image(path)
    assert run(root, front).returncode == 0
    assert not list(root.rglob("*.part*"))


# --- a full disk --------------------------------------------------------------------------------------------


@pytest.fixture
def big_images(front: Any, world: Any) -> Iterator[int]:
    """Every image is 120 KB larger than any table; gives their number."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    assert len(data) > 120_000
    keys = [f"/open-images-dataset/{key}" for key in world.images]
    front.files.update(dict.fromkeys(keys, data))
    yield len(keys)


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_box_file_that_does_not_fit(root: Path, front: Any) -> None:
    done = run(root, front, largest_file=1000)
    assert done.returncode == 2
    assert "the disk is full; make room and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / "train-annotations-bbox.csv").exists()
    assert run(root, front).returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_images_that_do_not_fit(root: Path, front: Any, big_images: int) -> None:
    done = run(root, front, largest_file=60_000)
    assert done.returncode == 3
    assert "make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(root.glob("*/*")) == []
    assert (root / "sub-train-annotations-bbox.csv").read_text().count("\n") == 1
    assert run(root, front).returncode == 0
    whole_and_nothing_else(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs")
def test_a_disk_that_runs_full(small_disk: Path, front: Any, big_images: int) -> None:
    root = small_disk / "guns"
    done = run(root, front)
    assert done.returncode == 3
    assert "No space left on device; make room" in done.stderr
    assert "Traceback" not in done.stderr
    whole_and_nothing_else(root)
    there = {path.stem for path in root.glob("train/*.jpg")}
    assert 0 < len(there) < 16
    assert {sample.id for sample in open_dataset(root, "train").samples} == there
    assert subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)]).returncode == 0
    assert run(root, front).returncode == 0
    assert len(list(root.glob("train/*.jpg"))) == 16
