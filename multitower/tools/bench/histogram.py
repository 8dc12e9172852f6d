"""Latencies in bounded memory: counts in buckets whose width is proportional to the latency. Pure.

As in HDR histograms (https://hdrhistogram.org): each of the first 256 nanoseconds has its own bucket, each doubling
above them has 128, so that a value read back is at most 1/128 too high. Memory does not grow with the number of values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

_BITS: Final = 7
_LONGEST_BITS: Final = 43  # 2^43 ns are 2.4 hours; longer durations are counted as that
_LONGEST_NS: Final = (1 << _LONGEST_BITS) - 1


def _bucket(ns: int) -> int:
    shift = max(ns.bit_length() - _BITS - 1, 0)
    return (shift << _BITS) + (ns >> shift)


def _upper_ns(bucket: int) -> int:
    """The longest duration that belongs to a bucket."""
    shift = max((bucket >> _BITS) - 1, 0)
    return (((bucket - (shift << _BITS)) + 1) << shift) - 1


_BUCKETS: Final = _bucket(_LONGEST_NS) + 1


class Histogram:
    """Counts of durations, in nanoseconds.

    Attributes:
        count: durations added.
        total_ns: the sum of the durations.
        max_ns: the longest duration, exactly; 0 without durations.
    """

    __slots__ = ("_counts", "count", "max_ns", "total_ns")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = self.total_ns = self.max_ns = 0

    def add(self, ns: int) -> None:
        """Adds one duration; a negative one counts as 0."""
        if not 0 <= ns <= _LONGEST_NS:
            ns = 0 if ns < 0 else _LONGEST_NS
        # `_bucket` inline: this runs for every request, and a call would cost as much as the rest.
        shift = max(ns.bit_length() - _BITS - 1, 0)
        self._counts[(shift << _BITS) + (ns >> shift)] += 1
        self.count += 1
        self.total_ns += ns
        if ns > self.max_ns:
            self.max_ns = ns

    def merge(self, other: Histogram) -> None:
        """Adds the durations of another histogram."""
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total_ns += other.total_ns
        self.max_ns = max(self.max_ns, other.max_ns)

    def percentile_ns(self, percent: float, missing: int = 0) -> float:
        """The percentile by nearest rank, at most 1/128 too high.

        Args:
            percent: more than 0, up to 100.
            missing: requests without an answer, counted as longer than every duration that was added.

        Returns:
            Nanoseconds; infinity where the percentile falls among the missing ones, NaN without any duration.
        """
        total = self.count + missing
        if not total:
            return math.nan
        # The product is rounded first: 0.07 * 100 is a little over 7, and its ceiling would be 8.
        rank = max(math.ceil(round(percent * total / 100, 6)), 1)
        if rank > self.count:
            return math.inf
        seen = 0
        for upper, count in self.buckets():
            seen += count
            if seen >= rank:
                return min(upper, self.max_ns)
        raise AssertionError("the buckets hold fewer than were counted")

    @property
    def mean_ns(self) -> float:
        """The exact mean; NaN without durations."""
        return self.total_ns / self.count if self.count else math.nan

    def buckets(self) -> Iterator[tuple[int, int]]:
        """The non-empty buckets in ascending order: the longest duration of each, nanoseconds, and its count."""
        for bucket, count in enumerate(self._counts):
            if count:
                yield _upper_ns(bucket), count

    def to_json(self) -> dict[str, Any]:
        """The histogram as JSON, for `from_json`."""
        return {"total_ns": self.total_ns, "max_ns": self.max_ns, "buckets": [list(each) for each in self.buckets()]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The histogram that `to_json` wrote."""
        histogram = cls()
        for upper, count in value["buckets"]:
            histogram._counts[_bucket(upper)] += count
            histogram.count += count
        histogram.total_ns = value["total_ns"]
        histogram.max_ns = value["max_ns"]
        return histogram
