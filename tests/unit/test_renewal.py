"""Renewals that go well, and that meet deaths, removals and other renewals: histories of a fleet without processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from made_up_fleet import LARGEST, Scene, placement, process, spec

from multitower.errors import Reason, Unavailable
from multitower.supervisor.workers.hang_detector import Verdict
from multitower.supervisor.workers.replacement import Renewal
from multitower.supervisor.workers.slot import State
from multitower.supervisor.workers.worker_process import Member


def serving(slots: int = 1, **arguments: Any) -> Scene:
    """Every slot serves."""
    scene = Scene(slots, **arguments)
    for slot in range(slots):
        scene.serve(scene.member(slot))
    return scene


# Where two fit, the old one serves until the new one does.


def test_the_new_one_takes_over_when_it_is_ready_and_the_old_one_ends_when_it_has_answered() -> None:
    scene = serving()
    old = scene.member()
    scene.submit()
    told = scene.order(specs=(spec(2),))
    new = scene.successor()
    assert (scene.member(), scene.state(), told) == (old, State.READY, [])
    scene.serve(new)
    assert (scene.member(), scene.place().specs, told) == (new, (spec(2),), [])
    assert not process(old).told, "it has something to answer"
    scene.answer(old)
    assert process(old).told
    assert told == [None]
    assert len(scene.replies()) == 1
    scene.obey()
    assert (scene.alive(), scene.state(), scene.place().slot.incarnation) == ([new], State.READY, 2)


@pytest.mark.parametrize("how", ["dies", "cannot load", "has no room"])
def test_one_that_does_not_come_up_leaves_the_old_one_as_it_was(how: str) -> None:
    scene = serving()
    old = scene.member()
    scene.no_room = how == "has no room"
    told = scene.order(specs=(spec(2),))
    if how == "dies":
        scene.die(scene.successor())
    elif how == "cannot load":
        scene.report(scene.successor(), "failed", "no weights")
        scene.tick()
    assert len(told) == 1
    assert told[0] is not None
    scene.obey()
    assert (scene.alive(), scene.member(), scene.state()) == ([old], old, State.READY)
    assert (scene.place().specs, scene.place().slot.incarnation) == ((spec(1),), 1)
    scene.submit()
    scene.answer(old)
    assert len(scene.replies()) == 1


def test_the_old_one_dies_first_and_the_new_one_is_the_slots_own_from_then_on() -> None:
    scene = serving()
    told = scene.order(specs=(spec(2),))
    new = scene.successor()
    scene.report(new, "loading")
    scene.submit()
    scene.die(scene.member())
    assert (scene.member(), scene.state(), told) == (new, State.LOADING, [])
    assert scene.alive() == [new], "no third one"
    scene.report(new, "ready")
    scene.tick()
    assert (scene.state(), scene.place().specs, told) == (State.READY, (spec(2),), [None])
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1, "what the dead one had is answered"


@pytest.mark.parametrize("first", ["old", "new"])
def test_both_die_at_once_and_the_renewal_begins_again(first: str) -> None:
    scene = serving()
    told = scene.order(specs=(spec(2),))
    both = {"old": scene.member(), "new": scene.successor()}
    for member in (both.pop(first), *both.values()):
        process(member).code = -9
        scene.fleet.died(member, scene.now)
    scene.tick()
    scene.settle()
    assert len(told) == 1
    assert scene.state() is State.READY
    assert len(scene.alive()) == 1
    # The new one died before the old: then it is no worse than one that cannot load, and the slot keeps what it had.
    assert scene.place().specs == ((spec(2),) if told == [None] else (spec(1),))


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_what_the_one_that_leaves_was_executing_is_run_again_before_the_renewal_is_over(how: str) -> None:
    scene = serving()
    old = scene.member()
    scene.submit()
    told = scene.order()
    new = scene.serve(scene.successor())
    if how == "hangs":
        old.verdict = Verdict("it sleeps")
    else:
        process(old).code = -9
        scene.fleet.died(old, scene.now)
    scene.fleet.renewals.advance(scene.now)
    assert told == [], "others are still to be given what it had"
    process(old).code = -9
    if how == "hangs":
        scene.fleet.died(old, scene.now)
    scene.tick()
    assert told == [None]
    assert scene.state() is State.READY, "its death is not the slot's"
    scene.running.clear()
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1
    assert scene.place().slot.restarts == 0


def test_the_one_that_leaves_is_still_looked_after() -> None:
    scene = serving()
    old = scene.member()
    scene.submit()
    scene.order()
    scene.serve(scene.successor())
    assert old in scene.fleet.members(), "or its hang would never be seen"
    scene.fleet.stop(scene.now)
    scene.obey()
    assert scene.alive() == []
    assert list(scene.fleet.members()) == []


# Where two do not fit, the old one ends first, and requests wait.


def test_the_only_slot_is_renewed_without_room_for_two_and_nobody_is_refused() -> None:
    scene = serving(fits=False)
    old = scene.member()
    told = scene.order(specs=(spec(2),))
    assert scene.state() is State.STOPPING
    scene.submit()  # raises where there is no hope
    assert not scene.fleet.hopeless, "exit_when_failed must not end the daemon now"
    scene.obey()
    new = scene.member()
    assert (process(old).closed, scene.state(), told) == (True, State.STARTING, [])
    assert not scene.fleet.hopeless
    scene.serve(new)
    assert (told, scene.place().specs) == ([None], (spec(2),))
    scene.dispatch()
    scene.answer(new)
    assert len(scene.replies()) == 1


def test_when_the_new_one_cannot_load_then_what_waits_is_refused_with_the_cause() -> None:
    scene = serving(fits=False)
    told = scene.order()
    scene.submit()
    scene.obey()
    scene.report(scene.member(), "loading")
    scene.report(scene.member(), "failed", "no weights")
    scene.tick()
    assert told == ["no weights"]
    (error,) = scene.replies()
    assert (error.reason, "no weights" in error.message) == (Reason.NO_WORKER, True)
    assert scene.fleet.hopeless
    assert scene.state() is State.FAILED


@pytest.mark.parametrize("how", ["cannot load", "dies"])
def test_when_it_cannot_load_other_models_the_slot_gets_its_former_ones_back_and_nobody_is_refused(how: str) -> None:
    scene = serving(fits=False)
    told = scene.order(specs=(spec(2),))
    scene.submit()
    scene.obey()
    if how == "cannot load":
        scene.report(scene.member(), "loading")
        scene.report(scene.member(), "failed", "no weights")
    else:
        scene.die(scene.member())
    scene.tick()
    assert told == []
    scene.obey()
    scene.serve(scene.member())
    assert told == ["no weights" if how == "cannot load" else "killed by SIGKILL (9)"]
    assert (scene.state(), scene.place().specs) == (State.READY, (spec(1),))
    scene.dispatch()
    scene.answer(scene.member())
    assert [type(reply) for reply in scene.replies()] == [list]


def test_it_dies_while_it_drains_and_the_new_one_comes_all_the_same() -> None:
    scene = serving(fits=False)
    scene.submit()
    told = scene.order()
    assert scene.state() is State.DRAINING, "it has something to answer"
    scene.die(scene.member())
    assert scene.state() is State.STARTING
    scene.serve(scene.member())
    assert told == [None]
    scene.dispatch()
    scene.answer(scene.member())
    assert len(scene.replies()) == 1


def test_it_dies_before_it_is_told_to_end_and_the_renewal_begins_again() -> None:
    scene = serving(fits=False)
    scene.submit()
    # The version is asked for by name, and the new one might have another: the old one has to answer this, too.
    scene.submit(version="1")
    told = scene.order(specs=(spec(2),))
    assert scene.state() is State.READY
    scene.die(scene.member())
    scene.settle()
    assert told == [None]
    assert (scene.state(), scene.place().specs, len(scene.alive())) == (State.READY, (spec(2),), 1)
    assert len(scene.replies()) == 2


def test_what_comes_while_the_old_one_leaves_does_not_keep_it() -> None:
    scene = serving(fits=False)
    old = scene.member()
    for _ in range(4):
        scene.submit(version="1")
    told = scene.order()
    answered = 0
    while not process(old).told:
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
        scene.report(scene.member(), "loading")
    elif state is State.READY:
        scene.serve(scene.member())
    elif state in (State.BACKOFF, State.FAILED):
        scene.die(scene.member())
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
    assert (scene.alive(), scene.fleet.places, len(scene.launched)) == ([], [], before)


# Several.


def test_slots_are_renewed_one_after_the_other() -> None:
    scene = serving(2)
    told = scene.order(0), scene.order(1)
    assert scene.place(1).successor is None
    scene.serve(scene.successor(0))
    assert told[0] == [None]
    scene.serve(scene.successor(1))
    assert told == ([None], [None])


def test_two_renewals_of_one_slot_are_both_carried_out() -> None:
    scene = serving()
    told = scene.order(specs=(spec(2),)), scene.order(specs=(spec(3),))
    scene.settle()
    assert told == ([None], [None])
    assert (scene.place().slot.incarnation, scene.place().specs) == (3, (spec(3),))
    assert len(scene.alive()) == 1


def test_what_waits_for_a_slot_that_is_removed_is_told_so() -> None:
    scene = serving(2)
    told = scene.order(0, remove=True), scene.order(0), scene.order(1)
    scene.settle()
    assert told == ([None], ["the slot is no longer configured"], [None])
    assert [place.slot.number for place in scene.fleet.places] == [1]


def test_only_what_has_not_begun_can_be_withdrawn() -> None:
    scene = serving(3)
    told: list[str] = []
    ours = [
        Renewal(scene.place(number), "a reload", done=lambda _, name=str(number): told.append(name))
        for number in range(2)
    ]
    for renewal in ours:
        scene.fleet.renewals.ask(renewal)
    other = scene.order(2)
    scene.fleet.renewals.withdraw(ours)
    scene.settle()
    assert told == ["0"]
    assert other == [None]
    assert [place.slot.incarnation for place in scene.fleet.places] == [2, 1, 2]


# Devices that a reload groups anew.


def on(scene: Scene, **devices: str) -> None:
    """Gives slots other devices than the scene did: `slot_0="GPU-a,GPU-b"`."""
    for name, names in devices.items():
        place = scene.place(int(name.removeprefix("slot_")))
        place.placement = replace(place.placement, devices=tuple(names.split(",")))


def group(scene: Scene, slot: int, devices: str) -> None:
    scene.fleet.add(replace(placement(slot), devices=tuple(devices.split(","))))
    scene.tick()


def test_a_group_begins_when_the_last_of_its_gpus_is_free_and_what_comes_meanwhile_waits() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a", slot_1="GPU-b")
    first, second = scene.member(0), scene.member(1)
    group(scene, 2, "GPU-a,GPU-b")
    assert (scene.state(2), scene.place(2).member) == (State.STARTING, None)
    for _ in range(4):
        scene.submit(LARGEST)  # more than both can be given at once
    told = [scene.order(slot, remove=True) for slot in range(2)]
    scene.answer(first)
    assert process(first).told, "others can wait for the group"
    scene.obey()
    assert (told, scene.place(2).member) == ([[None], []], None)
    scene.answer(second)
    scene.obey()
    assert told == [[None], [None]]
    new = scene.member(2)
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
        scene.obey()
    begun = scene.member(3)
    for _ in range(3):
        scene.submit(LARGEST)
    told = scene.order(2, remove=True)
    scene.answer(scene.member(2))
    assert not process(scene.member(2)).told, "requests wait, which only it can answer now"
    scene.serve(begun)
    scene.answer(scene.member(2))
    scene.settle()
    assert (told, len(scene.replies()), len(scene.alive())) == ([None], 3, 2)


@pytest.mark.parametrize("remove", [True, False])
def test_a_slot_that_is_held_back_can_be_removed_or_restarted(remove: bool) -> None:
    scene = serving(1)
    on(scene, slot_0="GPU-a")
    group(scene, 1, "GPU-a,GPU-b")
    told = scene.order(1, remove=remove)
    assert told == [None]
    assert [place.slot.number for place in scene.fleet.places] == ([0] if remove else [0, 1])
    if not remove:
        assert scene.place(1).member is None
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
    old = scene.member()
    scene.fleet.add(placement(1))
    scene.tick()
    new = scene.member(1)
    told = scene.order(0, remove=True)
    assert not process(old).told
    scene.submit()
    scene.answer(old)
    assert (told, len(scene.replies())) == ([], 1)
    if loads:
        scene.serve(new)
    else:
        scene.report(new, "loading")
        scene.report(new, "failed", "no weights")
        scene.tick()
    assert process(old).told
    scene.settle()
    assert told == [None]


def test_workers_of_the_same_group_and_cpu_devices_hold_nobody_back() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a,GPU-b", slot_1="cpu:0")
    group(scene, 2, "GPU-a,GPU-b")
    group(scene, 3, "cpu:0,cpu:1")
    assert None not in (scene.place(2).member, scene.place(3).member)


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

    def some(self, data: st.DataObject, members: list[Member]) -> Member:
        return data.draw(st.sampled_from(members))

    def loading(self) -> list[Member]:
        return [
            member
            for member in self.scene.alive()
            if member.place is not None and member.channel is None and member.state in ("starting", "loading")
        ]

    @precondition(lambda self: self.loading())
    @rule(data=st.data(), state=st.sampled_from(["loading", "ready", "ready", "ready", "failed"]))
    def report(self, data: st.DataObject, state: str) -> None:
        member = self.some(data, self.loading())
        if state != "loading" and member.state == "starting":
            self.scene.report(member, "loading")
        self.scene.report(member, state, "no weights" if state == "failed" else None)

    @precondition(lambda self: self.scene.alive())
    @rule(data=st.data(), code=st.sampled_from([-9, -11, 0, 73]))
    def die(self, data: st.DataObject, code: int) -> None:
        """The loop may find several deaths at once: it is buried with the next tick."""
        member = self.some(data, self.scene.alive())
        process(member).code = code
        if member.channel is not None:
            self.scene.running.pop(member.channel.worker, None)
        self.scene.fleet.died(member, self.scene.now)

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.1, 1.0, 6.0]))
    def tick(self, seconds: float) -> None:
        self.scene.tick(seconds)
        self.scene.dispatch()

    @rule()
    def obey(self) -> None:
        self.scene.obey()

    @rule(data=st.data(), version=st.integers(1, 3), remove=st.integers(0, 9))
    def order(self, data: st.DataObject, version: int, remove: int) -> None:
        places = self.scene.fleet.places
        if not places:
            self.scene.fleet.add(placement(0))
            return
        slot = data.draw(st.sampled_from([place.slot.number for place in places]))
        specs = (spec(version),)
        self.orders.append(self.scene.order(slot, specs=specs, remove=remove == 0))

    @rule(fits=st.booleans(), no_room=st.booleans())
    def machine(self, fits: bool, no_room: bool) -> None:
        self.scene.fits, self.scene.no_room = fits, no_room

    @rule(rows=st.integers(1, 7))
    def submit(self, rows: int) -> None:
        try:
            self.scene.submit(rows)
        except Unavailable:
            assert not any(place.slot.state is State.READY for place in self.scene.fleet.places)
            return
        self.asked += 1

    def busy(self) -> list[Member]:
        return [m for m in self.scene.alive() if m.channel is not None and m.channel.worker in self.scene.running]

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.scene.answer(self.some(data, self.busy()))

    @precondition(lambda self: self.scene.alive())
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        """As `Health` finds it."""
        member = self.some(data, self.scene.alive())
        if member.verdict is None and member.cause is None:
            member.verdict = Verdict("it sleeps", stopped=True)
            if member.channel is not None:
                self.scene.router.balancer.retire(member.channel.worker)
            member.process.kill()

    # What must hold.

    @invariant()
    def it_adds_up(self) -> None:
        if not hasattr(self, "scene"):
            return
        scene = self.scene
        assert all(len(told) <= 1 for told in self.orders), "answered twice"
        self.answered += len(scene.replies())
        for place in scene.fleet.places:
            wanted = [m for m in scene.alive() if m.place is place and not process(m).told]
            assert len(wanted) <= 2
            if place.slot.state is State.READY:
                assert place.channel is not None
                assert place.channel.worker in scene.router.channels
                assert scene.router.balancer.refusals.of("m") is None
        for worker in scene.running:
            (member,) = [member for member in scene.launched if member.channel and member.channel.worker is worker]
            assert member.cause is None, "a dead worker was given work"
        serving = {member.channel.worker for member in scene.fleet.members() if member.channel is not None}
        assert set(scene.router.channels) == serving, "no worker is served that nobody looks after"
        buried = [member for member in scene.launched if process(member).closed]
        assert not set(map(id, buried)) & set(map(id, scene.fleet.members()))

    def teardown(self) -> None:
        """From now on all goes well."""
        if not hasattr(self, "scene"):
            return
        scene = self.scene
        scene.settle()
        for place in scene.fleet.places:
            if place.slot.state is State.FAILED:
                self.orders.append(scene.order(place.slot.number))
        scene.settle()
        assert all(len(told) == 1 for told in self.orders), "an order was never answered"
        assert {place.slot.state for place in scene.fleet.places} <= {State.READY}
        alive = [member for member in scene.alive() if member.place is not None]
        assert len(alive) == len(scene.fleet.places)
        self.answered += len(scene.replies())
        if scene.fleet.places:
            assert self.answered == self.asked
        scene.fleet.stop(scene.now)
        while scene.obey():
            pass
        assert list(scene.fleet.members()) == []


Renewing.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRenewing = Renewing.TestCase
