"""Finding processes for slots: a spare, or a new one.

A spare has imported what takes long, and waits without a device; a slot that needs a process takes one if there is any.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace

from multitower import worker_wire
from multitower.spec import ModelSpec

from ..loop.log import event
from ..machine.placement import Placement
from .launcher import Launcher
from .restart_budget import RestartBudget
from .settings import WorkerSettings
from .slot import Slot, WorkerProcess
from .spares import Spares

log = logging.getLogger("multitower.fleet")


class Assigner:
    """Gives slots their processes.

    Args:
        launcher: starts new ones.
        settings: see `FleetSettings`.
        rng: draws what is not to be the same for all.

    Attributes:
        spares: those that wait.
    """

    def __init__(self, launcher: Launcher, settings: WorkerSettings, rng: random.Random) -> None:
        self._launcher = launcher
        self._rng = rng
        self._generations: dict[bytes, int] = {}
        self.spares = Spares(launcher, RestartBudget(settings.policy, rng))
        self.apply(settings)

    def apply(self, settings: WorkerSettings) -> None:
        """Takes new settings for the processes that are to come."""
        self._launcher.heartbeat_s = settings.heartbeat_s
        self._launcher.import_tensorflow = any(model.path is not None for model in settings.models)
        self.spares.want(settings.spares)

    def give_work(
        self, slot: Slot, specs: tuple[ModelSpec, ...], placement: Placement, incarnation: int
    ) -> WorkerProcess | None:
        """A process for the slot: the spare that is furthest, or a new one; None when there is no room for one."""
        fields = {**slot.fields, "incarnation": incarnation, "device": placement.device}
        remembered = tuple(replace(spec, safe_rows=slot.safe_rows.get(spec.name, 0)) for spec in specs)
        assignment = placement.make_assignment(slot.number, incarnation, remembered)
        process = self.spares.take()
        if process is not None:
            process.child.fields.clear()
            process.child.fields.update(fields, pid=process.child.pid)
            process.child.connection.send([worker_wire.ASSIGN, assignment.to_json()])
            event(log, logging.INFO, "spare takes over", **process.child.fields)
        else:
            process = self._launcher.launch(f"mt-worker-{slot.number}", assignment, fields)
            if process is None:
                return None
            event(log, logging.INFO, "worker started", **process.child.fields)
        process.slot = slot
        process.generations = {spec.key: self._generation(spec) for spec in specs}
        process.replacement_jitter = self._rng.random()
        return process

    def _generation(self, spec: ModelSpec) -> int:
        """A number for a model as it is configured now, equal as long as that is equal."""
        return self._generations.setdefault(spec.to_json(), len(self._generations))

    def close(self) -> None:
        """Gives back what starting processes took, after all have been buried."""
        self._launcher.close()
