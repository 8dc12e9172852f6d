"""What has happened to the daemon lately, as the status shows it: a bounded list of events that the log has too."""

from __future__ import annotations

import datetime
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .log import event

KEPT_OF_A_KIND: Final = 20
"""Events of each kind that are kept, so that a worker that dies again and again displaces no other kind."""

MAX_CAUSE: Final = 500
"""Characters of a cause that are kept; the log has all of it."""

_KEPT_FIELDS: Final = ("slot", "pid", "model", "version", "versions", "why", "cause", "next", "away_s")


class EventKind(StrEnum):
    """What an event is about. Stable: programs may rely on it."""

    DEATH = "death"  # a worker or a spare ended unexpectedly
    RESTART = "restart"  # a slot serves again after a death
    SLOT_FAILED = "slot_failed"  # a slot is not restarted any more
    REPLACEMENT = "replacement"  # a worker was replaced on purpose, or could not be
    MODEL_REFUSED = "model_refused"  # a model or a version cannot be loaded
    QUARANTINE = "quarantine"  # requests of a model crash workers, and are refused
    RELOAD = "reload"  # the configuration was read again, with or without success
    MODEL = "model"  # an operator loaded or unloaded a model
    VERSION = "version"  # other versions or files of a model are served, or could not be


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One event.

    Attributes:
        kind: what it is about.
        level: how bad it is: a level of `logging`.
        message: what happened, as in the log.
        fields: what it concerns, and why it happened; only what is known.
        at: when it happened, in monotonic seconds.
        date: when it happened, in seconds since 1970.
    """

    kind: EventKind
    level: int
    message: str
    fields: dict[str, Any]
    at: float
    date: float

    def to_json(self, now: float) -> dict[str, Any]:
        """The event as `MT1:status` reports it.

        Args:
            now: monotonic seconds.
        """
        when = datetime.datetime.fromtimestamp(self.date, datetime.UTC)
        return {
            "kind": self.kind.value,
            "level": logging.getLevelName(self.level).lower(),
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "age_s": round(max(0.0, now - self.at), 3),
            "message": self.message,
            **self.fields,
        }


class EventHistory:
    """The latest events of each kind."""

    def __init__(self) -> None:
        self._of_kind: dict[EventKind, deque[PastEvent]] = {}

    def note(self, logger: logging.Logger, level: int, kind: EventKind, message: str, **fields: Any) -> None:
        """Logs an event as `event` does, and keeps it, whatever level is logged.

        Args:
            logger: the logger.
            level: a level of `logging`.
            kind: what the event is about.
            message: what happened.
            fields: of the log line; some of them are kept.
        """
        event(logger, level, message, **fields)
        self.keep(level, kind, message, **fields)

    def keep(self, level: int, kind: EventKind, message: str, **fields: Any) -> None:
        """Keeps an event that is logged elsewhere; see `note`."""
        kept = {name: _short(fields[name]) for name in _KEPT_FIELDS if fields.get(name) is not None}
        events = self._of_kind.setdefault(kind, deque(maxlen=KEPT_OF_A_KIND))
        events.append(PastEvent(kind, level, message, kept, time.monotonic(), time.time()))

    def events(self) -> Sequence[PastEvent]:
        """The events, oldest first."""
        return sorted((each for events in self._of_kind.values() for each in events), key=lambda each: each.at)


def _short(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    text = str(value)
    return text if len(text) <= MAX_CAUSE else f"{text[: MAX_CAUSE - 1]}…"
