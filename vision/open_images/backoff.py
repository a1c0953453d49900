"""How long to wait between tries, and how often to try."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential waiting with jitter.

    Attributes:
        retries: further tries after the first.
        first, longest: seconds.
    """

    retries: int = 10
    first: float = 1.0
    longest: float = 30.0

    def pause(self, number: int) -> float:
        """Seconds to wait before retry `number` (from 0): half to all of a doubling span."""
        span = min(self.first * 2 ** min(number, 30), self.longest)
        return span * random.Random().uniform(0.5, 1.0)
