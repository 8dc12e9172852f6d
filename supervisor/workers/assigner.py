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
from .settings import FleetSettings
from .spares import Spares
from .worker_process import Member, Place

log = logging.getLogger("multitower.fleet")


class Hiring:
    """Gives slots their processes.

    Args:
        launcher: starts new ones.
        settings: see `FleetSettings`.
        rng: draws what is not to be the same for all.

    Attributes:
        spares: those that wait.
    """

    def __init__(self, launcher: Launcher, settings: FleetSettings, rng: random.Random) -> None:
        self._launcher = launcher
        self._rng = rng
        self._editions: dict[bytes, int] = {}
        self.spares = Spares(launcher, RestartBudget(settings.policy, rng))
        self.apply(settings)

    def apply(self, settings: FleetSettings) -> None:
        """Takes new settings for the processes that are to come."""
        self._launcher.heartbeat_s = settings.heartbeat_s
        self._launcher.import_tensorflow = any(model.path is not None for model in settings.models)
        self.spares.want(settings.spares)

    def give_work(
        self, place: Place, specs: tuple[ModelSpec, ...], placement: Placement, incarnation: int
    ) -> Member | None:
        """A process for the slot: the spare that is furthest, or a new one; None when there is no room for one."""
        fields = {**place.fields, "incarnation": incarnation, "device": placement.device}
        remembered = tuple(replace(spec, safe_rows=place.safe_rows.get(spec.name, 0)) for spec in specs)
        assignment = placement.assignment(place.slot.number, incarnation, remembered)
        member = self.spares.take()
        if member is not None:
            member.process.fields.clear()
            member.process.fields.update(fields, pid=member.process.pid)
            member.process.send([worker_wire.ASSIGN, assignment.to_json()])
            event(log, logging.INFO, "spare takes over", **member.process.fields)
        else:
            member = self._launcher.launch(f"mt-worker-{place.slot.number}", assignment, fields)
            if member is None:
                return None
            event(log, logging.INFO, "worker started", **member.process.fields)
        member.place = place
        member.editions = {spec.key: self._edition(spec) for spec in specs}
        member.luck = self._rng.random()
        return member

    def _edition(self, spec: ModelSpec) -> int:
        """A number for a model as it is configured now, equal as long as that is equal."""
        return self._editions.setdefault(spec.to_json(), len(self._editions))

    def close(self) -> None:
        """Gives back what starting processes took, after all have been buried."""
        self._launcher.close()
