"""One file over HTTP: resumed where it was cut, checked, never half-written."""

from pathlib import Path
from typing import Any, List

import pytest

from vision.errors import UserError
from vision.open_images.backoff import Backoff
from vision.open_images.fetch import fetch

pytestmark = pytest.mark.usefixtures("quick")
PATH = "/big.csv"


@pytest.fixture
def whole(front: Any) -> bytes:
    front.files[PATH] = bytes(range(256)) * 400
    return front.files[PATH]


def names(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir())


def ranges(front: Any) -> List[str]:
    return [wanted for path, wanted in front.requests if path == PATH]


def get(front: Any, target: Path, retries: int = 3, timeout: float = 5.0) -> None:
    fetch(front.url + PATH, target, Backoff(retries), timeout)


def test_an_empty_file(front: Any, tmp_path: Path) -> None:
    front.files[PATH] = b""
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b""


def test_a_cut_download_is_continued(front: Any, whole: bytes, tmp_path: Path) -> None:
    front.faults[PATH] = ["cut", "reset", "500", "hang", "refuse"]
    target, seen = tmp_path / "folder/x", []
    fetch(front.url + PATH, target, Backoff(retries=5), 1.0, lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == whole
    assert names(target.parent) == ["x"]
    assert seen[-1] == (len(whole), len(whole))
    asked = ranges(front)
    assert asked[0] == ""
    assert asked[1] == f"bytes={len(whole) // 2 - 1}-"
    assert len(asked) == 6


def test_the_next_run_continues(front: Any, whole: bytes, tmp_path: Path) -> None:
    front.faults[PATH] = ["cut"]
    with pytest.raises(UserError, match="run the same command again"):
        get(front, tmp_path / "x", retries=0)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "x.part").stat().st_size == len(whole) // 2
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole
    assert ranges(front)[-1] == f"bytes={len(whole) // 2 - 1}-"


def test_a_part_that_is_whole_already(front: Any, whole: bytes, tmp_path: Path) -> None:
    front.faults[PATH] = ["cut"]
    with pytest.raises(UserError):
        get(front, tmp_path / "x", retries=0)
    (tmp_path / "x.part").write_bytes(whole)  # as when the process died just before the rename
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole


def test_parts_of_two_files_are_never_mixed(front: Any, whole: bytes, tmp_path: Path) -> None:
    front.faults[PATH] = ["cut"]
    with pytest.raises(UserError):
        get(front, tmp_path / "x", retries=0)
    front.states_hash = False
    front.files[PATH] = whole[::-1]
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole[::-1]


def test_a_part_of_unknown_origin_is_not_trusted(front: Any, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"what an older tool left")
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole


def test_a_shorter_file_than_the_part(front: Any, whole: bytes, tmp_path: Path) -> None:
    front.faults[PATH] = ["cut"]
    with pytest.raises(UserError):
        get(front, tmp_path / "x", retries=0)
    (tmp_path / "x.part").write_bytes(whole * 2)
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole


def test_a_server_that_has_no_part_of_what_it_was_asked_for_whole(
    front: Any, whole: bytes, tmp_path: Path
) -> None:
    front.faults[PATH] = ["416"]
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole


@pytest.mark.parametrize("fault", ["garble", "short"])
def test_the_checksum_is_looked_at(front: Any, whole: bytes, tmp_path: Path, fault: str) -> None:
    front.faults[PATH] = [fault] * 9
    with pytest.raises(UserError, match="checksum does not agree"):
        get(front, tmp_path / "x", retries=2)
    assert len(ranges(front)) == 3
    assert not (tmp_path / "x").exists()
    front.faults.clear()
    get(front, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole


@pytest.mark.parametrize("status", ["404", "403", "410"])
def test_a_file_that_is_not_there_is_asked_for_once(
    front: Any, whole: bytes, tmp_path: Path, status: str
) -> None:
    front.faults[PATH] = [status] * 9
    with pytest.raises(UserError, match=rf"big\.csv: HTTP status {status}; name a mirror with --base_url"):
        get(front, tmp_path / "x")
    assert len(ranges(front)) == 1
    assert names(tmp_path) == []


def test_a_login_page_is_no_file(front: Any, whole: bytes, tmp_path: Path) -> None:
    front.faults[PATH] = ["html"]
    with pytest.raises(UserError, match="sent a web page"):
        get(front, tmp_path / "x")
    assert names(tmp_path) == []


def test_tries_that_bring_bytes_do_not_count(front: Any, whole: bytes, tmp_path: Path) -> None:
    front.faults[PATH] = ["cut"] * 10  # each halves what is left
    get(front, tmp_path / "x", retries=1)
    assert (tmp_path / "x").read_bytes() == whole


def test_nobody_listens(tmp_path: Path, nobody: str) -> None:
    with pytest.raises(UserError, match=r"no connection .*\(3 tries\)"):
        fetch(f"{nobody}/x", tmp_path / "x", Backoff(retries=2), 1.0)


@pytest.mark.parametrize("url", ["", "x", "gopher://host/x", "http://", "http://[", "file:///no/such/file"])
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError):
        fetch(url, tmp_path / "x", Backoff(retries=0), 1.0)


def test_a_full_disk(front: Any, whole: bytes, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "x.part.etag").symlink_to(full)
    with pytest.raises(UserError, match=r"x\.part: the disk is full; make room"):
        get(front, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written(front: Any, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.part").mkdir()
    with pytest.raises(UserError, match=r"x\.part"):
        get(front, tmp_path / "x")
