import json
import os
import stat
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vision.detector import Detections
from vision.errors import UserError
from vision.live import outputs as module
from vision.live.outputs import (
    Film,
    Folder,
    JsonLines,
    Picture,
    Stream,
    Window,
    as_json,
    crop,
    fit,
    numbered,
    open_output,
    safe_name,
    stream_pipelines,
    why_no_window,
    with_caption,
)
from vision.live.pipeline import Frame, Result
from vision.live.settings import Settings
from vision.live.sources import Source, has_gstreamer


def source(live=False, rate=25.0, name="film.avi"):
    made = Source()
    made.live, made.rate, made.name = live, rate, name
    return made


def result(number=0, boxes=(), size=(48, 64), moment=None, name="", number_of_source=0, tracks=None):
    image = np.full((*size, 3), (200, 100, number % 256), np.uint8)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    found = Detections(
        boxes, np.full(count, 0.5, np.float32), np.ones(count, np.int64), ("BACKGROUND", "a cat/dog"), size
    )
    frame = Frame(number_of_source, number, image, number / 25 if moment is None else moment, name)
    return Result(frame, found, None if tracks is None else np.array(tracks), picture=image)


def write_all(output, results):
    output.open()
    for one in results:
        output.write(one)
    output.close()


def make(word, sources=None):
    def web(host, port):
        raise AssertionError("no web view was asked for")

    return open_output(word, sources or [source()], Settings(), lambda: "", web)


# --- films ---


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_a_film_has_every_frame(live, tmp_path, suffix):
    path = tmp_path / "new" / f"out{suffix}"
    write_all(Film(path, [source()]), [result(n) for n in range(10)])
    frames = live.read_film(path)
    assert len(frames) == 10 and frames[0].shape == (48, 64, 3)
    assert np.abs(frames[0][20, 20].astype(int) - [0, 100, 200]).max() < 12, "B, G, R in the file"


def test_no_frame_no_film(tmp_path):
    write_all(Film(tmp_path / "out.mp4", [source()]), [])
    assert list(tmp_path.iterdir()) == []


def test_a_film_of_a_live_source_runs_by_the_clock(live, tmp_path):
    path = tmp_path / "out.avi"
    # 10 frames a second asked for; they come at 0, 0.1, then a gap, then too fast
    moments = [0.0, 0.1, 0.5, 0.51, 0.52, 0.6, 100.0, 100.1]
    write_all(
        Film(path, [source(live=True, rate=10.0)]), [result(n, moment=m) for n, m in enumerate(moments)]
    )
    # up to 0.6 s seven frames; the long absence is left out
    assert len(live.read_film(path)) in (9, 10)


def test_frames_of_other_sizes_are_fitted_in(live, tmp_path):
    path = tmp_path / "out.avi"
    write_all(
        Film(path, [source()]),
        [result(0, size=(49, 65)), result(1, size=(200, 64)), result(2, size=(3, 900))],
    )
    assert [frame.shape for frame in live.read_film(path)] == [(48, 64, 3)] * 3


def test_each_of_several_sources_has_its_film(live, tmp_path):
    results = [result(n, number_of_source=s) for n in range(4) for s in (0, 1)]
    write_all(Film(tmp_path / "out.avi", [source(), source()]), results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out_0.avi", "out_1.avi"]
    assert len(live.read_film(tmp_path / "out_1.avi")) == 4


def test_a_full_disk_ends_the_film_before_it_breaks(live, tmp_path, monkeypatch):
    output = Film(tmp_path / "out.mp4", [source()])
    output.open()
    for number in range(32):
        output.write(result(number))
    usage = module.shutil.disk_usage(str(tmp_path))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match="the disk is full"):
        output.write(result(32))
    output.close()
    assert len(live.read_film(tmp_path / "out.mp4")) == 32


def test_an_8k_film(live, tmp_path):
    path = tmp_path / "out.mp4"
    write_all(Film(path, [source()]), [result(0, size=(4320, 7680))])
    assert live.read_film(path)[0].shape == (4320, 7680, 3)


def test_a_film_that_no_codec_can_hold(tmp_path):
    with pytest.raises(UserError, match="cannot write a film of 20000 x 16"):
        write_all(Film(tmp_path / "out.mp4", [source()]), [result(0, size=(16, 20000))])


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_film_opens_even_when_the_program_was_killed(live, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    code = (
        "import os, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from vision.live.outputs import _Writer\n"
        "rng = np.random.default_rng(0)\n"
        f"w = _Writer(Path({str(path)!r}), 25.0, (480, 640), False)\n"
        "for n in range(100): w.write(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), n / 25)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=90).returncode == -9
    assert len(live.read_film(path)) > 20, "but for what an encoder still held back"


@pytest.mark.parametrize(
    "size, inside", [((48, 64), (48, 64)), ((24, 32), (48, 64)), ((480, 64), (48, 6)), ((2, 2), (48, 48))]
)
def test_fit_keeps_the_aspect_ratio(size, inside):
    frame = fit(np.full((*size, 3), 255, np.uint8), (48, 64))
    assert frame.shape == (48, 64, 3)
    white = np.argwhere(frame.min(axis=2) > 128)
    assert tuple(np.ptp(white, axis=0) + 1) == inside


# --- pictures, crops ---


def test_a_folder_of_pictures(tmp_path):
    write_all(Folder(tmp_path / "out", False), [result(0), result(7, name="cat.one.png")])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.jpg", "cat.one.jpg"]
    image = cv2.imread(str(tmp_path / "out" / "000000.jpg"))
    assert np.abs(image[10, 10].astype(int) - [0, 100, 200]).max() < 6


def test_pictures_of_the_same_name_from_two_sources(tmp_path):
    results = [result(0, name="a.png"), result(0, name="a.png", number_of_source=1)]
    write_all(Folder(tmp_path, True), results)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_newest_picture(tmp_path):
    path = tmp_path / "now.png"
    write_all(Picture(path, False), [result(n) for n in range(5)])
    assert cv2.imread(str(path))[0, 0, 0] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["now.png"]


def test_crops(tmp_path):
    boxes = [(10, 5, 30, 25), (-5, -5, 4, 4), (60, 40, 64, 48)]
    write_all(Folder(tmp_path, False, crops=True), [result(3, boxes, tracks=[7, 0, 0])])
    folder = tmp_path / "a cat_dog"
    shapes = {p.name: cv2.imread(str(p)).shape[:2] for p in folder.iterdir()}
    assert shapes == {"000003_0_7.jpg": (20, 20), "000003_1.jpg": (4, 4), "000003_2.jpg": (8, 4)}


@pytest.mark.parametrize(
    "name, safe", [("cat", "cat"), ("../up", "_up"), ("a/b", "a_b"), ("...", "_"), ("Käfer 2", "Käfer 2")]
)
def test_a_class_name_never_leads_out_of_the_folder(name, safe):
    assert safe_name(name) == safe


def test_crop_of_a_box_outside():
    assert crop(np.zeros((4, 4, 3), np.uint8), np.array([9, 9, 12, 12], np.float32)).size == 0


# --- JSON lines ---


def test_json_lines(live, tmp_path):
    path = tmp_path / "deep" / "out.jsonl"
    results = [result(0), result(1, [(1, 2, 3, 4.26)], tracks=[5]), result(2, [(1, 2, 3, 4)], tracks=[0])]
    results[1].counts = {"door": {"in": 1}}
    write_all(JsonLines(path, [source()]), results)
    lines = live.read_lines(path)
    assert lines[0] == {"source": "film.avi", "frame": 0, "time": 0.0, "size": [64, 48], "objects": []}
    assert lines[1]["objects"] == [
        {"class": "a cat/dog", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.3], "track": 5}
    ]
    assert lines[1]["counts"] == {"door": {"in": 1}}
    assert lines[2]["objects"][0]["track"] is None


def test_each_line_is_in_the_file_at_once(live, tmp_path):
    output = JsonLines(tmp_path / "out.jsonl", [source()])
    output.open()
    output.write(result(0))
    assert len(live.read_lines(tmp_path / "out.jsonl")) == 1
    output.close()


def test_a_live_source_has_clock_time():
    line = as_json(result(0), source(live=True))
    assert line["clock"].endswith("Z") and len(line["clock"]) == 24


def test_json_on_standard_output(capsys):
    write_all(JsonLines(None, [source()]), [result(0)])
    assert json.loads(capsys.readouterr().out)["frame"] == 0


# --- window, stream ---


def test_a_window_needs_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform.startswith("linux"):
        assert "headless" in why_no_window() or "no display" in why_no_window()
        with pytest.raises(UserError, match="--output window"):
            make("window")


@pytest.mark.parametrize(
    "info, reason",
    [
        ("\n  GUI:                           NONE\n\n  Media I/O:", "headless"),
        ("\n  GUI: \n\n  Media I/O:", "headless"),
        (
            "\n  GUI:                           GTK3\n    GTK+:                        YES (ver 3.24.37)\n\n",
            "",
        ),
        (
            "\n  GUI:                           QT5\n    QT:                          YES (ver 5.15.13 )\n\n",
            "",
        ),
        ("\n  GUI: \n    GTK+:                        NO\n\n", "headless"),
        ("\n  GUI: \n    GTK+ 2.x:                    YES (ver 2.24)\n\n", ""),
    ],
)
def test_whether_opencv_has_windows(info, reason, monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: info)
    monkeypatch.setenv("DISPLAY", ":0")
    assert (reason in why_no_window()) if reason else why_no_window() == ""


@pytest.mark.parametrize(
    "key, change, goes_on",
    [("q", {}, False), ("\x1b", {}, False), (" ", {"paused": True}, True), ("+", {"threshold": 0.45}, True),
     ("-", {"threshold": 0.35}, True), ("x", {}, True)],
)  # fmt: skip
def test_keys_of_the_window(key, change, goes_on):
    settings = Settings()
    before = settings.now
    assert Window([source()], settings, lambda: "")._key(ord(key)) is goes_on
    assert settings.now == before._replace(**change)


def test_the_caption_is_legible_and_at_the_top():
    frame = with_caption(np.full((240, 320, 3), 200, np.uint8), "12.3 frames/s")
    assert frame[:20].min() < 60 and frame[:20].max() > 200 and (frame[60:] == 200).all()


@pytest.mark.parametrize(
    "word, part",
    [
        ("udp://127.0.0.1:5000", "udpsink host=127.0.0.1 port=5000"),
        ("udp://[::1]:5000", "udpsink host=::1 port=5000"),
        ("rtsp://server:8554/live", "rtspclientsink location=rtsp://server:8554/live"),
        ("appsrc ! videoconvert ! fakesink", "appsrc ! videoconvert ! fakesink"),
        ("x264enc ! fakesink", "appsrc ! videoconvert ! x264enc ! fakesink"),
    ],
)
def test_pipelines_of_streams(word, part):
    assert all(part in pipeline for pipeline in stream_pipelines(word))


@pytest.mark.parametrize("word", ["udp://host", "rtsp://host/a b", "udp://host:1!x"])
def test_addresses_that_are_none(word):
    with pytest.raises(UserError, match="--output"):
        stream_pipelines(word)


def test_the_password_of_a_stream_is_not_shown():
    assert Stream("rtsp://me:secret@server:8554/live", [source()]).name == "rtsp://server:8554/live"
    assert Stream("x264enc ! fakesink", [source()]).name == "x264enc ! fakesink"


def test_a_stream_without_gstreamer():
    if has_gstreamer():
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(UserError, match="without GStreamer.*python3-opencv"):
        make("udp://127.0.0.1:5000")


def test_a_stream_through_gstreamer(tmp_path):
    if not has_gstreamer():
        pytest.skip("this OpenCV has no GStreamer")
    path = tmp_path / "out.raw"
    output = Stream(f"filesink location={path} ! fakesink", [source()])
    output.word = f"appsrc ! videoconvert ! video/x-raw,format=BGR ! filesink location={path}"
    write_all(output, [result(n) for n in range(4)])
    assert path.stat().st_size == 4 * 48 * 64 * 3


# --- words ---


@pytest.mark.parametrize(
    "word, kind",
    [
        ("out.mp4", Film),
        ("OUT.AVI", Film),
        ("out.jsonl", JsonLines),
        ("out.ndjson", JsonLines),
        ("-", JsonLines),
        ("now.jpg", Picture),
        ("pictures/", Folder),
        ("pictures", Folder),
        ("crops:objects", Folder),
        ("some/crops/", Folder),
    ],
)
def test_the_kind_follows_from_the_name(word, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = make(word)
    output.close()
    assert type(output) is kind
    assert getattr(output, "crops", False) is ("crops" in word)


@pytest.mark.parametrize(
    "word, host, port",
    [
        ("web", "", None),
        ("web:9000", "", 9000),
        ("http://0.0.0.0:9000", "0.0.0.0", 9000),
        ("http://[::1]:9000/", "[::1]", 9000),
        ("http://box", "box", None),
    ],
)
def test_words_for_the_web_view(word, host, port):
    asked = []

    class Opened(module.Output):
        pass

    def web(*where):
        asked.append(where)
        return Opened()

    assert isinstance(open_output(word, [source()], Settings(), lambda: "", web), Opened)
    assert asked == [(host, port)]


@pytest.mark.parametrize("word", ["out.xyz", "ftp://x", "out.wmv"])
def test_words_of_no_kind(word):
    with pytest.raises(UserError, match="no kind of output|does not follow"):
        make(word)


@pytest.mark.parametrize("word", ["out.mp4", "out.jsonl", "out.jpg", "out/", "crops:out"])
def test_an_output_that_cannot_be_written_is_told_at_the_start(word, tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.chdir(tmp_path)
    word = word.replace("out", "blocked/out")
    with pytest.raises(UserError, match="cannot be written"):
        make(word)
    assert blocked.read_text() == "a file where a folder should be"


def test_no_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="Permission denied"):
        make(str(tmp_path / "out.mp4"))


def test_numbered(tmp_path):
    assert numbered(tmp_path / "a.b.mp4", 2, True).name == "a.b_2.mp4"
    assert numbered(tmp_path / "a.mp4", 2, False).name == "a.mp4"
