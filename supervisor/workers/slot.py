"""What the fleet keeps: a process with its state, and a slot with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from multitower.spec import NO_SOCKET, ModelReport, ModelSpec

from ..machine.placement import Placement
from ..routing.routes import Route
from .child_process import ChildProcess
from .exit_cause import ExitCause
from .hang_detector import HangDetector, Verdict
from .restart_budget import RestartBudget
from .slot_state_machine import SlotStateMachine, State


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """One process of the fleet.

    Attributes:
        child: see `WorkerProcess`.
        hang_detector: judges from its heartbeats whether it hangs.
        slot: the slot that it serves, or None for a spare.
        route: its place in the router, once it serves.
        state: its last report's, `starting` before the first.
        verdict: that it hangs, or has lost its device, once that has been found.
        device_seen: its device was there while it served.
        kill_at: when it is killed, having been told to end; monotonic seconds.
        cause: how it ended, once it has.
        bury_at: when it is buried at the latest, once it has ended.
        replacement_jitter: 0 to 1, drawn at random: spreads replacements of several workers over time.
        replace_after: it is not asked to be replaced before; monotonic seconds.
        generations: a number for each version of a model that it loads; see `serving.Served`.
    """

    child: ChildProcess
    hang_detector: HangDetector
    slot: Slot | None = None
    route: Route | None = None
    state: str = "starting"
    verdict: Verdict | None = None
    device_seen: bool = False
    kill_at: float | None = None
    cause: ExitCause | None = None
    bury_at: float = 0.0
    replacement_jitter: float = 0.5
    replace_after: float = 0.0
    generations: dict[tuple[str, str], int] = field(default_factory=dict)

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


class Slot(SlotStateMachine):
    """A slot: its state machine, with what belongs to it.

    Args:
        number: from 0, in the order of the devices.
        budget: how often it may be restarted.
        state: the first.
        placement: its device and its share of the host.
        specs: the models that its next process loads.

    Attributes:
        placement: as given; a reload may change it.
        specs: the models that its next process loads.
        process: its process, or None in between.
        next_process: a process that loads to take over from `process`, or None.
        models: what the current incarnation reported of its models.
        refused: what the process that was to take over last could not load of them.
        operator_restart: an operator has asked for a new process: each of its models is to load, those that did not
            before too.
        visible_devices: `CUDA_VISIBLE_DEVICES` as the current incarnation reads it itself.
        safe_rows: rows for which device memory suffices, by model, where it did not for more.
        due: when its back-off ends, in monotonic seconds.
        away_since: when its last process died, to tell how long it was away.
        completed: rows answered by earlier incarnations.
    """

    def __init__(
        self, number: int, budget: RestartBudget, state: State, placement: Placement, specs: tuple[ModelSpec, ...]
    ) -> None:
        super().__init__(number, budget, state)
        self.placement = placement
        self.specs = specs
        self.process: WorkerProcess | None = None
        self.next_process: WorkerProcess | None = None
        self.models: tuple[ModelReport, ...] = ()
        self.refused: tuple[ModelReport, ...] = ()
        self.operator_restart = False
        self.visible_devices: str | None = None
        self.safe_rows: dict[str, int] = {}
        self.due: float | None = None
        self.away_since: float | None = None
        self.completed = 0

    @property
    def route(self) -> Route | None:
        """Its process's place in the router, while it serves."""
        return self.process.route if self.process is not None else None

    def serves(self, model: str) -> bool:
        """Its process serves the model."""
        return self.route is not None and model in self.route.worker.serves

    @property
    def fields(self) -> dict[str, object]:
        """What stands on every line of the log about this slot's worker."""
        return {
            "slot": self.number,
            "incarnation": self.incarnation,
            "device": self.placement.device,
        }
