"""From sources to outputs, every stage in a thread of its own so that they overlap.

    capture (one for each source) > preprocess > network > postprocess > draw > outputs (one for each)

Between two stages waits at most one batch. A live source keeps only its newest frame for the first stage, which
takes it as late as it can; so what is shown is never older than the stages take, however slow they are. Films wait.
"""

import logging
import math
import threading
import time
from dataclasses import dataclass, field
from time import monotonic
from time import time as wall_clock
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from vision.detector import Detections, Detector
from vision.drawing import draw_boxes
from vision.errors import UserError
from vision.live.figures import Figures
from vision.live.link import IDLE, Link
from vision.live.outputs import Output
from vision.live.settings import Settings, Values
from vision.live.sources import Source

log = logging.getLogger(__name__)

SMALL_WAIT = 0.05
"""Seconds between two looks at whether somebody has paused."""

FAREWELL = 3.0
"""Seconds that a source may take to end after it was told to."""

PARTING = 30.0
"""Seconds that stages and outputs may take to finish what is under way after somebody has ended it."""


@dataclass(eq=False)
class Frame:
    """A picture on its way.

    Attributes:
        source: number of the source.
        number: of the frame in its source, from 0; frames that were dropped count.
        image: RGB uint8 (H, W, 3).
        time: seconds since the source's beginning.
        name: of the picture file, or "".
        taken: time.monotonic() when it was captured.
        clock: time.time() then.
    """

    source: int
    number: int
    image: np.ndarray
    time: float
    name: str = ""
    taken: float = field(default_factory=monotonic)
    clock: float = field(default_factory=wall_clock)


@dataclass(eq=False)
class Result:
    """A frame and what was found on it.

    Attributes:
        tracks: (K,) int, the number of each detection's track, 0 for none; None without tracking.
        counts: of lines and zones, see `vision.live.counting`; None without.
        picture: the image with boxes, RGB; None where no output wants it.
        again: shown before: drawn once more because a setting was changed during a pause.
    """

    frame: Frame
    detections: Detections
    tracks: Optional[np.ndarray] = None
    counts: Optional[Dict[str, Any]] = None
    picture: Optional[np.ndarray] = None
    again: bool = False


@dataclass(eq=False)
class Batch:
    """Frames that go through the net together, and what the stages add to them."""

    frames: List[Frame]
    blob: Optional[np.ndarray] = None
    raw: Optional[Tuple[np.ndarray, np.ndarray]] = None


Follow = Callable[[Result], Result]
"""Adds tracks and counts to a result, or changes its detections. One for each source; keeps state."""

Annotate = Callable[[np.ndarray, Result], np.ndarray]
"""Draws more into the picture (its own copy) of a result, below the boxes."""


class Pipeline:
    """Runs a detector over sources into outputs.

    Args:
        detector: what finds objects.
        sources: opened ones.
        outputs: opened ones; more with `add_outputs`.
        settings: may be changed while it runs.
        batch_size: frames through the net at once; 0 for one of each source.
        followers: one for each source, or none.
        annotate: see Annotate.
        lowest: score down to which detections are handed to the followers; None for the threshold.

    Attributes:
        figures: times and counts.
        failures: what broke without ending the rest, for people.
    """

    def __init__(
        self,
        detector: Detector,
        sources: Sequence[Source],
        outputs: Sequence[Output],
        settings: Optional[Settings] = None,
        batch_size: int = 0,
        followers: Sequence[Follow] = (),
        annotate: Optional[Annotate] = None,
        lowest: Optional[float] = None,
        detect_options: Optional[Dict[str, Any]] = None,
    ) -> None:
        self.detector = detector
        self.sources = list(sources)
        self.outputs: List[Output] = []
        self._to_output: List[Link] = []
        self.add_outputs(outputs)
        self.settings = settings or Settings()
        self.batch_size = batch_size or len(self.sources)
        self.followers = list(followers)
        self.annotate = annotate
        self.lowest = lowest
        self.detect_options = detect_options or {}
        self.figures = Figures()
        self.failures: List[str] = []
        self._broken: Optional[BaseException] = None
        self._lost: List[UserError] = []
        self._stopped = threading.Event()
        self._stopped_at = math.inf
        self._asked = False
        self._changed = threading.Condition()
        # A film is read a little ahead, which evens out frames that are slow to decode.
        self._captured = [
            Link(1, newest=True, changed=self._changed) if source.live else Link(2, changed=self._changed)
            for source in self.sources
        ]
        self._turn = 0
        self._ready, self._raw, self._found = Link(), Link(), Link()
        self._last: List[Optional[Batch]] = [None]

    def add_outputs(self, outputs: Sequence[Output]) -> None:
        """Before `run`."""
        self.outputs += outputs
        count = len(self.sources)
        self._to_output += [
            Link(count, newest=True, key=_source_of) if output.skips else Link() for output in outputs
        ]

    # --- for those outside ----------------------------------------------------------------------------------

    @property
    def dropped(self) -> int:
        """Frames of live sources that came while the net was busy."""
        return sum(link.dropped for link in self._captured)

    def stop(self) -> None:
        """End soon, as if all sources had ended now. From any thread, but not from a signal handler."""
        self._stopped_at = min(self._stopped_at, monotonic())
        self._stopped.set()
        for link in self._captured:
            link.abort()

    def ask_to_stop(self) -> None:
        """`stop`, for signal handlers. It takes no lock: what the signal has interrupted may hold it."""
        self._asked = True

    def _heed(self) -> None:
        """Do what a signal handler has asked for."""
        if self._asked and not self._stopped.is_set():
            self.stop()

    def run(self) -> None:
        """Until all sources have ended, or `stop`. Call it in the main thread, which a window needs.

        Raises UserError when nothing could go on; sources and outputs that fail alone are told in `failures`.
        """
        stages = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (
                ("preprocess", self._preprocess),
                ("network", self._network),
                ("postprocess", self._postprocess),
                ("draw", self._draw),
            )
        ]
        captures = [
            threading.Thread(target=self._capture, args=(number,), name=f"capture {number}", daemon=True)
            for number in range(len(self.sources))
        ]
        writers = [
            threading.Thread(target=self._write, args=(number,), name=output.kind, daemon=True)
            for number, output in enumerate(self.outputs)
            if not output.in_main_thread
        ]
        self.figures.started = monotonic()
        try:
            for thread in stages + writers + captures:
                thread.start()
            self._main_loop(stages + writers)
        finally:
            self.stop()
            for link in (self._ready, self._raw, self._found, *self._to_output):
                link.close()
            for source in self.sources:
                source.stop()
            # With all links closed those who waited for one that hangs can finish, too.
            for thread in _waited_for(
                stages + writers, max(self._stopped_at + PARTING, monotonic() + FAREWELL)
            ):
                self.failures.append(f"{thread.name}: did not end within {PARTING:g} s")
                log.error("error: %s", self.failures[-1])
            _waited_for(captures, monotonic() + FAREWELL)
        if self._broken is not None:
            raise self._broken
        if len(self._lost) == len(self.sources):
            if not self.figures.frames:
                raise self._lost[-1]
            log.error("error: %s", self._lost[-1])

    # --- stages ---------------------------------------------------------------------------------------------

    def _main_loop(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for the end, and serve the outputs that need this thread."""
        mine = [number for number, output in enumerate(self.outputs) if output.in_main_thread]
        if mine:
            for number in mine:
                self._write(number)
        for thread in threads:
            # Short waits, so that Ctrl-C is heard. Without it a slow output may take as long as it likes.
            while thread.is_alive() and monotonic() < self._stopped_at + PARTING:
                thread.join(0.2)
                self._heed()

    def _guarded(self, work: Callable[[], None]) -> None:
        """A stage that breaks ends everything; the first reason is kept."""
        try:
            work()
        except BaseException as error:  # handed to the main thread, which raises it
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if self._broken is None:
            self._broken = error
        self.stop()
        for link in (self._ready, self._raw, self._found):
            link.abort()
        for link in self._to_output:
            link.close()

    def _capture(self, number: int) -> None:
        """Read one source to its end."""
        source, link = self.sources[number], self._captured[number]
        count = 0
        try:
            while not self._stopped.is_set():
                start = monotonic()
                grab = source.read()
                if grab is None:
                    break
                self.figures.add("capture", monotonic() - start)
                frame = Frame(number, count, grab.image, grab.time, grab.name)
                count += 1
                if source.live and self.settings.now.paused:
                    continue
                if not link.put(frame):
                    break
        except UserError as error:
            self._source_failed(error)
        except BaseException as error:
            self._break(error)
        finally:
            link.close()
            source.close()

    def _source_failed(self, error: UserError) -> None:
        """The others go on; what becomes of the last one is known at the end."""
        if self._stopped.is_set():
            return
        self.failures.append(str(error))
        self._lost.append(error)
        if len(self._lost) < len(self.sources):
            log.error("error: %s", error)

    def _take(self) -> Optional[List[Frame]]:
        """Frames for one batch, of each source in turn; None at the end of all. Waits for one, never for more."""
        links = self._captured
        while True:
            while self.settings.now.paused and not self._stopped.is_set():
                time.sleep(SMALL_WAIT)
            with self._changed:
                self._changed.wait_for(lambda: any(map(len, links)) or all(link.ended for link in links), 0.5)
                if all(link.ended for link in links):
                    return None
                if self.settings.now.paused or not any(map(len, links)):
                    continue
                frames: List[Frame] = []
                for _ in range(self.batch_size * len(links)):
                    link = links[self._turn % len(links)]
                    self._turn += 1
                    if len(link) and len(frames) < self.batch_size:
                        frames.append(link.get())
                return frames

    def _preprocess(self) -> None:
        while True:
            self._ready.wait_for_room()
            frames = self._take()
            if frames is None:
                break
            start = monotonic()
            batch = Batch(frames, self.detector.preprocess([frame.image for frame in frames]))
            self.figures.add("preprocess", monotonic() - start)
            if not self._ready.put(batch):
                break
        self._ready.close()

    def _network(self) -> None:
        while True:
            batch = self._ready.get()
            if batch is None:
                break
            start = monotonic()
            batch.raw = self.detector.run(batch.blob)
            self.figures.add("network", monotonic() - start)
            batch.blob = None
            if not self._raw.put(batch):
                break
        self._raw.close()

    def _postprocess(self) -> None:
        used = self.settings.now
        while True:
            batch = self._raw.get(SMALL_WAIT)
            now = self.settings.now
            if batch is None:
                break
            if batch is IDLE:
                if now.paused and now._replace(paused=used.paused) != used and self._last[0] is not None:
                    self._found.put(self._results(self._last[0], now, again=True))
                    used = now
                continue
            start = monotonic()
            results = self._results(batch, now)
            self.figures.add("postprocess", monotonic() - start)
            self._last[0], used = batch, now
            if not self._found.put(results):
                break
        self._found.close()

    def _results(self, batch: Batch, values: Values, again: bool = False) -> List[Result]:
        """Detections and tracks of a batch."""
        lowest = values.threshold if self.lowest is None or again else min(self.lowest, values.threshold)
        scores, boxes = batch.raw  # type: ignore[misc]
        sizes = [frame.image.shape[:2] for frame in batch.frames]
        found = self.detector.postprocess(
            scores, boxes, sizes, lowest, values.iou_threshold, **self.detect_options
        )
        results = []
        for frame, detections in zip(batch.frames, found):
            if values.shown is not None:
                detections = keep(detections, np.isin(detections.labels, list(values.shown)))
            result = Result(frame, detections, again=again)
            if self.followers and not again:
                result = self.followers[frame.source](result)
            results.append(result)
        return results

    def _draw(self) -> None:
        wanted = any(output.wants_picture for output in self.outputs)
        while True:
            results = self._found.get()
            if results is None:
                break
            for result in results:
                if wanted:
                    start = monotonic()
                    result.picture = draw(result, self.annotate)
                    self.figures.add("draw", monotonic() - start)
                if not result.again:
                    self.figures.finished(monotonic() - result.frame.taken, len(result.detections))
                for output, link in zip(self.outputs, self._to_output):
                    if output.skips or not result.again:
                        link.put(result)
            if self._to_output and all(link.ended for link in self._to_output):
                self.stop()  # nobody is left to see or keep anything
        for link in self._to_output:
            link.close()

    def _write(self, number: int) -> None:
        """Serve one output. One that fails is closed, and the rest goes on."""
        output, link = self.outputs[number], self._to_output[number]
        try:
            while True:
                result = link.get(SMALL_WAIT if output.in_main_thread else None)
                self._heed()
                if result is None:
                    break
                if result is IDLE:
                    alive = output.idle()
                else:
                    start = monotonic()
                    alive = output.write(result)
                    self.figures.add(output.kind, monotonic() - start)
                if alive is False:
                    self.stop()
        except (UserError, OSError) as error:
            link.abort()
            self.failures.append(f"{output.name}: {error}" if isinstance(error, OSError) else str(error))
            log.error("error: %s", self.failures[-1])
        except BaseException as error:
            self._break(error)
        finally:
            try:
                output.close()
            except (UserError, OSError) as error:
                self.failures.append(f"{output.name}: {error}")
                log.error("error: %s", self.failures[-1])


def _waited_for(threads: Sequence[threading.Thread], end: float) -> List[threading.Thread]:
    """Wait for threads until time.monotonic() is `end`; gives those that are not done then."""
    for thread in threads:
        if thread.ident is not None:  # it was started
            thread.join(max(0.0, end - monotonic()))
    return [thread for thread in threads if thread.is_alive()]


def _source_of(result: Result) -> int:
    return result.frame.source


def keep(detections: Detections, which: np.ndarray) -> Detections:
    """Some of the detections; `which` is a mask or rows, (K,)."""
    return Detections(
        detections.boxes[which],
        detections.scores[which],
        detections.labels[which],
        detections.classes,
        detections.size,
    )


def draw(result: Result, annotate: Optional[Annotate] = None) -> np.ndarray:
    """The picture of a result: boxes, names, tracks."""
    found = result.detections
    names = found.names
    if result.tracks is not None:
        names = [f"{name} #{track}" if track else name for name, track in zip(names, result.tracks)]
    # Names stay legible on top of what is drawn besides.
    image = annotate(result.frame.image.copy(), result) if annotate else result.frame.image
    return draw_boxes(image, found.boxes, names, list(found.scores), list(found.labels))
