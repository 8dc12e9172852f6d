"""Audit: a line of the log and an event for each operation that changes something, once it has its outcome.

It says who asked, from where, for what, and what the outcome was, also if it was refused. Refusals for lack of a role
are written at a bounded rate, since anybody who may connect can cause them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from multitower.errors import MultitowerError, Reason

from ..config.principals import ANONYMOUS
from ..loop.history import EventHistory, EventKind
from .principal_limits import TokenBucket

log = logging.getLogger("multitower.audit")

OK: Final = "ok"

REFUSED_AT_ONCE: Final = 10
REFUSED_PER_S: Final = 0.1
"""Lines for operations that were not allowed, for each asker: so many at once after a pause, then so many a second."""

STRANGERS_AT_ONCE: Final = 100
STRANGERS_PER_S: Final = 1.0
"""The same for all senders together of which only an address or a key is known: one sender may have many of these."""

MAX_ASKERS: Final = 1024
"""Senders with recent refusals that are counted one by one; further ones count together, as strangers."""

MAX_WHAT: Final = 128
"""Characters of a name in a request that are written."""

MAX_SLOT: Final = (1 << 31) - 1
"""The largest number of a slot that is written: readers of the status need not take larger ones for numbers."""

_NOT_TAKEN: Final = (Reason.FORBIDDEN, Reason.UNAUTHENTICATED, Reason.KIND_UNKNOWN, Reason.QUEUE_FULL)
"""Outcomes that anybody may cause who can connect."""


class _Refusals:
    """What was refused to one who asks.

    Attributes:
        bucket: of its lines.
        not_logged: refusals since its last line.
    """

    __slots__ = ("bucket", "not_logged")

    def __init__(self, now: float) -> None:
        self.bucket = TokenBucket(REFUSED_PER_S, REFUSED_AT_ONCE, now)
        self.not_logged = 0


class Audit:
    """Writes who changed what. For the loop's thread.

    Args:
        history: gets the events.
        clock: returns monotonic seconds.
    """

    def __init__(self, history: EventHistory, clock: Callable[[], float] = time.monotonic) -> None:
        self._history = history
        self._clock = clock
        self._refused: dict[str, _Refusals] = {}
        self._strangers = TokenBucket(STRANGERS_PER_S, STRANGERS_AT_ONCE, clock())
        self._strangers_not_logged = 0

    def note(self, operation: str, who: str, origin: str, header: Mapping[str, Any], answer: object) -> None:
        """Writes the outcome of an operation.

        Args:
            operation: what was asked for, such as `load`.
            who: the name of the principal, or of the local user.
            origin: where it was asked from.
            header: of the request.
            answer: to it; an error if it was not carried out.
        """
        error = answer if isinstance(answer, MultitowerError) else None
        not_logged = None
        if error is not None and error.reason in _NOT_TAKEN:
            not_logged = self._count_refusal(who, origin)
            if not_logged is None:
                return
        outcome = OK if error is None else error.reason
        self._history.note(
            log,
            logging.INFO if error is None else logging.WARNING,
            EventKind.AUDIT,
            f"audit: {operation} by {who}: {outcome}",
            **described(header),
            **changed_principals(answer),
            operation=operation,
            principal=who,
            **{"from": origin or None},
            outcome=outcome,
            cause=None if error is None else error.message,
            not_logged=not_logged or None,
        )

    def _count_refusal(self, who: str, origin: str) -> int | None:
        """Counts a refusal. Each sender has a bucket, so that the refusals of one do not hide those of another.

        Returns:
            How many were not written since the last one that was; None if this one is not to be written either.
        """
        now = self._clock()
        known = who != ANONYMOUS
        asker = who if known else f"{ANONYMOUS} {origin}"
        refusals = self._refused.get(asker)
        if refusals is None and len(self._refused) >= MAX_ASKERS:
            self._forget_quiet_ones(now)
        if refusals is None and len(self._refused) < MAX_ASKERS:
            refusals = self._refused[asker] = _Refusals(now)
        if refusals is not None and refusals.bucket.take(now):
            refusals.not_logged += 1
            return None
        if (refusals is None or not known) and self._strangers.take(now):
            self._strangers_not_logged += 1
            return None
        not_logged = 0
        if refusals is not None:
            not_logged, refusals.not_logged = refusals.not_logged, 0
        if refusals is None or not known:
            not_logged, self._strangers_not_logged = not_logged + self._strangers_not_logged, 0
        return not_logged

    def _forget_quiet_ones(self, now: float) -> None:
        for asker, refusals in list(self._refused.items()):
            refusals.bucket.wait_s(now)
            if refusals.bucket.full and not refusals.not_logged:
                del self._refused[asker]


def changed_principals(answer: object) -> dict[str, Any]:
    """Returns the principals that a reload has added, removed or changed, as far as it has."""
    details = answer.details if isinstance(answer, MultitowerError) else answer
    principals = details.get("principals") if isinstance(details, Mapping) else None
    if not isinstance(principals, Mapping):
        return {}
    changes = {f"principals_{key}": principals.get(key) for key in ("added", "removed", "changed")}
    return {key: ",".join(names)[:MAX_WHAT] for key, names in changes.items() if names}


def described(header: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a request concerns: its model and version, or its slot, as far as it names them."""
    found: dict[str, Any] = {}
    for key, field in (("model_name", "model"), ("model_version", "version")):
        value = header.get(key)
        if isinstance(value, str) and value:
            found[field] = value[:MAX_WHAT]
    slot = header.get("slot")
    if type(slot) is int and 0 <= slot <= MAX_SLOT:
        found["slot"] = slot
    for key in ("gateway", "dry_run"):
        if header.get(key) is True:
            found[key] = True
    return found
