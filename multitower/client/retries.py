"""When a refused request is sent again: only what the daemon never ran, not before it says, and not in step.

`delay_after` is the rule, `Retries` holds the calls that wait for their turn. Neither has a clock or a socket.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from multitower.errors import MultitowerError, Reason

if TYPE_CHECKING:
    from multitower.client.connection import Call

RETRIES = 2
FLOOR_S = 0.05
"""The shortest wait before the first retry; each further one at least doubles it."""

MAX_DELAY_S = 5.0
JITTER = 0.5
"""The wait is drawn from itself to that much more, so that clients refused together do not come back together."""

_UNRUN = (Reason.QUEUE_FULL, Reason.NO_WORKER)
"""What the daemon answers to a request that no worker has had, where it says when to come back."""

_MAX_DOUBLINGS = 10


def delay_after(error: MultitowerError, retries: int, now: float, deadline: float, rng: random.Random) -> float | None:
    """How long a request waits before it is sent again.

    Args:
        error: the daemon's answer to it.
        retries: how often it was sent again already.
        now: monotonic seconds.
        deadline: the request's, monotonic seconds.
        rng: where the jitter comes from.

    Returns:
        Seconds; None when the error is the outcome: it is of another kind, says no `retry_after_ms`, or the retry
        would come too late.
    """
    if error.reason not in _UNRUN:
        return None
    told = told_after(error)
    if told is None:
        return None
    floor = min(FLOOR_S * 2 ** min(retries, _MAX_DOUBLINGS), MAX_DELAY_S)
    delay = max(told, floor) * rng.uniform(1.0, 1.0 + JITTER)
    return delay if now + delay < deadline else None


def told_after(error: MultitowerError) -> float | None:
    """When the daemon says to come back, in seconds; None when it does not."""
    told_ms = error.details.get("retry_after_ms")
    # It came over the wire: it may be anything that JSON can say, infinity and NaN among it.
    if isinstance(told_ms, bool) or not isinstance(told_ms, int | float) or not told_ms >= 0:
        return None
    return min(told_ms, MAX_DELAY_S * 1000) / 1000


class Retries:
    """The calls that were refused and are to be sent again.

    Args:
        most: how often one call is sent again.

    Attributes:
        due: when the first of them is to be sent, monotonic seconds; infinity while there is none.
    """

    def __init__(self, most: int) -> None:
        self.due = float("inf")
        self._most = most
        self._waiting: list[tuple[float, int, Call]] = []
        self._serial = 0  # calls have no order of their own
        # Its own: an application that seeds `random` would bring all its processes back in step.
        self._rng = random.Random()

    def add(self, call: Call, error: MultitowerError, now: float) -> bool:
        """Takes a call that the daemon has answered with an error.

        Returns:
            Whether it is sent again; if not, the error is its outcome.
        """
        if call.retries >= self._most:
            return False
        delay = delay_after(error, call.retries, now, call.deadline, self._rng)
        if delay is None:
            return False
        call.retries += 1
        # It waits at the word of a daemon, not for one to listen.
        call.connect_by = min(call.deadline, call.connect_by + delay)
        self._serial += 1
        heappush(self._waiting, (now + delay, self._serial, call))
        self.due = self._waiting[0][0]
        return True

    def take(self, now: float) -> list[Call]:
        """Removes and returns the calls whose turn has come, in its order; some may be over."""
        taken = []
        while self._waiting and self._waiting[0][0] <= now:
            taken.append(heappop(self._waiting)[2])
        self.due = self._waiting[0][0] if self._waiting else float("inf")
        return taken
