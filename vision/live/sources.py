"""Where frames come from: cameras, streams, films, pictures.

A source is *live* when frames pass whether somebody looks or not (camera, rtsp); otherwise it waits (film, pictures)
and no frame of it is ever left out. Colours are R, G, B from here on.
"""

import glob
import logging
import math
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from vision.data.images import SUFFIXES as PICTURES
from vision.data.images import read_image
from vision.errors import UserError

log = logging.getLogger(__name__)

FILMS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".m2ts", ".mjpeg", ".mjpg",
         ".h264", ".264", ".hevc", ".h265", ".3gp", ".flv", ".wmv", ".ogv", ".gif")  # fmt: skip
"""Suffixes that are looked for in folders; a film named in full may have any."""

USUAL_RATE = 25.0
"""Frames a second of a film that does not say."""

OPEN_TIMEOUT, READ_TIMEOUT = 8.0, 8.0
"""Seconds that a stream may take to answer, and to give its next frame."""

FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0
"""Seconds between two tries to reach a lost source; they double."""

STABLE = 10.0
"""Seconds after which a source counts as back for good, and the wait begins anew when it is lost again."""

CUT_SHORT = 0.05
"""A film that ends before this share of the frames its header promises is said to be damaged."""

STREAMS = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp")
"""Kinds of addresses."""

Capture = Any
"""cv2.VideoCapture, or what behaves like one: isOpened, read, get, release."""


class Grab(NamedTuple):
    """One frame as a source gives it.

    Attributes:
        image: RGB uint8 (H, W, 3).
        time: seconds since the film's or stream's beginning.
        name: of the picture file, where each frame has one.
    """

    image: np.ndarray
    time: float
    name: str = ""


class Source:
    """Gives frames, one after the other.

    One thread opens, reads and closes it: OpenCV crashes, or hangs, where a capture is released under the hands of
    another that reads. Only `stop` may come from elsewhere.

    Attributes:
        name: for people; holds no password.
        live: see the head of this file.
        rate: frames a second, 0 when unknown or when there is no such thing.
        problems: how often something was wrong that did not end the program.
    """

    name = ""
    live = False
    rate = 0.0
    problems = 0

    def open(self) -> None:
        """Find the source. Raises UserError when it is not there."""

    def read(self) -> Optional[Grab]:
        """The next frame; None at the end. Raises UserError when it breaks."""
        raise NotImplementedError

    def stop(self) -> None:
        """Wake a `read` that waits for a lost camera, or for its time; from any thread."""

    def close(self) -> None:
        """Let go of it."""


class Film(Source):
    """A video file, to its end."""

    def __init__(self, path: str, name: str = "") -> None:
        self.path = path
        self.name = name or path
        self._capture: Optional[Capture] = None
        self._count = 0

    def open(self) -> None:
        if self.path not in ("-", "pipe:0"):
            path = Path(self.path)
            if not path.is_file():
                raise UserError(f"{self.path}: no such file")
            if not path.stat().st_size:
                raise UserError(f"{self.path}: the file is empty")
        self._capture = cv2.VideoCapture(self.path)
        if not self._capture.isOpened():
            raise UserError(
                f"{self.name}: OpenCV cannot open it: no video, damaged, or a format that it lacks"
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else USUAL_RATE
        self._count = 0
        self._time = -1.0

    def read(self) -> Optional[Grab]:
        if self._capture is None:
            return None
        ok, image = self._capture.read()
        if not ok or image is None:
            self._check_end()
            return None
        place = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        # Not every container knows; then the frames are counted.
        self._time = place if place > self._time and math.isfinite(place) else self._count / self.rate
        self._count += 1
        return Grab(as_rgb_frame(image), self._time)

    def _check_end(self) -> None:
        """Tell an end from a break."""
        if not self._count:
            raise UserError(f"{self.name}: not one frame can be read: the video is empty or damaged")
        promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) if self._capture else 0
        if 0 < promised < 1e9 and self._count < promised - max(3, CUT_SHORT * promised):
            self.problems += 1
            log.warning(
                "%s: ends after %d of the %d frames that its header promises; it is damaged or cut short",
                self.name,
                self._count,
                promised,
            )

    def close(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


class StandardInput(Film):
    """A video through a pipe."""

    def __init__(self) -> None:
        super().__init__("pipe:0", "standard input")

    def open(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            raise UserError(
                "standard input: nothing is piped in; write: cat FILM | run_ssd_live_demo.py MODEL -"
            )
        try:
            super().open()
        except UserError as error:
            raise UserError(
                f"{error}. (An .mp4 has its index at the end and cannot be piped: name the file, or pipe .mkv or .ts)"
            ) from None


class Pictures(Source):
    """Picture files, in order; a broken one is said and left out."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.paths = list(paths)
        self.name = name
        self._next = 0

    def open(self) -> None:
        self._next = 0
        if len(self.paths) == 1 and not self.paths[0].is_file():
            raise UserError(f"{self.paths[0]}: no such file")

    def read(self) -> Optional[Grab]:
        while self._next < len(self.paths):
            path = self.paths[self._next]
            self._next += 1
            try:
                return Grab(read_image(path, upright=True), float(self._next - 1), path.name)
            except UserError as error:
                self.problems += 1
                if self.problems == len(self.paths):
                    raise
                log.error("error: %s", error)
        return None


class OneAfterAnother(Source):
    """Several files as one source: a folder, a pattern."""

    def __init__(self, parts: Sequence[Source], name: str) -> None:
        self.parts = list(parts)
        self.name = name
        self._place = 0
        self._offset = self._time = 0.0
        self._given = 0

    def open(self) -> None:
        self._place = self._given = 0
        self._offset = self._time = 0.0
        self._begin()

    def _begin(self) -> None:
        """Open the next part that can be opened."""
        while self._place < len(self.parts):
            part = self.parts[self._place]
            try:
                part.open()
                self.rate = self.rate or part.rate
                return
            except UserError as error:
                self._failed(error)

    def _failed(self, error: UserError) -> None:
        self.problems += 1
        self._place += 1
        if self._place == len(self.parts) and not self._given:
            raise error
        log.error("error: %s", error)

    def read(self) -> Optional[Grab]:
        while self._place < len(self.parts):
            part = self.parts[self._place]
            try:
                grab = part.read()
            except UserError as error:
                part.close()
                self._failed(error)
                self._begin()
                continue
            if grab is not None:
                self._given += 1
                self._time = self._offset + grab.time
                return grab._replace(time=self._time)
            part.close()
            self.problems += part.problems
            self._offset = self._time + 1 / (part.rate or 1.0)
            self._place += 1
            self._begin()
        return None

    def stop(self) -> None:
        for part in self.parts:
            part.stop()

    def close(self) -> None:
        for part in self.parts:
            part.close()


class Repeated(Source):
    """A film or pictures again and again."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self._offset = self._time = 0.0

    def open(self) -> None:
        self.source.open()
        self.rate = self.source.rate

    def read(self) -> Optional[Grab]:
        grab = self.source.read()
        if grab is None:
            self.source.close()
            self.source.open()
            self._offset = self._time + 1 / (self.rate or 1.0)
            grab = self.source.read()
            if grab is None:
                return None
        self._time = self._offset + grab.time
        return grab._replace(time=self._time)

    def stop(self) -> None:
        self.source.stop()

    def close(self) -> None:
        self.source.close()


class Paced(Source):
    """A film at the speed at which it was taken."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self._begin: Optional[float] = None
        self._stopped = threading.Event()

    @property
    def problems(self) -> int:  # type: ignore[override]
        return self.source.problems

    def open(self) -> None:
        self._stopped.clear()
        self.source.open()
        self.rate = self.source.rate

    def read(self) -> Optional[Grab]:
        grab = self.source.read()
        if grab is None:
            return None
        now = time.monotonic()
        if self._begin is None:
            self._begin = now - grab.time
        wait = self._begin + grab.time - now
        if wait < -0.5:  # somebody was slow, or had paused it: go on from here instead of rushing after
            self._begin = now - grab.time
        elif wait > 0:
            self._stopped.wait(min(wait, 5.0))
        return grab

    def stop(self) -> None:
        self._stopped.set()
        self.source.stop()

    def close(self) -> None:
        self.source.close()


class Live(Source):
    """A camera or a stream; when it is lost, it is tried again until it is back.

    Args:
        name: for people.
        connect: gives an opened capture, or one that is not open, or raises UserError when it can never be.
        give_up: seconds after which a lost source ends; 0 for never.
        missing: what to say when it is not there at the start.
    """

    live = True

    def __init__(
        self, name: str, connect: Callable[[], Capture], give_up: float = 0.0, missing: str = ""
    ) -> None:
        self.name = name
        self.connect = connect
        self.give_up = give_up
        self.missing = missing or "cannot be opened"
        self.losses = 0
        self._capture: Optional[Capture] = None
        self._stopped = threading.Event()
        self._begin = self._since = 0.0
        self._wait = FIRST_WAIT

    def open(self) -> None:
        self._stopped.clear()
        self._capture = self.connect()
        if not self._capture.isOpened():
            self._capture.release()
            raise UserError(f"{self.name}: {self.missing}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 1 <= rate <= 240 else 0.0
        self._begin = self._since = time.monotonic()
        self._wait = FIRST_WAIT

    def read(self) -> Optional[Grab]:
        lost_at = None
        while not self._stopped.is_set():
            capture = self._capture
            ok, image = capture.read() if capture is not None else (False, None)
            now = time.monotonic()
            if ok and image is not None:
                if lost_at is not None:
                    log.warning("%s: is back after %.1f s", self.name, now - lost_at)
                    self._since = now
                return Grab(as_rgb_frame(image), now - self._begin)
            if self._stopped.is_set():
                break
            if lost_at is None:
                lost_at = now
                self.losses += 1
                if now - self._since > STABLE:
                    self._wait = FIRST_WAIT
                log.warning("%s: lost; trying to reach it again", self.name)
            if self.give_up and now - lost_at > self.give_up:
                raise UserError(f"{self.name}: did not come back within {self.give_up:g} s")
            if capture is not None:
                capture.release()
                self._capture = None
            self._stopped.wait(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            if not self._stopped.is_set():
                self._capture = self.connect()
        return None

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


# --- from words to sources ----------------------------------------------------------------------------------


class CaptureOptions(NamedTuple):
    """How live sources are opened.

    Attributes:
        size: (height, width) asked of a camera; it may give another.
        rate: frames a second asked of a camera; 0 leaves it.
        give_up: see Live.
    """

    size: Tuple[int, int] = (1080, 1920)
    rate: int = 0
    give_up: float = 0.0


def open_sources(words: Sequence[str], options: CaptureOptions = CaptureOptions()) -> List[Source]:
    """Sources as a command line names them; see `open_source`.

    Several plain picture files, as the shell makes of photos/*.jpg, are one source.
    """
    sources: List[Source] = []
    pictures: List[Path] = []
    for word in words:
        if Path(word).suffix.lower() in PICTURES and Path(word).is_file():
            if not pictures:
                sources.append(Pictures([], word))
            pictures.append(Path(word))
            continue
        sources.append(open_source(word, options))
    for number, source in enumerate(sources):
        if isinstance(source, Pictures) and not source.paths:
            name = source.name if len(pictures) == 1 else f"{len(pictures)} pictures"
            sources[number] = Pictures(pictures, name)
    return sources


def open_source(word: str, options: CaptureOptions = CaptureOptions()) -> Source:
    """What a word on the command line means. Nothing is opened yet.

    Args:
        word: "0", "/dev/video0", "v4l2:///dev/video0" (cameras), "csi://0" (of a Jetson), a GStreamer pipeline
            (with "!" in it), rtsp://, rtmp://, udp://, http:// addresses, a film, a picture, a folder, a pattern,
            "-" (standard input).

    Raises UserError for a word that is none of these.
    """
    if word == "-":
        return StandardInput()
    if word.isdigit() or word.startswith(("/dev/video", "v4l2://")):
        return _camera(word, options)
    if word.startswith("csi://"):
        return _csi_camera(word, options)
    if " ! " in word:
        pipeline = (
            word if "appsink" in word else word + " ! videoconvert ! video/x-raw,format=BGR ! " + APPSINK
        )
        return _gstreamer("GStreamer pipeline", pipeline, options)
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", word, re.IGNORECASE)
    if scheme and scheme.group(1).lower() != "file":
        if scheme.group(1).lower() not in STREAMS:
            raise UserError(
                f"{without_password(word)}: sources of the kind {scheme.group(1)}:// are not known"
            )
        return _stream(word, options)
    return _files(word[len("file://") :] if scheme else word)


def _files(word: str) -> Source:
    path = Path(word)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in (*PICTURES, *FILMS))
        if not found:
            raise UserError(f"{word}: neither a picture nor a film in this folder")
        return _row(found, word)
    if path.exists():
        return _row([path], word)
    # Path.glob takes no absolute pattern.
    matches = sorted(Path(match) for match in glob.glob(word, recursive=True))  # noqa: PTH207
    found = [match for match in matches if match.is_file()]
    if not found:
        raise UserError(f"{word}: no such file, folder, pattern or camera")
    return _row(found, word)


def _row(paths: Sequence[Path], name: str) -> Source:
    """Files one after the other; neighbouring pictures together."""
    parts: List[Source] = []
    for path in paths:
        if path.suffix.lower() not in PICTURES:
            parts.append(Film(str(path)))
        elif parts and isinstance(parts[-1], Pictures):
            parts[-1].paths.append(path)
        else:
            parts.append(Pictures([path], name))
    return parts[0] if len(parts) == 1 else OneAfterAnother(parts, name)


def _camera(word: str, options: CaptureOptions) -> Source:
    device = word[len("v4l2://") :] if word.startswith("v4l2://") else word
    if device.isdigit() and sys.platform.startswith("linux"):
        device = f"/dev/video{device}"
    target: Any = int(device) if device.isdigit() else device

    def connect() -> Capture:
        if isinstance(target, str) and not Path(target).exists():
            return cv2.VideoCapture()  # not open; OpenCV would complain at length
        backend = cv2.CAP_V4L2 if sys.platform.startswith("linux") else cv2.CAP_ANY
        capture = cv2.VideoCapture(target, backend)
        if capture.isOpened():
            # Uncompressed pictures of this size do not fit through USB at full rate.
            capture.set(cv2.CAP_PROP_FOURCC, fourcc("MJPG"))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.size[1])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.size[0])
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            if options.rate:
                capture.set(cv2.CAP_PROP_FPS, options.rate)
        return capture

    there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
    missing = (
        f"no camera can be opened as {device}; here: {there}. Is it plugged in, and not in use elsewhere?"
    )
    return Live(f"camera {word}", connect, options.give_up, missing)


def _stream(word: str, options: CaptureOptions) -> Source:
    name = without_password(word)

    def connect() -> Capture:
        # From 4.5.2 on; before, FFmpeg's own limit of 30 s holds.
        limits: List[int] = []
        for key, seconds in (("OPEN", OPEN_TIMEOUT), ("READ", READ_TIMEOUT)):
            number = getattr(cv2, f"CAP_PROP_{key}_TIMEOUT_MSEC", None)
            limits += [] if number is None else [number, int(1000 * seconds)]
        return cv2.VideoCapture(word, cv2.CAP_FFMPEG, limits) if limits else cv2.VideoCapture(word)

    missing = "cannot be reached, or sends no video that OpenCV reads. Check address, user and password"
    return Live(name, connect, options.give_up, missing)


APPSINK = "appsink drop=true max-buffers=1 sync=false"


def _csi_camera(word: str, options: CaptureOptions) -> Source:
    number = word[len("csi://") :] or "0"
    if not number.isdigit():
        raise UserError(f"{word}: write csi://0 for the first camera")
    height, width = options.size
    pipeline = (
        f"nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM),width={width},height={height},"
        f"framerate={options.rate or 30}/1 ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! "
        f"video/x-raw,format=BGR ! {APPSINK}"
    )
    return _gstreamer(f"camera {word}", pipeline, options)


def _gstreamer(name: str, pipeline: str, options: CaptureOptions) -> Source:
    if not has_gstreamer():
        raise UserError(f"{name}: {WITHOUT_GSTREAMER}")
    missing = f"GStreamer cannot start this pipeline (try it with gst-launch-1.0): {pipeline}"
    connect = InTime(lambda: cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), OPEN_TIMEOUT)
    return Live(name, connect, options.give_up, missing)


class InTime:
    """Opens a capture, or gives one that is not open when that takes too long.

    GStreamer waits for ever for a pipeline whose first element is missing. Such a try goes on in its thread; as long
    as it does, there is no other.
    """

    def __init__(self, connect: Callable[[], Capture], seconds: float) -> None:
        self.connect = connect
        self.seconds = seconds
        self._thread: Optional[threading.Thread] = None
        self._found: List[Capture] = []

    def __call__(self) -> Capture:
        if self._thread is None:
            self._found = []
            self._thread = threading.Thread(target=self._open, name="opening", daemon=True)
            self._thread.start()
        self._thread.join(self.seconds)
        if self._thread.is_alive():
            return cv2.VideoCapture()
        self._thread = None
        return self._found.pop() if self._found else cv2.VideoCapture()

    def _open(self) -> None:
        self._found.append(self.connect())


WITHOUT_GSTREAMER = (
    "this OpenCV was built without GStreamer, as those from PyPI are. Use the one of the system: on a Jetson "
    "JetPack's, elsewhere `apt-get install python3-opencv`; and `pip uninstall opencv-python opencv-python-headless`, "
    "which would hide it"
)


def has_gstreamer() -> bool:
    """Whether this OpenCV can use GStreamer."""
    return re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None


def without_password(address: str) -> str:
    """rtsp://user:secret@host/x?token=... -> rtsp://host/x, to show to people."""
    return re.sub(r"[?#].*$", "", re.sub(r"//[^/]*@", "//", address))


def fourcc(name: str) -> int:
    """A codec's number from its four letters."""
    return int.from_bytes(name.encode("ascii"), "little")


def as_rgb_frame(image: np.ndarray) -> np.ndarray:
    """What VideoCapture gives (BGR, grey or BGRA) -> RGB uint8 (H, W, 3)."""
    if image.dtype != np.uint8:
        scale = 255 / 65535 if image.dtype == np.uint16 else 1.0
        image = cv2.convertScaleAbs(image, alpha=scale)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
