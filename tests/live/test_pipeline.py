import itertools
import threading
import time

import numpy as np
import pytest

from vision.errors import UserError
from vision.live.outputs import Output
from vision.live.pipeline import keep
from vision.live.sources import Film, Grab, Source, open_source


class Collector(Output):
    """Keeps what it gets."""

    def __init__(self, skips=False, picture=True, delay=0.0, most=None):
        self.skips, self.wants_picture, self.delay, self.most = skips, picture, delay, most
        self.results = []
        self.closed = 0

    def write(self, result):
        time.sleep(self.delay)
        self.results.append(result)
        return None if self.most is None else len(self.results) < self.most

    def close(self):
        self.closed += 1


class Ticking(Source):
    """A live source that gives its number as brightness, `rate` times a second, for ever or for `count` frames."""

    name, live = "ticking", True

    def __init__(self, rate=100.0, count=None):
        self.rate, self.count, self.given = rate, count, 0

    def read(self):
        if self.given == self.count:
            return None
        time.sleep(1 / self.rate)
        self.given += 1
        return Grab(np.full((8, 8, 3), self.given % 256, np.uint8), self.given / self.rate)


class Failing(Source):
    """Gives some frames, then breaks."""

    name = "failing"

    def __init__(self, good=0, error=UserError("failing: is broken")):
        self.good, self.error = good, error

    def read(self):
        self.good -= 1
        if self.good < 0:
            raise self.error
        return Grab(np.zeros((8, 8, 3), np.uint8), 0.0)


def film(live, tmp_path, frames=20, name="film.avi"):
    return Film(str(live.write_film(tmp_path / name, frames)))


def test_a_source_without_frames(live):
    output = Collector()
    live.make_pipeline([Ticking(count=0)], [output]).run()
    assert output.results == [] and output.closed == 1


def test_a_film_is_whole_in_order_and_as_the_detector_alone_finds_it(live, tmp_path):
    source = film(live, tmp_path)
    output, other = Collector(), Collector(picture=False, delay=0.005)
    live.make_pipeline([source], [output, other]).run()
    assert [result.frame.number for result in output.results] == list(range(20))
    assert [result.frame.number for result in other.results] == list(range(20))
    detector = live.colour_detector()
    for result in output.results:
        alone = detector.detect(result.frame.image, 0.2)
        assert len(alone) == 4
        np.testing.assert_array_equal(result.detections.boxes, alone.boxes)
        assert result.detections.names == ["red", "green", "blue", "red"]
        assert (result.picture != result.frame.image).any()


def test_pictures_are_drawn_only_where_wanted(live, tmp_path):
    output = Collector(picture=False)
    live.make_pipeline([film(live, tmp_path, 3)], [output]).run()
    assert [result.picture for result in output.results] == [None] * 3


def test_an_empty_frame_is_a_good_result(live):
    output = Collector()
    live.make_pipeline([Ticking(count=3)], [output]).run()
    assert output.results and all(len(result.detections) == 0 for result in output.results)


def test_a_slow_net_drops_frames_of_a_live_source_and_sees_new_ones(live):
    source, output = Ticking(rate=1000, count=200), Collector()

    def slow(blob):
        """As long as ten frames."""
        until = min(source.given + 10, source.count)
        live.wait_until(lambda: source.given >= until)
        return live.find_colours(blob)

    pipeline = live.make_pipeline([source], [output], live.colour_detector(run=slow))
    pipeline.run()
    seen = len(output.results)
    assert 0 < seen < 40
    assert pipeline.dropped + seen == 200
    numbers = [result.frame.number for result in output.results]
    assert numbers == sorted(numbers) and numbers[-1] == 199


@pytest.mark.parametrize("batch_size, largest", [(0, 2), (1, 1), (4, 4)])
def test_several_sources_share_batches(live, tmp_path, batch_size, largest):
    sizes = []

    def run(blob):
        sizes.append(len(blob))
        return live.find_colours(blob)

    sources = [film(live, tmp_path, 12, "a.avi"), film(live, tmp_path, 7, "b.avi")]
    output = Collector()
    live.make_pipeline(sources, [output], live.colour_detector(0.01, run), batch_size=batch_size).run()
    assert max(sizes) <= largest and sum(sizes) == 19
    for number, count in ((0, 12), (1, 7)):
        mine = [result.frame.number for result in output.results if result.frame.source == number]
        assert mine == list(range(count))


def test_a_live_source_does_not_wait_for_another(live):
    output = Collector()

    class Slow(Ticking):
        def read(self):
            before = len(output.results)
            live.wait_until(lambda: len(output.results) > before + 10)  # of the other
            return super().read()

    slow, fast = Slow(count=3), Ticking(rate=200)
    pipeline = live.make_pipeline([slow, fast], [output])
    with live.Running(pipeline):
        live.wait_until(lambda: sum(result.frame.source == 0 for result in output.results) == 3, 60)


def test_a_slow_watcher_slows_nobody(live, tmp_path):
    keeper = Collector()

    class Slow(Collector):
        """Is still at its first result when the film is over for the others."""

        def write(self, result):
            live.wait_until(lambda: len(keeper.results) == 30, 60)
            return super().write(result)

    watcher = Slow(skips=True)
    live.make_pipeline([film(live, tmp_path, 30)], [watcher, keeper]).run()
    assert len(keeper.results) == 30 and len(watcher.results) < 15
    assert watcher.results[-1].frame.number == 29, "the last one is shown"


def test_settings_are_obeyed_while_it_runs(live):
    output = Collector()
    pipeline = live.make_pipeline([Looping(live)], [output])
    with live.Running(pipeline):
        live.wait_until(lambda: output.results and len(output.results[-1].detections) == 4)
        pipeline.settings.change(threshold=0.6)
        live.wait_until(lambda: len(output.results[-1].detections) == 2)
        pipeline.settings.change(threshold=0.2, shown=frozenset({1}))
        live.wait_until(lambda: output.results[-1].detections.names == ["red", "red"])


class Looping(Source):
    """The same picture for ever, as a film."""

    name = "looping"

    def __init__(self, live):
        self.image = live.picture()
        self.given = 0

    def read(self):
        time.sleep(0.005)
        self.given += 1
        return Grab(self.image, self.given / 25)


def test_a_pause_stops_a_film_and_still_shows_what_is_changed(live):
    keeper, watcher = Collector(), Collector(skips=True)
    pipeline = live.make_pipeline([Looping(live)], [keeper, watcher])
    with live.Running(pipeline):
        live.wait_until(lambda: watcher.results)
        pipeline.settings.change(paused=True)
        given = pipeline.sources[0].given
        thresholds = itertools.cycle((0.6, 0.7))

        def shown_again():
            # Frames that are under way still take up the first changes.
            pipeline.settings.change(threshold=next(thresholds))
            time.sleep(0.1)
            return watcher.results[-1].again

        live.wait_until(shown_again)
        pipeline.settings.change(threshold=0.8)
        live.wait_until(lambda: len(watcher.results[-1].detections) == 1)
        assert watcher.results[-1].again
        # What was under way comes through, and what is read ahead.
        assert pipeline.sources[0].given <= given + 8, "a film waits"
        count = len(keeper.results)
        pipeline.settings.change(paused=False)
        live.wait_until(lambda: len(keeper.results) > count)
        numbers = [result.frame.number for result in keeper.results]
        assert numbers == list(range(len(numbers))), "nothing of a film is lost in a pause, or written twice"


def test_frames_that_pass_during_a_pause_are_not_called_dropped(live):
    source, output = Ticking(rate=100), Collector()
    pipeline = live.make_pipeline([source], [output])
    with live.Running(pipeline):
        live.wait_until(lambda: output.results)
        pipeline.settings.change(paused=True)
        time.sleep(0.1)
        before = pipeline.dropped, source.given
        live.wait_until(lambda: source.given > before[1] + 20)
        assert pipeline.dropped <= before[0] + 1


# --- what breaks ---


def test_the_only_source_breaks_at_once(live):
    output = Collector()
    with pytest.raises(UserError, match="failing: is broken"):
        live.make_pipeline([Failing()], [output]).run()
    assert output.closed == 1


def test_the_only_source_breaks_later(live, caplog):
    output = Collector()
    pipeline = live.make_pipeline([Failing(3)], [output])
    pipeline.run()
    assert len(output.results) == 3 and pipeline.failures == ["failing: is broken"]
    assert "failing: is broken" in caplog.text


def test_one_of_two_sources_breaks(live, tmp_path, caplog):
    output = Collector()
    pipeline = live.make_pipeline([Failing(), film(live, tmp_path, 6)], [output])
    pipeline.run()
    assert len(output.results) == 6 and len(pipeline.failures) == 1
    assert "failing: is broken" in caplog.text


def test_an_output_that_breaks_is_closed_and_the_others_go_on(live, tmp_path, caplog):
    class Full(Collector):
        name = "out.jsonl"

        def write(self, result):
            super().write(result)
            if len(self.results) == 3:
                raise OSError(28, "No space left on device")

    bad, good = Full(), Collector()
    pipeline = live.make_pipeline([film(live, tmp_path, 10)], [bad, good])
    pipeline.run()
    assert len(bad.results) == 3 and bad.closed == 1 and len(good.results) == 10
    assert "No space left on device" in pipeline.failures[0] and "No space left" in caplog.text


def test_with_the_last_output_gone_it_ends(live):
    class Full(Collector):
        def write(self, result):
            raise UserError("full")

    pipeline = live.make_pipeline([Looping(live)], [Full()])
    with live.Running(pipeline) as running:
        running.thread.join(20)
        assert not running.thread.is_alive()
    assert pipeline.failures == ["full"]


@pytest.mark.parametrize("where", ["network", "source", "output"])
def test_a_mistake_of_ours_is_not_hidden(live, tmp_path, where):
    def broken(blob):
        raise ZeroDivisionError("ours")

    class Broken(Collector):
        def write(self, result):
            raise ZeroDivisionError("ours")

    source = Failing(1, ZeroDivisionError("ours")) if where == "source" else film(live, tmp_path, 30)
    output, detector = (Broken() if where == "output" else Collector()), None
    if where == "network":
        detector = live.colour_detector(run=broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        live.make_pipeline([source], [output], detector).run()
    assert output.closed == 1


def test_an_output_may_end_the_program(live):
    output = Collector(most=5)
    pipeline = live.make_pipeline([Looping(live)], [output])
    pipeline.run()
    assert len(output.results) >= 5 and not pipeline.failures


def test_stop_from_another_thread(live):
    before, output = set(threading.enumerate()), Collector()
    pipeline = live.make_pipeline([Ticking()], [output])
    with live.Running(pipeline):
        live.wait_until(lambda: output.results)
        pipeline.stop()
    assert output.results and output.closed == 1
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name in ("network", "draw", "output", "capture 0")]


def test_a_signal_handler_may_ask_for_the_end_whatever_it_has_interrupted(live):
    output = Collector()
    pipeline = live.make_pipeline([Ticking()], [output])
    with live.Running(pipeline) as running:
        live.wait_until(lambda: output.results)
        # As if the interrupted code held these; a lock that is waited for here would never be free.
        with pipeline._stopped._cond:
            pipeline.ask_to_stop()
        running.thread.join(20)
        assert not running.thread.is_alive()
    assert output.closed == 1


@pytest.mark.parametrize("source", [Ticking, lambda: Ticking(count=5)])
def test_an_output_that_hangs_does_not_hold_the_end_up_for_ever(live, monkeypatch, source):
    monkeypatch.setattr("vision.live.pipeline.PARTING", 0.3)
    monkeypatch.setattr("vision.live.pipeline.FAREWELL", 2.0)
    go, stuck = threading.Event(), threading.Event()

    class Pipe(Collector):
        """That nobody reads."""

        kind = "pipe"

        def write(self, result):
            stuck.set()
            go.wait(60)
            return super().write(result)

    pipe, other = Pipe(), Collector()
    pipeline = live.make_pipeline([source()], [pipe, other])
    try:
        with live.Running(pipeline) as running:
            assert stuck.wait(20)
            running.thread.join(1)
            assert running.thread.is_alive(), "as long as nobody asks for the end it may take its time"
            pipeline.stop()
            running.thread.join(20)
            assert not running.thread.is_alive()
    finally:
        go.set()
    assert pipeline.failures == ["pipe: did not end within 0.3 s"]
    assert other.closed == 1


class OneThreads(Source):
    """A film that takes long to decode; remembers which threads did what, and whether it was disturbed."""

    name = "one thread's"

    def __init__(self):
        self.threads, self.reading, self.disturbed = {}, threading.Event(), False
        self.closed = threading.Event()

    def read(self):
        self.threads["read"] = threading.current_thread().name
        self.reading.set()
        time.sleep(0.1)
        self.disturbed |= self.closed.is_set()
        self.reading.clear()
        return Grab(np.zeros((8, 8, 3), np.uint8), 0.0)

    def close(self):
        self.threads["close"] = threading.current_thread().name
        self.disturbed |= self.reading.is_set()
        self.closed.set()


def test_a_source_is_closed_by_the_thread_that_reads_it(live):
    # OpenCV crashes, or waits for ever, where a capture is released while it reads.
    source = OneThreads()
    pipeline = live.make_pipeline([source], [Collector()])
    with live.Running(pipeline):
        assert source.reading.wait(20)
        pipeline.stop()
    assert source.closed.wait(20)
    assert source.threads == {"read": "capture 0", "close": "capture 0"} and not source.disturbed


def test_stop_during_a_pause(live):
    output = Collector()
    pipeline = live.make_pipeline([Looping(live)], [output])
    with live.Running(pipeline):
        pipeline.settings.change(paused=True)
        time.sleep(0.1)
    assert output.closed == 1


# --- around it ---


def test_a_stream_that_dies_and_returns_goes_on_in_the_same_outputs(live, camera, monkeypatch):
    monkeypatch.setattr("vision.live.sources.FIRST_WAIT", 0.05)
    there = camera(rate=50)
    output = Collector()
    pipeline = live.make_pipeline([open_source(there.address)], [output])
    with live.Running(pipeline):
        live.wait_until(lambda: len(output.results) > 5)
        there.on = False
        live.wait_until(lambda: pipeline.sources[0].losses == 1)
        before = len(output.results)
        there.on = True
        live.wait_until(lambda: len(output.results) > before + 5)
    assert output.results[-1].detections.names == ["red", "green", "blue", "red"]
    assert not pipeline.failures


def test_figures_count_what_was_done(live, tmp_path):
    pipeline = live.make_pipeline([film(live, tmp_path, 10)], [Collector()], live.colour_detector(0.01))
    pipeline.run()
    figures = pipeline.figures.as_json()
    assert figures["frames"] == 10 and figures["objects"] == 40
    assert figures["stages"]["network"] >= 10
    assert set(pipeline.figures.total()) == {
        "capture", "preprocess", "network", "postprocess", "draw", "output"
    }  # fmt: skip


def test_keep(live):
    found = live.colour_detector().detect(live.picture(), 0.2)
    kept = keep(found, found.labels == 1)
    assert kept.names == ["red", "red"] and kept.size == found.size
    assert len(keep(found, np.zeros(4, bool))) == 0
