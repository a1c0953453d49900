"""The crew that fetches images, when the system or a thread fails it."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from vision.errors import UserError
from vision.open_images.backoff import Backoff
from vision.open_images.bucket import download_images

KEYS = [f"train/{number:02}.jpg" for number in range(6)]


class Failing:
    """A client that gives nothing."""

    def __init__(self, error: BaseException):
        self.error = error

    def get_object(self, **what: str) -> Any:
        raise self.error


def fetch(client: Any, root: Path, keys: Any = tuple(KEYS)) -> Any:
    pytest.importorskip("botocore")
    return download_images(client, keys, root, 4, Backoff(retries=0))


def test_nothing_to_fetch(tmp_path: Path) -> None:
    assert fetch(Failing(OSError()), tmp_path, []).done == 0


def test_an_unexpected_error_is_a_result(tmp_path: Path) -> None:
    outcome = fetch(Failing(ZeroDivisionError("ours")), tmp_path)
    assert sorted(outcome.failures) == KEYS
    assert "unexpected ZeroDivisionError" in outcome.failures[KEYS[0]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_that_end_are_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="all threads have ended"):
        fetch(Failing(SystemExit()), tmp_path)


@pytest.mark.parametrize("most", [0, 2])
def test_a_system_that_gives_few_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    caplog.set_level(logging.WARNING)
    start, started = threading.Thread.start, []

    def scarce(thread: threading.Thread) -> None:
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    if most:
        assert len(fetch(Failing(OSError("gone")), tmp_path).failures) == len(KEYS)
        assert "no more than 2 threads" in caplog.text
    else:
        with pytest.raises(UserError, match="gives no thread"):
            fetch(Failing(OSError("gone")), tmp_path)
