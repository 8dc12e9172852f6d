"""A call that may block for ever, and its outcomes."""

from __future__ import annotations

import threading

import pytest

from multitower.supervisor.loop.bounded_call import call_within


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
