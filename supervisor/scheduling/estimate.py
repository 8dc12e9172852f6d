"""How long a worker takes for a batch, learned from those that it has answered. Pure.

A device takes a fixed time a batch and some time a row. `Estimate` is the running fit of such a line through what was
measured; `Pace` keeps one for each batch key of a worker. `choice.py` asks them who would be done first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

LEAST: Final = 3
"""Measured batches from which on an estimate counts: the first batch of a process is often slower than all others."""

KEEP: Final = 0.98
"""Weight that a batch keeps with each later one: some fifty of them count."""

OUTLIER: Final = 4.0
"""Mean deviations from which on a batch is an outlier, and counts as if it were just as far off."""

LEAST_OUTLIER: Final = 0.25
"""The same as a share of the time that was expected: where all batches take the same time, a little noise is none."""

STREAK: Final = 4
"""So many outliers in a row on one side are none: the device has changed its speed."""

MOST_KEYS: Final = 64
"""Batch keys that a worker's pace is known for; clients that send ever new shapes make ever new keys."""

_DEVIATION_STEP: Final = 0.1
_LEAST_S: Final = 1e-6
_RIDGE: Final = 0.01  # of the square of the mean rows: batches that are all alike say nothing of the time a row


class Estimate:
    """The time of a batch as a fixed part and a part per row.

    Attributes:
        fixed_s: seconds.
        row_s: seconds a row.
        deviation_s: by how much batches differ from it, on average.
        known: enough has been measured.
    """

    __slots__ = (
        "_first",
        "_nearest",
        "_rows",
        "_rows_rows",
        "_rows_s",
        "_s",
        "_streak",
        "_weight",
        "deviation_s",
        "fixed_s",
        "known",
        "row_s",
    )

    def __init__(self) -> None:
        self.fixed_s = self.row_s = self.deviation_s = 0.0
        self._first: list[tuple[int, float]] = []
        # Weighted sums over the batches: of 1, rows, seconds, rows squared, rows times seconds.
        self._weight = self._rows = self._s = self._rows_rows = self._rows_s = 0.0
        self._streak = 0  # outliers in a row; negative for those that were faster
        self._nearest = 1.0  # of these, the least factor
        self.known = False

    def seconds(self, rows: int) -> float:
        """What a batch of so many rows is expected to take."""
        return self.fixed_s + self.row_s * rows

    def add(self, rows: int, seconds: float) -> None:
        """A batch of so many rows has taken so long."""
        seconds = max(seconds, _LEAST_S)
        if self.known:
            self._count(rows, self._limited(rows, seconds))
            self._fit()
            return
        self._first.append((rows, seconds))
        if len(self._first) == LEAST:
            middle = sorted(each for _, each in self._first)[LEAST // 2]
            for rows, seconds in self._first:
                self._count(rows, min(seconds, 2 * middle))
            self._fit()
            self.deviation_s = sum(abs(s - self.seconds(n)) for n, s in self._first if s <= 2 * middle) / LEAST
            self._first.clear()
            self.known = True

    def rescale(self, rows: int, seconds: float) -> None:
        """Believes this one batch: the device takes so much more or less for everything than was thought."""
        if self.known:
            self._scale(max(seconds, _LEAST_S) / max(self.seconds(rows), _LEAST_S))

    def _limited(self, rows: int, seconds: float) -> float:
        expected = max(self.seconds(rows), _LEAST_S)
        off = seconds - expected
        limit = max(OUTLIER * self.deviation_s, LEAST_OUTLIER * expected)
        if abs(off) <= limit:
            self._streak = 0
            self.deviation_s += _DEVIATION_STEP * (abs(off) - self.deviation_s)
            return seconds
        factor, side = seconds / expected, 1 if off > 0 else -1
        if self._streak * side > 0:
            self._streak += side
            self._nearest = min(self._nearest, factor) if side > 0 else max(self._nearest, factor)
        else:
            self._streak, self._nearest = side, factor
        if abs(self._streak) == STREAK:
            self._streak = 0
            self._scale(self._nearest)
            return self.seconds(rows)
        self.deviation_s += _DEVIATION_STEP * (limit - self.deviation_s)
        return max(expected + math.copysign(limit, off), _LEAST_S)

    def _count(self, rows: int, seconds: float) -> None:
        self._weight = KEEP * self._weight + 1
        self._rows = KEEP * self._rows + rows
        self._s = KEEP * self._s + seconds
        self._rows_rows = KEEP * self._rows_rows + rows * rows
        self._rows_s = KEEP * self._rows_s + rows * seconds

    def _scale(self, factor: float) -> None:
        self._s *= factor
        self._rows_s *= factor
        self.deviation_s *= factor
        self._fit()

    def _fit(self) -> None:
        rows, seconds = self._rows / self._weight, self._s / self._weight
        spread = self._rows_rows / self._weight - rows * rows
        together = self._rows_s / self._weight - rows * seconds
        slope = together / (spread + _RIDGE * rows * rows)
        # Neither part is less than nothing.
        self.row_s = min(max(slope, 0.0), seconds / rows)
        self.fixed_s = max(seconds - self.row_s * rows, 0.0)


class Pace:
    """The estimates of one worker, one a batch key, the latest used `MOST_KEYS` of them."""

    __slots__ = ("_estimates",)

    def __init__(self) -> None:
        self._estimates: OrderedDict[int, Estimate] = OrderedDict()

    def __len__(self) -> int:
        return len(self._estimates)

    def find(self, key_id: int) -> Estimate | None:
        """The estimate for a batch key; None while too little was measured."""
        estimate = self._estimates.get(key_id)
        return estimate if estimate is not None and estimate.known else None

    def add(self, key_id: int, rows: int, seconds: float) -> None:
        """A batch of this key, of so many rows, has taken so long."""
        estimate = self._estimates.get(key_id)
        if estimate is None:
            estimate = self._estimates[key_id] = Estimate()
            if len(self._estimates) > MOST_KEYS:
                self._estimates.popitem(last=False)
        else:
            self._estimates.move_to_end(key_id)
        estimate.add(rows, seconds)
