"""Counts and latencies of the last minute, beside those since the start.

Every request passes here, so counting is one addition: to a counter, or to a slot of a histogram. The counts of the
last minute are the difference between those of now and a copy that `tick` made a minute ago. Memory is bounded: by the
number of slots and of keys, and by the number of copies in a minute.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

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


class RecentCounts:
    """Counts by key, since the start and over the last minute.

    Attributes:
        total: by key, since the start.
    """

    __slots__ = ("_copies", "_copy_at", "total")

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self._copies: deque[tuple[float, dict[str, int]]] = deque()
        self._copy_at = -math.inf

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
        if now < self._copy_at:
            return
        self._copy_at = now + STEP_S
        if not self._copies or self._copies[-1][1] != self.total:
            self._copies.append((now, dict(self.total)))
        while len(self._copies) > 1 and self._copies[1][0] <= now - WINDOW_S:
            self._copies.popleft()

    def last_minute(self, now: float) -> dict[str, int]:
        """Returns the counts of the last minute, without keys that have none.

        Args:
            now: monotonic seconds.
        """
        before: dict[str, int] = {}
        for when, copy in self._copies:
            if when <= now - WINDOW_S:
                before = copy
        return {key: new for key, count in self.total.items() if (new := count - before.get(key, 0))}


class LatencyHistogram:
    """How long requests took, since the start and over the last minute, in slots of a logarithmic scale.

    A percentile is exact to a sixteenth of its value, or to half a microsecond where that is more.
    """

    __slots__ = ("_copies", "_copy_at", "_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0] * SLOTS
        self._total = 0
        self._copies: deque[tuple[float, int, list[int]]] = deque()  # when, requests until then, by slot
        self._copy_at = -math.inf

    def add(self, ns: int) -> None:
        """Counts a request that took `ns` nanoseconds."""
        units = ns >> _UNIT_SHIFT
        if units >= 2 * _SLOTS_PER_DOUBLING:
            exponent = units.bit_length() - 1 - _SLOT_BITS
            units = (exponent << _SLOT_BITS) + (units >> exponent)
            if units >= SLOTS:
                units = SLOTS - 1
        elif units < 0:
            units = 0
        self._counts[units] += 1
        self._total += 1

    def tick(self, now: float) -> None:
        """Copies the counts every `STEP_S` seconds where they have changed; call it more often.

        Args:
            now: monotonic seconds.
        """
        if now < self._copy_at:
            return
        self._copy_at = now + STEP_S
        if not self._copies or self._copies[-1][1] != self._total:
            self._copies.append((now, self._total, list(self._counts)))
        while len(self._copies) > 1 and self._copies[1][0] <= now - WINDOW_S:
            self._copies.popleft()

    def percentiles_ms(self, now: float, shares: tuple[float, ...]) -> list[float | None]:
        """Returns for each share the time that this share of the requests of the last minute did not exceed.

        Args:
            now: monotonic seconds.
            shares: more than 0 and at most 1, ascending, such as `(0.5, 0.99)`.

        Returns:
            Milliseconds, one for each share; None without a request.
        """
        before, total = [0] * SLOTS, self._total
        for when, total_then, copy in self._copies:
            if when <= now - WINDOW_S:
                before, total = copy, self._total - total_then
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

    __slots__ = ("by_reason", "count", "of_models")

    def __init__(self) -> None:
        self.count = 0
        self.by_reason = RecentCounts()
        self.of_models: dict[str, RecentCounts] = {}

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
        self.of_models.pop(model, None)

    def tick(self, now: float) -> None:
        """Keeps the last minute; call it at least every `STEP_S` seconds."""
        self.by_reason.tick(now)
        for counts in self.of_models.values():
            counts.tick(now)
