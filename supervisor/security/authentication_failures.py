"""Failed authentications: counted for the metrics, and logged at a bounded rate."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Final

from ..loop.log import event
from .principal_limits import TokenBucket

log = logging.getLogger("multitower.security")

LOGGED_AT_ONCE: Final = 10
LOGGED_PER_S: Final = 0.1
"""Lines of the log for failed authentications: so many at once after a pause, and then so many a second."""

MAX_SOURCE: Final = 128
"""Characters of a source that are logged."""


class Failure(StrEnum):
    """Why somebody was not authenticated. Labels of a metric: their number is bounded."""

    NO_CREDENTIALS = "no_credentials"  # neither a key, a token nor a certificate
    MALFORMED_TOKEN = "malformed_token"  # no `NAME.SECRET`
    UNKNOWN_PRINCIPAL = "unknown_principal"  # no principal of this name has a token
    WRONG_TOKEN = "wrong_token"  # the principal's hashes do not match
    UNKNOWN_CERTIFICATE = "unknown_certificate"  # a valid client certificate whose name is no principal's
    UNKNOWN_KEY = "unknown_key"  # a CURVE key of no principal
    TOO_MANY = "too_many"  # not examined: too many credentials of this source, or of all, were wrong


class Failures:
    """Counts and logs failed authentications. For the loop's thread.

    Args:
        now: monotonic seconds.

    Attributes:
        counts: by the interface that they came by, and why they failed.
    """

    def __init__(self, now: float) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._bucket = TokenBucket(LOGGED_PER_S, LOGGED_AT_ONCE, now)
        self._not_logged = 0

    def add(self, interface: str, failure: Failure, source: str, now: float, principal: str | None = None) -> None:
        """Counts a failure, and logs it unless too many have been logged lately.

        Args:
            interface: by which it came: `mt1`, `http`, `grpc` or another name that is no choice of a client.
            failure: why it failed.
            source: where it came from: the address and the port of the client, as far as it is known.
            now: monotonic seconds.
            principal: who was claimed; only the name of a real principal. Anything else may be a part of a secret that
                was sent in the wrong place.
        """
        key = (interface, failure.value)
        self.counts[key] = self.counts.get(key, 0) + 1
        if self._bucket.take(now):
            self._not_logged += 1
            return
        not_logged, self._not_logged = self._not_logged or None, 0
        fields = {
            "interface": interface,
            "from": source[:MAX_SOURCE] or None,
            "reason": failure.value,
            "principal": principal,
        }
        event(log, logging.WARNING, "authentication failed", **fields, not_logged=not_logged)
