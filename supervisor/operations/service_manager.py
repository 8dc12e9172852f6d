"""Messages to systemd or another service manager: ready, reloading, stopping, alive, a line of status.

The protocol is that of sd_notify(3): datagrams of `NAME=value` lines to the Unix socket that `NOTIFY_SOCKET` names.
Where the variable is not set, as in a shell or a container, everything here does nothing.

The event loop itself feeds the watchdog, with `watchdog` in each round and `next_wake` among its times: a loop that
hangs is restarted by the service manager, which a thread that feeds the watchdog could not promise.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping, Sequence
from typing import Final

from ..gateway.run import GatewayState
from ..gateway.supervision import Gateway
from ..lifecycle import Lifecycle
from ..loop.log import event
from .readiness import Readiness

log = logging.getLogger("multitower.notify")
daemon_log = logging.getLogger("multitower.daemon")

RETRY_S: Final = 0.5
"""Seconds from one attempt to the next while the service manager's socket is full."""

ANNOUNCE_S: Final = 0.25
"""Seconds from one announcement of the daemon's state to the next."""

EXTENSION_S: Final = 30.0
"""Seconds that the service manager is asked to wait while models load; asked again while they do."""

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_MAX_STATUS: Final = 1000  # characters; systemd drops messages over 4096 bytes, and `systemctl status` shows one line
_MAX_UNSENT: Final = 8  # messages kept for later: states replace each other, so the latest ones are enough
_FULL: Final = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS))


class ServiceManager:
    """Sends messages to the service manager. No method blocks or raises.

    A state (ready, status, reloading, stopping) that finds the socket full is kept, in order, and sent later by
    `watchdog`; one that finds no listener is dropped.

    Args:
        environment: the manager's variables are read and then removed, so that workers do not inherit them and send
            messages in the daemon's name.

    Attributes:
        failures: messages that could not be sent at the first attempt.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address, interval, pid = (environment.pop(name, "") for name in _VARIABLES)
        self.failures = 0
        self._socket: socket.socket | None = None
        self._interval_s: float | None = None
        self._feed_at = 0.0  # in the first round
        self._retry_at = 0.0
        self._unsent: deque[str] = deque(maxlen=_MAX_UNSENT)
        self._status: str | None = None
        self._extended_at: float | None = None
        if not address:
            return
        if address[0] not in "/@":
            event(log, logging.WARNING, "NOTIFY_SOCKET ignored: it is not a Unix socket", address=address)
            return
        self._address = f"\0{address[1:]}" if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        # As sd_watchdog_enabled(3): without WATCHDOG_PID it is meant for any process that reads it.
        if interval.isdecimal() and int(interval) > 0 and pid in ("", str(os.getpid())):
            self._interval_s = int(interval) / 1e6

    # States.

    def ready(self, status: str) -> None:
        """The daemon serves; also ends what `reloading` began.

        Args:
            status: a line for people, as `systemctl status` shows it.
        """
        self._send_state("READY=1", status)

    def status(self, text: str) -> None:
        """Sets the line for people; sends nothing when it is the same as before."""
        if text != self._status:
            self._send_state("", text)

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, whatever its outcome."""
        # The time is for Type=notify-reload, from systemd 253 on; older ones ignore it.
        self._send_state(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", None)

    def stopping(self, status: str) -> None:
        """The daemon drains and ends; systemd's TimeoutStopSec runs from here."""
        self._send_state("STOPPING=1", status)

    # Times.

    def extend(self, seconds: float) -> None:
        """Asks for time while the daemon starts, reloads or stops: the manager waits at least that long from now.

        It may be called in each round of the loop: it sends again only when half of the time has passed.
        """
        now = time.monotonic()
        if self._extended_at is None or now >= self._extended_at + seconds / 2:
            # If the socket is full the next call tries again.
            self._extended_at = now if self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}") else None

    def watchdog(self, now: float) -> None:
        """Feeds the watchdog when half of its time has passed, and sends unsent messages; call it in each round.

        Args:
            now: monotonic seconds.
        """
        if self._unsent and now >= self._retry_at:
            while self._unsent and self._send(self._unsent[0]):
                self._unsent.popleft()
            self._retry_at = now + RETRY_S
        if self._interval_s is not None and now >= self._feed_at:
            half = self._interval_s / 2
            self._feed_at = now + (half if self._send("WATCHDOG=1") else min(half, RETRY_S))

    def next_wake(self) -> float | None:
        """Returns when `watchdog` has something to do, in monotonic seconds; None when it never has."""
        times = [self._feed_at] if self._interval_s is not None else []
        if self._unsent:
            times.append(self._retry_at)
        return min(times, default=None)

    def close(self) -> None:
        """Closes the socket; every method does nothing from now on."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._interval_s = None
        self._unsent.clear()

    def _send_state(self, state: str, status: str | None) -> None:
        if self._socket is None:
            return
        lines = [state] if state else []
        if status is not None:
            self._status = status
            # Text behind a line break would be read as another assignment.
            lines.append(f"STATUS={' '.join(status.split())[:_MAX_STATUS]}")
        message = "\n".join(lines)
        if not self._unsent and self._send(message):
            return
        if not state and self._unsent and self._unsent[-1].startswith("STATUS="):
            self._unsent[-1] = message  # of several unsent status lines only the last one matters
        else:
            self._unsent.append(message)

    def _send(self, message: str) -> bool:
        """Sends a message; returns False if trying again can help, which it cannot where nothing listens."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                event(log, logging.WARNING, "service manager cannot be reached", cause=error, text=message)
            return error.errno not in _FULL
        return True


class Announcer:
    """Announces the daemon's state to the service manager, and to the log that every model is ready, or none.

    Args:
        lifecycle: the daemon's.
        readiness: knows which models are ready.
        service_manager: gets the messages.
        started: when the daemon started, in monotonic seconds.
        gateway: the daemon's; None where none is configured.
        ready_lines: lines to log once, when every model is ready and the gateway accepts connections.

    Attributes:
        due: when `tick` must be called, in monotonic seconds.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        readiness: Readiness,
        service_manager: ServiceManager,
        started: float,
        gateway: Gateway | None = None,
        ready_lines: Sequence[str] = (),
    ) -> None:
        self._lifecycle = lifecycle
        self._readiness = readiness
        self._service_manager = service_manager
        self._started = started
        self._gateway = gateway
        self._ready_lines = ready_lines
        self._logged_ready = self._logged_failed = False
        self._announced_ready = False
        self._reloading = False
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Announces the state, if it is time to.

        Args:
            now: monotonic seconds.
        """
        if now < self.due:
            return
        self.due = now + ANNOUNCE_S
        if not self._logged_ready and self._readiness.report()["ready"]:
            self._logged_ready = True
            event(daemon_log, logging.INFO, "daemon ready", after_s=round(now - self._started, 3))
        self._log_ready_lines()
        self._log_failure()
        summary = self._readiness.summary()
        if not self._announced_ready and self._readiness.serving:
            # Also when other models are waited for or have failed: the status has the causes.
            self._announced_ready = True
            self._service_manager.ready(summary)
        self._service_manager.status(summary)
        if not self._announced_ready or self._reloading or not self._lifecycle.running:
            self._service_manager.extend(EXTENSION_S)

    def _log_ready_lines(self) -> None:
        gateway = self._gateway
        if (
            self._ready_lines
            and (gateway is None or gateway.state is GatewayState.READY)
            and self._readiness.report()["ready"]
        ):
            for line in self._ready_lines:
                event(daemon_log, logging.INFO, line)
            self._ready_lines = ()

    def _log_failure(self) -> None:
        """Logs once that nothing is served, and that the daemon runs on nevertheless."""
        failed = self._readiness.all_failed
        if failed and not self._logged_failed:
            after = (
                "the daemon runs on and answers requests with the causes; `multitower load`, `restart` or `reload` "
                "tries again; with exit_when_failed: true it would exit with code 69"
            )
            event(daemon_log, logging.ERROR, "every slot has failed", next=after)
        self._logged_failed = failed

    def reload_began(self) -> None:
        """Announces that a reload begins."""
        self._reloading = True
        self._service_manager.reloading()

    def reload_ended(self) -> None:
        """Announces that a reload has ended, whatever its outcome."""
        self._reloading = False
        if self._announced_ready and self._lifecycle.running:
            self._service_manager.ready(self._readiness.summary())

    def drain_began(self) -> None:
        """Announces that the daemon drains, and then ends."""
        self._service_manager.stopping(self._readiness.summary())
