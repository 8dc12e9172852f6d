"""The search for the highest rate at which a latency objective holds. Pure: it names rates, somebody measures them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

BEGIN: Final = 0.7
"""The first rate, as a share of the throughput in a closed loop: most daemons hold a useful objective there."""

_UP: Final = 1.5
_DOWN: Final = 0.5
NEAR: Final = 1.05
"""It ends when the lowest rate that failed is within this factor of the highest one that held."""

LOWEST: Final = 0.1
"""Requests a second; where not even these hold, no rate does."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A latency objective.

    Attributes:
        seconds: how long a request may take.
        percent: how many of 100 must not take longer; one without an answer took longer.
    """

    seconds: float
    percent: float = 99.0

    def holds(self, percentile_s: float) -> bool:
        """Whether a measured percentile is within it; NaN, of no requests at all, is not."""
        return percentile_s <= self.seconds


class Search:
    """Halves the rate until one holds, raises it by half until one does not, then goes in between (geometric mean).

    Args:
        throughput: requests a second in a closed loop, over 0.
        steps: how many rates may be tried, at least 1.

    Attributes:
        held: the highest rate that held, or None.
        failed: the lowest rate above it that did not, or None.
    """

    def __init__(self, throughput: float, steps: int) -> None:
        self.held: float | None = None
        self.failed: float | None = None
        self._next = max(throughput * BEGIN, LOWEST)
        self._left = steps

    def next(self) -> float | None:
        """The next rate to try, requests a second; None when the search is over."""
        if not self._left:
            return None
        if self.held is None:
            return self._next if self._next >= LOWEST else None
        if self.failed is not None and self.failed / self.held <= NEAR:
            return None
        return self._next

    def tell(self, rate: float, *, held: bool) -> None:
        """What came of the rate that `next` named."""
        self._left -= 1
        if held:
            self.held = rate
        else:
            self.failed = rate
        if self.held is None:
            self._next = rate * _DOWN
        elif self.failed is None:
            self._next = rate * _UP
        else:
            self._next = math.sqrt(self.held * self.failed)
