"""The deadlines of all requests that have no answer yet: a timer wheel with a cheap add, remove and expire.

A heap would keep every answered request until its deadline comes up, half a minute of traffic in memory. Here a
request leaves at once when it is answered, and its place costs an empty set at the most.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

TICK_S = 0.005
"""Deadlines are told at most this much late, in seconds."""


class Expiring(Protocol):
    """What the wheel holds: `deadline` in monotonic seconds; `tick` is the wheel's own."""

    deadline: float
    tick: int


T = TypeVar("T", bound=Expiring)


class Deadlines(Generic[T]):
    """Items by their deadlines."""

    def __init__(self) -> None:
        self._wheel: dict[int, set[T]] = {}
        self._ticks: list[int] = []  # a heap of the wheel's keys

    def add(self, item: T) -> None:
        """Takes an item in; it is in the wheel once at the most."""
        tick = item.tick = int(item.deadline / TICK_S) + 1
        bucket = self._wheel.get(tick)
        if bucket is None:
            self._wheel[tick] = {item}
            heapq.heappush(self._ticks, tick)
        else:
            bucket.add(item)

    def remove(self, item: T) -> None:
        """Takes an item out that was added and has not expired."""
        bucket = self._wheel[item.tick]
        bucket.discard(item)
        if not bucket:
            bucket.clear()  # gives the table of a set back that was once large

    def expire(self, now: float) -> list[T]:
        """Takes out all items whose deadline has passed and returns them, earliest tick first."""
        expired: list[T] = []
        while self._ticks and self._ticks[0] * TICK_S <= now:
            expired.extend(self._wheel.pop(heapq.heappop(self._ticks)))
        return expired

    def next(self) -> float | None:
        """When `expire` is to be called next, in monotonic seconds, or None when nothing waits."""
        while self._ticks and not self._wheel[self._ticks[0]]:
            del self._wheel[heapq.heappop(self._ticks)]
        return self._ticks[0] * TICK_S if self._ticks else None
