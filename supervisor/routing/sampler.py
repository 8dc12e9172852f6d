"""Chooses the requests that are observed, when they are accepted: what is not chosen costs no more than that."""

from __future__ import annotations

import math
import random
from typing import Final

from multitower.trace_context import TraceContext

_FOREVER: Final = 1 << 60
"""Requests that are passed over where none is to be chosen."""


class Sampler:
    """Chooses a share of requests at random.

    For most requests it only counts down: with each request that it chooses, it draws how many it passes over until the
    next one.

    Args:
        share: of the requests, from 0 to 1.
        per_second: requests a second that are chosen at most, on average; a burst may have one second's worth.
        follows_traces: whether the clients that are traced themselves decide about their requests.
    """

    def __init__(self, share: float, per_second: float = math.inf, *, follows_traces: bool = False) -> None:
        self._share = share
        self._per_second = per_second
        self._follows_traces = follows_traces
        self._pass_over = self._draw()
        self._left = per_second  # requests that may be chosen at once
        self._refilled_at = 0.0

    def change(self, share: float, per_second: float = math.inf) -> None:
        """Chooses another share from now on.

        Args:
            share: as for the constructor.
            per_second: likewise.
        """
        self._share, self._per_second = share, per_second
        self._pass_over = self._draw()

    def chooses(self, trace: TraceContext | None, now: float) -> bool:
        """Whether this request, which has been accepted, is chosen. Call it once for each request.

        Args:
            trace: that the request names.
            now: monotonic seconds.
        """
        if trace is not None and self._follows_traces:
            return trace.sampled
        return self.chooses_next(now)

    def chooses_next(self, now: float) -> bool:
        """Whether a request is chosen of which nothing is known."""
        if self._pass_over > 0:
            self._pass_over -= 1
            return False
        self._pass_over = self._draw()
        return self._has_room(now)

    def _draw(self) -> int:
        """How many requests are passed over until the next one: geometrically distributed."""
        if self._share >= 1:
            return 0
        if self._share <= 0:
            return _FOREVER
        passed = math.log(1.0 - random.random()) / math.log1p(-self._share)
        return int(min(passed, float(_FOREVER)))

    def _has_room(self, now: float) -> bool:
        """Whether one more request may be chosen now; then it counts as chosen."""
        if self._per_second == math.inf:
            return True
        self._left = min(self._left + (now - self._refilled_at) * self._per_second, self._per_second)
        self._refilled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
