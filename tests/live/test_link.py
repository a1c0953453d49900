import threading

import pytest

from vision.live.link import IDLE, Link


def test_nothing_in_it():
    link = Link()
    assert len(link) == 0 and not link.ended
    assert link.get(timeout=0) is IDLE
    link.close()
    assert link.ended and link.get() is None


def test_order_is_kept_and_the_end_comes_last():
    link = Link(3)
    assert all(link.put(n) for n in (1, 2, 3))
    link.close()
    assert not link.put(4)
    assert [link.get() for _ in range(4)] == [1, 2, 3, None]


def test_a_full_link_makes_its_giver_wait():
    link = Link(1)
    link.put(1)
    done = []
    thread = threading.Thread(target=lambda: done.append(link.put(2)))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive() and not done
    assert link.get() == 1
    thread.join(5)
    assert done == [True] and link.get() == 2 and link.dropped == 0


def test_the_newest_replaces_the_oldest():
    link = Link(1, newest=True)
    for number in range(5):
        link.put(number)
    assert link.get() == 4 and link.dropped == 4


def test_the_newest_of_each_kind():
    link = Link(2, newest=True, key=lambda item: item[0])
    for item in ("a1", "b1", "a2", "a3", "b2"):
        link.put(item)
    assert [link.get(), link.get()] == ["a3", "b2"] and link.dropped == 3


@pytest.mark.parametrize("end", ["close", "abort"])
def test_the_end_wakes_those_who_wait(end):
    link = Link(1)
    link.put(1)
    result = []
    waiting = [
        threading.Thread(target=lambda: result.append(link.put(2))),
        threading.Thread(target=link.wait_for_room),
    ]
    for thread in waiting:
        thread.start()
    getattr(link, end)()
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()
    assert result == [False]
    assert link.get() == (1 if end == "close" else None)
