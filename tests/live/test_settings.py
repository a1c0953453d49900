import math

import pytest

from vision.errors import UserError
from vision.live.settings import Settings, Values


def test_a_change_is_seen_at_once_and_only_where_it_was_made():
    settings = Settings()
    before = settings.now
    settings.change(threshold=0.7, paused=True, shown=frozenset({2, 1}))
    assert settings.now == before._replace(threshold=0.7, paused=True, shown=frozenset({1, 2}))
    assert settings.as_json() == {"threshold": 0.7, "iou_threshold": 0.45, "shown": [1, 2], "paused": True}


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"threshold": math.nan},
        {"iou_threshold": 0},
        {"iou_threshold": 1.1},
    ],
)
def test_what_makes_no_sense_changes_nothing(values):
    settings = Settings()
    with pytest.raises(UserError, match="outside"):
        settings.change(paused=True, **values)
    assert settings.now == Values()
