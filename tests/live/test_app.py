"""The live demo as a user starts it."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import run_ssd_live_demo
from vision import cli
from vision.errors import UserError
from vision.live import app
from vision.live.app import Follower, LiveOptions, class_numbers, default_outputs
from vision.live.settings import Settings, Values
from vision.runtimes.specimen import write_specimen

ROOT = Path(__file__).parents[2]


def run(live, words, detector=None, **options):
    options = LiveOptions(quiet=True, threshold=options.pop("threshold", 0.2), **options)
    return app.run(lambda: detector or live.colour_detector(), [str(word) for word in words], options)


def test_a_film_into_everything(live, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    film = live.write_film(tmp_path / "film.avi", 12)
    outputs = [str(tmp_path / name) for name in ("out.mp4", "out.jsonl", "pictures/", "now.png")]
    assert run(live, [film], output=[*outputs, f"crops:{tmp_path / 'crops'}"]) == 0
    assert len(live.read_film(tmp_path / "out.mp4")) == 12
    lines = live.read_lines(tmp_path / "out.jsonl")
    assert [line["frame"] for line in lines] == list(range(12))
    assert [thing["class"] for thing in lines[0]["objects"]] == ["red", "green", "blue", "red"]
    assert len(list((tmp_path / "pictures").iterdir())) == 12
    assert (tmp_path / "now.png").is_file()
    assert sorted(p.name for p in (tmp_path / "crops").iterdir()) == ["blue", "green", "red"]
    assert "12 frames in" in caplog.text and "48 objects" in caplog.text and "0 frames dropped" in caplog.text


def test_the_boxes_are_those_of_the_picture(live, tmp_path):
    cv2.imwrite(str(tmp_path / "in.png"), live.picture(0)[..., ::-1])
    assert run(live, [tmp_path / "in.png"], output=[str(tmp_path / "out.jsonl")]) == 0
    box = live.read_lines(tmp_path / "out.jsonl")[0]["objects"][0]["box"]
    assert box == pytest.approx([10, 8, 42, 32], abs=2.1)


def test_tracks_and_counts(live, tmp_path):
    film = live.write_film(tmp_path / "film.avi", 10)
    plan = tmp_path / "plan.json"
    plan.write_text('{"zones": [{"name": "left", "corners": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}]}')
    assert run(live, [film], output=[str(tmp_path / "out.jsonl")], count=str(plan)) == 0
    last = live.read_lines(tmp_path / "out.jsonl")[-1]
    assert sorted(thing["track"] for thing in last["objects"]) == [1, 2, 3, 4]
    assert last["counts"] == {"left": {"inside": 2, "entered": 2}}


def test_only_some_classes(live, tmp_path):
    film = live.write_film(tmp_path / "film.avi", 2)
    assert run(live, [film], output=[str(tmp_path / "out.jsonl")], classes=["green", "blue"]) == 0
    found = live.read_lines(tmp_path / "out.jsonl")[0]["objects"]
    assert [thing["class"] for thing in found] == ["green", "blue"]


def test_a_folder_and_two_films_at_once(live, tmp_path):
    films = [live.write_film(tmp_path / f"{n}.avi", n) for n in (4, 6)]
    assert run(live, films, output=[str(tmp_path / "out.jsonl"), str(tmp_path / "out.avi")]) == 0
    assert len(live.read_lines(tmp_path / "out.jsonl")) == 10
    assert len(live.read_film(tmp_path / "out_1.avi")) == 6


# --- mistakes and mishaps ---


@pytest.mark.parametrize(
    "words, options, message",
    [
        (["nowhere.mp4"], {}, "nowhere.mp4: no such file"),
        (["film.avi"], {"output": ["out.xyz"]}, "does not follow"),
        (["film.avi"], {"output": ["film.avi"]}, "would overwrite the source"),
        (["film.avi"], {"output": ["out.mp4", "out.mp4"]}, "given twice"),
        (["film.avi"], {"classes": ["purple"]}, "'purple': the model knows red, green, blue"),
        (["film.avi"], {"count": "nothing.json"}, "nothing.json"),
        (["film.avi"], {"output": ["film.avi/out.mp4"]}, "cannot be written"),
        (["empty.avi"], {"output": ["out.mp4"]}, "the file is empty"),
        (["broken.avi"], {"output": ["out.mp4"]}, "broken.avi"),
        (["99"], {}, "no camera"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(live, tmp_path, monkeypatch, words, options, message):
    monkeypatch.chdir(tmp_path)
    live.write_film(tmp_path / "film.avi", 2)
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "broken.avi").write_bytes(b"RIFF" + bytes(1000))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        run(live, words, **{"output": ["-"], **options})
    assert sorted(tmp_path.iterdir()) == before


def test_a_mistake_in_a_later_output_closes_the_earlier_ones(live, tmp_path):
    film = live.write_film(tmp_path / "film.avi", 2)
    with pytest.raises(UserError, match="does not follow"):
        run(live, [film], output=["web:0", str(tmp_path / "out.xyz")])


def test_a_broken_part_gives_exit_code_2_and_what_could_be_done_is_done(live, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), live.picture(number))
    (folder / "1.png").write_bytes(b"broken")
    assert run(live, [folder], output=[str(tmp_path / "out.jsonl"), str(tmp_path / "out.avi")]) == 2
    assert len(live.read_lines(tmp_path / "out.jsonl")) == len(live.read_film(tmp_path / "out.avi")) == 2


def test_a_film_cut_short_gives_exit_code_2_and_a_film(live, tmp_path, caplog):
    film = live.write_film(tmp_path / "film.avi", 40)
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    assert run(live, [film], output=[str(tmp_path / "out.mp4")]) == 2
    assert "cut short" in caplog.text
    assert 5 < len(live.read_film(tmp_path / "out.mp4")) < 40


def test_8k_frames(live, tmp_path):
    image = np.full((4320, 7680, 3), 40, np.uint8)
    image[100:1500, 100:2000] = (30, 30, 230)
    cv2.imwrite(str(tmp_path / "8k.jpg"), image)
    assert (
        run(live, [tmp_path / "8k.jpg"], output=[str(tmp_path / "out.mp4"), str(tmp_path / "o.jsonl")]) == 0
    )
    line = live.read_lines(tmp_path / "o.jsonl")[0]
    assert line["size"] == [7680, 4320]
    assert line["objects"][0]["box"] == pytest.approx([100, 100, 2000, 1500], abs=160)
    assert live.read_film(tmp_path / "out.mp4")[0].shape == (4320, 7680, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 1.5}, "threshold"),
        ({"iou_threshold": 0}, "IoU"),
        ({"port": 70000}, "--port"),
        ({"batch_size": -1}, "--batch_size"),
        ({"camera_size": "big"}, "--camera_size"),
        ({"camera_size": "0x9"}, "--camera_size"),
        ({"web_width": 1}, "--web_width"),
        ({"give_up": -1}, "--give_up"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        LiveOptions(**options)


def test_class_numbers():
    assert class_numbers([], ("BACKGROUND", "a")) is None
    assert class_numbers(["b", "a"], ("BACKGROUND", "a", "b")) == {1, 2}
    with pytest.raises(UserError):
        class_numbers(["BACKGROUND"], ("BACKGROUND", "a"))


@pytest.mark.parametrize("reason, outputs", [("", ["window"]), ("there is no display", ["web"])])
def test_without_a_display_the_web_view_is_the_default(reason, outputs, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(app, "why_no_window", lambda: reason)
    assert default_outputs() == outputs and reason in caplog.text


def test_the_web_view_as_a_default_says_its_address(live, tmp_path, monkeypatch, caplog):
    pytest.importorskip("aiohttp")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(app, "why_no_window", lambda: "there is no display")
    film = live.write_film(tmp_path / "film.avi", 5)
    assert run(live, [film], port=0) == 0, "the end of the film ends the program"
    assert "Watch at http://127.0.0.1:" in caplog.text


def test_a_follower_hides_unsure_ones_that_belong_to_nobody(live):
    from vision.live.pipeline import Frame, Result

    found = live.colour_detector().detect(live.picture(), 0.1)
    follower = Follower(Settings(Values(threshold=0.6)))
    shown = follower(Result(Frame(0, 0, live.picture(), 0.0), found))
    assert shown.detections.scores.tolist() == pytest.approx([0.9, 0.7])
    assert shown.tracks.tolist() == [1, 2]


# --- the script ---


@pytest.mark.parametrize(
    "arguments, job",
    [
        (["m.onnx"], ("m.onnx", [], None, None)),
        (["m.onnx", "0", "film.mp4"], ("m.onnx", ["0", "film.mp4"], None, None)),
        (["mb1-ssd", "m.pth", "labels.txt"], ("m.pth", [], "mb1-ssd", "labels.txt")),
        (["mb1-ssd", "m.pth", "labels.txt", "f.mp4"], ("m.pth", ["f.mp4"], "mb1-ssd", "labels.txt")),
    ],
)
def test_both_command_lines(arguments, job):
    assert tuple(run_ssd_live_demo.parse_job(arguments)) == job


@pytest.mark.parametrize("arguments", [[], ["mb1-ssd"], ["mb1-ssd", "m.pth"]])
def test_too_few_arguments(arguments):
    with pytest.raises(UserError, match="Usage"):
        run_ssd_live_demo.parse_job(arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    return write_specimen(tmp_path_factory.mktemp("model") / "specimen.onnx")


def test_the_script_with_a_real_model(live, model, tmp_path, capsys):
    film = live.write_film(tmp_path / "film.avi", 5)
    out = tmp_path / "out.jsonl"
    words = [
        str(model),
        str(film),
        "--output",
        str(out),
        "--output",
        str(tmp_path / "out.avi"),
        "--threshold",
        "0.3",
    ]
    assert cli.run(run_ssd_live_demo.main, words) == 0
    assert len(live.read_lines(out)) == len(live.read_film(tmp_path / "out.avi")) == 5


@pytest.fixture
def script():
    """Starts the script; whatever has not ended with the test is killed."""
    running = []

    def start(*words, code=None, **options):
        begin = [str(ROOT / "run_ssd_live_demo.py")] if code is None else ["-c", code]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        running.append(subprocess.Popen([sys.executable, *begin, *map(str, words)], cwd=ROOT, **options))
        return running[-1]

    yield start
    for one in running:
        if one.poll() is None:
            one.kill()
        one.communicate()


def test_json_alone_is_on_standard_output(live, model, tmp_path, script):
    film = live.write_film(tmp_path / "film.mkv", 4, codec="mp4v")
    running = script(model, "-", "--output", "-", stdin=subprocess.PIPE)
    out, err = running.communicate(film.read_bytes(), timeout=90)
    assert running.returncode == 0, err
    assert [line[:1] for line in out.decode().splitlines()] == ["{"] * 4
    assert b"Model:" in err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_every_file_opens(live, model, tmp_path, script, number, code):
    film = live.write_film(tmp_path / "film.avi", 10)
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    running = script(model, film, "--loop", "--output", out, "--output", lines)
    wait_for_lines(live, running, lines)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert b"Traceback" not in err
    written = len(live.read_lines(lines))
    assert written > 10 and abs(len(live.read_film(out)) - written) <= 3


def wait_for_lines(live, running, lines):
    """Until the script has written some."""
    live.wait_until(
        lambda: running.poll() is not None or lines.exists() and lines.stat().st_size > 2000, seconds=80
    )
    assert running.poll() is None, running.stderr.read()


IN_A_HURRY = (
    "import sys, run_ssd_live_demo\n"
    "from vision import cli\n"
    "from vision.live import app, pipeline\n"
    "pipeline.PARTING = float(sys.argv.pop(1))\n"
    "app.leave(cli.run(run_ssd_live_demo.main))"
)


@pytest.mark.parametrize("parting, signals", [(0.5, 1), (300, 2)])
def test_a_signal_ends_it_where_nobody_reads_what_it_writes(live, model, tmp_path, script, parting, signals):
    film, lines = live.write_film(tmp_path / "film.avi", 10), tmp_path / "out.jsonl"
    words = [parting, model, film, "--loop", "--quiet", "--output", "-", "--output", lines]
    running = script(*words, code=IN_A_HURRY, stderr=subprocess.DEVNULL)
    wait_until_it_stands(live, running, lines)
    running.send_signal(signal.SIGTERM)
    for _ in range(signals - 1):
        time.sleep(app.IMPATIENT + 0.5)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143


def wait_until_it_stands(live, running, lines):
    """The pipe is full when the other output gets nothing more either."""
    sizes = [-1]

    def stands():
        assert running.poll() is None
        sizes.append(lines.stat().st_size if lines.exists() else 0)
        time.sleep(0.5)
        return sizes[-1] > 50_000 and sizes[-1] == sizes[-2]

    live.wait_until(stands, seconds=80)


def test_a_source_that_falls_silent_does_not_hold_the_end_up(live, model, tmp_path, script):
    film, lines = live.write_film(tmp_path / "film.mkv", 100, codec="mp4v"), tmp_path / "out.jsonl"
    running = script(model, "-", "--output", lines, stdin=subprocess.PIPE)
    running.stdin.write(film.read_bytes()[:-2000])
    running.stdin.flush()
    wait_for_lines(live, running, lines)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    assert b"Traceback" not in running.stderr.read() and live.read_lines(lines)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_standard_output_that_is_full(live, model, tmp_path):
    film = live.write_film(tmp_path / "film.avi", 4)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        words = [sys.executable, "run_ssd_live_demo.py", str(model), str(film), "--output", "-"]
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=100)
    assert done.returncode == 2 and b"No space left" in done.stderr and b"Traceback" not in done.stderr
