"""The worker's sign of life: a thread that tells the supervisor how many calls of its models have begun."""

from __future__ import annotations

import contextlib
import os
import threading

from multitower import worker_wire


class Counter:
    """Counts what one tower does.

    Attributes:
        calls: of models that have begun; the executors count them.
    """

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Heartbeat:
    """Writes a `worker_wire.heartbeat` every so often, from construction on until the process ends.

    Args:
        descriptor: the writing end of a pipe; it is made non-blocking.
        seconds: from one heartbeat to the next.

    Attributes:
        counters: one a tower.
    """

    def __init__(self, descriptor: int, seconds: float) -> None:
        self.counters = [Counter()]
        self._descriptor = descriptor
        self._seconds = seconds
        os.set_blocking(descriptor, False)
        self._never = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        while True:
            # A full pipe: the supervisor does not run, and has old ones to read first.
            with contextlib.suppress(BlockingIOError):
                os.write(self._descriptor, worker_wire.heartbeat([counter.calls for counter in self.counters]))
            self._never.wait(self._seconds)
