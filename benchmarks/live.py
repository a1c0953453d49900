"""Does the live pipeline cost more than its slowest stage? And does its memory stay flat?

    python benchmarks/live.py [MODEL] [--frames 300] [--rounds 3] [--threads 1] [--size 640x480]
    python benchmarks/live.py [MODEL] --soak 10

The first: a painted film goes through every stage alone, one after the other, and then through the pipeline, into an
annotated film and JSON lines. Printed are the seconds of each, and two ratios that should be near 1: the pipeline's
time to that of the slowest stage alone, and to that of the slowest stage as it was inside the pipeline, where the
stages share cores. Each stage and the pipeline are taken at their best of all rounds. With --threads below the number
of cores the net leaves some to the other stages; with all of them, nothing can overlap.

The second: the film again and again, for so many minutes, as fast as it goes, with tracking, an annotated film, JSON
lines and the web view with a viewer. Memory (resident set) is printed all the time; at the end its growth.

Without MODEL a tiny net is used, and the slowest stage is another.
"""

import argparse
import contextlib
import http.client
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import cv2
import numpy as np

from vision.data.shapes import paint_picture
from vision.detector import Detector
from vision.live.app import Follower
from vision.live.outputs import Film as FilmOutput
from vision.live.outputs import JsonLines
from vision.live.pipeline import Pipeline, draw
from vision.live.settings import Settings
from vision.live.sources import Film, Repeated, fourcc
from vision.live.tracking import LOW
from vision.live.web import WebView
from vision.runtimes import open_detector
from vision.runtimes.specimen import write_specimen

GOAL = 1.15


def write_film(path: Path, frames: int, size: Sequence[int], seed: int = 0) -> None:
    """A window that glides over a painted picture."""
    width, height = size
    rng = np.random.default_rng(seed)
    large = paint_picture(rng, (height + 100, width + 100), 12).image[..., ::-1]
    writer = cv2.VideoWriter(str(path), fourcc("mp4v"), 25.0, (width, height))
    for number in range(frames):
        x, y = round(50 + 49 * np.cos(number / 20)), round(50 + 49 * np.sin(number / 31))
        writer.write(np.ascontiguousarray(large[y : y + height, x : x + width]))
    writer.release()


def opened(sources: Sequence[Any]) -> List[Any]:
    for source in sources:
        source.open()
    return list(sources)


# --- stages -------------------------------------------------------------------------------------------------


def stages_alone(detector: Detector, path: Path, folder: Path) -> Dict[str, float]:
    """Seconds of each stage over the whole film, nothing else running."""
    seconds: Dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    def read() -> List[Any]:
        source = opened([Film(str(path))])[0]
        grabs = list(iter(source.read, None))
        source.close()
        return grabs

    grabs = timed("capture", read)
    blobs = timed("preprocess", lambda: [detector.preprocess([grab.image]) for grab in grabs])
    raw = timed("network", lambda: [detector.run(blob) for blob in blobs])
    sizes = [grab.image.shape[:2] for grab in grabs]
    found = timed(
        "postprocess", lambda: [detector.postprocess(*one, [size], 0.4)[0] for one, size in zip(raw, sizes)]
    )
    results = []
    collector = Collector(results)
    pipeline = Pipeline(Given(detector, found), opened([Film(str(path))]), [collector])
    pipeline.run()
    timed("draw", lambda: [draw(result) for result in results])
    for output in (
        FilmOutput(folder / "alone.mp4", pipeline.sources),
        JsonLines(folder / "a.jsonl", pipeline.sources),
    ):
        output.open()

        def write(output: Any = output) -> None:
            for result in results:
                output.write(result)
            output.close()

        timed(output.kind, write)
    return seconds


class Collector(FilmOutput):
    """Keeps results."""

    def __init__(self, results: List[Any]) -> None:
        self.results = results

    def write(self, result: Any) -> None:
        self.results.append(result)

    def close(self) -> None:
        pass


def Given(detector: Detector, found: List[Any]) -> Detector:
    """A detector that takes no time and gives what is known."""
    given = Detector(lambda blob: (blob, blob), detector.input, detector.classes, "given", 1)
    left = iter(found)
    given.preprocess = lambda images: np.zeros(1)  # type: ignore[method-assign]
    given.postprocess = lambda *a, **b: [next(left)]  # type: ignore[method-assign]
    return given


def whole(detector: Detector, path: Path, folder: Path) -> Any:
    """Seconds of the pipeline, and of each stage inside it."""
    sources = opened([Film(str(path))])
    outputs = [FilmOutput(folder / "whole.mp4", sources), JsonLines(folder / "whole.jsonl", sources)]
    pipeline = Pipeline(detector, sources, opened(outputs))
    start = time.perf_counter()
    pipeline.run()
    return time.perf_counter() - start, pipeline.figures.total(), pipeline.figures.frames


def compare(detector: Detector, arguments: argparse.Namespace, folder: Path) -> None:
    path = folder / "film.mp4"
    write_film(path, arguments.frames, arguments.size)
    alone: Dict[str, float] = {}
    inside: Dict[str, float] = {}
    best = within = np.inf
    for number in range(arguments.rounds):
        for name, seconds in stages_alone(detector, path, folder).items():
            alone[name] = min(alone.get(name, np.inf), seconds)
        seconds, stages, frames = whole(detector, path, folder)
        assert frames == arguments.frames
        print(
            f"round {number + 1}: pipeline {seconds:.2f} s, slowest stage in it {max(stages.values()):.2f} s"
        )
        within = min(within, seconds / max(stages.values()))
        if seconds < best:
            best, inside = seconds, stages
    print(f"\n{arguments.frames} frames, seconds     alone   in the pipeline")
    for name, seconds in alone.items():
        print(f"{name:24s} {seconds:7.2f}   {inside.get(name, 0):7.2f}")
    slowest = max(alone, key=alone.__getitem__)
    print(f"{'one after the other':24s} {sum(alone.values()):7.2f}")
    print(f"{'the pipeline':24s} {best:7.2f}   ({arguments.frames / best:.1f} frames/s)")
    print(
        f"\npipeline / slowest stage alone ({slowest}): {best / alone[slowest]:.2f}   (goal: at most {GOAL})"
    )
    print(f"pipeline / slowest stage in the same run: {within:.2f}")


# --- soak ---------------------------------------------------------------------------------------------------


def memory() -> float:
    """Resident set in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("memory is read from /proc, which is not here")


def watch(port: int, seen: List[int]) -> None:
    """A viewer, to the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/stream/0.mjpg")
        answer = connection.getresponse()
        while True:
            data = answer.read1(1 << 16)
            if not data:
                break
            seen[0] += data.count(b"--frame")


def soak(detector: Detector, arguments: argparse.Namespace, folder: Path) -> None:
    path = folder / "film.mp4"
    write_film(path, arguments.frames, arguments.size)
    sources = opened([Repeated(Film(str(path)))])
    settings = Settings()
    pipeline = Pipeline(detector, sources, [], settings, followers=[Follower(settings)], lowest=LOW)
    view = WebView("127.0.0.1", 0, pipeline)
    pipeline.add_outputs(
        opened([view, FilmOutput(folder / "out.avi", sources), JsonLines(folder / "out.jsonl", sources)])
    )
    seen, samples = [0], []
    start = time.monotonic()

    def sample() -> None:
        while not done.wait(15):
            samples.append(memory())
            minutes = (time.monotonic() - start) / 60
            print(
                f"{minutes:5.1f} min   {samples[-1]:7.1f} MiB   {pipeline.figures.frames} frames   {seen[0]} seen",
                flush=True,
            )
            if minutes >= arguments.soak:
                pipeline.stop()

    def begin_to_watch() -> None:
        while not view._newest:
            time.sleep(0.1)
        watch(view.port, seen)

    done = threading.Event()
    threads = [threading.Thread(target=work, daemon=True) for work in (sample, begin_to_watch)]
    for thread in threads:
        thread.start()
    pipeline.run()
    done.set()
    threads[0].join()
    quarter = max(1, len(samples) // 4)
    early, late = np.mean(samples[quarter : 2 * quarter]), np.mean(samples[-quarter:])
    print(
        f"\n{pipeline.figures.frames} frames in {(time.monotonic() - start) / 60:.1f} minutes; memory: second "
        f"quarter {early:.1f} MiB, last quarter {late:.1f} MiB, growth {late - early:+.1f} MiB"
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=lambda text: [int(v) for v in text.split("x")], default=[640, 480])
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)  # each stage has a thread; more would only take turns
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or write_specimen(folder / "specimen.onnx")
        detector = open_detector(model, threads=arguments.threads, batch_size=1)
        print(f"{detector.name}; film of {arguments.size[0]} x {arguments.size[1]}, OpenCV {cv2.__version__}")
        (soak if arguments.soak else compare)(detector, arguments, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
