"""Counts and latencies of the last minute, beside those since the start.

Every request passes here, so counting is one addition: to a counter, or to a slot of a histogram. The counts of the
last minute are the difference between those of now and a copy that `tick` made a minute ago. Memory is bounded: by the
number of slots and of keys, and by the number of copies in a minute.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from typing import Final, Generic, TypeVar

WINDOW_S: Final = 60.0
"""Seconds that count as the last minute; up to `STEP_S` more, since a copy is made every `STEP_S` seconds."""

STEP_S: Final = 5.0
"""Seconds between two copies of the counts."""

MAX_KEYS: Final = 64
"""Keys that are counted by themselves; further ones count as `OTHER`. The protocol has fewer reasons."""

MAX_KEY: Final = 64
"""Characters of such a key."""

OTHER: Final = "other"

_UNIT_SHIFT: Final = 10
"""A histogram counts in units of 1024 ns."""

_SLOTS_PER_DOUBLING: Final = 8
"""Slots of a histogram between one time and twice that time: a slot is at most an eighth of its time wide."""

_SLOT_BITS: Final = 3

SLOTS: Final = 30 * _SLOTS_PER_DOUBLING
"""Slots of a histogram. The last one starts above an hour, and holds all longer times."""


Counts = TypeVar("Counts", dict[str, int], list[int])


class Copies(Generic[Counts]):
    """Copies of some counts: one for each `STEP_S` of the last minute in which they changed."""

    __slots__ = ("_due", "_kept")

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Counts]] = deque()  # when it was made, a copy
        self._due = -math.inf

    def tick(self, now: float, counts: Counts) -> None:
        """Copies the counts where it is time to; see `RecentCounts.tick`."""
        if now < self._due:
            return
        self._due = now + STEP_S
        if not self._kept or self._kept[-1][1] != counts:
            self._kept.append((now, copy.copy(counts)))
        while len(self._kept) > 1 and self._kept[1][0] <= now - WINDOW_S:
            self._kept.popleft()

    def minute_ago(self, now: float) -> Counts | None:
        """Returns the counts of a minute ago; None where nothing had been counted or copied by then."""
        found: Counts | None = None
        for when, counts in self._kept:
            if when <= now - WINDOW_S:
                found = counts
        return found


class RecentCounts:
    """Counts by key, since the start and over the last minute.

    Attributes:
        total: by key, since the start.
    """

    __slots__ = ("_copies", "total")

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self._copies: Copies[dict[str, int]] = Copies()

    def add(self, key: str) -> None:
        """Counts one more. Handlers choose the reasons of their errors, so their number and length are bounded."""
        count = self.total.get(key, 0)
        if not count and (len(self.total) >= MAX_KEYS or len(key) > MAX_KEY):
            key = OTHER
            count = self.total.get(key, 0)
        self.total[key] = count + 1

    def tick(self, now: float) -> None:
        """Copies the counts every `STEP_S` seconds where they have changed; call it more often.

        Args:
            now: monotonic seconds.
        """
        self._copies.tick(now, self.total)

    def last_minute(self, now: float) -> dict[str, int]:
        """Returns the counts of the last minute, without keys that have none.

        Args:
            now: monotonic seconds.
        """
        before = self._copies.minute_ago(now) or {}
        return {key: new for key, count in self.total.items() if (new := count - before.get(key, 0))}


def slots_below(exponent: int) -> int:
    """Returns how many slots of a histogram hold times of less than 2 to the power of `exponent` nanoseconds.

    A slot starts at each of these times, so the counts of these slots are exact.

    Args:
        exponent: at least 10.
    """
    units = 1 << (exponent - _UNIT_SHIFT)
    if units < 2 * _SLOTS_PER_DOUBLING:
        return units
    doublings = exponent - _UNIT_SHIFT - _SLOT_BITS
    return (doublings << _SLOT_BITS) + _SLOTS_PER_DOUBLING


class LatencyHistogram:
    """How long something took, since the start and over the last minute, in slots of a logarithmic scale.

    A percentile is exact to a sixteenth of its value, or to half a microsecond where that is more.
    """

    __slots__ = ("_copies", "_counts")

    def __init__(self) -> None:
        self._counts = [0] * SLOTS
        self._copies: Copies[list[int]] = Copies()

    def add(self, ns: int, times: int = 1) -> None:
        """Counts what took `ns` nanoseconds, `times` times."""
        units = ns >> _UNIT_SHIFT
        if units >= 2 * _SLOTS_PER_DOUBLING:
            exponent = units.bit_length() - 1 - _SLOT_BITS
            units = (exponent << _SLOT_BITS) + (units >> exponent)
            if units >= SLOTS:
                units = SLOTS - 1
        elif units < 0:
            units = 0
        counts = self._counts
        counts[units] = counts[units] + times  # cheaper than `+=` where it is compiled

    def tick(self, now: float) -> None:
        """Copies the counts every `STEP_S` seconds where they have changed; call it more often.

        Args:
            now: monotonic seconds.
        """
        self._copies.tick(now, self._counts)

    def add_counts(self, other: LatencyHistogram) -> None:
        """Adds the counts since the start of another histogram."""
        for slot, count in enumerate(other._counts):
            self._counts[slot] += count

    def copy_counts(self) -> list[int]:
        """Returns the counts since the start: one for each slot."""
        return self._counts.copy()

    def percentiles_ms(self, now: float, shares: tuple[float, ...]) -> list[float | None]:
        """Returns for each share the time that this share of the requests of the last minute did not exceed.

        Args:
            now: monotonic seconds.
            shares: more than 0 and at most 1, ascending, such as `(0.5, 0.99)`.

        Returns:
            Milliseconds, one for each share; None without a request.
        """
        before = self._copies.minute_ago(now) or [0] * SLOTS
        total = sum(self._counts) - sum(before)
        found: list[float | None] = []
        passed = slot = 0
        for share in shares:
            if not total:
                found.append(None)
                continue
            # Rounded first, as a share is not exact: the ceiling of slightly more than 7 would be 8.
            rank = max(1, math.ceil(round(share * total, 9)))
            while passed < rank:
                passed += self._counts[slot] - before[slot]
                slot += 1
            found.append(_middle_ms(slot - 1))
        return found


def _middle_ms(slot: int) -> float:
    """Returns the time in the middle of a slot, in milliseconds."""
    exponent = max(0, (slot >> _SLOT_BITS) - 1)
    first = (slot - (exponent << _SLOT_BITS)) << exponent
    return (first + (1 << exponent) / 2) * (1 << _UNIT_SHIFT) / 1e6


class RefusedRequests:
    """Requests that got an error without having been queued, by the reason of the error.

    Attributes:
        count: all of them, since the start.
        by_reason: all of them.
        of_models: those whose model is known, by its name.
    """

    __slots__ = ("_of_removed_models", "by_reason", "count", "of_models")

    def __init__(self) -> None:
        self.count = 0
        self.by_reason = RecentCounts()
        self.of_models: dict[str, RecentCounts] = {}
        self._of_removed_models: dict[str, int] = {}  # by reason

    def add(self, reason: str) -> None:
        """Counts a request."""
        self.count += 1
        self.by_reason.add(reason)

    def add_of_model(self, model: str, reason: str) -> None:
        """Counts a request whose model is known, in addition to `add`."""
        counts = self.of_models.get(model)
        if counts is None:
            counts = self.of_models[model] = RecentCounts()
        counts.add(reason)

    def remove_model(self, model: str) -> None:
        """Forgets a model that has been removed from the configuration."""
        counts = self.of_models.pop(model, None)
        if counts is not None:
            for reason, count in counts.total.items():
                self._of_removed_models[reason] = self._of_removed_models.get(reason, 0) + count

    def without_model(self) -> dict[str, int]:
        """Returns how many requests were refused since the start that named no known model, by reason."""
        left = dict(self.by_reason.total)
        for counts in (self._of_removed_models, *[each.total for each in self.of_models.values()]):
            for reason, count in counts.items():
                left[reason] = left.get(reason, 0) - count
        return {reason: count for reason, count in left.items() if count > 0}

    def tick(self, now: float) -> None:
        """Keeps the last minute; call it at least every `STEP_S` seconds."""
        self.by_reason.tick(now)
        for counts in self.of_models.values():
            counts.tick(now)
