"""How much a principal may ask for at one time and in a second, and how much it has asked for.

The router asks before it admits a request. Rules only: times go in, and what to answer comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from multitower.errors import MultitowerError, Reason, make

from ..config.principals import Principal

LEAST_RETRY_MS: Final = 1
OUTSTANDING_RETRY_MS: Final = 50
"""When a client with too many requests outstanding may try again: nobody knows when the first of them is answered."""


_WHOLE: Final = 1.0 - 1e-9
"""What counts as one event: sums of parts of a second are not exact."""


class TokenBucket:
    """Lets `rate` events a second pass, and up to `burst` at once after a pause.

    Args:
        rate: events a second, above 0.
        burst: at least 1.
        now: monotonic seconds.

    Attributes:
        rate, burst: as given.
    """

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left = burst
        self._at = now

    def wait_s(self, now: float) -> float:
        """Returns the seconds until an event may pass; 0 if one may pass now.

        Args:
            now: monotonic seconds.
        """
        if now > self._at:
            self._left = min(self.burst, self._left + (now - self._at) * self.rate)
            self._at = now
        return 0.0 if self._left >= _WHOLE else (1.0 - self._left) / self.rate

    def take(self, now: float) -> float:
        """Lets an event pass, or returns the seconds until one may; 0 if it has passed.

        Args:
            now: monotonic seconds.
        """
        wait_s = self.wait_s(now)
        if not wait_s:
            self._left = max(0.0, self._left - 1.0)
        return wait_s

    @property
    def full(self) -> bool:
        """Whether as many events may pass as ever, as far as is known from the last call."""
        return self._left >= self.burst


class Use:
    """What one principal has asked for.

    Attributes:
        requests: that it has sent, of all kinds that a limit counts.
        refused: those of them that a limit or its roles refused.
        outstanding: its accepted requests for inference that have no reply yet. The router counts them: down with each
            reply.
    """

    __slots__ = ("_bucket", "_max_outstanding", "outstanding", "refused", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.refused = 0
        self.outstanding = 0
        self._max_outstanding: int | None = None
        self._bucket: TokenBucket | None = None

    def set_limits(self, max_outstanding: int | None, rate: float | None, now: float) -> None:
        """Sets its limits. A rate that stays the same goes on with what is left of it.

        Args:
            max_outstanding: requests for inference that it may have outstanding; None for any number.
            rate: requests that it may send in a second; None for any number.
            now: monotonic seconds.
        """
        self._max_outstanding = max_outstanding
        if rate is None:
            self._bucket = None
        elif self._bucket is None or self._bucket.rate != rate:
            self._bucket = TokenBucket(rate, max(1.0, rate), now)

    def charge(self, infer: bool, now: float, refusal: MultitowerError | None = None) -> MultitowerError | None:
        """Counts a request, and returns the error that it gets; None for none.

        Args:
            infer: whether it is one for inference. Others are not outstanding: they are answered at once.
            now: monotonic seconds.
            refusal: the error that it gets because of its roles, unless a limit refuses it before; None for none.
        """
        self.requests += 1
        error = self._limited(infer, now) or refusal
        if error is not None:
            self.refused += 1
        return error

    def _limited(self, infer: bool, now: float) -> MultitowerError | None:
        limit = self._max_outstanding
        if infer and limit is not None and self.outstanding >= limit:
            message = f"the principal has {self.outstanding} requests outstanding; its max_outstanding is {limit}"
            return make(Reason.QUEUE_FULL, message, limit="max_outstanding", retry_after_ms=OUTSTANDING_RETRY_MS)
        wait_s = self._bucket.take(now) if self._bucket is not None else 0.0
        if not wait_s:
            return None
        assert self._bucket is not None
        message = f"the principal has sent more requests than its rate of {self._bucket.rate:g} a second allows"
        retry_after_ms = max(LEAST_RETRY_MS, math.ceil(round(wait_s * 1000, 6)))
        return make(Reason.QUEUE_FULL, message, limit="rate", retry_after_ms=retry_after_ms)

    def to_json(self) -> dict[str, Any]:
        """The counts as `MT1:status` reports them."""
        return {"requests": self.requests, "refused": self.refused, "outstanding": self.outstanding}


class Uses:
    """What all principals have asked for.

    A principal that is removed and added again, or changed, goes on with its counts while requests of it are
    outstanding: neither can be used to get around a limit.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Use] = {}

    def set_principals(self, principals: Iterable[Principal], now: float) -> None:
        """Sets the principals with limits, and these limits.

        Args:
            principals: all of them.
            now: monotonic seconds.
        """
        kept: dict[str, Use] = {}
        for principal in principals:
            use = self._by_name.get(principal.name) or Use()
            use.set_limits(principal.max_outstanding, principal.rate, now)
            kept[principal.name] = use
        for name, use in self._by_name.items():
            if use.outstanding:
                kept.setdefault(name, use)
        self._by_name = kept

    def of(self, name: str) -> Use | None:
        """What a principal has asked for; None for a name that is none."""
        return self._by_name.get(name)
