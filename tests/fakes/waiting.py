"""Waits for what no event tells: asks again and again, within a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAIT_S = 60.0
PAUSE_S = 0.01


def wait_for(ask: Callable[[], T], good: Callable[[T], object]) -> T:
    """Asks every 10 ms until the answer is good, and returns it.

    Raises:
        AssertionError: no answer was good within a minute.
    """
    until = time.monotonic() + WAIT_S
    while not good(answer := ask()):
        assert time.monotonic() < until, f"still {answer} after {WAIT_S} s"
        time.sleep(PAUSE_S)
    return answer


def wait_until(condition: Callable[[], object]) -> None:
    """Asks every 10 ms until the condition holds.

    Raises:
        AssertionError: it did not hold within a minute.
    """
    wait_for(condition, bool)
