"""The learning rate as a function of the step alone, so that a resumed run continues it exactly."""

import math
from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Schedule:
    """A factor on every group's learning rate.

    Attributes:
        kind: "cosine" (SGDR, arXiv 1608.03983, eq. 5, one period), "multi-step" or "constant".
        steps: length of the cosine, in steps.
        milestones: steps at which "multi-step" multiplies by `gamma`.
        warmup: steps over which the factor first rises linearly from 0 (arXiv 1706.02677, section 2.2).
    """

    kind: str
    steps: int
    milestones: Tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: int = 0

    def factor(self, step: int) -> float:
        """The factor for the update number `step`, 0-based."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return warm * self._decay(step)

    def _decay(self, step: int) -> float:
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(step / max(self.steps, 1), 1.0)))
        if self.kind == "multi-step":
            return self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return 1.0
