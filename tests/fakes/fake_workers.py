"""A fleet whose processes are made up: what they report, and when they die, a test says, and the clock is its own.

Fleet, slots, renewals, router and balancer are the real ones; only `Launcher` is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast
from unittest import mock

import zmq

from multitower import wire, worker_wire
from multitower.errors import from_wire
from multitower.spec import Assignment, ModelReport, ModelSpec, WorkerReport
from multitower.supervisor.loop.runtime_dir import RuntimeDir
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.queue import Batch, QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.workers import manager as fleet_module
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.exit_cause import ExitCause
from multitower.supervisor.workers.hang_detector import HangDetector
from multitower.supervisor.workers.manager import WorkerManager
from multitower.supervisor.workers.replacement import Replacement
from multitower.supervisor.workers.restart_budget import RestartPolicy
from multitower.supervisor.workers.settings import WorkerSettings
from multitower.supervisor.workers.slot import Slot, WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State
from multitower.worker_wire import KeySpec

LARGEST = 2
CONTRACTS = {"m": 0, "n": 1}
"""Of the models that there are: the router numbers them as workers come, so the first to come serves `m`."""

KEYS = {
    (name, version): BatchKey(KeySpec(name, (("x", "UINT8", ()),), None, True), LARGEST, interface, version)
    for name, interface in CONTRACTS.items()
    for version in ("", "1")
}


class MadeUpProcess:
    """What the fleet needs of a `WorkerProcess`.

    Attributes:
        told: it has been told to end, or killed.
        code: its exit code, once it has ended.
        closed: the fleet has buried it.
        begun: the id of the batch that each tower began last; none where that is not known.
    """

    disconnected = True
    begun: tuple[int, ...] = ()

    def __init__(self, pid: int, fields: dict[str, object]) -> None:
        self.pid = pid
        self.fields = fields
        self.told = False
        self.code: int | None = None
        self.closed = False
        self.connection = self
        fields["pid"] = pid

    def send(self, message: list[Any]) -> None:
        self.told = self.told or message[0] == worker_wire.STOP

    def receive(self) -> list[Any] | None:
        return None

    def kill(self) -> None:
        self.told = True

    def heartbeat(self) -> tuple[int, ...] | None:
        return None

    def look(self) -> None:
        return None

    def show_stacks(self) -> None:
        """Nobody reads them."""

    def reap(self) -> ExitCause:
        assert self.code is not None, "it lives"
        return ExitCause(self.code)

    def close(self) -> None:
        self.closed = True


class MadeUpLauncher:
    """What the fleet needs of a `Launcher`."""

    import_tensorflow = False
    heartbeat_s = 1.0

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def launch(self, _name: str, _assignment: Assignment | None, fields: dict[str, object]) -> WorkerProcess | None:
        if self._scene.no_room:
            return None
        child = MadeUpProcess(1000 + len(self._scene.launched), fields)
        process = WorkerProcess(cast(ChildProcess, child), HangDetector(self._scene.now, 1.0))
        self._scene.launched.append(process)
        return process

    def close(self) -> None:
        """Nothing is held."""


def spec(version: int = 1, name: str = "m") -> ModelSpec:
    """A model as configured; every version is an edition of its own."""
    return ModelSpec(name=name, handler="h:M", parameters={"version": version}, max_batch_size=LARGEST)


def placement(slot: int, models: tuple[str, ...] = ("m",)) -> Placement:
    """A slot's."""
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


class MadeUpFront:
    """A front socket whose clients read nothing: what they were answered is kept, frames or errors."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def reply(self, _address: tuple[bytes, ...], kind: bytes, _id: bytes, body: Sequence[Any]) -> None:
        self.answers.append(from_wire(wire.load_header(body[0])) if kind == wire.ERROR else list(body))


class Scene:
    """A daemon's processes, step by step.

    Args:
        slots: how many.
        fits: whether two processes of a slot fit.
        spares: how many are wanted.
        max_restarts: of the policy; deaths of serving workers are followed at once, others after a second.
        retry: deaths that a request may survive.
        models: the names of each slot's models, where they are not just `m` on every slot.

    Attributes:
        now: the time, in seconds.
        launched: every process there has been.
        no_room: the system has room for no more processes.
        fits: as given; may change.
        running: the batch of each worker that has one.
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
        self.no_room = False
        self.fits = fits
        self.running: dict[Any, list[Batch]] = {}  # what each worker has, in order
        self._requests = 0
        self._front = MadeUpFront()
        slots_models = models or [("m",)] * slots
        names = sorted({name for slot in slots_models for name in slot})
        limits = QueueLimits(1000, 1 << 20, retry=retry)
        self.router = Router(
            dict.fromkeys(names, limits), dict.fromkeys(names, 1e6), 1 << 20, lambda _kind, _header: {}
        )
        policy = RestartPolicy(max_restarts=max_restarts, first_s=1.0, max_s=1.0)
        with mock.patch.object(fleet_module, "Launcher", return_value=MadeUpLauncher(self)):
            self.manager = WorkerManager(
                placements=[placement(number, models) for number, models in enumerate(slots_models)],
                settings=WorkerSettings(tuple(spec(name=name) for name in names), {"m": 30.0}, policy, spares),
                import_path=(),
                runtime=cast(RuntimeDir, None),
                context=cast("zmq.Context[zmq.Socket[bytes]]", None),
                router=self.router,
                watch=lambda _: None,
                unwatch=lambda _: None,
                fits=lambda _: self.fits,
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
        """What a process says; these of its models have failed, where none are told."""
        if models is None:
            models = tuple(
                ModelReport(name=name, version=version, state="failed", cause="no weights")
                if name in failed
                else ModelReport(name=name, version=version, max_batch_size=LARGEST)
                for name, version in (process.generations if state == "ready" else ())
            )
        report = WorkerReport(state=state, pid=process.child.pid, cause=cause, models=models)
        self.manager.message(process, [worker_wire.REPORT, report.to_json()], self.now)

    def serve(self, process: WorkerProcess) -> WorkerProcess:
        """The process loads, and is ready."""
        self.report(process, "loading")
        self.report(process, "ready")
        self.tick()
        return process

    def die(self, process: WorkerProcess, code: int = -9) -> None:
        """The process ends, and is buried."""
        child(process).code = code
        self.manager.died(process, self.now)
        if process.route is not None:
            self.running.pop(process.route.worker, None)
        self.tick()
        assert child(process).closed

    def obey(self) -> bool:
        """Processes that were told to end do so, as far as they have answered; returns whether there were any."""
        told = [process for process in self.alive() if child(process).told]
        for process in told:
            self.die(process, 0)
        return bool(told)

    # Orders.

    def order(self, slot: int = 0, **replacement: Any) -> list[str | None]:
        """Asks for a renewal; what is told of its end comes into the list that is returned."""
        told: list[str | None] = []
        self.manager.replacements.ask(Replacement(self.slot(slot), "a test", done=told.append, **replacement))
        self.tick()
        return told

    # Requests.

    def submit(self, rows: int = 1, version: str = "", model: str = "m") -> Request:
        """A request; of more than `LARGEST` rows it is split. With version 1 no worker that is to come will do."""
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
        """The worker answers what it executes."""
        assert process.route is not None
        batch, *following = self.running.pop(process.route.worker)
        if following:
            self.running[process.route.worker] = following
        answers = [[wire.reply_header(batch.key.spec.model, "1", [])] for _ in batch.requests]
        self.router.scheduler.finish(process.route.worker, batch.id, answers, self.now)
        self.tick()
        self.dispatch()

    def replies(self) -> list[Any]:
        """What was answered since the last call: frames, or errors."""
        answers, self._front.answers = self._front.answers, []
        return answers + [reply.answer for reply in self.router.scheduler.replies()]

    def settle(self, until: Callable[[], bool] = lambda: False) -> None:
        """Everything goes well from now on: processes load, serve, answer and end as they are told."""
        self.no_room = False
        for _ in range(2000):  # more than the batches that one worker may have to answer alone
            self.tick(1.0)
            self.dispatch()
            busy = [process for process in self.alive() if process.route and process.route.worker in self.running]
            for process in busy:
                self.answer(process)
            loading = [m for m in self.alive() if m.slot is not None and m.route is None and not child(m).told]
            for process in loading:
                if process in (self._member_of(process.slot), process.slot and process.slot.next_process):
                    self.serve(process)
            if until() or not (self.obey() or busy or loading or self._waits()):
                return
        raise AssertionError("it does not settle")

    def _member_of(self, slot: Slot | None) -> WorkerProcess | None:
        return slot.process if slot is not None else None

    def _waits(self) -> bool:
        return any(slot.due is not None or self.manager.replacements.includes(slot) for slot in self.manager.slots)


def child(process: WorkerProcess) -> MadeUpProcess:
    """The made up process behind a member."""
    return cast(MadeUpProcess, process.child)
