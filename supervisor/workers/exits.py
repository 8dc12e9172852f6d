"""Processes that end: told to, found to hang, or dead; each is seen out until nothing of it is left to read.

The fleet (`fleet.py`) says who is to end and who has died, and asks at each tick whom it can bury.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from multitower import worker_wire

from ..loop.log import event
from .slot import WorkerProcess

log = logging.getLogger("multitower.fleet")

STOP_S = 5.0
"""Seconds that a worker has to end after it was told to; then it is killed."""

LAST_WORDS_S = 0.25
"""Seconds to wait for a dead worker's channel to close; longer only if a child of it holds the channel open."""

STACKS_S = 0.5
"""Seconds that a worker which hangs has to write its Python stacks before it is killed."""


class Exits:
    """The processes that end.

    Args:
        unwatch: is told of each dead one, before its sockets are closed.

    Attributes:
        processes: those that were told to end, and the dead that are not yet buried.
    """

    def __init__(self, unwatch: Callable[[WorkerProcess], None]) -> None:
        self.processes: list[WorkerProcess] = []
        self._unwatch = unwatch

    def tell(self, process: WorkerProcess, now: float) -> None:
        """Tells a process to end, and kills it when it does not, or when it has nothing to finish."""
        if process.cause is not None or process in self.processes:
            return
        self.processes.append(process)
        if process.state in ("ready", "failed", "idle"):
            process.child.connection.send([worker_wire.STOP])
            process.kill_at = now + STOP_S
        else:
            process.child.kill()

    def condemn(self, process: WorkerProcess, now: float) -> None:
        """The process hangs or is of no use: it is killed, once it has had the time to write its stacks."""
        process.kill_at = now + STACKS_S if process.verdict is not None and process.verdict.stacks else now
        if process not in self.processes:
            self.processes.append(process)

    def died(self, process: WorkerProcess, now: float) -> None:
        """The process has ended; its answers may still lie in its channel."""
        process.cause = process.child.reap()
        process.bury_at = now + LAST_WORDS_S
        if process not in self.processes:
            self.processes.append(process)

    def due(self, now: float) -> list[WorkerProcess]:
        """Kills those whose time is over, and returns the dead that can be buried."""
        dead: list[WorkerProcess] = []
        for process in self.processes:
            if process.cause is not None:
                if process.child.connection.disconnected or now >= process.bury_at:
                    dead.append(process)
            elif process.kill_at is not None and now >= process.kill_at:
                process.kill_at = None
                if process.verdict is None:
                    event(log, logging.WARNING, "worker does not end: killed", **process.child.fields)
                process.child.kill()
        return dead

    def times(self) -> list[float]:
        """When `due` must be called, in monotonic seconds."""
        moments = (process.bury_at if process.cause is not None else process.kill_at for process in self.processes)
        return [moment for moment in moments if moment is not None]

    def bury(self, process: WorkerProcess) -> None:
        """Frees a dead process, which has been reaped, and whose last messages have been read."""
        self.processes.remove(process)
        self._unwatch(process)
        process.child.close()
