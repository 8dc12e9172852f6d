"""The search for the highest rate that meets a latency objective. Pure: it proposes rates, the caller measures them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

FIRST_SHARE: Final = 0.7
"""The first rate, as a share of the throughput in a closed loop; most daemons meet a sensible objective there."""

_UP: Final = 1.5
_DOWN: Final = 0.5
PRECISION: Final = 1.05
"""The search ends when the lowest rate that failed is within this factor of the highest rate that held."""

LOWEST: Final = 0.1
"""Requests a second. Where the objective does not hold at this rate, it holds at none."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A latency objective.

    Attributes:
        seconds: the highest latency allowed.
        percent: the percentile that must not exceed it. A request without an answer counts as longer.
    """

    seconds: float
    percent: float = 99.0

    def holds(self, percentile_s: float) -> bool:
        """Whether a measured percentile meets the objective; NaN, of no requests at all, does not."""
        return percentile_s <= self.seconds


class RateSearch:
    """Proposes rates to measure.

    The rate is halved until the objective holds, raised by half until it fails, then bisected by the geometric mean.

    Args:
        throughput: requests a second in a closed loop, more than 0.
        steps: the most rates to measure, at least 1.

    Attributes:
        held: the highest rate at which the objective held, or None.
        failed: the lowest rate above it at which it failed, or None.
    """

    def __init__(self, throughput: float, steps: int) -> None:
        self.held: float | None = None
        self.failed: float | None = None
        self._next = max(throughput * FIRST_SHARE, LOWEST)
        self._left = steps

    def next_rate(self) -> float | None:
        """The next rate to measure, requests a second; None when the search is over."""
        if not self._left:
            return None
        if self.held is None:
            return self._next if self._next >= LOWEST else None
        if self.failed is not None and self.failed / self.held <= PRECISION:
            return None
        return self._next

    def add_result(self, rate: float, *, held: bool) -> None:
        """Takes the result of the rate that `next_rate` proposed."""
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
