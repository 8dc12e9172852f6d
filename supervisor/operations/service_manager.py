"""What systemd, or another service manager, is told of the daemon: ready, reloading, stopping, alive, a line of status.

The protocol is that of sd_notify(3): datagrams of `NAME=value` lines to the Unix socket that `NOTIFY_SOCKET` names.
Where the variable is not set, as in a shell or a container, everything here does nothing.

The daemon's loop feeds the watchdog itself, with `watchdog` each time round and `next_wake` among its times: a loop
that hangs is then restarted, which no thread of its own could promise.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Final

from ..loop.log import event

log = logging.getLogger("multitower.notify")

RETRY_S: Final = 0.5
"""How long the manager, whose socket was full, is left alone."""

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_MAX_STATUS: Final = 1000  # characters; systemd drops messages over 4096 bytes, and `systemctl status` shows one line
_UNSENT: Final = 8  # messages kept for later: states replace each other, so the latest ones tell all
_FULL: Final = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS))


class ServiceManager:
    """Tells the service manager. No method ever blocks or raises.

    A state (ready, status, reloading, stopping) that finds the socket full is kept, in order, and sent later by
    `watchdog`; one that finds nobody there is lost.

    Args:
        environment: where the manager's variables are read and then removed, so that workers do not inherit them: they
            would speak in the daemon's name.

    Attributes:
        failures: messages that could not be sent at the first attempt.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address, interval, pid = (environment.pop(name, "") for name in _VARIABLES)
        self.failures = 0
        self._socket: socket.socket | None = None
        self._interval_s: float | None = None
        self._feed_at = 0.0  # the first time round
        self._retry_at = 0.0
        self._unsent: deque[str] = deque(maxlen=_UNSENT)
        self._status: str | None = None
        self._extended_at: float | None = None
        if not address:
            return
        if address[0] not in "/@":
            event(log, logging.WARNING, "the service manager is not told: not a Unix socket", address=address)
            return
        self._address = f"\0{address[1:]}" if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        # As sd_watchdog_enabled(3): without WATCHDOG_PID it is meant for whoever reads it.
        if interval.isdecimal() and int(interval) > 0 and pid in ("", str(os.getpid())):
            self._interval_s = int(interval) / 1e6

    @property
    def enabled(self) -> bool:
        """Whether there is a service manager to be told."""
        return self._socket is not None

    # States.

    def ready(self, status: str) -> None:
        """The daemon serves; also ends what `reloading` began.

        Args:
            status: a line for people, as `systemctl status` shows it.
        """
        self._state("READY=1", status)

    def status(self, text: str) -> None:
        """Sets the line for people; sends nothing when it is the same as before."""
        if text != self._status:
            self._state("", text)

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, whatever came of it."""
        # The time is for Type=notify-reload, from systemd 253 on; older ones ignore it.
        self._state(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", None)

    def stopping(self, status: str) -> None:
        """The daemon drains and ends; systemd's TimeoutStopSec runs from here."""
        self._state("STOPPING=1", status)

    # Times.

    def extend(self, seconds: float) -> None:
        """Asks for time while the daemon starts, reloads or stops: the manager waits at least so long from now.

        May be called each time round the loop: it is sent again when half of the time has passed.
        """
        now = time.monotonic()
        if self._extended_at is None or now >= self._extended_at + seconds / 2:
            # If the socket is full the next call tries again.
            self._extended_at = now if self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}") else None

    def watchdog(self, now: float) -> None:
        """Feeds the watchdog when half of its time has passed, and sends what is unsent; call it each time round.

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
        """When `watchdog` has something to do, in monotonic seconds; None when it never has."""
        times = [self._feed_at] if self._interval_s is not None else []
        if self._unsent:
            times.append(self._retry_at)
        return min(times, default=None)

    def close(self) -> None:
        """Gives the socket back; everything does nothing from now on."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._interval_s = None
        self._unsent.clear()

    def _state(self, state: str, status: str | None) -> None:
        if self._socket is None:
            return
        lines = [state] if state else []
        if status is not None:
            self._status = status
            # What follows a line break would be read as another assignment.
            lines.append(f"STATUS={' '.join(status.split())[:_MAX_STATUS]}")
        message = "\n".join(lines)
        if not self._unsent and self._send(message):
            return
        if not state and self._unsent and self._unsent[-1].startswith("STATUS="):
            self._unsent[-1] = message  # of several lines that nobody has seen yet the last one counts
        else:
            self._unsent.append(message)

    def _send(self, message: str) -> bool:
        """Sends a message; False when it is worth trying again, which it is not when nobody listens."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                event(log, logging.WARNING, "the service manager cannot be told", cause=error, text=message)
            return error.errno not in _FULL
        return True
