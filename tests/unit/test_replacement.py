"""Replacements that succeed, and that meet deaths, removals and other replacements, with fake processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_workers import LARGEST, Scene, child, placement, spec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from multitower.errors import Reason, Unavailable
from multitower.supervisor.workers.exit_cause import Fault, Verdict
from multitower.supervisor.workers.replacement_queue import Replacement
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State


def serving(slots: int = 1, **arguments: Any) -> Scene:
    """Every slot serves."""
    scene = Scene(slots, **arguments)
    for slot in range(slots):
        scene.serve(scene.process(slot))
    return scene


def condemn(scene: Scene, process: WorkerProcess) -> None:
    """As health checks do with a process that hangs."""
    scene.manager._exits.condemn_process(process, Verdict(Fault.STOPPED, "it sleeps"), scene.now)


# Two processes fit: the old one serves until the new one is ready.


def test_the_new_process_takes_over_and_the_old_one_ends_when_it_has_answered() -> None:
    scene = serving()
    old = scene.process()
    scene.submit()
    outcomes = scene.order(specs=(spec(2),))
    new = scene.next_process()
    assert (scene.process(), scene.state(), outcomes) == (old, State.READY, [])
    scene.serve(new)
    assert (scene.process(), scene.slot().specs, outcomes) == (new, (spec(2),), [])
    assert not child(old).told_to_end, "it has something to answer"
    scene.answer(old)
    assert child(old).told_to_end
    assert outcomes == [None]
    assert len(scene.replies()) == 1
    scene.let_processes_end()
    assert (scene.alive(), scene.state(), scene.slot().incarnation) == ([new], State.READY, 2)


@pytest.mark.parametrize("how", ["dies", "cannot load", "has no room"])
def test_a_new_process_that_does_not_start_leaves_the_old_one_as_it_was(how: str) -> None:
    scene = serving()
    old = scene.process()
    scene.no_room = how == "has no room"
    outcomes = scene.order(specs=(spec(2),))
    if how == "dies":
        scene.die(scene.next_process(), -11)
    elif how == "cannot load":
        scene.report(scene.next_process(), "failed", "no weights")
        scene.tick()
    assert len(outcomes) == 1
    assert outcomes[0] is not None
    scene.let_processes_end()
    assert (scene.alive(), scene.process(), scene.state()) == ([old], old, State.READY)
    assert (scene.slot().specs, scene.slot().incarnation) == ((spec(1),), 1)
    scene.submit()
    scene.answer(old)
    assert len(scene.replies()) == 1


def test_a_new_process_that_is_killed_while_it_loads_gets_the_memory_of_the_old_one() -> None:
    scene = serving()
    old = scene.process()
    outcomes = scene.order(specs=(spec(2),))
    scene.die(scene.next_process(), -9)
    assert outcomes == []
    assert child(old).told_to_end, "the new one loads alone"
    scene.let_processes_end()
    scene.serve(scene.process())
    assert (outcomes, scene.slot().specs, scene.state()) == ([None], (spec(2),), State.READY)


def test_a_new_process_that_is_killed_alone_as_well_leaves_the_slot_with_its_models() -> None:
    scene = serving()
    outcomes = scene.order(specs=(spec(2),))
    scene.die(scene.next_process(), -9)
    scene.let_processes_end()
    scene.die(scene.process(), -9)
    scene.settle()
    assert [outcome is None for outcome in outcomes] == [False]
    assert (scene.slot().specs, scene.state()) == ((spec(1),), State.READY)


def test_the_new_process_is_promoted_when_the_old_one_dies_first() -> None:
    scene = serving()
    outcomes = scene.order(specs=(spec(2),))
    new = scene.next_process()
    scene.report(new, "loading")
    scene.submit()
    scene.die(scene.process())
    assert (scene.process(), scene.state(), outcomes) == (new, State.LOADING, [])
    assert scene.alive() == [new], "no third process is started"
    scene.report(new, "ready")
    scene.tick()
    assert (scene.state(), scene.slot().specs, outcomes) == (State.READY, (spec(2),), [None])
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1, "the request of the dead process is answered"


@pytest.mark.parametrize("first", ["old", "new"])
def test_the_replacement_starts_again_when_both_processes_die_at_once(first: str) -> None:
    scene = serving()
    outcomes = scene.order(specs=(spec(2),))
    both = {"old": scene.process(), "new": scene.next_process()}
    for process in (both.pop(first), *both.values()):
        scene.exit(process)
    scene.tick()
    scene.settle()
    assert len(outcomes) == 1
    assert scene.state() is State.READY
    assert len(scene.alive()) == 1
    # If the new one died before the old one, that counts as a failure to load, and the slot keeps its models.
    assert scene.slot().specs == ((spec(2),) if outcomes == [None] else (spec(1),))


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_batches_of_an_old_process_that_dies_run_again_before_the_replacement_ends(how: str) -> None:
    scene = serving()
    old = scene.process()
    scene.submit()
    outcomes = scene.order()
    new = scene.serve(scene.next_process())
    if how == "hangs":
        condemn(scene, old)
    else:
        scene.exit(old)
    scene.manager._replacer.advance(scene.now)
    assert outcomes == [], "its batch has not been given to others yet"
    if how == "hangs":
        scene.exit(old)
    scene.tick()
    assert outcomes == [None]
    assert scene.state() is State.READY, "it was not the slot's current process"
    scene.running.clear()
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1
    assert scene.slot().restarts == 0


def test_a_process_that_drains_is_still_checked_for_hangs() -> None:
    scene = serving()
    old = scene.process()
    scene.submit()
    scene.order()
    scene.serve(scene.next_process())
    assert old in scene.manager.processes(), "otherwise its hang would never be found"
    scene.manager.stop(scene.now)
    scene.let_processes_end()
    assert scene.alive() == []
    assert list(scene.manager.processes()) == []


# Two processes do not fit: the old one ends first, and requests wait.


def test_requests_wait_while_the_only_slot_is_replaced_without_room_for_two() -> None:
    scene = serving(fits=False)
    old = scene.process()
    outcomes = scene.order(specs=(spec(2),))
    assert scene.state() is State.STOPPING
    scene.submit()  # it would raise if the model counted as unavailable
    assert not scene.manager.unavailable, "exit_when_failed must not end the daemon now"
    scene.let_processes_end()
    new = scene.process()
    assert (child(old).closed, scene.state(), outcomes) == (True, State.STARTING, [])
    assert not scene.manager.unavailable
    scene.serve(new)
    assert (outcomes, scene.slot().specs) == ([None], (spec(2),))
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1


def test_waiting_requests_get_the_cause_when_the_new_process_cannot_load() -> None:
    scene = serving(fits=False)
    outcomes = scene.order()
    scene.submit()
    scene.let_processes_end()
    scene.report(scene.process(), "loading")
    scene.report(scene.process(), "failed", "no weights")
    scene.tick()
    assert outcomes == ["no weights"]
    (error,) = scene.replies()
    assert (error.reason, "no weights" in error.message) == (Reason.NO_WORKER, True)
    assert scene.manager.unavailable
    assert scene.state() is State.FAILED


@pytest.mark.parametrize("how", ["cannot load", "dies"])
def test_a_slot_rolls_back_to_its_former_models_when_new_ones_cannot_load(how: str) -> None:
    scene = serving(fits=False)
    outcomes = scene.order(specs=(spec(2),))
    scene.submit()
    scene.let_processes_end()
    if how == "cannot load":
        scene.report(scene.process(), "loading")
        scene.report(scene.process(), "failed", "no weights")
    else:
        scene.die(scene.process())
    scene.tick()
    assert outcomes == []
    scene.let_processes_end()
    scene.serve(scene.process())
    assert outcomes == ["no weights" if how == "cannot load" else "killed by SIGKILL (9)"]
    assert (scene.state(), scene.slot().specs) == (State.READY, (spec(1),))
    scene.dispatch()
    scene.answer(scene.process())
    assert [type(reply) for reply in scene.replies()] == [list]


def test_a_process_that_dies_while_it_drains_is_replaced_all_the_same() -> None:
    scene = serving(fits=False)
    scene.submit()
    outcomes = scene.order()
    assert scene.state() is State.DRAINING, "it has something to answer"
    scene.die(scene.process())
    assert scene.state() is State.STARTING
    scene.serve(scene.process())
    assert outcomes == [None]
    scene.dispatch()
    scene.answer(scene.process())
    assert len(scene.replies()) == 1


def test_the_replacement_starts_again_when_the_old_process_dies_before_it_drains() -> None:
    scene = serving(fits=False)
    scene.submit()
    # It names the version, and the new process might have another one: the old one must answer it.
    scene.submit(version="1")
    outcomes = scene.order(specs=(spec(2),))
    assert scene.state() is State.READY
    scene.die(scene.process())
    scene.settle()
    assert outcomes == [None]
    assert (scene.state(), scene.slot().specs, len(scene.alive())) == (State.READY, (spec(2),), 1)
    assert len(scene.replies()) == 2


def test_requests_received_during_a_drain_do_not_prolong_it() -> None:
    scene = serving(fits=False)
    old = scene.process()
    for _ in range(4):
        scene.submit(version="1")
    outcomes = scene.order()
    answered = 0
    while not child(old).told_to_end:
        scene.tick(0.1)
        scene.submit(version="1")  # always as many as it can execute
        scene.submit(version="1")
        scene.answer(old)
        answered += 1
        assert answered < 10, "the drain does not end"
    scene.settle()
    assert outcomes == [None]
    replies = scene.replies()
    assert [type(reply) for reply in replies] == [list] * (4 + 2 * answered), (
        "the new process serves the version as well"
    )


# In each state.


def history(state: State) -> Scene:
    """A slot in this state."""
    scene = Scene(max_restarts=0 if state is State.FAILED else 100)
    if state is State.LOADING:
        scene.report(scene.process(), "loading")
    elif state is State.READY:
        scene.serve(scene.process())
    elif state in (State.BACKOFF, State.FAILED):
        scene.die(scene.process())
    assert scene.state() is state
    return scene


STATES = [State.STARTING, State.LOADING, State.READY, State.BACKOFF, State.FAILED]


@pytest.mark.parametrize("state", STATES)
def test_a_restart_in_any_state_starts_one_new_process(state: State) -> None:
    scene = history(state)
    before = len(scene.launched)
    outcomes = scene.order()
    scene.settle()
    assert outcomes == [None]
    assert scene.state() is State.READY
    assert len(scene.launched) == before + 1
    assert scene.alive() == [scene.launched[-1]]


@pytest.mark.parametrize("state", STATES)
def test_a_removal_in_any_state_leaves_no_process(state: State) -> None:
    scene = history(state)
    before = len(scene.launched)
    outcomes = scene.order(remove=True)
    scene.settle()
    assert outcomes == [None]
    assert (scene.alive(), scene.manager.slots, len(scene.launched)) == ([], [], before)


# Several.


def test_slots_are_replaced_one_after_the_other() -> None:
    scene = serving(2)
    outcomes = scene.order(0), scene.order(1)
    assert scene.slot(1).next_process is None
    scene.serve(scene.next_process(0))
    assert outcomes[0] == [None]
    scene.serve(scene.next_process(1))
    assert outcomes == ([None], [None])


def test_two_replacements_of_one_slot_are_both_carried_out() -> None:
    scene = serving()
    outcomes = scene.order(specs=(spec(2),)), scene.order(specs=(spec(3),))
    scene.settle()
    assert outcomes == ([None], [None])
    assert (scene.slot().incarnation, scene.slot().specs) == (3, (spec(3),))
    assert len(scene.alive()) == 1


def test_replacements_that_wait_for_a_removed_slot_fail_with_the_cause() -> None:
    scene = serving(2)
    outcomes = scene.order(0, remove=True), scene.order(0), scene.order(1)
    scene.settle()
    assert outcomes == ([None], ["the slot is no longer configured"], [None])
    assert [slot.number for slot in scene.manager.slots] == [1]


def test_only_replacements_that_have_not_begun_can_be_withdrawn() -> None:
    scene = serving(3)
    outcomes: list[str] = []
    replacements = [
        Replacement(scene.slot(number), "a reload", done=lambda _, name=str(number): outcomes.append(name))
        for number in range(2)
    ]
    for replacement in replacements:
        scene.manager.request_replacement(replacement)
    other = scene.order(2)
    scene.manager.withdraw_replacements(replacements)
    scene.settle()
    assert outcomes == ["0"]
    assert other == [None]
    assert [slot.incarnation for slot in scene.manager.slots] == [2, 1, 2]


# Devices that a reload groups differently.


def on(scene: Scene, **devices: str) -> None:
    """Gives slots other devices than the scene has: `slot_0="GPU-a,GPU-b"`."""
    for name, names in devices.items():
        slot = scene.slot(int(name.removeprefix("slot_")))
        slot.placement = replace(slot.placement, devices=tuple(names.split(",")))


def group(scene: Scene, slot: int, devices: str) -> None:
    scene.manager.add_slot(replace(placement(slot), devices=tuple(devices.split(","))))
    scene.tick()


def test_a_group_starts_when_its_last_gpu_is_free_and_requests_wait_for_it() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a", slot_1="GPU-b")
    first, second = scene.process(0), scene.process(1)
    group(scene, 2, "GPU-a,GPU-b")
    assert (scene.state(2), scene.slot(2).process) == (State.STARTING, None)
    for _ in range(4):
        scene.submit(LARGEST)  # more than both can have at once
    outcomes = [scene.order(slot, remove=True) for slot in range(2)]
    scene.answer(first)
    assert child(first).told_to_end, "requests can wait for the group"
    scene.let_processes_end()
    assert (outcomes, scene.slot(2).process) == ([[None], []], None)
    scene.answer(second)
    scene.let_processes_end()
    assert outcomes == [[None], [None]]
    new = scene.process(2)
    assert len(scene.replies()) == 2
    scene.submit()
    assert scene.replies() == [], "no request is refused"
    scene.serve(new)
    scene.settle()
    assert len(scene.replies()) == 3
    assert scene.alive() == [new]


def test_the_last_old_worker_serves_until_a_group_that_loads_is_ready() -> None:
    scene = serving(3)
    on(scene, slot_0="GPU-a,GPU-b", slot_1="GPU-c", slot_2="GPU-d")
    group(scene, 3, "GPU-a")
    group(scene, 4, "GPU-d,GPU-c")
    for slot in range(2):
        scene.order(slot, remove=True)
        scene.let_processes_end()
    begun = scene.process(3)
    for _ in range(3):
        scene.submit(LARGEST)
    outcomes = scene.order(2, remove=True)
    scene.answer(scene.process(2))
    assert not child(scene.process(2)).told_to_end, "requests wait that only it can answer now"
    scene.serve(begun)
    scene.answer(scene.process(2))
    scene.settle()
    assert (outcomes, len(scene.replies()), len(scene.alive())) == ([None], 3, 2)


@pytest.mark.parametrize("remove", [True, False])
def test_a_slot_that_waits_for_devices_can_be_removed_or_restarted(remove: bool) -> None:
    scene = serving(1)
    on(scene, slot_0="GPU-a")
    group(scene, 1, "GPU-a,GPU-b")
    outcomes = scene.order(1, remove=remove)
    assert outcomes == [None]
    assert [slot.number for slot in scene.manager.slots] == ([0] if remove else [0, 1])
    if not remove:
        assert scene.slot(1).process is None
        scene.order(0, remove=True)
        scene.settle()
        assert (len(scene.launched), scene.state(1)) == (2, State.READY)


def test_a_slot_that_waits_for_devices_can_lose_its_models() -> None:
    scene = serving(1)
    on(scene, slot_0="GPU-a")
    group(scene, 1, "GPU-a,GPU-b")
    assert scene.order(1, specs=()) == [None]
    scene.order(0, remove=True)
    scene.settle()
    assert (scene.state(1), len(scene.launched)) == (State.STOPPED, 1)


def test_a_slot_to_be_removed_serves_although_its_relief_has_no_process_yet() -> None:
    scene = serving()
    old = scene.process()
    scene.manager.add_slot(placement(1))
    outcomes = scene.order(0, remove=True)  # as a reload orders it, before the next tick
    scene.tick()
    new = scene.process(1)
    assert (scene.state(), child(old).told_to_end, outcomes) == (State.READY, False, [])
    scene.serve(new)
    scene.settle()
    assert (outcomes, scene.alive()) == ([None], [new])


@pytest.mark.parametrize("loads", [True, False])
def test_a_slot_to_be_removed_serves_until_its_relief_is_ready_or_has_failed(loads: bool) -> None:
    scene = serving(1)
    old = scene.process()
    scene.manager.add_slot(placement(1))
    scene.tick()
    new = scene.process(1)
    outcomes = scene.order(0, remove=True)
    assert not child(old).told_to_end
    scene.submit()
    scene.answer(old)
    assert (outcomes, len(scene.replies())) == ([], 1)
    if loads:
        scene.serve(new)
    else:
        scene.report(new, "loading")
        scene.report(new, "failed", "no weights")
        scene.tick()
    assert child(old).told_to_end
    scene.settle()
    assert outcomes == [None]


def test_equal_groups_and_cpu_devices_do_not_block_each_other() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a,GPU-b", slot_1="cpu:0")
    group(scene, 2, "GPU-a,GPU-b")
    group(scene, 3, "cpu:0,cpu:1")
    assert None not in (scene.slot(2).process, scene.slot(3).process)


# Everything in any order.


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
