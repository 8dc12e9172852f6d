"""Audit: a line of the log and an event for each operation that changes something, once it has its outcome.

Who asked, from where, for what, and what came of it: also where it was refused. Refusals for lack of a role are
written at a bounded rate, since anybody who may connect can cause them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from multitower.errors import MultitowerError, Reason

from ..loop.history import EventHistory, EventKind
from .limits import TokenBucket

log = logging.getLogger("multitower.audit")

OK: Final = "ok"

REFUSED_AT_ONCE: Final = 10
REFUSED_PER_S: Final = 0.1
"""Lines for operations that were not allowed: so many at once after a pause, and then so many a second."""

MAX_WHAT: Final = 128
"""Characters of a name in a request that are written."""

_NOT_ALLOWED: Final = (Reason.FORBIDDEN, Reason.UNAUTHENTICATED)

Answer = TypeVar("Answer")


class Audit:
    """Writes who changed what. For the loop's thread.

    Args:
        history: gets the events.
        clock: returns monotonic seconds.
    """

    def __init__(self, history: EventHistory, clock: Callable[[], float] = time.monotonic) -> None:
        self._history = history
        self._clock = clock
        self._refused = TokenBucket(REFUSED_PER_S, REFUSED_AT_ONCE, clock())
        self._not_logged = 0

    def watch(
        self, operation: str, who: str, origin: str, header: Mapping[str, Any], done: Callable[[Answer], None]
    ) -> Callable[[Answer], None]:
        """Returns what to call instead of `done` with the answer to an operation: it writes the outcome before.

        Args:
            operation: what was asked for, such as `load`.
            who: the name of the principal, or of the local user.
            origin: where it was asked from.
            header: of the request.
            done: takes the answer.
        """
        what = described(header)

        def watched(answer: Answer) -> None:
            error = answer if isinstance(answer, MultitowerError) else None
            self._write(operation, who, origin, what, error)
            done(answer)

        return watched

    def note(
        self, operation: str, who: str, origin: str, header: Mapping[str, Any], error: MultitowerError | None
    ) -> None:
        """Writes the outcome of an operation.

        Args:
            operation: see `watch`.
            who: likewise.
            origin: likewise.
            header: likewise.
            error: that it was answered with; None if it was carried out.
        """
        self._write(operation, who, origin, described(header), error)

    def _write(
        self, operation: str, who: str, origin: str, what: Mapping[str, Any], error: MultitowerError | None
    ) -> None:
        not_logged = None
        if error is not None and error.reason in _NOT_ALLOWED:
            if self._refused.take(self._clock()):
                self._not_logged += 1
                return
            not_logged, self._not_logged = self._not_logged or None, 0
        outcome = OK if error is None else error.reason
        self._history.note(
            log,
            logging.INFO if error is None else logging.WARNING,
            EventKind.AUDIT,
            f"audit: {operation} by {who}: {outcome}",
            **what,
            operation=operation,
            principal=who,
            **{"from": origin or None},
            outcome=outcome,
            cause=None if error is None else error.message,
            not_logged=not_logged,
        )


def described(header: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a request concerns: its model and version, or its slot, as far as it names them."""
    found: dict[str, Any] = {}
    for key, field in (("model_name", "model"), ("model_version", "version")):
        value = header.get(key)
        if isinstance(value, str) and value:
            found[field] = value[:MAX_WHAT]
    slot = header.get("slot")
    if type(slot) is int:
        found["slot"] = slot
    if header.get("gateway") is True:
        found["gateway"] = True
    return found
