"""The supervisor's records of a worker process and of a slot. `slots.py` changes them."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from multitower.load_step import LoadStep
from multitower.spec import NO_SOCKET, ModelReport, ModelSpec

from ..machine.placement import Placement
from ..routing.routes import Route
from ..scheduling.deaths import Death
from .child_process import ChildProcess
from .exit_cause import ExitCause, Verdict
from .hang_detector import HangDetector
from .load_deaths import LoadDeaths
from .load_timer import LoadTimer
from .output import Source
from .restart_budget import RestartBudget
from .slot_state_machine import SlotStateMachine, State


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A worker process: what it reported, what was decided about it, and how it ended.

    Attributes:
        child: the operating system's process, and the channels to it.
        hang_detector: decides from its heartbeats whether it hangs.
        slot: the slot that it serves or will serve; None for a spare.
        route: the router's way to it, from when it serves.
        state: as it reported last; see `WorkerReport`. `starting` before its first report.
        ending: it was told to end, or is going to be killed.
        verdict: why the supervisor kills it, if it was not told to end.
        told_to_end: it was told to end, for whatever reason.
        kill_at: when it is to be killed, in monotonic seconds; None for never, or when it has been.
        exit_cause: how it ended; None while it runs.
        exit_step: if it was loading a model: what it was doing when it ended, or was found to hang or to take too long.
        exit_model: `model_fields` when it ended, or was to be killed.
        dumping_since: when it was found to dump its core, in monotonic seconds; None if it was not.
        device_seen: its device was present while it served.
        replacement_jitter: 0 to 1, drawn at random; spreads the replacements of several workers over time.
        replace_after: no automatic replacement before this time, in monotonic seconds.
        specs: the models that it loads, as configured.
        generations: the generation of each model version that it loads; see `scheduling.pool_worker.Served`.
        started_at: when its process was started, in monotonic seconds.
        left_out: the generations that it does not load, since loading them has ended other workers.
        load_timer: measures how long it takes to start, and to load each model.
        aside: a model takes long to load in it, and another process of the slot serves the others meanwhile. It is the
            slot's `next_process`, outside of any replacement, and takes over when it has loaded all models.
        beside: it was started while another process of the slot was set aside.
        kills_beside: processes that were killed (SIGKILL) while they loaded beside it, since it was set aside.
        waited_for: it was set aside before, and is not again: its slot has no other process that could serve.
    """

    child: ChildProcess
    hang_detector: HangDetector
    slot: Slot | None = None
    route: Route | None = None
    state: str = "starting"
    ending: bool = False
    verdict: Verdict | None = None
    told_to_end: bool = False
    kill_at: float | None = None
    exit_cause: ExitCause | None = None
    exit_step: LoadStep | None = None
    exit_model: Mapping[str, str] = field(default_factory=dict)
    dumping_since: float | None = None
    device_seen: bool = False
    replacement_jitter: float = 0.5
    replace_after: float = 0.0
    specs: tuple[ModelSpec, ...] = ()
    generations: dict[tuple[str, str], int] = field(default_factory=dict)
    started_at: float = 0.0
    left_out: frozenset[int] = frozenset()
    load_timer: LoadTimer = field(default_factory=LoadTimer)
    aside: bool = False
    beside: bool = False
    kills_beside: int = 0
    waited_for: bool = False

    @property
    def usable(self) -> bool:
        """Whether it may serve, now or later: it runs, and nothing has decided that it shall end."""
        return self.exit_cause is None and not self.ending

    @property
    def loads(self) -> set[int]:
        """The generations that it is to load, or has loaded."""
        return set(self.generations.values()) - self.left_out

    @property
    def dumps_core(self) -> bool:
        """Whether the hang detector, or an attempt to kill it, has found that the kernel dumps its core."""
        return self.dumping_since is not None or self.hang_detector.dumping

    @property
    def killed_by_others(self) -> bool:
        """Whether it was killed (SIGKILL), but not by the supervisor: as the kernel does when memory is short."""
        cause = self.exit_cause
        return cause is not None and cause.code == -signal.SIGKILL and self.verdict is None

    @property
    def killed_while_loading(self) -> bool:
        """Whether it was killed while it loaded; see `killed_by_others`."""
        return self.killed_by_others and self.exit_step is not None

    @property
    def exit_description(self) -> str:
        """How it ended, for people."""
        if self._could_not_report and self.verdict is None:
            return f"{self.exit_cause}: it could not make its socket in runtime_dir"
        description = str(self.exit_cause if self.verdict is None else self.verdict)
        return f"{description} while {self.exit_step}" if self.exit_step is not None else description

    def model_fields(self) -> dict[str, str]:
        """The model and version that it loads or runs, as fields of the log; empty if there is none, or several."""
        step = self.exit_step or self.child.read_step()
        if step is not None:
            return {"model": step.model, "version": step.version}
        workers = self.route.workers if self.route is not None else ()
        running = {
            (each.batch.key.spec.model, each.batch.key.spec.version) for each in workers if each.batch is not None
        }
        if len(running) != 1:
            return {}
        ((model, version),) = running
        # Requests may leave the version to the worker.
        versions = [version] if version else [known for name, known in self.generations if name == model]
        return {"model": model, "version": versions[0]} if len(versions) == 1 else {"model": model}

    @property
    def unexpected_end(self) -> str | None:
        """How it ended, for people; None if it was told to end, and did, or was killed since it took too long."""
        cause = self.exit_cause
        obeyed = cause is not None and cause.code in (0, -signal.SIGKILL)
        return None if self.told_to_end and self.verdict is None and obeyed else self.exit_description

    @property
    def death(self) -> Death:
        """How it ended, for the answers to the requests that it executed."""
        verdict = self.verdict
        if verdict is None:
            return Death(self.exit_description)
        return Death(self.exit_description, verdict.hung, verdict.limit_s)

    @property
    def exit_advice(self) -> str | None:
        """What an operator should check; None while it runs, and when the supervisor killed it for a fault."""
        if self.exit_cause is None or self.verdict is not None:
            return None
        if self._could_not_report:
            return "is the disk of runtime_dir full, out of inodes, read-only or gone? See its output"
        return self.exit_cause.advice

    @property
    def _could_not_report(self) -> bool:
        # Only before its first report: a model may exit with any code.
        return self.state == "starting" and self.exit_cause is not None and self.exit_cause.code == NO_SOCKET


class PastOutput(NamedTuple):
    """The output of a process that has died, or could not load its models.

    Attributes:
        pid: of the process.
        ended: how it ended, for people.
        output: what it wrote. The last of it may still be read from its pipe.
    """

    pid: int
    ended: str
    output: Source


class Slot(SlotStateMachine):
    """A slot: its state, its processes, and what they reported.

    Args:
        number: from 0, in the order of the devices.
        budget: limits its restarts.
        state: the initial state.
        placement: its devices and its share of the host.
        specs: the models that its next process loads.
        now: when it was added, in monotonic seconds.

    Attributes:
        placement: as given; a reload may change it.
        specs: the models that its next process loads; a reload may change them.
        process: its current process; None while it has none.
        next_process: a process that loads in order to take over from `process`, or None.
        models: what the current process reported of its models.
        refused: what the last `next_process` could not load, or a process was loading when it ended by itself.
        operator_restarts: how often an operator has asked for a new process, where that has not ended yet.
        visible_devices: `CUDA_VISIBLE_DEVICES` as the current process reported it.
        safe_rows: by model, the rows of a call that memory was sufficient for, after it was not for more, or after a
            worker had died with more in a warm-up.
        load_deaths: which models have ended workers while they were loaded.
        killed_while_loading: a process was killed by SIGKILL while it loaded, as the kernel does if memory is short;
            set to False before a load whose outcome this is to tell.
        short_of_resources: the last `next_process` could not be started because the system lacked a resource.
        due: when its back-off ends, in monotonic seconds; None when there is none.
        start_at: when a start is tried again that failed because a resource was short; None when there is none.
        start_delay_s: how long it waits for that.
        unavailable_since: when its last process died, in monotonic seconds; None while it serves.
        completed: rows answered by its former processes.
        past_output: of its last process that died or could not load its models; None if there has been none.
    """

    def __init__(
        self,
        number: int,
        budget: RestartBudget,
        state: State,
        placement: Placement,
        specs: tuple[ModelSpec, ...],
        now: float = 0.0,
    ) -> None:
        super().__init__(number, budget, state, now)
        self.placement = placement
        self.specs = specs
        self.process: WorkerProcess | None = None
        self.next_process: WorkerProcess | None = None
        self.models: tuple[ModelReport, ...] = ()
        self.refused: tuple[ModelReport, ...] = ()
        self.operator_restarts = 0
        self.visible_devices: str | None = None
        self.safe_rows: dict[str, int] = {}
        self.load_deaths = LoadDeaths()
        self.killed_while_loading = self.short_of_resources = False
        self.due: float | None = None
        self.start_at: float | None = None
        self.start_delay_s = 0.0
        self.unavailable_since: float | None = None
        self.completed = 0
        self.past_output: PastOutput | None = None

    @property
    def route(self) -> Route | None:
        """The router's way to its process; None while that does not serve."""
        return self.process.route if self.process is not None else None

    @property
    def aside(self) -> WorkerProcess | None:
        """The process in which a model takes long to load, beside the current one; None if there is none."""
        process = self.next_process
        return process if process is not None and process.aside and process.usable else None

    @property
    def operator_restart(self) -> bool:
        """Whether an operator has asked for a new process.

        It must load every model, also those that the current one could not.
        """
        return self.operator_restarts > 0

    def forget_failed_load(self) -> None:
        """Forgets why the last `next_process` could not load, before a change whose outcome is to be known."""
        self.refused = ()
        self.killed_while_loading = self.short_of_resources = False

    def refuses_other_models(self, model: str) -> bool:
        """Whether other models than this one, which its slot must not lose, kept the last new process from serving."""
        return bool(self.refused) and all(report.name != model for report in self.refused)

    def serves(self, model: str) -> bool:
        """Whether its process serves the model."""
        return self.route is not None and model in self.route.worker.serves

    def serves_generation(self, generation: int) -> bool:
        """Whether its process serves a model version with this configuration."""
        process = self.process
        if process is None or process.route is None:
            return False
        ready = (model.key for model in self.models if model.state == "ready")
        return any(process.generations.get(key) == generation for key in ready)

    @property
    def fields(self) -> dict[str, object]:
        """The fields of every log line about this slot's worker."""
        return {
            "slot": self.number,
            "incarnation": self.incarnation,
            "device": self.placement.device,
        }


def describe_failures(reports: Iterable[ModelReport]) -> str:
    """Models that did not load, each with its cause, for people."""
    return "; ".join(f"{report.name}: {report.cause}" for report in reports if report.cause)
