"""The transitions of a slot and the restart budget, as histories of events."""

from __future__ import annotations

import random

import pytest

from multitower.supervisor.workers.restart_budget import RestartBudget, RestartPolicy
from multitower.supervisor.workers.slot_state_machine import TRANSITIONS, Action, Event, SlotStateMachine, State

POLICY = RestartPolicy(max_restarts=2, window_s=60.0, first_s=0.5, max_s=30.0)


def slot(policy: RestartPolicy = POLICY) -> SlotStateMachine:
    return SlotStateMachine(0, RestartBudget(policy, random.Random(1)))


# A history is a list of steps: an event, a number of seconds that pass, or "died" for the end of the process.
HISTORIES = {
    "a start, a drain and an end": (
        [Event.LOADING, Event.LOADED, Event.DRAIN, Event.DRAINED, "died"],
        [State.LOADING, State.READY, State.DRAINING, State.STOPPING, State.STOPPED],
    ),
    "a model that cannot load is not restarted": (
        [Event.LOADING, Event.UNLOADABLE, "died"],
        [State.LOADING, State.FAILED, State.FAILED],
    ),
    "nothing can be imported": ([Event.UNLOADABLE, "died"], [State.FAILED, State.FAILED]),
    "a crash": (
        [Event.LOADING, Event.LOADED, 1, "died", Event.DUE, Event.LOADING, Event.LOADED],
        [State.LOADING, State.READY, State.BACKOFF, State.STARTING, State.LOADING, State.READY],
    ),
    "three crashes in a window of two": (
        ["died", Event.DUE, "died", Event.DUE, "died"],
        [State.BACKOFF, State.STARTING, State.BACKOFF, State.STARTING, State.FAILED],
    ),
    "three crashes over a longer time": (
        ["died", Event.DUE, 61, "died", Event.DUE, 61, "died"],
        [State.BACKOFF, State.STARTING, State.BACKOFF, State.STARTING, State.BACKOFF],
    ),
    "stopped while it waits": (["died", Event.STOP, Event.STOP], [State.BACKOFF, State.STOPPED, State.STOPPED]),
    "stopped while it loads, although it reports being ready": (
        [Event.LOADING, Event.STOP, Event.LOADED, "died"],
        [State.LOADING, State.STOPPING, State.STOPPING, State.STOPPED],
    ),
    "stopped by the end of the daemon before its failed process has ended": (
        [Event.LOADING, Event.UNLOADABLE, Event.STOP, "died"],
        [State.LOADING, State.FAILED, State.STOPPED, State.STOPPED],
    ),
    "replaced while it serves": (
        [Event.LOADING, Event.LOADED, Event.REPLACED, Event.REPLACED],
        [State.LOADING, State.READY, State.READY, State.READY],
    ),
    "dies while its replacement loads": (
        [Event.LOADING, Event.LOADED, Event.PROMOTED, Event.LOADING, Event.LOADED],
        [State.LOADING, State.READY, State.LOADING, State.LOADING, State.READY],
    ),
    "restarted after it failed": (
        ["died", Event.DUE, "died", Event.DUE, "died", Event.RESTART, "died", Event.RESTART],
        [
            *(State.BACKOFF, State.STARTING, State.BACKOFF, State.STARTING, State.FAILED),
            *(State.STARTING, State.BACKOFF, State.STARTING),
        ],
    ),
    "replaced where two processes do not fit": (
        [Event.LOADING, Event.LOADED, Event.DRAIN, Event.DRAINED, "died", Event.RESTART],
        [State.LOADING, State.READY, State.DRAINING, State.STOPPING, State.STOPPED, State.STARTING],
    ),
    "dies while draining: not started again": (
        [Event.LOADING, Event.LOADED, Event.DRAIN, "died"],
        [State.LOADING, State.READY, State.DRAINING, State.STOPPED],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_events_lead_to_the_expected_states(name: str) -> None:
    steps, expected = HISTORIES[name]
    subject, now, states = slot(), 100.0, []
    for step in steps:
        if isinstance(step, int):
            now += step
            continue
        if step == "died":
            subject.handle_death(now, "killed by SIGKILL (9)")
        else:
            subject.handle(Event(step), now)
        states.append(subject.state)
    assert states == expected


def test_every_state_can_be_left() -> None:
    for state in State:
        ways = {after for (before, _), (after, _) in TRANSITIONS.items() if before is state}
        assert ways, state
        assert ways != {state}, state


def test_every_state_can_be_stopped() -> None:
    for state in State:
        after, _ = TRANSITIONS[state, Event.STOP]
        assert after in (State.STOPPING, State.STOPPED)


def test_an_event_that_cannot_happen_raises() -> None:
    with pytest.raises(LookupError, match="slot 0: loaded cannot happen while starting"):
        slot().handle(Event.LOADED, 0.0)


def test_a_start_counts_the_incarnation_and_a_failure_keeps_its_cause() -> None:
    subject = slot()
    assert (subject.incarnation, subject.restarts, subject.last_error) == (1, 0, None)
    assert subject.handle_death(0.0, "killed by SIGSEGV (11)") is Action.WAIT
    assert subject.handle(Event.DUE, 1.0) is Action.START
    assert (subject.incarnation, subject.restarts, subject.last_error) == (2, 1, "killed by SIGSEGV (11)")
    subject.handle(Event.LOADING, 1.0)
    assert subject.handle(Event.UNLOADABLE, 2.0, "digits: no such file") is Action.STOP
    assert subject.last_error == "digits: no such file"


def test_the_last_error_says_when_the_budget_is_spent() -> None:
    subject = slot(RestartPolicy(max_restarts=0))
    assert subject.handle_death(0.0, "exited with code 3") is Action.NOTHING
    assert subject.state is State.FAILED
    assert subject.last_error == "exited with code 3; too many restarts (restart.max_restarts is 0 within 60 s)"


class TestBudget:
    def test_an_isolated_death_of_a_ready_worker_restarts_at_once(self) -> None:
        assert RestartBudget(POLICY, random.Random(1)).spend(0.0, ready_for_s=5.0) == 0.0

    def test_a_death_before_ready_waits(self) -> None:
        delay = RestartBudget(POLICY, random.Random(1)).spend(0.0, ready_for_s=None)
        assert delay is not None
        assert 0.375 <= delay <= 0.5

    def test_the_delay_doubles_up_to_its_limit(self) -> None:
        budget = RestartBudget(RestartPolicy(max_restarts=99, first_s=0.5, max_s=4.0), random.Random(1))
        delays = [budget.spend(float(n), ready_for_s=1.0) for n in range(7)]
        assert delays[0] == 0.0
        for delay, full in zip(delays[1:], [0.5, 1.0, 2.0, 4.0, 4.0, 4.0], strict=True):
            assert delay is not None
            assert full * 0.75 <= delay <= full

    def test_a_long_time_of_ready_resets_the_delay(self) -> None:
        budget = RestartBudget(RestartPolicy(max_restarts=99), random.Random(1))
        for n in range(4):
            budget.spend(float(n), ready_for_s=1.0)
        assert budget.spend(100.0, ready_for_s=60.0) == 0.0

    def test_a_death_caused_by_a_suspect_spends_nothing(self) -> None:
        budget = RestartBudget(POLICY, random.Random(1))
        assert [budget.spend(0.0, ready_for_s=1.0, counts=False) for _ in range(9)] == [0.0] * 9
        assert budget.spend(0.0, ready_for_s=1.0) == 0.0

    def test_the_budget_is_spent_within_the_window_only(self) -> None:
        budget = RestartBudget(POLICY, random.Random(1))
        assert budget.spend(0.0, ready_for_s=1.0) is not None
        assert budget.spend(1.0, ready_for_s=1.0) is not None
        assert budget.spend(59.0, ready_for_s=1.0) is None
        assert budget.spend(60.5, ready_for_s=1.0) is not None
