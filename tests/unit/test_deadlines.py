"""The timer wheel."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from multitower.supervisor.scheduling.deadlines import TICK_S, Deadlines


class Item:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.tick = 0


@given(
    st.lists(st.floats(0.0, 100.0), max_size=40),
    st.sets(st.integers(0, 39)),
    st.lists(st.floats(0.0, 120.0), min_size=1, max_size=20).map(sorted),
)
def test_each_item_expires_once_and_in_time_unless_removed(
    deadlines: list[float], removed: set[int], moments: list[float]
) -> None:
    wheel: Deadlines[Item] = Deadlines()
    items = [Item(deadline) for deadline in deadlines]
    for item in items:
        wheel.add(item)
    kept = [item for index, item in enumerate(items) if index not in removed]
    for item in items:
        if item not in kept:
            wheel.remove(item)
    for now in moments:
        due = wheel.next()
        expired = wheel.expire(now)
        assert due is None or (now >= due) == bool(expired)
        for item in expired:
            assert item.deadline <= now
            kept.remove(item)
        assert all(item.deadline > now - TICK_S - 1e-9 for item in kept)
    assert (wheel.next() is None) == (not kept)


def test_removed_items_leave_nothing_behind_that_must_be_woken_for() -> None:
    wheel: Deadlines[Item] = Deadlines()
    for n in range(1000):
        item = Item(n * 0.01)
        wheel.add(item)
        wheel.remove(item)
    assert wheel.next() is None
