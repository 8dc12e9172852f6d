"""How long a worker takes for a batch, estimated from the batches that it has answered.

A device takes a fixed time per batch and some time per row. `Estimate` fits such a line to the measured times;
`Estimates` keeps one for each batch key. `worker_choice` uses them to find the worker that would finish first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from .request import BatchKey

MIN_MEASURED: Final = 3
"""Batches that must be measured before an estimate is used: the first batch of a process is often slower."""

DECAY: Final = 0.98
"""The weight of a batch falls by this factor with each later one, so that about the last fifty count."""

OUTLIER_DEVIATIONS: Final = 4.0
"""A batch that is further from its estimate, in mean deviations, is an outlier. It counts as if it were this far."""

MIN_OUTLIER_SHARE: Final = 0.25
"""A batch that differs by less than this share of its estimated time is no outlier, however regular batches are."""

OUTLIER_STREAK: Final = 4
"""This many outliers in a row on the same side mean that the speed of the device has changed."""

USUAL_AFTER_S: Final = 60.0
"""Seconds after which a changed speed of a device counts as its usual one."""

MAX_KEYS: Final = 64
"""Batch keys with an estimate, per worker: clients that keep sending new shapes make new keys."""

_DEVIATION_STEP: Final = 0.1
_MIN_S: Final = 1e-6
_RIDGE: Final = 0.01  # of the mean rows, squared: batches of equal size say nothing about the time per row


class Estimate:
    """The time of a batch, as a fixed part and a part per row.

    Attributes:
        fixed_s: seconds per batch.
        row_s: seconds per row.
        deviation_s: mean difference between measured and estimated times, in seconds.
        known: whether enough batches have been measured.
        measured_at: when the last batch was measured, in monotonic seconds.
    """

    __slots__ = (
        "_factor",
        "_first",
        "_rows",
        "_rows_rows",
        "_rows_s",
        "_s",
        "_slowdown",
        "_slowed_at",
        "_streak",
        "_weight",
        "deviation_s",
        "fixed_s",
        "known",
        "measured_at",
        "row_s",
    )

    def __init__(self) -> None:
        self.fixed_s = self.row_s = self.deviation_s = self.measured_at = 0.0
        self.known = False
        self._slowdown, self._slowed_at = 1.0, -math.inf
        self._first: list[tuple[int, float]] = []
        # Weighted sums over the batches: of 1, rows, seconds, rows squared, rows times seconds.
        self._weight = self._rows = self._s = self._rows_rows = self._rows_s = 0.0
        self._streak = 0  # outliers in a row; negative if they were faster than estimated
        self._factor = 1.0  # measured by estimated time, of the outlier in this streak that differs least

    def seconds(self, rows: int) -> float:
        """The estimated time of a batch, in seconds."""
        return self.fixed_s + self.row_s * rows

    def least_seconds(self, rows: int) -> float:
        """The least time of a batch that the measured ones promise, in seconds.

        It is not extrapolated to more rows than batches have had on average: some devices take no longer for them.
        """
        return max(self.seconds(min(rows, int(self._rows / self._weight))) - self.deviation_s, 0.0)

    @property
    def mean_rows(self) -> float:
        """The rows of a batch on average; the estimate must be known."""
        return self._rows / self._weight

    def slowdown(self, now: float) -> float:
        """How many times as long batches take as before the speed of the device changed, within `USUAL_AFTER_S`.

        Args:
            now: monotonic seconds.

        Returns:
            A factor; 1.0 if it has not changed, or has become faster.
        """
        return self._slowdown if now - self._slowed_at <= USUAL_AFTER_S else 1.0

    def add(self, rows: int, seconds: float, now: float) -> None:
        """Adds a measured batch.

        Args:
            rows: that were executed.
            seconds: that it took.
            now: monotonic seconds.
        """
        seconds = max(seconds, _MIN_S)
        self.measured_at = now
        if self.known:
            self._count(rows, self._limited(rows, seconds, now))
            self._fit()
            return
        self._first.append((rows, seconds))
        if len(self._first) == MIN_MEASURED:
            median = sorted(each for _, each in self._first)[MIN_MEASURED // 2]
            for rows, seconds in self._first:
                self._count(rows, min(seconds, 2 * median))
            self._fit()
            near = [(rows, seconds) for rows, seconds in self._first if seconds <= 2 * median]
            self.deviation_s = sum(abs(seconds - self.seconds(rows)) for rows, seconds in near) / MIN_MEASURED
            self._first.clear()
            self.known = True

    def rescale(self, rows: int, seconds: float, now: float) -> None:
        """Scales the whole estimate so that it fits this batch: the speed of the device has changed."""
        if self.known:
            self._scale(max(seconds, _MIN_S) / max(self.seconds(rows), _MIN_S), now)

    def _limited(self, rows: int, seconds: float, now: float) -> float:
        """The time that a measured batch counts with: an outlier's is limited."""
        expected = max(self.seconds(rows), _MIN_S)
        difference = seconds - expected
        limit = max(OUTLIER_DEVIATIONS * self.deviation_s, MIN_OUTLIER_SHARE * expected)
        if abs(difference) <= limit:
            self._streak = 0
            self.deviation_s += _DEVIATION_STEP * (abs(difference) - self.deviation_s)
            return seconds
        factor, side = seconds / expected, 1 if difference > 0 else -1
        if self._streak * side > 0:
            self._streak += side
            self._factor = min(self._factor, factor) if side > 0 else max(self._factor, factor)
        else:
            self._streak, self._factor = side, factor
        if abs(self._streak) == OUTLIER_STREAK:
            self._streak = 0
            self._scale(self._factor, now)
            return self.seconds(rows)
        self.deviation_s += _DEVIATION_STEP * (limit - self.deviation_s)
        return max(expected + math.copysign(limit, difference), _MIN_S)

    def _count(self, rows: int, seconds: float) -> None:
        self._weight = DECAY * self._weight + 1
        self._rows = DECAY * self._rows + rows
        self._s = DECAY * self._s + seconds
        self._rows_rows = DECAY * self._rows_rows + rows * rows
        self._rows_s = DECAY * self._rows_s + rows * seconds

    def _scale(self, factor: float, now: float) -> None:
        self._slowdown = max(self.slowdown(now) * factor, 1.0)
        self._slowed_at = now
        self._s *= factor
        self._rows_s *= factor
        self.deviation_s *= factor
        self._fit()

    def _fit(self) -> None:
        """Linear regression over the weighted batches; neither part may be negative."""
        rows, seconds = self._rows / self._weight, self._s / self._weight
        variance = self._rows_rows / self._weight - rows * rows
        covariance = self._rows_s / self._weight - rows * seconds
        slope = covariance / (variance + _RIDGE * rows * rows)
        self.row_s = min(max(slope, 0.0), seconds / rows)
        self.fixed_s = max(seconds - self.row_s * rows, 0.0)


class Estimates:
    """The estimates of a worker, by batch key; the `MAX_KEYS` most recently used ones are kept."""

    __slots__ = ("_by_key", "_keys")

    def __init__(self) -> None:
        self._by_key: OrderedDict[int, Estimate] = OrderedDict()
        self._keys: dict[int, BatchKey] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key_id: int) -> Estimate | None:
        """The estimate for a batch key; None until enough batches have been measured."""
        estimate = self._by_key.get(key_id)
        return estimate if estimate is not None and estimate.known else None

    def known(self) -> list[tuple[BatchKey, Estimate]]:
        """The keys that have an estimate, each with it."""
        return [(self._keys[id], estimate) for id, estimate in self._by_key.items() if estimate.known]

    def add(self, key: BatchKey, rows: int, seconds: float, now: float) -> None:
        """Adds a measured batch of this key; see `Estimate.add`."""
        estimate = self._by_key.get(key.id)
        if estimate is None:
            estimate = self._by_key[key.id] = Estimate()
            self._keys[key.id] = key
            if len(self._by_key) > MAX_KEYS:
                oldest, _ = self._by_key.popitem(last=False)
                del self._keys[oldest]
        else:
            self._by_key.move_to_end(key.id)
        estimate.add(rows, seconds, now)
