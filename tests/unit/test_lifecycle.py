"""The daemon's lifecycle, as histories of requests to stop."""

from __future__ import annotations

import pytest

from multitower.supervisor.lifecycle import REPEAT_S, Lifecycle, LifecycleState, StopRequest

DRAIN, REPEATED, FORCE = StopRequest.DRAIN, StopRequest.REPEATED, StopRequest.FORCE


def test_the_states_follow_each_other_from_start_to_end() -> None:
    lifecycle = Lifecycle()
    states = [lifecycle.state]
    lifecycle.start()
    states.append(lifecycle.state)
    assert lifecycle.running
    lifecycle.request_stop(100.0, 30.0)
    states.append(lifecycle.state)
    assert (lifecycle.running, lifecycle.drain_by) == (False, 130.0)
    lifecycle.end_drain()
    states.append(lifecycle.state)
    assert states == list(LifecycleState)
    assert lifecycle.drain_by is None


def test_a_start_after_a_request_to_stop_changes_nothing() -> None:
    lifecycle = Lifecycle()
    lifecycle.request_stop(0.0, 30.0)
    lifecycle.start()
    assert lifecycle.state is LifecycleState.DRAINING


@pytest.mark.parametrize(
    ("times", "meanings"),
    [
        ([0.0], [DRAIN]),
        ([0.0, 0.0], [DRAIN, REPEATED]),  # GNU timeout: the child, then its process group
        ([0.0, 0.9, 0.99], [DRAIN, REPEATED, REPEATED]),
        ([0.0, REPEAT_S], [DRAIN, FORCE]),
        ([0.0, 0.1, 1.05], [DRAIN, REPEATED, FORCE]),  # the time counts from the first signal
        ([0.0, 5.0, 5.0], [DRAIN, FORCE, FORCE]),
    ],
)
def test_a_second_request_counts_once_the_first_is_a_second_old(
    times: list[float], meanings: list[StopRequest]
) -> None:
    lifecycle = Lifecycle(LifecycleState.RUNNING)
    assert [lifecycle.request_stop(100.0 + time, 30.0) for time in times] == meanings
    assert lifecycle.forced == (FORCE in meanings)
    assert lifecycle.drain_by == 130.0, "later signals do not extend the drain"


def test_a_signal_while_the_workers_end_is_a_second_request() -> None:
    lifecycle = Lifecycle(LifecycleState.RUNNING)
    lifecycle.request_stop(0.0, 30.0)
    lifecycle.end_drain()
    assert lifecycle.request_stop(0.5, 30.0) is REPEATED
    assert lifecycle.request_stop(2.0, 30.0) is FORCE
