"""What the pipeline measures of itself."""

import threading
import time
from collections import deque
from typing import Any, Deque, Dict

RECENT = 60
"""Calls of a stage over which its mean time is taken."""

WINDOW = 4.0
"""Seconds over which frames are counted."""


class Figures:
    """Times of the stages and frames a second. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: Dict[str, Deque[float]] = {}
        self._total: Dict[str, float] = {}
        self._calls: Dict[str, int] = {}
        self._ends: Deque[float] = deque()
        self.frames = 0
        self.objects = 0
        self.started = time.monotonic()
        self.last = 0.0

    def add(self, stage: str, seconds: float) -> None:
        """One call of a stage."""
        with self._lock:
            self._recent.setdefault(stage, deque(maxlen=RECENT)).append(seconds)
            self._total[stage] = self._total.get(stage, 0.0) + seconds
            self._calls[stage] = self._calls.get(stage, 0) + 1

    def finished(self, age: float, objects: int) -> None:
        """One frame has been drawn, `age` seconds after it was taken."""
        with self._lock:
            self._recent.setdefault("age", deque(maxlen=RECENT)).append(age)
            now = time.monotonic()
            self.last = now
            self.frames += 1
            self.objects += objects
            self._ends.append(now)
            while now - self._ends[0] > WINDOW:
                self._ends.popleft()

    def milliseconds(self, stage: str) -> float:
        """Mean of the last calls."""
        with self._lock:
            times = self._recent.get(stage)
            return 1000 * sum(times) / len(times) if times else 0.0

    def mean_milliseconds(self, stage: str) -> float:
        """Mean of all calls."""
        with self._lock:
            return 1000 * self._total.get(stage, 0.0) / max(1, self._calls.get(stage, 0))

    def total(self) -> Dict[str, float]:
        """Seconds that each stage has worked."""
        with self._lock:
            return dict(self._total)

    def rate(self) -> float:
        """Frames a second, over the last seconds; 0 when nothing comes."""
        with self._lock:
            now = time.monotonic()
            recent = sum(now - end <= WINDOW for end in self._ends)
            return recent / max(1e-9, min(WINDOW, now - self.started))

    def mean_rate(self) -> float:
        """Frames a second from start to end."""
        with self._lock:
            return self.frames / max(self.last - self.started, 1e-9) if self.frames else 0.0

    def as_json(self) -> Dict[str, Any]:
        """For the web view."""
        with self._lock:
            stages = [name for name in self._recent if name != "age"]
        return {
            "frames": self.frames,
            "objects": self.objects,
            "rate": round(self.rate(), 1),
            "age": round(self.milliseconds("age"), 1),
            "stages": {name: round(self.milliseconds(name), 2) for name in stages},
        }
