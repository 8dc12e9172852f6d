"""A worker manager whose processes are fakes: a test decides what they report and when they die, and sets the clock.

Slots, replacements, router and scheduler are the real ones; only `Launcher`, `ProcessWatcher` and `Capacity` are fakes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any, cast

from multitower import wire, worker_wire
from multitower.errors import from_wire
from multitower.load_step import LoadStep
from multitower.spec import Assignment, ModelReport, ModelSpec, WorkerReport
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.machine.resources import Sampler
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.worker_connection import WorkerProtocolError
from multitower.supervisor.scheduling.pool_worker import Batch
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.workers.capacity import Capacity
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.exit_cause import ExitCause
from multitower.supervisor.workers.hang_detector import HangDetector, ProcessStat
from multitower.supervisor.workers.launcher import Launcher
from multitower.supervisor.workers.manager import WorkerManager
from multitower.supervisor.workers.output import OutputLine
from multitower.supervisor.workers.planned_replacement_queue import Replacement
from multitower.supervisor.workers.process_watcher import (
    InputFailed,
    MessageReceived,
    ProcessEvent,
    ProcessExited,
    ProcessWatcher,
)
from multitower.supervisor.workers.restart_budget import RestartPolicy
from multitower.supervisor.workers.settings import WorkerSettings
from multitower.supervisor.workers.shortage import StartFailure
from multitower.supervisor.workers.slot import Slot, WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State
from multitower.worker_wire import KeySpec

LARGEST = 2
INTERFACES = {"m": 0, "n": 1}
"""The number of each model's interface: the router counts them as workers become ready, so `m` must serve first."""

KEYS = {
    (name, version): BatchKey(KeySpec(name, (("x", "UINT8", ()),), None, True), LARGEST, interface, version)
    for name, interface in INTERFACES.items()
    for version in ("", "1")
}


class FakeChild:
    """Stands in for a `ChildProcess` and its `WorkerConnection`.

    Attributes:
        told_to_end: it was told to end, or killed.
        stacks_dumped: it was asked for its stacks.
        code: its exit code, once it has ended.
        assignment: its work; None for a spare.
        closed: it has been released.
        begun: the id of the batch that each tower began last; empty if unknown.
        messages: what it has sent and nobody has read.
        stat: what the system reports of it.
        dumping: its core is being dumped.
        step: what it is about to do while it loads.
    """

    heartbeats_closed = False

    def __init__(self, pid: int, fields: dict[str, object], assignment: Assignment | None) -> None:
        self.pid = pid
        self.output = SimpleNamespace(latest=(OutputLine(0.0, logging.INFO, f"output of {pid}"),))
        self.assignment = assignment
        self.fields = fields
        self.begun: tuple[int, ...] = ()
        self.told_to_end = False
        self.stacks_dumped = False
        self.code: int | None = None
        self.closed = False
        self.connection = self
        self.messages: deque[list[Any]] = deque()
        self.stat: ProcessStat | None = None
        self.dumping = False
        self.step: LoadStep | None = None
        self.on_message: Callable[[list[Any]], None] = lambda _: None
        self.on_error: Callable[[WorkerProtocolError], None] = lambda _: None
        fields["pid"] = pid

    def send(self, message: list[Any]) -> None:
        self.told_to_end = self.told_to_end or message[0] == worker_wire.STOP
        if message[0] == worker_wire.ASSIGN:
            self.assignment = Assignment.from_json(message[1])

    def write(self) -> None:
        """Everything has been written."""

    def read(self) -> bool:
        """Everything is in `messages`."""
        return False

    def receive(self) -> list[Any] | None:
        return self.messages.popleft() if self.messages else None

    def kill(self) -> None:
        self.told_to_end = True

    def read_heartbeat(self) -> tuple[int, ...] | None:
        return None

    def read_stat(self) -> ProcessStat | None:
        return self.stat

    def is_dumping(self) -> bool:
        return self.dumping

    def read_step(self) -> LoadStep | None:
        return self.step

    def dump_stacks(self) -> None:
        self.stacks_dumped = True

    def reap(self) -> ExitCause:
        assert self.code is not None, "it runs"
        return ExitCause(self.code)

    def close(self, death: str | None = None) -> None:
        self.closed = True


class FakeWatcher(ProcessWatcher):
    """Watches nothing: tests add the events."""

    def __init__(self) -> None:
        self.events: deque[ProcessEvent] = deque()

    def add_process(self, process: WorkerProcess) -> None:
        process.child.connection.on_message = lambda message: self.events.append(MessageReceived(process, message))
        process.child.connection.on_error = lambda error: self.events.append(InputFailed(process, error))

    def remove_process(self, process: WorkerProcess) -> None:
        """It watches none."""


class FakeLauncher(Launcher):
    """Starts fake processes."""

    def __init__(self, scene: Scene, watcher: FakeWatcher) -> None:
        self._scene = scene
        self._watcher = watcher

    def apply_settings(self, settings: WorkerSettings) -> None:
        """They concern real processes only."""

    def restore_folder(self) -> None:
        """There is none."""

    def launch(
        self, _name: str, assignment: Assignment | None, fields: dict[str, object]
    ) -> WorkerProcess | StartFailure:
        if self._scene.no_room:
            return StartFailure()
        if self._scene.shortage:
            return StartFailure("no process could be started: fork: Resource temporarily unavailable", temporary=True)
        child = FakeChild(1000 + len(self._scene.launched), fields, assignment)
        process = WorkerProcess(
            cast(ChildProcess, child), HangDetector(self._scene.now, 1.0), started_at=self._scene.now
        )
        self._scene.launched.append(process)
        self._watcher.add_process(process)
        return process


class FakeCapacity(Capacity):
    """Answers what the test sets.

    Attributes:
        fits: whether two processes of a slot fit.
        available: bytes of host memory.
        rss: bytes of resident memory of each process.
        present: whether each slot's device is present.
    """

    def __init__(self, *, fits: bool = True) -> None:
        super().__init__(cast(Sampler, None))
        self.fits = fits
        self.available = 1 << 30
        self.rss: int | None = None
        self.present: bool | None = None

    @property
    def available_bytes(self) -> int:
        return self.available

    def rss_bytes(self, _slot: Slot) -> int | None:
        return self.rss

    def device_present(self, _slot: Slot) -> bool | None:
        return self.present

    def obstacle_to_second_process(self, _slot: Slot, _specs: Sequence[ModelSpec]) -> str | None:
        return None if self.fits else "it does not fit"


def spec(version: int = 1, name: str = "m") -> ModelSpec:
    """A model as configured; each version is a generation of its own."""
    return ModelSpec(name=name, handler="h:M", parameters={"version": version}, max_batch_size=LARGEST)


def placement(slot: int, models: tuple[str, ...] = ("m",)) -> Placement:
    """The placement of a slot."""
    return Placement(
        slot=slot,
        devices=(f"cpu:{slot}",),
        environment={},
        intra_op_threads=1,
        inter_op_threads=1,
        cores=(),
        memory_limit_bytes=None,
        models=models,
    )


class FakeFront:
    """A front socket that keeps the replies: frames, or errors."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def reply(self, _address: tuple[bytes, ...], kind: bytes, _id: bytes, body: Sequence[Any]) -> None:
        self.answers.append(from_wire(wire.load_header(body[0])) if kind == wire.ERROR else list(body))


class Scene:
    """The worker processes of a daemon, step by step.

    Args:
        slots: how many.
        fits: whether two processes of a slot fit.
        spares: how many spares are kept.
        max_restarts: of the restart policy; a serving worker is restarted at once, others after a second.
        retry: workers that may die with a request.
        models: the names of each slot's models, if they are not just `m` for every slot.

    Attributes:
        now: the time, in seconds.
        launched: every process that was started.
        no_room: no process can be started.
        shortage: the system has no resources for more processes at present.
        capacity: what is measured of the slots.
        watcher: gets the events of processes.
        running: the batches that each worker has, in order.
    """

    def __init__(
        self,
        slots: int = 1,
        *,
        fits: bool = True,
        spares: int = 0,
        max_restarts: int = 100,
        retry: int = 1,
        models: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self.now = 100.0
        self.launched: list[WorkerProcess] = []
        self.no_room = self.shortage = False
        self.capacity = FakeCapacity(fits=fits)
        self.watcher = FakeWatcher()
        self.running: dict[Any, list[Batch]] = {}
        self._requests = 0
        self._front = FakeFront()
        slots_models = models or [("m",)] * slots
        names = sorted({name for slot in slots_models for name in slot})
        limits = QueueLimits(1000, 1 << 20, retry=retry)
        self.router = Router(dict.fromkeys(names, limits), dict.fromkeys(names, 1e6), 1 << 20)
        policy = RestartPolicy(max_restarts=max_restarts, first_s=1.0, max_s=1.0)
        self.manager = WorkerManager(
            placements=[placement(number, models) for number, models in enumerate(slots_models)],
            settings=WorkerSettings(tuple(spec(name=name) for name in names), {"m": 30.0}, policy, spares),
            router=self.router,
            launcher=FakeLauncher(self, self.watcher),
            watcher=self.watcher,
            capacity=self.capacity,
        )
        self.tick()

    # What there is.

    def slot(self, number: int = 0) -> Slot:
        return next(slot for slot in self.manager.slots if slot.number == number)

    def state(self, number: int = 0) -> State:
        return self.slot(number).state

    def process(self, slot: int = 0) -> WorkerProcess:
        process = self.slot(slot).process
        assert process is not None
        return process

    def next_process(self, slot: int = 0) -> WorkerProcess:
        process = self.slot(slot).next_process
        assert process is not None
        return process

    def alive(self) -> list[WorkerProcess]:
        return [process for process in self.launched if child(process).code is None]

    # What happens.

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.manager.tick(self.now)

    def report(
        self,
        process: WorkerProcess,
        state: str,
        cause: str | None = None,
        models: tuple[ModelReport, ...] | None = None,
        failed: Collection[str] = (),
    ) -> None:
        """A process reports its state; unless `models` are given, all of its models have loaded but `failed`."""
        if models is None:
            models = tuple(
                ModelReport(name=name, version=version, state="failed", cause="no weights")
                if name in failed
                else ModelReport(name=name, version=version, max_batch_size=LARGEST)
                for name, version in (process.generations if state == "ready" else ())
            )
        report = WorkerReport(state=state, pid=process.child.pid, cause=cause, models=models)
        self.send(process, [worker_wire.REPORT, report.to_json()])

    def send(self, process: WorkerProcess, message: list[Any]) -> None:
        """A process sends a message."""
        self.manager.handle_event(MessageReceived(process, message), self.now)

    def serve(self, process: WorkerProcess) -> WorkerProcess:
        """A process loads, and is ready."""
        self.report(process, "loading")
        self.report(process, "ready")
        self.tick()
        return process

    def die(self, process: WorkerProcess, code: int = -9) -> None:
        """A process ends, and is released."""
        self.exit(process, code)
        if process.route is not None:
            self.running.pop(process.route.worker, None)
        self.tick()
        assert child(process).closed

    def exit(self, process: WorkerProcess, code: int = -9) -> None:
        """A process ends; it is released with the next tick."""
        child(process).code = code
        self.manager.handle_event(ProcessExited(process), self.now)

    def load_until_quiet(self, load: Callable[[WorkerProcess], None]) -> None:
        """Lets processes load and end when asked to, until nothing happens any more.

        Args:
            load: loads the models of a process, and reports the outcome.
        """
        for _ in range(50):
            self.tick(1.0)
            loading = [
                process
                for process in self.alive()
                if process.route is None and not child(process).told_to_end and process.state not in ("ready", "failed")
            ]
            for process in loading:
                load(process)
            if not (self.let_processes_end() or loading or self.manager.replacing):
                return
        raise AssertionError("it does not settle")

    def let_processes_end(self) -> bool:
        """All processes that were told to end do so; returns whether there were any."""
        told = [process for process in self.alive() if child(process).told_to_end]
        for process in told:
            self.die(process, 0)
        return bool(told)

    # Orders.

    def order(self, slot: int = 0, **replacement: Any) -> list[str | None]:
        """Requests a replacement; its outcome is appended to the list that is returned."""
        outcomes: list[str | None] = []
        self.manager.request_replacement(Replacement(self.slot(slot), "a test", done=outcomes.append, **replacement))
        self.tick()
        return outcomes

    # Requests.

    def submit(self, rows: int = 1, version: str = "", model: str = "m") -> Request:
        """A request; one of more than `LARGEST` rows is split."""
        self._requests += 1
        plan = Plan(KEYS[model, version], rows, (0,), (rows,), (False,), ("x",), 1e6)
        frame = self._requests.to_bytes(4, "big") * rows
        request = Request((self._front, (b"client",)), frame[:4], plan, [frame[:rows]], rows, self.now)
        self.router.scheduler.submit(request)
        self.dispatch()
        return request

    def dispatch(self) -> None:
        for batch in self.router.scheduler.dispatch(self.now):
            self.running.setdefault(batch.worker, []).append(batch)

    def answer(self, process: WorkerProcess) -> None:
        """A worker answers the batch that it executes."""
        assert process.route is not None
        batch, *following = self.running.pop(process.route.worker)
        if following:
            self.running[process.route.worker] = following
        answers = [[wire.reply_header(batch.key.spec.model, "1", [])] for _ in batch.requests]
        self.router.scheduler.finish(process.route.worker, batch.id, answers, self.now)
        self.tick()
        self.dispatch()

    def replies(self) -> list[Any]:
        """The replies since the last call: frames, or errors."""
        answers, self._front.answers = self._front.answers, []
        return answers + [reply.answer for reply in self.router.scheduler.pop_replies()]

    def settle(self, until: Callable[[], bool] = lambda: False) -> None:
        """Lets processes load, serve, answer and end as they are told, until nothing is left to do or `until`."""
        self.no_room = self.shortage = False
        for _ in range(2000):  # more than the batches that a single worker may have to answer
            self.tick(1.0)
            self.dispatch()
            busy = [process for process in self.alive() if process.route and process.route.worker in self.running]
            for process in busy:
                self.answer(process)
            loading = [
                process
                for process in self.alive()
                if process.slot is not None and process.route is None and not child(process).told_to_end
            ]
            for process in loading:
                if process.slot is not None and process in (process.slot.process, process.slot.next_process):
                    self.serve(process)
            if until() or not (self.let_processes_end() or busy or loading or self._has_work_left()):
                return
        raise AssertionError("it does not settle")

    def _has_work_left(self) -> bool:
        return self.manager.replacing or any(slot.due is not None for slot in self.manager.slots)


def child(process: WorkerProcess) -> FakeChild:
    """The fake behind a worker process."""
    return cast(FakeChild, process.child)
