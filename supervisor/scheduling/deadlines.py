"""The deadlines of all requests that have no answer yet: a timer wheel.

Adding, removing and expiring a request are cheap. A heap would keep each answered request until its deadline, half a
minute of traffic in memory. Here a request is removed when it is answered, and leaves an empty set behind at most.
"""

from __future__ import annotations

import heapq
from typing import Any

from multitower.durations import exact_duration
from multitower.errors import MultitowerError, Reason, make

from .request import Plan, Request

TICK_S = 0.005
"""Deadlines are noticed at most this many seconds late."""


def describe_limit(plan: Plan) -> str:
    """Which limit sets the deadline of a request, and its value, for people."""
    whose = "the request's timeout" if plan.timeout_is_own else f"queue.timeout of {plan.model!r}"
    return f"{whose} is {exact_duration(plan.timeout_s)}"


def limit_details(plan: Plan) -> dict[str, Any]:
    """The limit that sets the deadline of a request, and its value in seconds, for the details of an error."""
    return {"limit": "timeout" if plan.timeout_is_own else "queue.timeout", "limit_value": plan.timeout_s}


def deadline_error(plan: Plan, where: str) -> MultitowerError:
    """The answer to a request whose deadline has passed.

    Args:
        plan: the request's.
        where: the request was then, as in `before a worker was free`.
    """
    message = f"the deadline passed {where}: {describe_limit(plan)}"
    return make(Reason.DEADLINE, message, **limit_details(plan))


class Deadlines:
    """Requests by their deadlines."""

    def __init__(self) -> None:
        self._wheel: dict[int, set[Request]] = {}
        self._ticks: list[int] = []  # a heap of the wheel's keys

    def add(self, request: Request) -> None:
        """Adds a request, once."""
        tick = request.tick = int(request.deadline / TICK_S) + 1
        bucket = self._wheel.get(tick)
        if bucket is None:
            self._wheel[tick] = {request}
            heapq.heappush(self._ticks, tick)
        else:
            bucket.add(request)

    def remove(self, request: Request) -> None:
        """Removes a request that was added and has not expired."""
        bucket = self._wheel[request.tick]
        bucket.discard(request)
        if not bucket:
            bucket.clear()  # frees the memory of a set that was large once

    def expire(self, now: float) -> list[Request]:
        """Removes and returns all requests whose deadline has passed, the earliest tick first."""
        expired: list[Request] = []
        while self._ticks and self._ticks[0] * TICK_S <= now:
            expired.extend(self._wheel.pop(heapq.heappop(self._ticks)))
        return expired

    def next_expiry(self) -> float | None:
        """When `expire` must be called at the latest, in monotonic seconds; None if there are no requests."""
        while self._ticks and not self._wheel[self._ticks[0]]:
            del self._wheel[heapq.heappop(self._ticks)]
        return self._ticks[0] * TICK_S if self._ticks else None
