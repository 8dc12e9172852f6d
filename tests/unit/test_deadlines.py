"""The timer wheel of deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from multitower.supervisor.scheduling.deadlines import TICK_S, Deadlines
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.worker_wire import KeySpec

KEY = BatchKey(KeySpec("m", (), None, True), 1)


def request(deadline: float) -> Request:
    return Request(("front",), b"id", Plan(KEY, 1, (), (), (), (), deadline), (), 0, 0.0)


@given(
    st.lists(st.floats(0.0, 100.0), max_size=40),
    st.sets(st.integers(0, 39)),
    st.lists(st.floats(0.0, 120.0), min_size=1, max_size=20).map(sorted),
)
def test_each_request_expires_once_and_in_time_unless_removed(
    deadlines: list[float], removed: set[int], moments: list[float]
) -> None:
    wheel = Deadlines()
    requests = [request(deadline) for deadline in deadlines]
    for each in requests:
        wheel.add(each)
    kept = [each for index, each in enumerate(requests) if index not in removed]
    for each in requests:
        if each not in kept:
            wheel.remove(each)
    for now in moments:
        due = wheel.next_expiry()
        expired = wheel.expire(now)
        assert due is None or (now >= due) == bool(expired)
        for each in expired:
            assert each.deadline <= now
            kept.remove(each)
        assert all(each.deadline > now - TICK_S - 1e-9 for each in kept)
    assert (wheel.next_expiry() is None) == (not kept)


def test_removed_requests_wake_nobody() -> None:
    wheel = Deadlines()
    for n in range(1000):
        each = request(n * 0.01)
        wheel.add(each)
        wheel.remove(each)
    assert wheel.next_expiry() is None
