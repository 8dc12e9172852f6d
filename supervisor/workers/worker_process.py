"""What the fleet keeps: a process with its state, and a slot with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from multitower.spec import NO_SOCKET, ModelReport, ModelSpec

from ..machine.placement import Placement
from ..routing.router import Channel
from .exit_cause import ExitCause
from .hang_detector import Pulse, Verdict
from .process import WorkerProcess
from .slot import Slot


@dataclass(slots=True, eq=False)
class Member:
    """One process of the fleet.

    Attributes:
        process: see `WorkerProcess`.
        pulse: its signs of life.
        place: the slot that it serves, or None for a spare.
        channel: its place in the router, once it serves.
        state: its last report's, `starting` before the first.
        verdict: that it hangs, or has lost its device, once that has been found.
        device_seen: its device was there while it served.
        kill_at: when it is killed, having been told to end; monotonic seconds.
        cause: how it ended, once it has.
        bury_at: when it is buried at the latest, once it has ended.
        luck: 0 to 1, its own: how early or late it is replaced where that is not to happen to all at once.
        recycle_at: it is not asked to be replaced before; monotonic seconds.
        editions: a number for each version of a model that it loads; see `serving.Served`.
    """

    process: WorkerProcess
    pulse: Pulse
    place: Place | None = None
    channel: Channel | None = None
    state: str = "starting"
    verdict: Verdict | None = None
    device_seen: bool = False
    kill_at: float | None = None
    cause: ExitCause | None = None
    bury_at: float = 0.0
    luck: float = 0.5
    recycle_at: float = 0.0
    editions: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def told_cause(self) -> str:
        """How it ended, for people."""
        if self.verdict is not None:
            return str(self.verdict)
        return f"{self.cause}: it could not make its socket in runtime_dir" if self._mute else str(self.cause)

    @property
    def advice(self) -> str | None:
        """What to check, once it has ended."""
        if self.cause is None or self.verdict is not None:
            return None
        if self._mute:
            return "is the disk of runtime_dir full, out of inodes, read-only or gone? See its output"
        return self.cause.advice

    @property
    def _mute(self) -> bool:
        # A model may exit with any code, but only after the first report.
        return self.state == "starting" and self.cause is not None and self.cause.code == NO_SOCKET


@dataclass(slots=True, eq=False)
class Place:
    """A slot with what belongs to it.

    Attributes:
        slot: its state machine.
        placement: its device and its share of the host.
        specs: the models that its next process loads.
        member: its process, or None in between.
        successor: a process that loads to take over from `member`, or None.
        models: what the current incarnation reported of its models.
        refused: what the process that was to take over last could not load of them.
        mended: an operator has asked for a new process: each of its models is to load, those that did not before too.
        visible_devices: `CUDA_VISIBLE_DEVICES` as the current incarnation reads it itself.
        safe_rows: rows for which device memory suffices, by model, where it did not for more.
        due: when its back-off ends, in monotonic seconds.
        away_since: when its last process died, to tell how long it was away.
        completed: rows answered by earlier incarnations.
    """

    slot: Slot
    placement: Placement
    specs: tuple[ModelSpec, ...]
    member: Member | None = None
    successor: Member | None = None
    models: tuple[ModelReport, ...] = ()
    refused: tuple[ModelReport, ...] = ()
    mended: bool = False
    visible_devices: str | None = None
    safe_rows: dict[str, int] = field(default_factory=dict)
    due: float | None = None
    away_since: float | None = None
    completed: int = 0

    @property
    def channel(self) -> Channel | None:
        """Its process's place in the router, while it serves."""
        return self.member.channel if self.member is not None else None

    def serves(self, model: str) -> bool:
        """Its process serves the model."""
        return self.channel is not None and model in self.channel.worker.serves

    @property
    def fields(self) -> dict[str, object]:
        """What stands on every line of the log about this slot's worker."""
        return {
            "slot": self.slot.number,
            "incarnation": self.slot.incarnation,
            "device": self.placement.device,
        }
