"""The last batches of one worker: how long they took, and how many rows a second they make. Pure.

The router adds each batch that a worker has answered; `status` asks. All times are monotonic seconds, given by the
caller.
"""

from __future__ import annotations

import math
from collections import deque

KEPT_S = 60.0
"""How far back the times of batches are looked at."""

KEPT_BATCHES = 1024
"""How many of them are kept at the most: then the latest ones count."""

RATE_S = 10.0
"""How far back rows are counted."""

_STEP_S = 0.5
"""Rows are counted in steps of time, not by batch: many small batches must not push each other out of the count."""

_STEPS = round(RATE_S / _STEP_S)


class BatchTimes:
    """A bounded record of a worker's last batches."""

    __slots__ = ("_batches", "_steps")

    def __init__(self) -> None:
        self._batches: deque[tuple[float, float]] = deque(maxlen=KEPT_BATCHES)  # when answered, seconds
        self._steps: deque[list[int]] = deque(maxlen=_STEPS)  # number of the step, rows

    def add(self, now: float, seconds: float, rows: int) -> None:
        """Takes one batch.

        Args:
            now: when it was answered; never earlier than the one before.
            seconds: how long it took.
            rows: how many it had.
        """
        self._batches.append((now, seconds))
        step = math.floor(now / _STEP_S)
        if self._steps and self._steps[-1][0] >= step:
            self._steps[-1][1] += rows
        else:
            self._steps.append([step, rows])

    def p50_ms(self, now: float) -> float | None:
        """The median time of a batch in the last 60 s, in milliseconds; None when there was no batch."""
        return self.percentile_ms(now, 0.5)

    def p99_ms(self, now: float) -> float | None:
        """The time that 99 of 100 batches did not exceed in the last 60 s, in milliseconds; None without a batch."""
        return self.percentile_ms(now, 0.99)

    def percentile_ms(self, now: float, share: float) -> float | None:
        """The least time that this share of the last 60 seconds' batches did not exceed (the nearest rank).

        Args:
            now: not before the latest batch.
            share: over 0 up to 1, such as 0.99.

        Returns:
            Milliseconds, a time that some batch really took; None when there was no batch.
        """
        times = sorted(seconds for when, seconds in self._batches if when > now - KEPT_S)
        if not times:
            return None
        # The product is rounded first: 0.07 * 100 is a little over 7, and its ceiling would be 8.
        rank = math.ceil(round(share * len(times), 9))
        return times[max(rank, 1) - 1] * 1000

    def rows_per_second(self, now: float) -> float:
        """Rows a second over the last 10 s (9.5 to 10, as whole steps are counted); 0.0 when there was none.

        A worker that has just begun is measured over the same time, so its figure rises during its first 10 s.
        """
        first = math.floor(now / _STEP_S) - _STEPS + 1
        rows = sum(count for step, count in self._steps if step >= first)
        return rows / (now - first * _STEP_S)
