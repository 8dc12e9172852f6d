"""What has happened to the daemon lately, as the status shows it: a bounded list of events that the log has too."""

from __future__ import annotations

import datetime
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .encodable import encodable
from .log import event

KEPT: Final = 200
"""Events that are kept. Each kind keeps at least its share of them; see `select_latest`."""

SHOWN: Final = 20
"""Events that `MT1:status` has where the request does not ask for more."""

MAX_CAUSE: Final = 500
"""Characters of a cause, or of another text of an event, that are kept; the log has all of it."""

MAX_TEXT: Final = 1500
"""Characters of all texts of one event together that are kept."""

_KEPT_FIELDS: Final = (
    "slot",
    "pid",
    "model",
    "version",
    "versions",
    "operation",
    "principal",
    "from",
    "outcome",
    "why",
    "cause",
    "next",
    "away_s",
)


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
    GATEWAY = "gateway"  # the gateway ended unexpectedly, could not be started, or serves again
    AUDIT = "audit"  # somebody changed something, or asked for it
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
        seq: its number; the first event of the daemon is 1.
    """

    kind: EventKind
    level: int
    message: str
    fields: dict[str, Any]
    at: float
    date: float
    seq: int

    def to_json(self, now: float) -> dict[str, Any]:
        """The event as `MT1:status` reports it.

        Args:
            now: monotonic seconds.
        """
        return {
            "seq": self.seq,
            "kind": self.kind.value,
            "level": logging.getLevelName(self.level).lower(),
            "time": iso_time(self.date),
            "age_s": round(max(0.0, now - self.at), 3),
            "message": self.message,
            **self.fields,
        }


def iso_time(date: float) -> str:
    """Returns a time as the status writes it: UTC in ISO 8601, such as `2026-12-01T08:12:40.330Z`.

    Args:
        date: seconds since 1970.
    """
    when = datetime.datetime.fromtimestamp(date, datetime.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventHistory:
    """The latest events: `KEPT` at most, and of each kind at least its share of them; see `add_event`."""

    def __init__(self) -> None:
        self._all: list[PastEvent] = []
        self._shown: list[PastEvent] = []
        self._count = 0

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
        self._count += 1
        past = PastEvent(
            kind, level, _cut(message, MAX_CAUSE), _kept(fields), time.monotonic(), time.time(), self._count
        )
        add_event(self._all, past, KEPT)
        add_event(self._shown, past, SHOWN)

    def events(self) -> Sequence[PastEvent]:
        """Returns all events that are kept, oldest first."""
        return self._all

    def latest(self) -> Sequence[PastEvent]:
        """Returns the latest events, `SHOWN` at most and of each kind at least its share of them, oldest first."""
        return self._shown


def add_event(events: list[PastEvent], past: PastEvent, limit: int) -> None:
    """Adds an event. If there are too many then, one of the others is removed.

    It is an event of the kind that has the most, of the slot that has the most of that kind, and the oldest of these.
    So each kind keeps `limit` divided by the number of kinds, if it has so many, and a worker that dies again and again
    displaces neither the other kinds nor the deaths of the other slots.

    Args:
        events: oldest first.
        past: the new one.
        limit: how many there may be.
    """
    events.append(past)
    if len(events) <= limit:
        return
    kinds = Counter(each.kind for each in events)
    most = max(kinds.values())
    # Of kinds, or slots, that have equally many, the one with the oldest event loses it.
    kind = next(each.kind for each in events if kinds[each.kind] == most)
    of_kind = [each for each in events if each.kind is kind]
    slots = Counter(each.fields.get("slot") for each in of_kind)
    most = max(slots.values())
    events.remove(next(each for each in of_kind if slots[each.fields.get("slot")] == most))


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an event that are kept; their texts together are bounded."""
    kept: dict[str, Any] = {}
    left = MAX_TEXT
    for name in _KEPT_FIELDS:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float):
            value = _cut(str(value), min(left, MAX_CAUSE))
            left -= len(value)
        kept[name] = value
    return kept


def _cut(text: str, length: int) -> str:
    text = encodable(text[: length + 1])  # some readers of JSON refuse half a pair
    return text if len(text) <= length else f"{text[: length - 1]}…" if length else ""
