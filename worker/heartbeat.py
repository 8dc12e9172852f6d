"""The worker's sign of life: a thread that tells the supervisor how many calls of its models have begun."""

from __future__ import annotations

import contextlib
import os
import struct
import threading

from multitower.worker_wire import HEARTBEAT


class Heartbeat:
    """Writes a number of `worker_wire.HEARTBEAT` every so often, from construction on until the process ends.

    Args:
        descriptor: the writing end of a pipe; it is made non-blocking.
        seconds: from one heartbeat to the next.

    Attributes:
        calls: of models that have begun; the executors count them.
    """

    def __init__(self, descriptor: int, seconds: float) -> None:
        self.calls = 0
        self._descriptor = descriptor
        self._seconds = seconds
        os.set_blocking(descriptor, False)
        self._never = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        while True:
            # A full pipe: the supervisor does not run, and has old ones to read first.
            with contextlib.suppress(BlockingIOError):
                os.write(self._descriptor, struct.pack(HEARTBEAT, self.calls))
            self._never.wait(self._seconds)
