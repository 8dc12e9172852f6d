"""Renewals that go well, and that meet deaths, removals and other renewals: histories of a fleet without processes."""

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


# Where two fit, the old one serves until the new one does.


def test_the_new_one_takes_over_when_it_is_ready_and_the_old_one_ends_when_it_has_answered() -> None:
    scene = serving()
    old = scene.process()
    scene.submit()
    told = scene.order(specs=(spec(2),))
    new = scene.next_process()
    assert (scene.process(), scene.state(), told) == (old, State.READY, [])
    scene.serve(new)
    assert (scene.process(), scene.slot().specs, told) == (new, (spec(2),), [])
    assert not child(old).told_to_end, "it has something to answer"
    scene.answer(old)
    assert child(old).told_to_end
    assert told == [None]
    assert len(scene.replies()) == 1
    scene.end_told()
    assert (scene.alive(), scene.state(), scene.slot().incarnation) == ([new], State.READY, 2)


@pytest.mark.parametrize("how", ["dies", "cannot load", "has no room"])
def test_one_that_does_not_come_up_leaves_the_old_one_as_it_was(how: str) -> None:
    scene = serving()
    old = scene.process()
    scene.no_room = how == "has no room"
    told = scene.order(specs=(spec(2),))
    if how == "dies":
        scene.die(scene.next_process())
    elif how == "cannot load":
        scene.report(scene.next_process(), "failed", "no weights")
        scene.tick()
    assert len(told) == 1
    assert told[0] is not None
    scene.end_told()
    assert (scene.alive(), scene.process(), scene.state()) == ([old], old, State.READY)
    assert (scene.slot().specs, scene.slot().incarnation) == ((spec(1),), 1)
    scene.submit()
    scene.answer(old)
    assert len(scene.replies()) == 1


def test_the_old_one_dies_first_and_the_new_one_is_the_slots_own_from_then_on() -> None:
    scene = serving()
    told = scene.order(specs=(spec(2),))
    new = scene.next_process()
    scene.report(new, "loading")
    scene.submit()
    scene.die(scene.process())
    assert (scene.process(), scene.state(), told) == (new, State.LOADING, [])
    assert scene.alive() == [new], "no third one"
    scene.report(new, "ready")
    scene.tick()
    assert (scene.state(), scene.slot().specs, told) == (State.READY, (spec(2),), [None])
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1, "what the dead one had is answered"


@pytest.mark.parametrize("first", ["old", "new"])
def test_both_die_at_once_and_the_renewal_begins_again(first: str) -> None:
    scene = serving()
    told = scene.order(specs=(spec(2),))
    both = {"old": scene.process(), "new": scene.next_process()}
    for process in (both.pop(first), *both.values()):
        scene.exit(process)
    scene.tick()
    scene.settle()
    assert len(told) == 1
    assert scene.state() is State.READY
    assert len(scene.alive()) == 1
    # The new one died before the old: then it is no worse than one that cannot load, and the slot keeps what it had.
    assert scene.slot().specs == ((spec(2),) if told == [None] else (spec(1),))


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_what_the_one_that_leaves_was_executing_is_run_again_before_the_renewal_is_over(how: str) -> None:
    scene = serving()
    old = scene.process()
    scene.submit()
    told = scene.order()
    new = scene.serve(scene.next_process())
    if how == "hangs":
        condemn(scene, old)
    else:
        scene.exit(old)
    scene.manager._replacer.advance(scene.now)
    assert told == [], "others are still to be given what it had"
    if how == "hangs":
        scene.exit(old)
    scene.tick()
    assert told == [None]
    assert scene.state() is State.READY, "its death is not the slot's"
    scene.running.clear()
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1
    assert scene.slot().restarts == 0


def test_the_one_that_leaves_is_still_looked_after() -> None:
    scene = serving()
    old = scene.process()
    scene.submit()
    scene.order()
    scene.serve(scene.next_process())
    assert old in scene.manager.processes(), "or its hang would never be seen"
    scene.manager.stop(scene.now)
    scene.end_told()
    assert scene.alive() == []
    assert list(scene.manager.processes()) == []


# Where two do not fit, the old one ends first, and requests wait.


def test_the_only_slot_is_renewed_without_room_for_two_and_nobody_is_refused() -> None:
    scene = serving(fits=False)
    old = scene.process()
    told = scene.order(specs=(spec(2),))
    assert scene.state() is State.STOPPING
    scene.submit()  # raises where there is no hope
    assert not scene.manager.unavailable, "exit_when_failed must not end the daemon now"
    scene.end_told()
    new = scene.process()
    assert (child(old).closed, scene.state(), told) == (True, State.STARTING, [])
    assert not scene.manager.unavailable
    scene.serve(new)
    assert (told, scene.slot().specs) == ([None], (spec(2),))
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1


def test_when_the_new_one_cannot_load_then_what_waits_is_refused_with_the_cause() -> None:
    scene = serving(fits=False)
    told = scene.order()
    scene.submit()
    scene.end_told()
    scene.report(scene.process(), "loading")
    scene.report(scene.process(), "failed", "no weights")
    scene.tick()
    assert told == ["no weights"]
    (error,) = scene.replies()
    assert (error.reason, "no weights" in error.message) == (Reason.NO_WORKER, True)
    assert scene.manager.unavailable
    assert scene.state() is State.FAILED


@pytest.mark.parametrize("how", ["cannot load", "dies"])
def test_when_it_cannot_load_other_models_the_slot_gets_its_former_ones_back_and_nobody_is_refused(how: str) -> None:
    scene = serving(fits=False)
    told = scene.order(specs=(spec(2),))
    scene.submit()
    scene.end_told()
    if how == "cannot load":
        scene.report(scene.process(), "loading")
        scene.report(scene.process(), "failed", "no weights")
    else:
        scene.die(scene.process())
    scene.tick()
    assert told == []
    scene.end_told()
    scene.serve(scene.process())
    assert told == ["no weights" if how == "cannot load" else "killed by SIGKILL (9)"]
    assert (scene.state(), scene.slot().specs) == (State.READY, (spec(1),))
    scene.dispatch()
    scene.answer(scene.process())
    assert [type(reply) for reply in scene.replies()] == [list]


def test_it_dies_while_it_drains_and_the_new_one_comes_all_the_same() -> None:
    scene = serving(fits=False)
    scene.submit()
    told = scene.order()
    assert scene.state() is State.DRAINING, "it has something to answer"
    scene.die(scene.process())
    assert scene.state() is State.STARTING
    scene.serve(scene.process())
    assert told == [None]
    scene.dispatch()
    scene.answer(scene.process())
    assert len(scene.replies()) == 1


def test_it_dies_before_it_is_told_to_end_and_the_renewal_begins_again() -> None:
    scene = serving(fits=False)
    scene.submit()
    # The version is asked for by name, and the new one might have another: the old one has to answer this, too.
    scene.submit(version="1")
    told = scene.order(specs=(spec(2),))
    assert scene.state() is State.READY
    scene.die(scene.process())
    scene.settle()
    assert told == [None]
    assert (scene.state(), scene.slot().specs, len(scene.alive())) == (State.READY, (spec(2),), 1)
    assert len(scene.replies()) == 2


def test_what_comes_while_the_old_one_leaves_does_not_keep_it() -> None:
    scene = serving(fits=False)
    old = scene.process()
    for _ in range(4):
        scene.submit(version="1")
    told = scene.order()
    answered = 0
    while not child(old).told_to_end:
        scene.tick(0.1)
        scene.submit(version="1")  # never less than it can take
        scene.submit(version="1")
        scene.answer(old)
        answered += 1
        assert answered < 10, "it would go on for ever"
    scene.settle()
    assert told == [None]
    replies = scene.replies()
    assert [type(reply) for reply in replies] == [list] * (4 + 2 * answered), "the new one serves the version, too"


# In every state.


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
def test_a_restart_in_every_state_makes_one_new_process(state: State) -> None:
    scene = history(state)
    before = len(scene.launched)
    told = scene.order()
    scene.settle()
    assert told == [None]
    assert scene.state() is State.READY
    assert len(scene.launched) == before + 1
    assert scene.alive() == [scene.launched[-1]]


@pytest.mark.parametrize("state", STATES)
def test_a_removal_in_every_state_leaves_nothing(state: State) -> None:
    scene = history(state)
    before = len(scene.launched)
    told = scene.order(remove=True)
    scene.settle()
    assert told == [None]
    assert (scene.alive(), scene.manager.slots, len(scene.launched)) == ([], [], before)


# Several.


def test_slots_are_renewed_one_after_the_other() -> None:
    scene = serving(2)
    told = scene.order(0), scene.order(1)
    assert scene.slot(1).next_process is None
    scene.serve(scene.next_process(0))
    assert told[0] == [None]
    scene.serve(scene.next_process(1))
    assert told == ([None], [None])


def test_two_renewals_of_one_slot_are_both_carried_out() -> None:
    scene = serving()
    told = scene.order(specs=(spec(2),)), scene.order(specs=(spec(3),))
    scene.settle()
    assert told == ([None], [None])
    assert (scene.slot().incarnation, scene.slot().specs) == (3, (spec(3),))
    assert len(scene.alive()) == 1


def test_what_waits_for_a_slot_that_is_removed_is_told_so() -> None:
    scene = serving(2)
    told = scene.order(0, remove=True), scene.order(0), scene.order(1)
    scene.settle()
    assert told == ([None], ["the slot is no longer configured"], [None])
    assert [slot.number for slot in scene.manager.slots] == [1]


def test_only_what_has_not_begun_can_be_withdrawn() -> None:
    scene = serving(3)
    told: list[str] = []
    ours = [
        Replacement(scene.slot(number), "a reload", done=lambda _, name=str(number): told.append(name))
        for number in range(2)
    ]
    for replacement in ours:
        scene.manager.request_replacement(replacement)
    other = scene.order(2)
    scene.manager.withdraw_replacements(ours)
    scene.settle()
    assert told == ["0"]
    assert other == [None]
    assert [slot.incarnation for slot in scene.manager.slots] == [2, 1, 2]


# Devices that a reload groups anew.


def on(scene: Scene, **devices: str) -> None:
    """Gives slots other devices than the scene did: `slot_0="GPU-a,GPU-b"`."""
    for name, names in devices.items():
        slot = scene.slot(int(name.removeprefix("slot_")))
        slot.placement = replace(slot.placement, devices=tuple(names.split(",")))


def group(scene: Scene, slot: int, devices: str) -> None:
    scene.manager.add_slot(replace(placement(slot), devices=tuple(devices.split(","))))
    scene.tick()


def test_a_group_begins_when_the_last_of_its_gpus_is_free_and_what_comes_meanwhile_waits() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a", slot_1="GPU-b")
    first, second = scene.process(0), scene.process(1)
    group(scene, 2, "GPU-a,GPU-b")
    assert (scene.state(2), scene.slot(2).process) == (State.STARTING, None)
    for _ in range(4):
        scene.submit(LARGEST)  # more than both can be given at once
    told = [scene.order(slot, remove=True) for slot in range(2)]
    scene.answer(first)
    assert child(first).told_to_end, "others can wait for the group"
    scene.end_told()
    assert (told, scene.slot(2).process) == ([[None], []], None)
    scene.answer(second)
    scene.end_told()
    assert told == [[None], [None]]
    new = scene.process(2)
    assert len(scene.replies()) == 2
    scene.submit()
    assert scene.replies() == [], "nobody is refused"
    scene.serve(new)
    scene.settle()
    assert len(scene.replies()) == 3
    assert scene.alive() == [new]


def test_the_last_of_the_old_ones_serves_until_a_group_that_has_begun_does() -> None:
    scene = serving(3)
    on(scene, slot_0="GPU-a,GPU-b", slot_1="GPU-c", slot_2="GPU-d")
    group(scene, 3, "GPU-a")
    group(scene, 4, "GPU-d,GPU-c")
    for slot in range(2):
        scene.order(slot, remove=True)
        scene.end_told()
    begun = scene.process(3)
    for _ in range(3):
        scene.submit(LARGEST)
    told = scene.order(2, remove=True)
    scene.answer(scene.process(2))
    assert not child(scene.process(2)).told_to_end, "requests wait, which only it can answer now"
    scene.serve(begun)
    scene.answer(scene.process(2))
    scene.settle()
    assert (told, len(scene.replies()), len(scene.alive())) == ([None], 3, 2)


@pytest.mark.parametrize("remove", [True, False])
def test_a_slot_that_is_held_back_can_be_removed_or_restarted(remove: bool) -> None:
    scene = serving(1)
    on(scene, slot_0="GPU-a")
    group(scene, 1, "GPU-a,GPU-b")
    told = scene.order(1, remove=remove)
    assert told == [None]
    assert [slot.number for slot in scene.manager.slots] == ([0] if remove else [0, 1])
    if not remove:
        assert scene.slot(1).process is None
        scene.order(0, remove=True)
        scene.settle()
        assert (len(scene.launched), scene.state(1)) == (2, State.READY)


def test_a_slot_that_is_held_back_can_lose_its_models() -> None:
    scene = serving(1)
    on(scene, slot_0="GPU-a")
    group(scene, 1, "GPU-a,GPU-b")
    assert scene.order(1, specs=()) == [None]
    scene.order(0, remove=True)
    scene.settle()
    assert (scene.state(1), len(scene.launched)) == (State.STOPPED, 1)


@pytest.mark.parametrize("loads", [True, False])
def test_what_goes_serves_until_what_comes_does_or_cannot(loads: bool) -> None:
    scene = serving(1)
    old = scene.process()
    scene.manager.add_slot(placement(1))
    scene.tick()
    new = scene.process(1)
    told = scene.order(0, remove=True)
    assert not child(old).told_to_end
    scene.submit()
    scene.answer(old)
    assert (told, len(scene.replies())) == ([], 1)
    if loads:
        scene.serve(new)
    else:
        scene.report(new, "loading")
        scene.report(new, "failed", "no weights")
        scene.tick()
    assert child(old).told_to_end
    scene.settle()
    assert told == [None]


def test_workers_of_the_same_group_and_cpu_devices_hold_nobody_back() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a,GPU-b", slot_1="cpu:0")
    group(scene, 2, "GPU-a,GPU-b")
    group(scene, 3, "cpu:0,cpu:1")
    assert None not in (scene.slot(2).process, scene.slot(3).process)


# Whatever comes.


class Renewing(RuleBasedStateMachine):
    """Slots, orders and deaths in any order: no event is impossible, every order is answered once, all slots come back.

    A slot that is told of an event that its table does not know raises, which would end the daemon.
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
        """The loop may find several deaths at once: it is buried with the next tick."""
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
        self.scene.end_told()

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
        return [m for m in self.scene.alive() if m.route is not None and m.route.worker in self.scene.running]

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.scene.answer(self.some(data, self.busy()))

    @precondition(lambda self: self.scene.alive())
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        """As `Health` finds it."""
        process = self.some(data, self.scene.alive())
        condemn(self.scene, process)

    # What must hold.

    @invariant()
    def it_adds_up(self) -> None:
        if not hasattr(self, "scene"):
            return
        scene = self.scene
        assert all(len(told) <= 1 for told in self.orders), "answered twice"
        self.answered += len(scene.replies())
        for slot in scene.manager.slots:
            wanted = [m for m in scene.alive() if m.slot is slot and not child(m).told_to_end]
            assert len(wanted) <= 2
            if slot.state is State.READY:
                assert slot.route is not None
                assert slot.route.worker in scene.router.routes
                assert scene.router.scheduler.refusal_for_accepted_request("m") is None
        for worker in scene.running:
            (process,) = [process for process in scene.launched if process.route and process.route.worker is worker]
            assert process.exit_cause is None, "a dead worker was given work"
        serving = {process.route.worker for process in scene.manager.processes() if process.route is not None}
        assert set(scene.router.routes) == serving, "no worker is served that nobody looks after"
        buried = [process for process in scene.launched if child(process).closed]
        assert not set(map(id, buried)) & set(map(id, scene.manager.processes()))

    def teardown(self) -> None:
        """From now on all goes well."""
        if not hasattr(self, "scene"):
            return
        scene = self.scene
        scene.settle()
        for slot in scene.manager.slots:
            if slot.state is State.FAILED:
                self.orders.append(scene.order(slot.number))
        scene.settle()
        assert all(len(told) == 1 for told in self.orders), "an order was never answered"
        assert {slot.state for slot in scene.manager.slots} <= {State.READY}
        alive = [process for process in scene.alive() if process.slot is not None]
        assert len(alive) == len(scene.manager.slots)
        self.answered += len(scene.replies())
        if scene.manager.slots:
            assert self.answered == self.asked
        scene.manager.stop(scene.now)
        while scene.end_told():
            pass
        assert list(scene.manager.processes()) == []


Renewing.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRenewing = Renewing.TestCase
