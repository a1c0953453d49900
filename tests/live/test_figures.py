import time

import pytest

from vision.live.figures import Figures


def test_nothing_has_happened():
    figures = Figures()
    assert figures.rate() == figures.mean_rate() == figures.milliseconds("network") == 0
    assert figures.as_json() == {"frames": 0, "objects": 0, "rate": 0.0, "age": 0.0, "stages": {}}


def test_times_and_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    figures = Figures()
    for number in range(200):
        now[0] += 0.05
        figures.add("network", 0.02 if number < 100 else 0.04)
        figures.finished(0.1, 3)
    assert figures.rate() == pytest.approx(20, rel=0.02)
    assert figures.mean_rate() == pytest.approx(20, rel=0.02)
    assert figures.milliseconds("network") == pytest.approx(40), "the last ones"
    assert figures.mean_milliseconds("network") == pytest.approx(30), "all"
    assert figures.total() == {"network": pytest.approx(6)}
    assert figures.objects == 600
    now[0] += 10
    assert figures.rate() == 0, "nothing comes any more"
