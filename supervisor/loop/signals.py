"""Signals as events of the loop: handlers only wake it."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Collection


class SignalInbox:
    """Collects signals from its construction to `close`. For the main thread.

    Args:
        numbers: the signals to collect.

    Attributes:
        descriptor: readable when signals have arrived.
    """

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        self._numbers = frozenset(numbers)
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self.descriptor = self._reading.fileno()
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, _ignore) for number in self._numbers}

    def read(self) -> list[signal.Signals]:
        """Returns the signals that have arrived, oldest first."""
        # The interpreter writes their numbers here at once, but calls handlers only between its own instructions, which
        # compiled code may delay for long.
        with contextlib.suppress(BlockingIOError):
            return [signal.Signals(number) for number in self._reading.recv(4096) if number in self._numbers]
        return []

    def close(self) -> None:
        """Restores the former handlers."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._reading.close()
        self._writing.close()


def ignore_reopening() -> None:
    """Ignores SIGUSR1 while no inbox collects it: before there is a file to open again, and after it was closed.

    Without a handler it ends the process. Call it first thing; `SignalInbox.close` restores that it is ignored.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _ignore(_number: int, _frame: object) -> None:
    """Handles a signal: the interpreter has written its number to the inbox already."""
