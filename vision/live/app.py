"""The live demo as a whole: options, what they mean together, and the lines that are said. Scripts call `run`."""

import logging
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence

import cv2
import numpy as np

from vision.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, option
from vision.detector import NMS_METHODS, Detector
from vision.errors import UserError
from vision.live.counting import Counter, Plan, draw_counts, read_plan
from vision.live.outputs import KINDS, Output, open_output, why_no_window
from vision.live.pipeline import Annotate, Follow, Pipeline, Result, keep
from vision.live.settings import Settings, Values
from vision.live.sources import CaptureOptions, Paced, Repeated, Source, open_sources
from vision.live.tracking import LOW, Tracker

log = logging.getLogger(__name__)

EXIT_TERMINATED = 143
IMPATIENT = 1.0
"""Seconds after a signal from which on a second one ends the program as it is; some shells send each twice."""

SAY_EVERY = 5.0
"""Seconds between two lines with figures."""

PACES = ("auto", "film", "fast")

OUTPUT_HELP = (
    "where results go; may be given several times (default: a window, without a display the web view)"
)


@dataclass
class LiveOptions:
    """Options of the live scripts. Raises UserError for values out of range."""

    arguments: List[str] = option([], "see below", metavar="MODEL SOURCE", positional=True)
    output: List[str] = option([], OUTPUT_HELP, metavar="OUTPUT", repeat=True)
    threshold: float = option(0.4, "show detections with a score above this")
    iou_threshold: float = option(0.45, "above which overlap non-maximum suppression drops a box")
    top_k: int = option(-1, "show so many of each class; -1 for all")
    candidate_size: int = option(200, "non-maximum suppression looks at so many of each class")
    nms_method: str = option("hard", "non-maximum suppression", choices=NMS_METHODS)
    classes: List[str] = option([], "show only these", metavar="CLASS")
    runtime: str = option("auto", "what runs the model", metavar="NAME")
    use_cuda: bool = option(True, "use a GPU when there is one")
    provider: str = option("", "how an exported file is run: cpu, cuda, tensorrt, ...", metavar="NAME")
    threads: int = option(0, "of the CPU; 0 leaves it to the runtime")
    batch_size: int = option(0, "images through the net at once; 0 for one of each source")
    track: bool = option(False, "follow objects from frame to frame and number them")
    count: str = option("", "JSON file with lines and zones to count at; tracks too", metavar="FILE")
    pace: str = option(
        "auto",
        "speed of films: as taken, as fast as it goes, or (auto) as taken when nothing is written",
        choices=PACES,
    )
    loop: bool = option(False, "begin films and pictures again at their end")
    camera_size: str = option("1920x1080", "asked of a camera, WIDTHxHEIGHT", metavar="SIZE")
    camera_rate: int = option(0, "frames a second asked of a camera; 0 leaves it to the camera")
    give_up: float = option(0.0, "end when a camera or stream stays away for so many seconds; 0 for never")
    host: str = option("127.0.0.1", "address of the web view; 0.0.0.0 for every one of this machine")
    port: int = option(8000, "of the web view; 0 for any that is free")
    web_width: int = option(1280, "pixels: pictures of the web view are shrunk to it")
    quiet: bool = option(False, "no lines with figures while it runs")

    def __post_init__(self) -> None:
        if self.batch_size < 0:
            raise UserError(f"--batch_size {self.batch_size} is below 0")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port {self.port} is outside 0..65535")
        if self.web_width < 64:
            raise UserError(f"--web_width {self.web_width} is below 64")
        if self.give_up < 0 or self.camera_rate < 0 or self.threads < 0:
            raise UserError("--give_up, --camera_rate and --threads cannot be below 0")
        self.values()
        self.capture()

    def values(self) -> Values:
        """Settings to begin with, but for the classes, whose numbers the model knows."""
        return Settings(Values(self.threshold, self.iou_threshold)).now

    def capture(self) -> CaptureOptions:
        """How to open cameras."""
        match = re.fullmatch(r"(\d+)[xX](\d+)", self.camera_size)
        if not match or "0" in match.groups():
            raise UserError(f"--camera_size {self.camera_size}: write WIDTHxHEIGHT, such as 1280x720")
        width, height = (int(number) for number in match.groups())
        return CaptureOptions((height, width), self.camera_rate, self.give_up)


EPILOG = f"""A SOURCE is a camera (0, /dev/video0, v4l2://, csi://0), a stream (rtsp://, http://), a GStreamer pipeline,
a film, a picture, a folder, a pattern, or - for standard input; several may be given. Without one: camera 0.

An OUTPUT is
{KINDS}"""


def run(open_model: Callable[[], Detector], words: Sequence[str], options: LiveOptions) -> int:
    """Detect until the sources end, or somebody ends it.

    Args:
        open_model: gives the detector; called once sources and outputs are known to be good words.
        words: sources as the command line names them; none is camera 0.
        options: the rest.

    Returns: the exit code: 0, 2 when something failed and the rest went on, 130 or 143 after a signal.

    Raises UserError when nothing could be done.
    """
    if "-" in options.output:
        _say_on_stderr()
    # Their own complaints in C++ say less than ours, and more often.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    _silence_opencv()
    sources = open_sources(list(words) or ["0"], options.capture())
    _check_overwriting(words, options.output)
    detector = open_model()
    log.info("Model: %s, %d classes", detector.name, len(detector.classes) - 1)
    settings = Settings(options.values()._replace(shown=class_numbers(options.classes, detector.classes)))
    outputs = options.output or default_outputs()
    sources = [_dressed(source, options, outputs) for source in sources]
    opened: List[Source] = []
    made: List[Output] = []
    try:
        for source in sources:
            source.open()
            opened.append(source)
        pipeline = _pipeline(detector, sources, settings, options)
        for word in outputs:
            made.append(_open_output(word, pipeline, options))
        pipeline.add_outputs(made)
    except BaseException:
        for output in made:
            output.close()
        for source in opened:
            source.close()
        raise
    return _run(pipeline, options)


def _pipeline(
    detector: Detector, sources: List[Source], settings: Settings, options: LiveOptions
) -> Pipeline:
    detect_options = {
        "top_k": options.top_k,
        "candidate_size": options.candidate_size,
        "nms_method": options.nms_method,
    }
    followers: List[Follow] = []
    annotate: Optional[Annotate] = None
    plan = read_plan(options.count, detector.classes) if options.count else None
    if options.track or plan is not None:
        followers = [Follower(settings, plan) for _ in sources]
    if plan is not None:
        annotate = partial(_annotate, plan)
    return Pipeline(
        detector,
        sources,
        [],
        settings,
        batch_size=options.batch_size,
        followers=followers,
        annotate=annotate,
        lowest=LOW if followers else None,
        detect_options=detect_options,
    )


class Follower:
    """Tracks and counts of one source."""

    def __init__(self, settings: Settings, plan: Optional[Plan] = None) -> None:
        self.settings = settings
        self.tracker = Tracker()
        self.counter = None if plan is None else Counter(plan)

    def __call__(self, result: Result) -> Result:
        found, threshold = result.detections, self.settings.now.threshold
        tracks = self.tracker.update(found, threshold, result.frame.number)
        if self.counter is not None:
            alive = [track.number for track in self.tracker.tracks]
            result.counts = self.counter.update(found, tracks, alive)
        # Unsure ones that go on with no track are not shown.
        worth = (found.scores > threshold) | (tracks > 0)
        result.detections, result.tracks = keep(found, worth), tracks[worth]
        return result


def _annotate(plan: Plan, picture: np.ndarray, result: Result) -> np.ndarray:
    return picture if result.counts is None else draw_counts(picture, plan, result.counts)


def _open_output(word: str, pipeline: Pipeline, options: LiveOptions) -> Output:
    def web(host: str, port: Optional[int]) -> Output:
        # Not at the head of this file: nobody else needs its server.
        from vision.live.web import WebView

        return WebView(
            host or options.host, options.port if port is None else port, pipeline, options.web_width
        )

    return open_output(word, pipeline.sources, pipeline.settings, lambda: caption(pipeline), web)


def _dressed(source: Source, options: LiveOptions, outputs: Sequence[str]) -> Source:
    """With what --loop and --pace ask for."""
    if source.live:
        return source
    if options.loop:
        source = Repeated(source)
    watched = all(word.startswith(("window", "web", "http")) for word in outputs)
    if options.pace == "film" or (options.pace == "auto" and watched):
        source = Paced(source)
    return source


def default_outputs() -> List[str]:
    """A window where one can be shown, else the web view."""
    reason = why_no_window()
    if reason:
        log.info("No window, for %s; the web view instead.", reason)
    return ["web"] if reason else ["window"]


def class_numbers(names: Sequence[str], classes: Sequence[str]) -> Any:
    """Numbers of the named classes as a frozenset; None for no names. Raises UserError."""
    unknown = [name for name in names if name not in classes[1:]]
    if unknown:
        raise UserError(f"--classes {unknown[0]!r}: the model knows {', '.join(classes[1:])}")
    return frozenset(list(classes).index(name) for name in names) or None


def _check_overwriting(words: Sequence[str], outputs: Sequence[str]) -> None:
    """No output onto a source, and no two onto each other."""
    sources = {Path(word).resolve() for word in words if "://" not in word and Path(word).exists()}
    for output in outputs:
        if output in outputs[outputs.index(output) + 1 :]:
            raise UserError(f"--output {output}: given twice")
        if output != "-" and "://" not in output and Path(output).resolve() in sources:
            raise UserError(f"--output {output}: would overwrite the source")


# --- while it runs ------------------------------------------------------------------------------------------


def _run(pipeline: Pipeline, options: LiveOptions) -> int:
    code = [0]
    asked: List[float] = []

    def end(number: int, frame: Optional[FrameType]) -> None:
        code[0] = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        asked.append(time.monotonic())
        if asked[-1] - asked[0] > IMPATIENT:
            os._exit(code[0])
        pipeline.ask_to_stop()

    before: Dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    done = threading.Event()
    speaker = threading.Thread(target=_speak, args=(pipeline, done), name="figures", daemon=True)
    try:
        if not options.quiet:
            speaker.start()
        pipeline.run()
    finally:
        done.set()
        if speaker.ident is not None:
            speaker.join(1.0)  # it writes to the stream that the interpreter closes
        for number, handler in before.items():
            signal.signal(number, handler)
    for line in ending(pipeline):
        log.info("%s", line)
    problems = len(pipeline.failures) + sum(source.problems for source in pipeline.sources)
    return code[0] or (EXIT_USER_ERROR if problems else 0)


def leave(code: int) -> NoReturn:
    """End the process.

    A thread that hangs in a camera's driver or in a pipe that nobody reads would make the interpreter's own end wait
    for its locks, or crash when it wakes among what was taken down.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    if any(thread.daemon for thread in others):
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _speak(pipeline: Pipeline, done: threading.Event) -> None:
    while not done.wait(SAY_EVERY):
        log.info("%s", caption(pipeline))


def caption(pipeline: Pipeline) -> str:
    """The figures of now in a line."""
    figures = pipeline.figures
    return (
        f"{figures.rate():.1f} frames/s   network {figures.milliseconds('network'):.1f} ms   "
        f"delay {figures.milliseconds('age'):.0f} ms   dropped {pipeline.dropped}"
    )


def ending(pipeline: Pipeline) -> List[str]:
    """What is said at the end."""
    figures = pipeline.figures
    seconds = time.monotonic() - figures.started
    stages = ", ".join(f"{name} {figures.mean_milliseconds(name):.1f}" for name in figures.total())
    lines = [
        f"{figures.frames} frames in {seconds:.1f} s ({figures.mean_rate():.1f} frames/s), {figures.objects} objects, "
        f"{pipeline.dropped} frames dropped",
    ]
    if stages:
        lines.append(f"ms a call: {stages}")
    for output in pipeline.outputs:
        lines.append(f"Output: {output.name}")
    return lines


def _say_on_stderr() -> None:
    """Standard output carries JSON lines."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


def _silence_opencv() -> None:
    for place in (getattr(cv2, "utils", None), cv2):
        logger = getattr(place, "logging", None)
        if logger is not None and hasattr(logger, "setLogLevel"):
            logger.setLogLevel(getattr(logger, "LOG_LEVEL_SILENT", 0))
            return
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
