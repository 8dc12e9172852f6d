"""The spares: processes that have imported TensorFlow, use no device, and wait for a slot."""

from __future__ import annotations

import logging

from ..loop.history import EventHistory, EventKind
from ..loop.log import event
from .launcher import Launcher
from .restart_budget import RestartBudget, RestartPolicy
from .shortage import StartFailure
from .slot import WorkerProcess

log = logging.getLogger("multitower.manager")

RETRY_S = 1.0
"""Seconds until the next try when a spare could not be started."""


class Spares:
    """Keeps a number of spares.

    Args:
        launcher: starts them.
        budget: limits how often they may die.
        history: gets their deaths.

    Attributes:
        processes: the spares.
    """

    def __init__(self, launcher: Launcher, budget: RestartBudget, history: EventHistory) -> None:
        self.processes: list[WorkerProcess] = []
        self._launcher = launcher
        self._budget = budget
        self._history = history
        self._target = 0
        self._start_at = 0.0

    def pop(self) -> WorkerProcess | None:
        """Removes and returns the spare that is most advanced; None when no usable one is left."""
        usable = [spare for spare in self.processes if spare.usable]
        spare = min(usable, key=lambda spare: spare.state != "idle", default=None)
        if spare is not None:
            self.processes.remove(spare)
        return spare

    def replenish(self, now: float) -> None:
        """Starts the spares that are missing."""
        while len(self.processes) < self._target and now >= self._start_at:
            self._start_at = now + RETRY_S  # also if the launch raises
            fields: dict[str, object] = {"spare": True}
            process = self._launcher.launch("mt-spare", None, fields)
            if isinstance(process, StartFailure):
                return
            self._start_at = now
            self.processes.append(process)
            event(log, logging.DEBUG, "spare started", **fields)

    def next_wake(self, now: float) -> float | None:
        """When `replenish` must be called, in monotonic seconds; None when no start is planned."""
        return self._start_at if len(self.processes) < self._target and self._start_at > now else None

    def set_target(self, number: int) -> None:
        """Sets how many spares are kept from now on; superfluous ones stay until slots take them."""
        self._target = number

    def set_policy(self, policy: RestartPolicy) -> None:
        """Applies a new restart policy from the next death on."""
        self._budget.policy = policy

    def resume(self, number: int) -> None:
        """Keeps so many spares again, after an operator has removed the cause of earlier deaths."""
        self._budget.reset()
        self._start_at = 0.0
        self.set_target(number)

    def handle_failure(self, process: WorkerProcess, cause: str | None) -> None:
        """Keeps no more spares, since one reported that it can never serve; others could not either."""
        event(log, logging.ERROR, "spare failed: no more spares", pid=process.child.pid, cause=cause)
        self.set_target(0)

    def handle_death(self, process: WorkerProcess, now: float) -> None:
        """Removes a spare that has ended without having been told to, and plans the next start."""
        self.processes.remove(process)
        delay = self._budget.spend(now, ready_for_s=None)
        self._history.note(
            log,
            logging.WARNING,
            EventKind.DEATH,
            "spare died" if delay is not None else "spare died too often: no more spares",
            **process.child.fields,
            cause=process.exit_description,
            check=process.exit_advice,
        )
        if delay is None:
            self.set_target(0)
        else:
            self._start_at = now + delay
