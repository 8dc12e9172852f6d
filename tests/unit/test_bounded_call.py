"""A call that may block for ever, and its outcomes."""

from __future__ import annotations

import threading

import pytest

from multitower.supervisor.loop.bounded_call import call_all_within, call_within


def test_a_value_or_an_error_is_passed_on() -> None:
    assert call_within(30.0, lambda: 7) == 7
    assert call_within(30.0, lambda: None) is None  # type: ignore[func-returns-value]
    with pytest.raises(ZeroDivisionError):
        call_within(30.0, lambda: 1 / 0)


def test_a_call_that_blocks_is_left_alone() -> None:
    released = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        call_within(0.1, released.wait)
    released.set()


def test_calls_that_block_keep_no_other_call_waiting_and_cost_the_time_of_one() -> None:
    released = threading.Event()

    def fail() -> int:
        raise ZeroDivisionError

    blocked = [released.wait] * 20
    outcomes: list[object] = list(call_all_within(0.1, [lambda: 7, *blocked, fail, lambda: 8]))
    released.set()
    assert (outcomes[0], outcomes[-1]) == (7, 8)
    assert isinstance(outcomes[-2], ZeroDivisionError)
    assert {type(outcome) for outcome in outcomes[1:-2]} == {TimeoutError}
    assert call_all_within(0.1, []) == []
