"""What may be changed while the pipeline runs, from any thread."""

import math
import threading
from typing import Any, Dict, FrozenSet, NamedTuple, Optional

from vision.errors import UserError


class Values(NamedTuple):
    """Settings at one moment.

    Attributes:
        threshold: a score must be above it; [0, 1).
        iou_threshold: above which overlap NMS drops a box; (0, 1].
        shown: class numbers to keep; None for all.
        paused: no new frames are taken.
    """

    threshold: float = 0.4
    iou_threshold: float = 0.45
    shown: Optional[FrozenSet[int]] = None
    paused: bool = False


class Settings:
    """The values in force. Reading `now` gives them all as of one moment."""

    def __init__(self, values: Values = Values()) -> None:
        self.now = _checked(values)
        self._lock = threading.Lock()

    def change(self, **values: Any) -> Values:
        """Replace some values. Raises UserError for one out of range; then nothing is changed."""
        with self._lock:
            self.now = _checked(self.now._replace(**values))
            return self.now

    def as_json(self) -> Dict[str, Any]:
        """For the web view."""
        now = self.now
        shown = None if now.shown is None else sorted(now.shown)
        return {**now._asdict(), "shown": shown}


def _checked(values: Values) -> Values:
    if not (math.isfinite(values.threshold) and 0 <= values.threshold < 1):
        raise UserError(f"score threshold {values.threshold} is outside [0, 1)")
    if not (math.isfinite(values.iou_threshold) and 0 < values.iou_threshold <= 1):
        raise UserError(f"IoU threshold of NMS {values.iou_threshold} is outside (0, 1]")
    return values
