"""What the workers of a slot have done since the daemon started, over all of its incarnations."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 2.0
"""Seconds over which `busy_ratio` is measured; up to one interval of `tick` more."""

MAX_SAMPLES: Final = 64
"""Samples that are kept at most, in case that `tick` is called more often than planned."""


class WorkerTotals:
    """Counts the batches of one slot's workers. Callers pass monotonic seconds.

    Attributes:
        batches: answered batches.
        rows: in these.
        busy_s: seconds from when a worker could start each of them to its answer; of all towers of a worker together.
    """

    __slots__ = ("_samples", "batches", "busy_s", "rows")

    def __init__(self) -> None:
        self.batches = 0
        self.rows = 0
        self.busy_s = 0.0
        self._samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)  # when, busy seconds until then

    def add(self, seconds: float, rows: int) -> None:
        """Counts a batch that took so many seconds."""
        self.batches += 1
        self.rows += rows
        self.busy_s += seconds

    def tick(self, now: float, running_s: float) -> None:
        """Takes a sample for `busy_ratio`; call it a few times a second.

        Args:
            now: monotonic seconds.
            running_s: for how long the batches have been running that are not answered yet, in seconds, summed up.
        """
        samples = self._samples
        samples.append((now, self.busy_s + running_s))
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_S:
            samples.popleft()

    def busy_ratio(self, now: float, running_s: float, towers: int) -> float:
        """Returns the share of the last `WINDOW_S` in which the worker was executing batches, from 0 to 1.

        Args:
            now: monotonic seconds.
            running_s: as for `tick`.
            towers: that execute batches independently.
        """
        if not self._samples:
            return 0.0
        then, busy_s = self._samples[0]
        passed_s = (now - then) * towers
        if passed_s <= 0:
            return 0.0
        return min(max((self.busy_s + running_s - busy_s) / passed_s, 0.0), 1.0)
