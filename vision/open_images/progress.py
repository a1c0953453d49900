"""How far a download is: bars on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import Any, Optional

from vision.errors import UserError

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two lines


class Progress:
    """Says nothing. Give one of its children to `download`."""

    def file(self, name: str, done: int, total: Optional[int]) -> None:
        """Bytes of a file that have arrived."""

    def images(self, done: int, total: int, downloaded: int, received: int, failed: int) -> None:
        """Images with a result, those fetched in this run and their bytes, and those that failed."""

    def close(self) -> None:
        """The file or the images are through."""


class Lines(Progress):
    """A log line every ten seconds."""

    def __init__(self) -> None:
        self._started = self._last = 0.0
        self._text = ""

    def _begin(self) -> None:
        if not self._text:
            self._started = self._last = time.monotonic()

    def _say(self, text: str) -> None:
        self._text = text
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            log.info("%s", text)

    def file(self, name: str, done: int, total: Optional[int]) -> None:
        self._begin()
        of = f" of {total / 1e6:.0f}" if total else ""
        self._say(f"{name}: {done / 1e6:.0f}{of} MB")

    def images(self, done: int, total: int, downloaded: int, received: int, failed: int) -> None:
        self._begin()
        self._say(image_line(done, total, downloaded, received, failed, time.monotonic() - self._started))

    def close(self) -> None:
        if self._text:
            log.info("%s", self._text)
        self._text = ""


class Bars(Progress):
    """tqdm bars on stderr. Raises UserError when tqdm is not installed."""

    def __init__(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise UserError('tqdm is not installed; pip install ".[openimages]"') from error
        self._tqdm = tqdm
        self._bar: Any = None
        self._started = 0.0

    def file(self, name: str, done: int, total: Optional[int]) -> None:
        if self._bar is None:
            self._bar = self._tqdm(total=total, initial=0, desc=name, unit="B", unit_scale=True, leave=False)
        self._bar.n = done
        self._bar.update(0)

    def images(self, done: int, total: int, downloaded: int, received: int, failed: int) -> None:
        if self._bar is None:
            self._bar = self._tqdm(total=total, desc="images", unit="image", smoothing=0.05)
            self._started = time.monotonic()
        rate = received / max(time.monotonic() - self._started, 1e-3) / 1e6
        self._bar.set_postfix_str(f"{rate:.1f} MB/s, {failed} failed", refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def image_line(done: int, total: int, downloaded: int, received: int, failed: int, seconds: float) -> str:
    """ "120 of 500 images, 95.0 images/s, 28.1 MB/s, 2 failed"."""
    seconds = max(seconds, 1e-3)
    return (
        f"{done} of {total} images, {downloaded / seconds:.1f} images/s, "
        f"{received / seconds / 1e6:.1f} MB/s, {failed} failed"
    )


def progress_on(stream: Any = None) -> Progress:
    """Bars when the stream (stderr) is a terminal, else lines."""
    stream = sys.stderr if stream is None else stream
    return Bars() if stream.isatty() else Lines()
