"""What stands between two threads of the pipeline: a short queue that can be closed."""

import threading
from collections import deque
from typing import Any, Callable, Deque, Optional


class _Idle:
    def __repr__(self) -> str:
        return "IDLE"


IDLE = _Idle()
"""Nothing came in time."""


class Link:
    """A queue of a few items.

    Attributes:
        size: so many items wait here at most.
        newest: when full, the oldest item makes room (for those who look at what is now); otherwise `put` waits.
        key: of newest: an item replaces the one with the same key, so that no source hides another.
        dropped: items that had to make room.
        changed: notified whenever anything happens; several links may share one.
    """

    def __init__(
        self,
        size: int = 1,
        newest: bool = False,
        changed: Optional[threading.Condition] = None,
        key: Optional[Callable[[Any], Any]] = None,
    ) -> None:
        self.size = size
        self.newest = newest
        self.key = key
        self.dropped = 0
        self.changed = changed or threading.Condition()
        self._items: Deque[Any] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def ended(self) -> bool:
        """Closed, and nothing left in it."""
        return self._closed and not self._items

    def put(self, item: Any) -> bool:
        """Add an item, as soon as there is room; False when the link is closed."""
        with self.changed:
            if not self.newest:
                self.changed.wait_for(lambda: self._closed or len(self._items) < self.size)
            if self._closed:
                return False
            self._make_room(item)
            self._items.append(item)
            self.changed.notify_all()
            return True

    def _make_room(self, item: Any) -> None:
        if self.key is not None:
            for old in list(self._items):
                if self.key(old) == self.key(item):
                    self._items.remove(old)
                    self.dropped += 1
        while len(self._items) >= self.size:
            self._items.popleft()
            self.dropped += 1

    def get(self, timeout: Optional[float] = None) -> Any:
        """The oldest item; None when there will be no more; IDLE when none came within `timeout` seconds."""
        with self.changed:
            if not self.changed.wait_for(lambda: self._items or self._closed, timeout):
                return IDLE
            if not self._items:
                return None
            item = self._items.popleft()
            self.changed.notify_all()
            return item

    def wait_for_room(self) -> None:
        """Return when an item could be put (or the link is closed)."""
        with self.changed:
            self.changed.wait_for(lambda: self._closed or len(self._items) < self.size)

    def close(self) -> None:
        """No more items will come; those inside can still be taken."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def abort(self) -> None:
        """Close, and forget what is inside."""
        with self.changed:
            self._closed = True
            self._items.clear()
            self.changed.notify_all()
