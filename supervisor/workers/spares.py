"""The spares: processes that have imported what takes long, touched no device, and wait for a slot."""

from __future__ import annotations

import logging

from ..loop.log import event
from .launcher import Launcher
from .restart_budget import RestartBudget
from .slot import WorkerProcess

log = logging.getLogger("multitower.fleet")

RETRY_S = 1.0
"""Seconds until the next try when the system has no room for a process."""


class Spares:
    """Keeps a number of spares.

    Args:
        launcher: starts them.
        budget: how often they may die.

    Attributes:
        processes: the spares there are.
    """

    def __init__(self, launcher: Launcher, budget: RestartBudget) -> None:
        self.processes: list[WorkerProcess] = []
        self._launcher = launcher
        self._wanted = 0
        self._budget = budget
        self._due = 0.0

    def take(self) -> WorkerProcess | None:
        """A spare for a slot, the one that is furthest; it is no spare any more."""
        # One that has died may not have been buried yet.
        alive = [spare for spare in self.processes if spare.cause is None]
        spare = min(alive, key=lambda spare: spare.state != "idle", default=None)
        if spare is not None:
            self.processes.remove(spare)
        return spare

    def replenish(self, now: float) -> None:
        """Starts what is missing."""
        while len(self.processes) < self._wanted and now >= self._due:
            fields: dict[str, object] = {"spare": True}
            process = self._launcher.launch("mt-spare", None, fields)
            if process is None:
                self._due = now + RETRY_S
                return
            self.processes.append(process)
            event(log, logging.DEBUG, "spare started", **fields)

    def next_wake(self, now: float) -> float | None:
        """When `replenish` must be called, in monotonic seconds, or None when nothing is planned."""
        return self._due if len(self.processes) < self._wanted and self._due > now else None

    def want(self, number: int) -> None:
        """How many there are to be from now on; those that there are stay until a slot takes them."""
        self._wanted = number

    def resume(self, number: int) -> None:
        """Whoever asks for it has seen to what killed them: there are to be so many again."""
        self._budget.reset()
        self._due = 0.0
        self.want(number)

    def failed(self, process: WorkerProcess, cause: str | None) -> None:
        """A spare says that it can never serve: others could not either."""
        event(log, logging.ERROR, "spare failed: no more spares", pid=process.child.pid, cause=cause)
        self.want(0)

    def died(self, process: WorkerProcess, now: float) -> None:
        """A spare has ended by itself."""
        assert process.cause is not None  # it has been reaped
        delay = self._budget.died(now, ready_for_s=None)
        event(
            log,
            logging.WARNING,
            "spare died" if delay is not None else "spare died too often: no more spares",
            **process.child.fields,
            cause=process.told_cause,
            check=process.advice,
        )
        if delay is None:
            self.want(0)
        else:
            self._due = now + delay
