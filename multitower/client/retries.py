"""When a refused request is sent again: only if no worker ran it, not before the daemon says, and with jitter.

`delay_before_retry` is the rule, `Retries` holds the calls that wait. Neither reads a clock or uses a socket.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from multitower.errors import MultitowerError, Reason

if TYPE_CHECKING:
    from multitower.client.transport import Call

RETRIES = 2
MIN_DELAY_S = 0.05
"""The shortest wait before the first retry; it doubles with each further one."""

MAX_DELAY_S = 5.0
JITTER = 0.5
"""A wait is lengthened by a random share of up to this, so that clients refused together do not return together."""

_NOT_RUN = (Reason.QUEUE_FULL, Reason.NO_WORKER)
"""Errors of requests that no worker has received."""

_MAX_DOUBLINGS = 10


def delay_before_retry(
    error: MultitowerError, retries: int, now: float, deadline: float, rng: random.Random
) -> float | None:
    """How long a refused request waits before it is sent again.

    Args:
        error: the daemon's answer.
        retries: how often the request was already sent again.
        now: monotonic seconds.
        deadline: the request's, monotonic seconds.
        rng: source of the jitter.

    Returns:
        Seconds; None if the error is the outcome: the request may have run, the daemon named no `retry_after_ms`, or
        the retry would come after the deadline.
    """
    if error.reason not in _NOT_RUN:
        return None
    wanted = retry_after(error)
    if wanted is None:
        return None
    least = min(MIN_DELAY_S * 2 ** min(retries, _MAX_DOUBLINGS), MAX_DELAY_S)
    delay = max(wanted, least) * rng.uniform(1.0, 1.0 + JITTER)
    return delay if now + delay < deadline else None


def retry_after(error: MultitowerError) -> float | None:
    """The `retry_after_ms` of an error in seconds, at most `MAX_DELAY_S`; None if there is none, or an invalid one."""
    milliseconds = error.details.get("retry_after_ms")
    # It came over the wire: any JSON value, and infinity or NaN.
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or not milliseconds >= 0:
        return None
    return min(milliseconds, MAX_DELAY_S * 1000) / 1000


class Retries:
    """The calls that were refused and wait to be sent again.

    Args:
        limit: how often one call is sent again.

    Attributes:
        due: when the first of them is to be sent, monotonic seconds; infinity while none waits.
    """

    def __init__(self, limit: int) -> None:
        self.due = float("inf")
        self._limit = limit
        self._waiting: list[tuple[float, int, Call]] = []
        self._serial = 0  # breaks ties: calls cannot be compared
        # Not the module's generator: an application may seed that alike in all its processes.
        self._rng = random.Random()

    def schedule(self, call: Call, error: MultitowerError, now: float) -> bool:
        """Schedules a retry of a call that the daemon has answered with an error.

        Returns:
            Whether the call is sent again; if not, the error is its outcome.
        """
        if call.retries >= self._limit:
            return False
        delay = delay_before_retry(error, call.retries, now, call.deadline, self._rng)
        if delay is None:
            return False
        call.retries += 1
        # The wait does not count as time without a connection.
        call.connect_by = min(call.deadline, call.connect_by + delay)
        self._serial += 1
        heappush(self._waiting, (now + delay, self._serial, call))
        self.due = self._waiting[0][0]
        return True

    def pop_due(self, now: float) -> list[Call]:
        """Removes and returns the calls that are due, earliest first; some may have an outcome already."""
        calls = []
        while self._waiting and self._waiting[0][0] <= now:
            calls.append(heappop(self._waiting)[2])
        self.due = self._waiting[0][0] if self._waiting else float("inf")
        return calls
