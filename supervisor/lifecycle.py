"""The daemon's own lifecycle: starting, running, draining, stopping. Pure.

The daemon owns the one `Lifecycle` and changes it; orders, the version watch, readiness and the status only read it.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import Final

REPEAT_S: Final = 1.0
"""A signal that comes within this many seconds of the first one belongs to the same request to stop.

GNU `timeout` signals its child and then its process group, so one request arrives as two signals.
"""


class LifecycleState(StrEnum):
    """What the daemon does; `status` shows these words."""

    STARTING = "starting"  # the endpoints are bound, but nothing is read from them yet
    RUNNING = "running"
    DRAINING = "draining"  # new requests are refused, accepted ones are answered
    STOPPING = "stopping"  # every request is answered, the workers are ended


class StopRequest(Enum):
    """What a signal that asks the daemon to stop means."""

    DRAIN = auto()  # the first one: answer what was accepted, then end
    REPEATED = auto()  # the same request again, see `REPEAT_S`: nothing changes
    FORCE = auto()  # a second request: end at once


class Lifecycle:
    """Where the daemon is between its start and its end.

    Args:
        state: the state to begin with.

    Attributes:
        state: the current state.
        forced: a second request to stop has come: the daemon ends at once.
        drain_by: when draining ends at the latest, in monotonic seconds; None while the daemon does not drain.
    """

    def __init__(self, state: LifecycleState = LifecycleState.STARTING) -> None:
        self.state = state
        self.forced = False
        self.drain_by: float | None = None
        self._stop_requested_at: float | None = None

    @property
    def running(self) -> bool:
        """Requests and orders are accepted."""
        return self.state is LifecycleState.RUNNING

    def start(self) -> None:
        """The daemon serves from now on; no-op if it has been asked to stop already."""
        if self.state is LifecycleState.STARTING:
            self.state = LifecycleState.RUNNING

    def request_stop(self, now: float, drain_timeout_s: float) -> StopRequest:
        """Records a request to stop: the first one begins the drain, a second one sets `forced`.

        Args:
            now: monotonic seconds.
            drain_timeout_s: the time for answering what was accepted, in seconds.
        """
        if self._stop_requested_at is None:
            self._stop_requested_at = now
            self.state = LifecycleState.DRAINING
            self.drain_by = now + drain_timeout_s
            return StopRequest.DRAIN
        if now - self._stop_requested_at < REPEAT_S:
            return StopRequest.REPEATED
        self.forced = True
        return StopRequest.FORCE

    def end_drain(self) -> None:
        """Every request is answered: the workers can be ended."""
        self.state = LifecycleState.STOPPING
        self.drain_by = None
