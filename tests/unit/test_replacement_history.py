"""Replacements, deaths and reports in any order."""

from __future__ import annotations

from fake_workers import Scene, child, placement, spec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from serving_scene import condemn

from multitower.errors import Unavailable
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State


class Replacing(RuleBasedStateMachine):
    """Replacements, deaths and reports in any order: each replacement ends once, and all slots serve in the end.

    No event may occur that the table of a slot does not have.
    """

    @initialize(slots=st.integers(1, 3), fits=st.booleans(), spares=st.integers(0, 1), retry=st.integers(0, 1))
    def begin(self, slots: int, fits: bool, spares: int, retry: int) -> None:
        self.scene = Scene(slots, fits=fits, spares=spares, retry=retry, max_restarts=1_000_000)
        self.orders: list[list[str | None]] = []
        self.asked = self.answered = 0

    def some(self, data: st.DataObject, processes: list[WorkerProcess]) -> WorkerProcess:
        return data.draw(st.sampled_from(processes))

    def loading(self) -> list[WorkerProcess]:
        return [
            process
            for process in self.scene.alive()
            if process.slot is not None and process.route is None and process.state in ("starting", "loading")
        ]

    @precondition(lambda self: self.loading())
    @rule(data=st.data(), state=st.sampled_from(["loading", "ready", "ready", "ready", "failed"]))
    def report(self, data: st.DataObject, state: str) -> None:
        process = self.some(data, self.loading())
        if state != "loading" and process.state == "starting":
            self.scene.report(process, "loading")
        self.scene.report(process, state, "no weights" if state == "failed" else None)

    @precondition(lambda self: self.scene.alive())
    @rule(data=st.data(), code=st.sampled_from([-9, -11, 0, 73]))
    def die(self, data: st.DataObject, code: int) -> None:
        """A process ends; it is released with the next tick, perhaps together with others."""
        process = self.some(data, self.scene.alive())
        if process.route is not None:
            self.scene.running.pop(process.route.worker, None)
        self.scene.exit(process, code)

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.1, 1.0, 6.0]))
    def tick(self, seconds: float) -> None:
        self.scene.tick(seconds)
        self.scene.dispatch()

    @rule()
    def obey(self) -> None:
        self.scene.let_processes_end()

    @rule(data=st.data(), version=st.integers(1, 3), remove=st.integers(0, 9))
    def order(self, data: st.DataObject, version: int, remove: int) -> None:
        slots = self.scene.manager.slots
        if not slots:
            self.scene.manager.add_slot(placement(0))
            return
        slot = data.draw(st.sampled_from([slot.number for slot in slots]))
        specs = (spec(version),)
        self.orders.append(self.scene.order(slot, specs=specs, remove=remove == 0))

    @rule(fits=st.booleans(), no_room=st.booleans())
    def machine(self, fits: bool, no_room: bool) -> None:
        self.scene.capacity.fits, self.scene.no_room = fits, no_room

    @rule(rows=st.integers(1, 7))
    def submit(self, rows: int) -> None:
        try:
            self.scene.submit(rows)
        except Unavailable:
            assert not any(slot.state is State.READY for slot in self.scene.manager.slots)
            return
        self.asked += 1

    def busy(self) -> list[WorkerProcess]:
        return [
            process
            for process in self.scene.alive()
            if process.route is not None and process.route.worker in self.scene.running
        ]

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.scene.answer(self.some(data, self.busy()))

    @precondition(lambda self: self.scene.alive())
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        """A process is found to hang."""
        process = self.some(data, self.scene.alive())
        condemn(self.scene, process)

    # What must hold.

    @invariant()
    def it_adds_up(self) -> None:
        if not hasattr(self, "scene"):
            return
        scene = self.scene
        assert all(len(outcomes) <= 1 for outcomes in self.orders), "a replacement ended twice"
        self.answered += len(scene.replies())
        for slot in scene.manager.slots:
            wanted = [each for each in scene.alive() if each.slot is slot and not child(each).told_to_end]
            assert len(wanted) <= 2
            if slot.state is State.READY:
                assert slot.route is not None
                assert slot.route.worker in scene.router.routes
                assert scene.router.scheduler.refusal_for_accepted_request("m") is None
        for worker in scene.running:
            (process,) = [process for process in scene.launched if process.route and process.route.worker is worker]
            assert process.exit_cause is None, "a dead worker has a batch"
        serving = {process.route.worker for process in scene.manager.processes() if process.route is not None}
        assert set(scene.router.routes) == serving, "each worker that gets batches is managed"
        released = [process for process in scene.launched if child(process).closed]
        assert not set(map(id, released)) & set(map(id, scene.manager.processes()))

    def teardown(self) -> None:
        """Nothing fails from now on."""
        if not hasattr(self, "scene"):
            return
        scene = self.scene
        scene.settle()
        for slot in scene.manager.slots:
            if slot.state is State.FAILED:
                self.orders.append(scene.order(slot.number))
        scene.settle()
        assert all(len(outcomes) == 1 for outcomes in self.orders), "a replacement never ended"
        assert {slot.state for slot in scene.manager.slots} <= {State.READY}
        alive = [process for process in scene.alive() if process.slot is not None]
        assert len(alive) == len(scene.manager.slots)
        self.answered += len(scene.replies())
        if scene.manager.slots:
            assert self.answered == self.asked
        scene.manager.stop(scene.now)
        while scene.let_processes_end():
            pass
        assert list(scene.manager.processes()) == []


Replacing.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestReplacing = Replacing.TestCase
