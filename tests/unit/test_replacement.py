"""Replacements that succeed, and that meet deaths, removals and other replacements, with fake processes."""

from __future__ import annotations

import pytest
from fake_workers import Scene, child, spec
from serving_scene import condemn, serving

from multitower.errors import Reason
from multitower.supervisor.workers.planned_replacement_queue import Replacement
from multitower.supervisor.workers.slot_state_machine import State

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
