"""A gateway process from its start to its end: what it has reported, and when it counts as hanging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from multitower.durations import exact_duration

from .process import GatewayProcess
from .records import read_count, read_optional_count, read_statuses

START_S: Final = 30.0
"""Seconds that the gateway gets until it accepts connections."""

SILENCE_S: Final = 60.0
"""Seconds without a record after which the gateway counts as hanging; it writes one every 10 s at least."""


class GatewayState(StrEnum):
    """What the gateway does; `status` shows these words."""

    WAITING = "waiting"  # an address cannot be bound yet
    STARTING = "starting"  # the process runs, but does not accept connections yet
    READY = "ready"
    BACKOFF = "backoff"  # it has died, and is started again in a moment
    FAILED = "failed"  # it has died too often, and is not started again
    DRAINING = "draining"  # it answers what it has accepted, and ends
    STOPPED = "stopped"  # it has ended, since the daemon ends


@dataclass(slots=True)
class Counts:
    """What the gateway has counted since its process was started.

    Attributes:
        connections: of clients that are open.
        outstanding: requests that it has sent to the daemon and that have no answer yet.
        requests: answered requests.
        errors: those of them that were errors.
        received_bytes: bytes read from clients.
        sent_bytes: bytes sent to clients.
        by_status: answered requests, by interface and status.
        certificate_not_after: when its certificate expires, in seconds since 1970; None without one.
    """

    connections: int = 0
    outstanding: int = 0
    requests: int = 0
    errors: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    by_status: dict[tuple[str, str], int] = field(default_factory=dict)
    certificate_not_after: int | None = None

    def add_ended(self, other: Counts) -> None:
        """Adds what has happened in another process, but not what is going on in it."""
        self.requests += other.requests
        self.errors += other.errors
        self.received_bytes += other.received_bytes
        self.sent_bytes += other.sent_bytes
        for key, count in other.by_status.items():
            self.by_status[key] = self.by_status.get(key, 0) + count


@dataclass(slots=True, eq=False)
class GatewayRun:
    """A process, and what is known of it. Times in monotonic seconds.

    Attributes:
        process: the process.
        started_at: when it was started, later by the time in which the daemon did not run since.
        heard_at: of its last record, or of its start; likewise.
        counts: what it has counted.
        ready_at: since when it has accepted connections; None if it does not yet.
        killed_because: why it was killed; None if it was not.
        retired_by: when a process that is to end must have ended, likewise; None for the present one.
        reading: whether its records are read.
    """

    process: GatewayProcess
    started_at: float
    heard_at: float = field(init=False)
    counts: Counts = field(default_factory=Counts)
    ready_at: float | None = None
    killed_because: str | None = None
    retired_by: float | None = None
    reading: bool = True

    def __post_init__(self) -> None:
        self.heard_at = self.started_at

    def excuse_stall(self, seconds: float, now: float) -> None:
        """Discounts time in which the daemon did not run.

        Args:
            seconds: how long that was.
            now: monotonic seconds.
        """
        self.started_at = min(now, self.started_at + seconds)
        self.heard_at = min(now, self.heard_at + seconds)
        if self.retired_by is not None:
            self.retired_by += seconds

    def overdue(self, now: float) -> str | None:
        """Why the process must be killed: it hangs, or has not ended in time; None if it need not be.

        Args:
            now: monotonic seconds.
        """
        if self.killed_because is not None:
            return None
        if self.retired_by is not None:
            return "it did not end in time" if now >= self.retired_by else None
        if self.ready_at is None and now - self.started_at >= START_S:
            return f"it did not accept connections within {exact_duration(START_S)}"
        if now - self.heard_at >= SILENCE_S:
            return f"it hung: it has not reported for {exact_duration(SILENCE_S)}"
        return None

    def handle_record(self, record: Mapping[str, Any], now: float) -> None:
        """Takes what the process has reported.

        Args:
            record: one record.
            now: monotonic seconds.

        Raises:
            RecordError: a count in it is none.
        """
        self.heard_at = now
        if record["record"] == "ready" and self.ready_at is None:
            self.ready_at = now
        elif record["record"] == "statistics":
            self.counts.connections = read_count(record, "connections")
            self.counts.outstanding = read_count(record, "outstanding")
            self.counts.requests = read_count(record, "requests")
            self.counts.errors = read_count(record, "errors")
            self.counts.received_bytes = read_count(record, "received_bytes")
            self.counts.sent_bytes = read_count(record, "sent_bytes")
            self.counts.by_status = read_statuses(record)
            self.counts.certificate_not_after = read_optional_count(record, "certificate_not_after")
