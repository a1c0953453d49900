"""Films, streams and a detector that finds what was painted: nothing here needs a trained net."""

import http.server
import json
import threading
import time

import cv2
import numpy as np
import pytest

from vision.detector import Detector
from vision.live.pipeline import Pipeline
from vision.live.settings import Settings, Values
from vision.spec import InputSpec

CLASSES = ("BACKGROUND", "red", "green", "blue")
SIDE = 64
SCORES = (0.9, 0.7, 0.5, 0.3)
"""Of the four cells in which colour is looked for, in reading order."""


def find_colours(blob):
    """A "net": in each quarter of the image a box of its strongest colour, if it has one. Scores by quarter."""
    count = len(blob)
    scores, boxes = np.zeros((count, 4, 4), np.float32), np.zeros((count, 4, 4), np.float32)
    half = SIDE // 2
    for n in range(count):
        for cell in range(4):
            top, left = cell // 2 * half, cell % 2 * half
            planes = blob[n, :, top : top + half, left : left + half]
            means = planes.mean(axis=(1, 2))
            strongest = int(means.argmax())
            there = planes[strongest] > planes.mean(axis=0) + 0.3
            if there.sum() < 8:
                scores[n, cell, 0] = 1
                continue
            rows, columns = np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))
            box = [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
            boxes[n, cell] = np.array(box) / SIDE
            scores[n, cell, strongest + 1] = SCORES[cell]
            scores[n, cell, 0] = 1 - SCORES[cell]
    return scores, boxes


def colour_detector(delay=0.0, run=find_colours):
    def slowly(blob):
        time.sleep(delay)
        return run(blob)

    return Detector(slowly, InputSpec(SIDE, SIDE), CLASSES, "colours", 4)


def picture(number=0, size=(96, 128)):
    """RGB: a coloured square in each quarter, moving with the number; the number in binary along the lower edge."""
    height, width = size
    image = np.full((height, width, 3), 40, np.uint8)
    for cell, colour in enumerate(((230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 30, 30))):
        top = cell // 2 * height // 2 + height // 12 + number % 5 * height // 60
        left = cell % 2 * width // 2 + width // 12 + number % 7 * width // 60
        image[top : top + height // 4, left : left + width // 4] = colour
    return image


def write_film(path, frames=20, rate=25.0, size=(96, 128), codec="MJPG"):
    writer = cv2.VideoWriter(str(path), int.from_bytes(codec.encode(), "little"), rate, (size[1], size[0]))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(picture(number, size)[..., ::-1])
    writer.release()
    return path


def read_film(path):
    """All frames, BGR."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames
        frames.append(frame)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Camera(http.server.ThreadingHTTPServer):
    """A network camera (MJPEG over HTTP) that can be switched off and on again.

    It keeps its port meanwhile, lest somebody else takes it, and answers nobody.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, rate=30.0, frames=None):
        super().__init__(("127.0.0.1", 0), _CameraHandler)
        self.rate = rate
        self.frames = frames
        self.on = True
        self.sent = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}/video"

    def remove(self):
        self.on = False
        self.shutdown()
        self.server_close()


class _CameraHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        if not server.on:
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        number = 0
        try:
            while server.on and (server.frames is None or number < server.frames):
                data = cv2.imencode(".jpg", picture(number)[..., ::-1])[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                number += 1
                server.sent += 1
                time.sleep(1 / server.rate)
        except OSError:
            pass

    def log_message(self, *words):
        pass


def wait_until(true, seconds=20.0):
    """Wait for something to become true; fails when it does not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def make_pipeline(sources, outputs=(), detector=None, threshold=0.2, **more):
    for source in sources:
        source.open()
    return Pipeline(
        detector or colour_detector(), sources, outputs, Settings(Values(threshold, 0.45)), **more
    )


class Running:
    """A pipeline in a thread of its own."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.pipeline.run()
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.pipeline.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


class Tools:
    """What tests of this folder share (a conftest cannot be imported)."""

    CLASSES, SCORES = CLASSES, SCORES
    Camera, Running = Camera, Running
    colour_detector = staticmethod(colour_detector)
    find_colours = staticmethod(find_colours)
    make_pipeline = staticmethod(make_pipeline)
    picture = staticmethod(picture)
    read_film = staticmethod(read_film)
    read_lines = staticmethod(read_lines)
    wait_until = staticmethod(wait_until)
    write_film = staticmethod(write_film)


@pytest.fixture(scope="session")
def live():
    return Tools


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """The servers of these tests are on this machine, wherever a proxy of the environment may be."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@pytest.fixture
def camera():
    """Makes cameras; removes them at the end."""
    made = []

    def make(**options):
        made.append(Camera(**options))
        return made[-1]

    yield make
    for one in made:
        one.remove()
