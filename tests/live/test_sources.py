import socket
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from vision.errors import UserError
from vision.live import sources as module
from vision.live.sources import (
    CaptureOptions,
    Film,
    InTime,
    Live,
    OneAfterAnother,
    Paced,
    Pictures,
    Repeated,
    as_rgb_frame,
    fourcc,
    has_gstreamer,
    open_source,
    open_sources,
    without_password,
)


def frames_of(source):
    """All that a source gives, opened and closed."""
    source.open()
    grabs = []
    while True:
        grab = source.read()
        if grab is None:
            break
        grabs.append(grab)
    source.close()
    return grabs


# --- films ---


def test_a_film_gives_every_frame_and_ends(live, tmp_path):
    source = Film(str(live.write_film(tmp_path / "film.avi", 12, rate=10)))
    grabs = frames_of(source)
    assert len(grabs) == 12 and source.rate == pytest.approx(10) and not source.live
    assert [grab.time for grab in grabs] == pytest.approx([n / 10 for n in range(12)], abs=0.02)
    # the upper left square is red in R, G, B
    red, green, blue = grabs[0].image[14, 16].astype(int)
    assert red > 150 > 90 > max(green, blue)
    assert not source.problems and source.read() is None


@pytest.mark.parametrize(
    "content, message",
    [(None, "no such file"), (b"", "the file is empty"), (b"not a film" * 100, "cannot open it")],
)
def test_what_is_no_film(tmp_path, content, message):
    path = tmp_path / "film.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        frames_of(Film(str(path)))
    assert "film.mp4" in str(error.value)


def test_a_film_without_frames(live, tmp_path):
    path = live.write_film(tmp_path / "film.avi", 0)
    with pytest.raises(UserError, match="film.avi"):
        frames_of(Film(str(path)))


def test_a_film_that_was_cut_short_gives_what_it_has_and_says_so(live, tmp_path, caplog):
    path = live.write_film(tmp_path / "film.avi", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = Film(str(path))
    grabs = frames_of(source)
    assert 5 < len(grabs) < 35
    assert source.problems == 1 and "cut short" in caplog.text


def test_a_damaged_film_does_not_stop_the_program(live, tmp_path):
    path = live.write_film(tmp_path / "film.mp4", 40, codec="mp4v")
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    places = rng.integers(200, len(data) - 3000, 300)  # the index at the end stays whole
    for place in places:
        data[place] = rng.integers(256)
    path.write_bytes(data)
    try:
        assert len(frames_of(Film(str(path)))) <= 40
    except UserError as error:
        assert "film.mp4" in str(error)


def test_standard_input(live, tmp_path):
    path = live.write_film(tmp_path / "film.avi", 7)
    code = (
        "from vision.live.sources import open_source\n"
        "s = open_source('-'); s.open(); n = 0\n"
        "while s.read() is not None: n += 1\n"
        "print(n)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=path.read_bytes(), capture_output=True, timeout=90
    )
    assert done.stdout.split() == [b"7"], done.stderr


def test_standard_input_that_cannot_be_piped_says_what_to_do(tmp_path):
    code = "from vision.live.sources import open_source\ns = open_source('-'); s.open(); s.read()"
    done = subprocess.run([sys.executable, "-c", code], input=b"nothing", capture_output=True, timeout=90)
    assert b"UserError: standard input" in done.stderr


# --- pictures ---


def write_pictures(live, folder, count):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        assert cv2.imwrite(str(folder / f"{number}.png"), live.picture(number)[..., ::-1])
    return folder


def test_a_folder_of_pictures_in_order(live, tmp_path):
    folder = write_pictures(live, tmp_path / "in", 3)
    (folder / "notes.txt").write_text("no picture")
    grabs = frames_of(open_source(str(folder)))
    assert [grab.name for grab in grabs] == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(grabs[1].image, live.picture(1))


def test_a_broken_picture_is_said_and_left_out(live, tmp_path, caplog):
    folder = write_pictures(live, tmp_path / "in", 3)
    (folder / "1.png").write_bytes(b"broken")
    source = open_source(str(folder))
    assert [grab.name for grab in frames_of(source)] == ["0.png", "2.png"]
    assert source.problems == 1 and "1.png" in caplog.text


def test_only_broken_pictures(tmp_path):
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="1.png"):
        frames_of(open_source(str(tmp_path)))


def test_films_and_pictures_of_a_folder_one_after_the_other(live, tmp_path):
    write_pictures(live, tmp_path, 2)
    live.write_film(tmp_path / "1.avi", 5)
    source = open_source(str(tmp_path))
    assert isinstance(source, OneAfterAnother)
    grabs = frames_of(source)
    assert [grab.name for grab in grabs] == ["0.png"] + [""] * 5 + ["1.png"]
    times = [grab.time for grab in grabs]
    assert times == sorted(times) and len(set(times)) == len(times)
    assert len(frames_of(source)) == 7, "a second time"


def test_a_broken_film_among_others(live, tmp_path, caplog):
    live.write_film(tmp_path / "b.avi", 5)
    (tmp_path / "a.avi").write_bytes(b"broken")
    (tmp_path / "c.avi").write_bytes(b"broken")
    source = open_source(str(tmp_path / "*.avi"))
    assert len(frames_of(source)) == 5
    assert source.problems == 2 and "a.avi" in caplog.text and "c.avi" in caplog.text


def test_pictures_that_the_shell_has_listed_are_one_source(live, tmp_path):
    write_pictures(live, tmp_path, 3)
    film = live.write_film(tmp_path / "f.avi", 2)
    words = [str(tmp_path / "0.png"), str(film), str(tmp_path / "1.png")]
    found = open_sources(words)
    assert [type(source) for source in found] == [Pictures, Film]
    assert len(frames_of(found[0])) == 2
    assert open_sources([]) == []


def test_again_and_again(live, tmp_path):
    source = Repeated(Film(str(live.write_film(tmp_path / "film.avi", 3, rate=10))))
    source.open()
    times = [source.read().time for _ in range(7)]
    source.close()
    assert times == pytest.approx([n / 10 for n in range(7)], abs=0.03)


def test_a_paced_film_comes_no_earlier_than_it_was_taken(live, tmp_path):
    source = Paced(Film(str(live.write_film(tmp_path / "film.avi", 6, rate=25))))
    start = time.monotonic()
    assert len(frames_of(source)) == 6
    assert time.monotonic() - start > 5 / 25 - 0.02


# --- words ---


@pytest.mark.parametrize(
    "word, message",
    [
        ("nowhere.mp4", "no such file, folder, pattern or camera"),
        ("nowhere/*.jpg", "no such file"),
        ("gopher://x/y", "not known"),
        ("csi://front", "csi://0"),
    ],
)
def test_words_that_mean_nothing(word, message, monkeypatch):
    monkeypatch.setattr(module, "has_gstreamer", lambda: True)
    with pytest.raises(UserError, match=message):
        open_source(word)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="neither a picture nor a film"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("word", ["csi://0", "videotestsrc ! appsink"])
def test_without_gstreamer_it_says_what_to_install(word):
    if has_gstreamer():
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(UserError, match="python3-opencv"):
        open_source(word)


def test_gstreamer_gives_frames():
    if not has_gstreamer():
        pytest.skip("this OpenCV has no GStreamer")
    source = open_source("videotestsrc num-buffers=5 ! video/x-raw,width=64,height=48")
    source.open()
    assert source.read().image.shape == (48, 64, 3)
    source.close()


def test_a_pipeline_that_cannot_start(monkeypatch):
    if not has_gstreamer():
        pytest.skip("this OpenCV has no GStreamer")
    monkeypatch.setattr(module, "OPEN_TIMEOUT", 1.0)
    with pytest.raises(UserError, match="GStreamer cannot start this pipeline"):
        open_source("nosuchelement ! video/x-raw").open()


def test_what_does_not_open_in_time_is_not_open():
    go, tries = threading.Event(), []

    def connect():
        tries.append(1)
        go.wait(20)
        return "capture"

    patient = InTime(connect, 0.05)
    assert not patient().isOpened() and not patient().isOpened() and len(tries) == 1
    go.set()
    patient.seconds = 20
    assert patient() == "capture"


@pytest.mark.parametrize("word", ["7", "/dev/video7", "v4l2:///dev/video7"])
def test_a_camera_that_is_not_there(word):
    with pytest.raises(UserError, match="no camera can be opened as /dev/video7|camera 7"):
        open_source(word).open()


@pytest.mark.parametrize(
    "address, shown",
    [
        ("rtsp://me:secret@host:554/a", "rtsp://host:554/a"),
        ("http://host/video?token=secret", "http://host/video"),
        ("rtsp://me:p@ss@host/a", "rtsp://host/a"),
    ],
)
def test_passwords_are_not_shown(address, shown):
    assert without_password(address) == shown
    assert open_source(address).name == shown


def test_an_address_where_nobody_is():
    with socket.socket() as nobody:  # has the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="cannot be reached"):
            open_source(f"http://127.0.0.1:{nobody.getsockname()[1]}/video").open()


@pytest.mark.parametrize(
    "frame, expected",
    [
        (np.uint8([[[1, 2, 3]]]), [3, 2, 1]),
        (np.uint8([[7]]), [7, 7, 7]),
        (np.uint8([[[7]]]), [7, 7, 7]),
        (np.uint8([[[1, 2, 3, 200]]]), [3, 2, 1]),
        (np.uint16([[65535]]), [255, 255, 255]),
    ],
)
def test_frames_of_every_kind_become_rgb(frame, expected):
    # 2 x 2 pixels: OpenCV 4.5 cannot do with one
    frame = np.ascontiguousarray(np.repeat(np.repeat(frame, 2, axis=0), 2, axis=1))
    assert as_rgb_frame(frame).tolist() == [[expected] * 2] * 2


def test_fourcc():
    assert fourcc("MJPG") == 0x47504A4D


# --- live ---


def test_a_stream_that_dies_and_returns(camera, caplog, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.05)
    there = camera()
    source = open_source(there.address, CaptureOptions(give_up=60))
    source.open()
    assert source.live and source.read().image.shape == (96, 128, 3)
    there.on = False
    back = threading.Timer(0.5, setattr, (there, "on", True))
    back.start()
    try:
        # what was already on its way may still come
        end = time.monotonic() + 60
        while not source.losses and time.monotonic() < end:
            assert source.read() is not None
        assert source.losses == 1
        assert source.read().image.shape == (96, 128, 3)
    finally:
        back.cancel()
        source.close()
    assert "lost" in caplog.text and "is back" in caplog.text


class Unplugged:
    """A camera that gives two frames, then is pulled out; when it is plugged in again it starts anew."""

    plugged = True

    def __init__(self):
        self.left = 2 if Unplugged.plugged else 0

    def isOpened(self):
        return Unplugged.plugged

    def read(self):
        self.left -= 1
        return (self.left >= 0, np.zeros((4, 4, 3), np.uint8) if self.left >= 0 else None)

    def get(self, what):
        return 0.0

    def release(self):
        pass


def test_a_camera_unplugged_and_plugged_in_again(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(Unplugged, "plugged", True)
    source = Live("camera", Unplugged)
    source.open()
    assert source.read() is not None and source.read() is not None
    monkeypatch.setattr(Unplugged, "plugged", False)
    threading.Timer(0.2, lambda: setattr(Unplugged, "plugged", True)).start()
    assert source.read() is not None
    assert source.losses == 1


def test_a_source_that_comes_and_goes_is_tried_less_and_less_often(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(Unplugged, "plugged", True)
    source = Live("camera", Unplugged)
    source.open()
    waits = []
    monkeypatch.setattr(source._stopped, "wait", waits.append)
    assert all(source.read() is not None for _ in range(10))
    assert waits == [0.01, 0.02, 0.04, 0.05]


def test_giving_up(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(Unplugged, "plugged", True)
    source = Live("camera", Unplugged, give_up=0.1)
    source.open()
    monkeypatch.setattr(Unplugged, "plugged", False)
    with pytest.raises(UserError, match="did not come back within 0.1 s"):
        for _ in range(3):
            source.read()


def test_stopping_ends_the_wait_for_a_lost_camera(monkeypatch):
    monkeypatch.setattr(Unplugged, "plugged", True)
    source = Live("camera", Unplugged)
    source.open()
    monkeypatch.setattr(Unplugged, "plugged", False)
    threading.Timer(0.1, source.stop).start()
    assert [source.read() for _ in range(3)][-1] is None


def test_a_camera_that_is_missing_at_the_start(monkeypatch):
    monkeypatch.setattr(Unplugged, "plugged", False)
    with pytest.raises(UserError, match="camera: not here"):
        Live("camera", Unplugged, missing="not here").open()
    assert CaptureOptions().give_up == 0
