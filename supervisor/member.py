"""What the fleet keeps: a process with its state, and a slot with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

from multitower.spec import ModelReport
from multitower.supervisor.exit_cause import ExitCause
from multitower.supervisor.placement import Placement
from multitower.supervisor.process import WorkerProcess
from multitower.supervisor.slot import Slot


@dataclass(slots=True, eq=False)
class Member:
    """One process of the fleet.

    Attributes:
        process: see `WorkerProcess`.
        place: the slot that it serves, or None for a spare.
        state: its last report's, `starting` before the first.
        kill_at: when it is killed, having been told to end; monotonic seconds.
        cause: how it ended, once it has.
        bury_at: when it is buried at the latest, once it has ended.
    """

    process: WorkerProcess
    place: Place | None = None
    state: str = "starting"
    kill_at: float | None = None
    cause: ExitCause | None = None
    bury_at: float = 0.0


@dataclass(slots=True, eq=False)
class Place:
    """A slot with what belongs to it.

    Attributes:
        slot: its state machine.
        placement: its device and its share of the host.
        member: its process, or None in between.
        models: what the current incarnation reported of its models.
        visible_devices: `CUDA_VISIBLE_DEVICES` as the current incarnation reads it itself.
        due: when its back-off ends, in monotonic seconds.
        away_since: when its last process died, to tell how long it was away.
        completed: rows answered by earlier incarnations.
    """

    slot: Slot
    placement: Placement
    member: Member | None = None
    models: tuple[ModelReport, ...] = ()
    visible_devices: str | None = None
    due: float | None = None
    away_since: float | None = None
    completed: int = 0

    @property
    def fields(self) -> dict[str, object]:
        """What stands on every line of the log about this slot's worker."""
        return {
            "slot": self.slot.number,
            "incarnation": self.slot.incarnation,
            "device": self.placement.device,
        }
