"""Pauses between tries."""

import pytest

from vision.open_images.backoff import Backoff


@pytest.mark.parametrize(("number", "span"), [(0, 1), (1, 2), (3, 8), (5, 30), (10_000, 30)])
def test_pauses_double_up_to_the_longest(number: int, span: float) -> None:
    for _ in range(20):
        assert span / 2 <= Backoff(first=1, longest=30).pause(number) <= span
