"""Where results go: films, pictures, JSON lines, crops, a window, a stream. The kind follows from the name."""

import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, TextIO, Tuple, Union

import cv2
import numpy as np

from vision.data.images import SUFFIXES as PICTURES
from vision.errors import UserError
from vision.live.sources import FILMS, WITHOUT_GSTREAMER, Source, fourcc, has_gstreamer, without_password

if TYPE_CHECKING:
    from vision.live.pipeline import Result

log = logging.getLogger(__name__)

CODECS = {
    ".mp4": ("avc1", "mp4v"),
    ".m4v": ("mp4v",),
    ".mov": ("avc1", "mp4v"),
    ".mkv": ("avc1", "mp4v"),
    ".webm": ("VP80", "VP90"),
    ".avi": ("MJPG", "XVID"),
}
"""Of films, best first. OpenCV from PyPI has no encoder for avc1 (H.264), that of a board may."""

LARGEST = {"MJPG": 16384, "avc1": 8192, "mp4v": 8190, "XVID": 8190, "VP80": 16382, "VP90": 16384}
"""Pixels of a side that a codec takes; asked for more, OpenCV 4.5 crashes instead of saying no."""

LIVE_RATE = 25.0
"""Frames a second in the film of a source that does not say."""

LEAST_ROOM = 16 << 20
"""Bytes that must be free where a film is written: OpenCV does not tell when a disk is full."""

LONGEST_GAP = 10.0
"""Seconds for which a film repeats its last frame when a live source was away."""


class Output:
    """Takes results, each in a thread of its own.

    Attributes:
        kind: for figures.
        name: for people.
        wants_picture: needs boxes drawn.
        skips: takes only the newest result (somebody watches); otherwise every one is waited for.
        in_main_thread: must be served there.
    """

    kind = "output"
    name = ""
    wants_picture = True
    skips = False
    in_main_thread = False

    def open(self) -> None:
        """Make sure that results can be taken. Raises UserError."""

    def write(self, result: "Result") -> Optional[bool]:
        """Take a result; False to end the program. Raises UserError, OSError."""

    def idle(self) -> Optional[bool]:
        """Called now and then while nothing comes (only in the main thread); False to end the program."""

    def close(self) -> None:
        """Finish what was written."""


def _writable(path: Path) -> None:
    """Raise UserError unless a file can be written there. Leaves none behind that was not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError(f"--output {path}: is a folder")
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror or error})") from error


def numbered(path: Path, source: int, several: bool) -> Path:
    """ "out.mp4" -> "out_2.mp4" of the third of several sources."""
    return path.with_name(f"{path.stem}_{source}{path.suffix}") if several else path


# --- films --------------------------------------------------------------------------------------------------


class Film(Output):
    """The annotated film; one file for each source.

    Of a film every frame is written once. Of a live source frames come as they come; they are repeated or left
    out so that the film runs at the speed of the clock.
    """

    kind = "video"

    def __init__(self, path: Path, sources: List[Source]) -> None:
        self.path = path
        self.name = str(path)
        self.sources = sources
        self._writers: Dict[int, _Writer] = {}

    def open(self) -> None:
        for number in range(len(self.sources)):
            _writable(self._path(number))

    def _path(self, number: int) -> Path:
        return numbered(self.path, number, len(self.sources) > 1)

    def write(self, result: "Result") -> None:
        number = result.frame.source
        picture = result.picture
        assert picture is not None
        if number not in self._writers:
            source = self.sources[number]
            rate = source.rate or LIVE_RATE
            self._writers[number] = _Writer(self._path(number), rate, picture.shape[:2], source.live)
        self._writers[number].write(picture, result.frame.time)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


class _Writer:
    """One film file."""

    def __init__(self, path: Path, rate: float, size: Tuple[int, int], by_clock: bool) -> None:
        self.path = path
        self.rate = rate
        self.size = (max(2, size[0] & ~1), max(2, size[1] & ~1))  # codecs want even sides
        self.by_clock = by_clock
        self._begin: Optional[float] = None
        self._written = 0
        self._last: Optional[np.ndarray] = None
        self._writer = _open_film(path, rate, self.size)

    def write(self, picture: np.ndarray, moment: float) -> None:
        if self._written % 32 == 0:
            self._check_room()
        frame = cv2.cvtColor(fit(picture, self.size), cv2.COLOR_RGB2BGR)
        if self.by_clock:
            self._repeat_until(moment)
            if self._begin is None:
                self._begin = moment
            elif round((moment - self._begin) * self.rate) < self._written:
                self._last = frame  # came too early; the next place shows it
                return
        self._put(frame)

    def _repeat_until(self, moment: float) -> None:
        """Fill the places that went by since the last frame."""
        if self._begin is None or self._last is None:
            return
        missing = round((moment - self._begin) * self.rate) - self._written
        if missing > LONGEST_GAP * self.rate:
            self._begin += (missing - 1) / self.rate  # leave the gap out
            missing = 0
        for _ in range(missing):
            self._put(self._last)

    def _put(self, frame: np.ndarray) -> None:
        self._writer.write(frame)
        self._last = frame
        self._written += 1

    def _check_room(self) -> None:
        free = shutil.disk_usage(str(self.path.parent)).free
        if free < LEAST_ROOM:
            raise UserError(
                f"--output {self.path}: the disk is full ({free >> 20} MiB left); the film ends here"
            )

    def close(self) -> None:
        self._writer.release()


def _open_film(path: Path, rate: float, size: Tuple[int, int]) -> Any:
    """A cv2.VideoWriter that is open. Raises UserError."""
    height, width = size
    for codec in CODECS[path.suffix.lower()]:
        if max(size) > LARGEST[codec] or (codec == "avc1" and not _encodes_h264()):
            continue
        writer = cv2.VideoWriter(str(path), fourcc(codec), rate, (width, height))
        if writer.isOpened():
            return writer
        writer.release()
    raise UserError(
        f"--output {path}: OpenCV cannot write a film of {width} x {height} here; try .avi, or folder/ for pictures"
    )


_h264: List[bool] = []


def _encodes_h264() -> bool:
    """Try once, for OpenCV says so only by failing, and complains aloud."""
    if not _h264:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "try.mp4")
            writer = cv2.VideoWriter(path, fourcc("avc1"), 25.0, (64, 64))
            _h264.append(bool(writer.isOpened()))
            writer.release()
    return _h264[0]


def fit(picture: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """The picture in a frame of (height, width): as it is, or shrunk or grown with its aspect ratio, on black."""
    height, width = picture.shape[:2]
    if (height, width) == size:
        return picture
    if 0 <= height - size[0] <= 1 and 0 <= width - size[1] <= 1:
        return picture[: size[0], : size[1]]
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, min(size[1], round(width * scale))), max(1, min(size[0], round(height * scale)))
    frame = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - inner[1]) // 2, (size[1] - inner[0]) // 2
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    frame[top : top + inner[1], left : left + inner[0]] = cv2.resize(picture, inner, interpolation=kind)
    return frame


# --- pictures -----------------------------------------------------------------------------------------------


def _encode(path: Path, picture: np.ndarray) -> None:
    """Write a picture under its final name only once it is whole."""
    ok, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not ok:
        raise UserError(f"--output {path}: OpenCV cannot write {path.suffix} here")
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data.tobytes())
    os.replace(str(part), str(path))  # noqa: PTH105


class Picture(Output):
    """One picture file that always shows the newest result."""

    kind = "picture"

    def __init__(self, path: Path, several: bool) -> None:
        self.path = path
        self.name = str(path)
        self.several = several

    def open(self) -> None:
        _writable(self.path)

    def write(self, result: "Result") -> None:
        assert result.picture is not None
        _encode(numbered(self.path, result.frame.source, self.several), result.picture)


class Folder(Output):
    """A picture of each frame; or, as crops, of each object."""

    kind = "pictures"

    def __init__(self, path: Path, several: bool, crops: bool = False) -> None:
        self.path = path
        self.name = f"{path}/"
        self.several = several
        self.crops = crops
        self.kind = "crops" if crops else "pictures"
        self.wants_picture = not crops

    def open(self) -> None:
        _writable(self.path / "test.part")

    def write(self, result: "Result") -> None:
        stem = Path(result.frame.name).stem or f"{result.frame.number:06d}"
        if result.frame.name and self.several:
            stem = f"{result.frame.number:06d}_{stem}"
        if self.several:
            stem = f"{result.frame.source}_{stem}"
        if not self.crops:
            assert result.picture is not None
            _encode(self.path / f"{stem}.jpg", result.picture)
            return
        found = result.detections
        for row, (name, _, box) in enumerate(found):
            part = crop(result.frame.image, box)
            if part.size:
                track = f"_{result.tracks[row]}" if result.tracks is not None and result.tracks[row] else ""
                folder = self.path / safe_name(name)
                folder.mkdir(parents=True, exist_ok=True)
                _encode(folder / f"{stem}_{row}{track}.jpg", part)


def crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The pixels that a box (corners in pixels) touches."""
    height, width = image.shape[:2]
    x1, y1 = np.clip(np.floor(box[:2]), 0, (width, height)).astype(int)
    x2, y2 = np.clip(np.ceil(box[2:]), 0, (width, height)).astype(int)
    return image[y1:y2, x1:x2]


def safe_name(name: str) -> str:
    """A class name as the name of a folder."""
    return re.sub(r"[^\w .-]", "_", name).strip(" .") or "_"


# --- JSON lines ---------------------------------------------------------------------------------------------


class JsonLines(Output):
    """A line of JSON for each frame, written at once."""

    kind = "json"
    wants_picture = False

    def __init__(self, path: Optional[Path], sources: List[Source]) -> None:
        self.path = path
        self.name = str(path) if path else "standard output"
        self.sources = sources
        self._file: Optional[TextIO] = None

    def open(self) -> None:
        if self.path is None:
            self._file = sys.stdout
            return
        _writable(self.path)
        self._file = self.path.open("w", encoding="utf-8", buffering=1)

    def write(self, result: "Result") -> None:
        assert self._file is not None
        line = as_json(result, self.sources[result.frame.source])
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.path is None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None and self.path is not None:
            self._file.close()
        self._file = None


def as_json(result: "Result", source: Source) -> Dict[str, Any]:
    """One frame as plain values.

    time: seconds since the beginning of the source. clock: UTC time of capture, of live sources. box: x1, y1, x2, y2
    in pixels of the picture, whose size is (width, height).
    """
    frame, found = result.frame, result.detections
    line: Dict[str, Any] = {"source": source.name, "frame": frame.number, "time": round(frame.time, 3)}
    if source.live:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(frame.clock))
        line["clock"] = f"{whole}.{int(frame.clock % 1 * 1000):03d}Z"
    if frame.name:
        line["picture"] = frame.name
    line["size"] = [frame.image.shape[1], frame.image.shape[0]]
    line["objects"] = []
    for row, (name, score, box) in enumerate(found):
        thing: Dict[str, Any] = {
            "class": name,
            "score": round(score, 4),
            "box": [round(float(v), 1) for v in box],
        }
        if result.tracks is not None:
            thing["track"] = int(result.tracks[row]) or None
        line["objects"].append(thing)
    if result.counts is not None:
        line["counts"] = result.counts
    return line


# --- window -------------------------------------------------------------------------------------------------


class Window(Output):
    """A window for each source. q or Esc ends, the space bar pauses, + and - move the threshold."""

    kind = "window"
    name = "window"
    skips = True
    in_main_thread = True

    def __init__(self, sources: List[Source], settings: Any, caption: Callable[[], str]) -> None:
        self.sources = sources
        self.settings = settings
        self.caption = caption
        self._shown: List[str] = []

    def open(self) -> None:
        reason = why_no_window()
        if reason:
            raise UserError(f"--output window: {reason}")

    def write(self, result: "Result") -> Optional[bool]:
        assert result.picture is not None
        title = self.sources[result.frame.source].name
        if title not in self._shown:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
            height, width = result.picture.shape[:2]
            scale = min(1.0, 1280 / width, 720 / height)
            cv2.resizeWindow(title, round(width * scale), round(height * scale))
            self._shown.append(title)
        frame = cv2.cvtColor(result.picture, cv2.COLOR_RGB2BGR)
        cv2.imshow(title, with_caption(frame, self.caption()))
        return self.idle()

    def idle(self) -> Optional[bool]:
        if not self._shown:
            return None
        return self._key(cv2.waitKey(1) & 0xFF) and self._still_there()

    def _key(self, key: int) -> bool:
        """What a key does; False to end."""
        now = self.settings.now
        if key in (ord("q"), 27):
            return False
        if key == ord(" "):
            self.settings.change(paused=not now.paused)
        if key in (ord("+"), ord("-")):
            step = 0.05 if key == ord("+") else -0.05
            self.settings.change(threshold=round(min(0.95, max(0.05, now.threshold + step)), 2))
        return True

    def _still_there(self) -> bool:
        """Whether no window was closed by its cross."""
        try:
            return all(cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1 for title in self._shown)
        except cv2.error:
            return False

    def close(self) -> None:
        if self._shown:
            cv2.destroyAllWindows()
            cv2.waitKey(1)


def with_caption(frame: np.ndarray, text: str) -> np.ndarray:
    """The frame (BGR) with a line of text on a dark strip at its top; changed in place."""
    scale = max(0.4, frame.shape[1] / 1600)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    pad = height // 2
    strip = frame[: height + below + 2 * pad, : width + 2 * pad]
    strip[:] = strip // 4
    place = (pad, pad + height)
    cv2.putText(frame, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return frame


def why_no_window() -> str:
    """Empty when a window can be shown; else the reason."""
    info = cv2.getBuildInformation()
    gui = info[info.find("GUI:") :].split("\n\n")[0]
    if not re.search(r"(GTK|QT|Win32 UI|Cocoa|Wayland)[^:\n]*:\s*(YES|[\d.]+|.*ver)", gui):
        return "this OpenCV was built without windows (it is a headless one)"
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return "there is no display (DISPLAY is not set)"
    return ""


# --- streams through GStreamer ------------------------------------------------------------------------------

ENCODERS = (
    ("nvv4l2h264enc", "nvvidconv ! nvv4l2h264enc insert-sps-pps=true idrinterval=30 maxperf-enable=true"),
    ("nvh264enc", "videoconvert ! nvh264enc"),
    ("vah264enc", "videoconvert ! vah264enc"),
    ("x264enc", "videoconvert ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30"),
    ("openh264enc", "videoconvert ! openh264enc gop-size=30"),
)
"""Of H.264, best first: the boards' own before those of the CPU."""


class Stream(Output):
    """An H.264 stream that others can watch: udp://host:port (MPEG-TS), rtsp://server/path, or a pipeline."""

    kind = "stream"
    skips = True

    def __init__(self, word: str, sources: List[Source]) -> None:
        self.word = word
        self.name = word if " ! " in word else without_password(word)
        self.sources = sources
        self._writer: Any = None
        self._size = (0, 0)

    def open(self) -> None:
        if not has_gstreamer():
            raise UserError(f"--output {self.name}: {WITHOUT_GSTREAMER}")
        if len(self.sources) > 1:
            raise UserError(f"--output {self.name}: a stream shows one source, here are {len(self.sources)}")

    def write(self, result: "Result") -> None:
        picture = result.picture
        assert picture is not None
        if self._writer is None:
            self._size = (max(2, picture.shape[0] & ~1), max(2, picture.shape[1] & ~1))
            self._writer = self._start(self.sources[0].rate or LIVE_RATE)
        self._writer.write(cv2.cvtColor(fit(picture, self._size), cv2.COLOR_RGB2BGR))

    def _start(self, rate: float) -> Any:
        height, width = self._size
        for pipeline in stream_pipelines(self.word):
            writer = cv2.VideoWriter(pipeline, cv2.CAP_GSTREAMER, 0, rate, (width, height), True)
            if writer.isOpened():
                log.info("%s: %s", self.name, pipeline.replace(self.word, self.name))
                return writer
        raise UserError(
            f"--output {self.name}: GStreamer can encode H.264 with none of "
            f"{', '.join(name for name, _ in ENCODERS)}, or cannot reach the address. Install "
            "gstreamer1.0-plugins-ugly (x264enc) and, for rtsp://, gstreamer1.0-rtsp; an RTSP server must run there"
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


def stream_pipelines(word: str) -> List[str]:
    """GStreamer pipelines that may send to an address, best first. Raises UserError for an address that is none."""
    if " ! " in word:
        return [word if word.startswith("appsrc") else f"appsrc ! videoconvert ! {word}"]
    if re.search(r"[\s!\"']", word):
        raise UserError(f"--output {word}: no address")
    udp = re.fullmatch(r"udp://([^/:]+|\[[^\]]+\]):(\d+)", word)
    if udp:
        end = (
            f"h264parse ! mpegtsmux ! udpsink host={udp.group(1).strip('[]')} port={udp.group(2)} sync=false"
        )
    elif word.startswith(("rtsp://", "rtsps://")):
        end = f"h264parse ! rtspclientsink location={word}"
    else:
        raise UserError(f"--output {word}: write udp://host:port or rtsp://server/path")
    return [f"appsrc is-live=true ! videoconvert ! {encoder} ! {end}" for _, encoder in ENCODERS]


# --- from words to outputs ----------------------------------------------------------------------------------

WEB = re.compile(r"web(?::(\d+))?|https?://([^/:]*|\[[^\]]+\])(?::(\d+))?/?")

KINDS = """window                a window on this machine's display
web, web:8000         a page for browsers (see --host and --port)
out.mp4 .avi .mkv     the annotated film
out.jsonl, -          a line of JSON for each frame; - is standard output
folder/               an annotated picture of each frame
out.jpg               the newest annotated picture
crops:folder          a picture of each object
udp://host:port       a stream, through GStreamer
rtsp://server/path    the same, to an RTSP server"""


def open_output(
    word: str,
    sources: List[Source],
    settings: Any,
    caption: Callable[[], str],
    web: Callable[[str, Optional[int]], Output],
) -> Output:
    """What a word behind --output means, opened.

    Args:
        word: see KINDS.
        sources, settings, caption: of the pipeline.
        web: makes the web view of (host or "", port or None).

    Raises UserError for a word that is none of them, and when it cannot be written to.
    """
    output = _output(word, sources, settings, caption, web)
    output.open()
    return output


def _output(
    word: str,
    sources: List[Source],
    settings: Any,
    caption: Callable[[], str],
    web: Callable[[str, Optional[int]], Output],
) -> Output:
    several = len(sources) > 1
    match = WEB.fullmatch(word)
    if match:
        port: Union[str, None] = match.group(1) or match.group(3)
        return web(match.group(2) or "", int(port) if port else None)
    if word == "window":
        return Window(sources, settings, caption)
    if word == "-":
        return JsonLines(None, sources)
    if " ! " in word or re.match(r"(udp|rtsps?)://", word):
        stream_pipelines(word)
        return Stream(word, sources)
    if "://" in word:
        raise UserError(f"--output {word}: no kind of output. Known:\n{KINDS}")
    if word.startswith("crops:"):
        return Folder(Path(word[len("crops:") :] or "crops"), several, crops=True)
    path = Path(word)
    suffix = path.suffix.lower()
    if word.endswith(("/", os.sep)) or path.is_dir() or not suffix:
        return Folder(path, several, crops=path.name == "crops")
    if suffix in (".jsonl", ".ndjson", ".json"):
        return JsonLines(path, sources)
    if suffix in PICTURES:
        return Picture(path, several)
    if suffix in CODECS:
        return Film(path, sources)
    hint = f"; films are written as {', '.join(CODECS)}" if suffix in FILMS else ""
    raise UserError(f"--output {word}: the kind does not follow from this name{hint}. Known:\n{KINDS}")
