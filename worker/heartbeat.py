"""Signs of life that the supervisor reads without asking: heartbeats on a pipe, and what was begun last in memory.

The heartbeats tell a hanging worker from a busy one. What is in memory tells, after a crash, which batch was running,
or which model was being loaded.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
from collections.abc import Callable

from multitower import worker_wire
from multitower.load_step import LoadStep, clear_step


class CallCounter:
    """Counts the calls of models on one tower.

    Attributes:
        calls: calls that have begun.
    """

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Heartbeat:
    """Writes a `worker_wire.heartbeat` at regular intervals, in a thread of its own, until the process ends.

    Args:
        descriptor: the writing end of a pipe; it is made non-blocking.
        seconds: from one heartbeat to the next.

    Attributes:
        counters: one a tower.
    """

    def __init__(self, descriptor: int, seconds: float) -> None:
        self.counters = [CallCounter()]
        self._descriptor = descriptor
        self._seconds = seconds
        os.set_blocking(descriptor, False)
        self._never = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        while True:
            # A full pipe: the supervisor is stopped, and will read older heartbeats first.
            with contextlib.suppress(BlockingIOError):
                os.write(self._descriptor, worker_wire.heartbeat([counter.calls for counter in self.counters]))
            self._never.wait(self._seconds)


class BegunBatches:
    """Memory that is shared with the supervisor: the id of the batch that each tower began last.

    Args:
        descriptor: of a file in memory of `worker_wire.BEGUN_BYTES`.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, 0)  # all of it

    def writer(self, tower: int) -> Callable[[int], None]:
        """A function that stores a batch id for a tower."""
        position = tower * struct.calcsize(worker_wire.BEGUN)

        def write(batch_id: int) -> None:
            struct.pack_into(worker_wire.BEGUN, self._page, position, batch_id)

        return write


class LoadSteps:
    """Memory that is shared with the supervisor: what this process is about to do while it loads.

    Args:
        descriptor: of a file in memory; None to write nowhere.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor

    def begin(self, step: LoadStep) -> None:
        """Writes a step, before it is done."""
        if self._descriptor is not None:
            step.write(self._descriptor)

    def end(self) -> None:
        """Writes that nothing is being loaded any more."""
        if self._descriptor is not None:
            clear_step(self._descriptor)
