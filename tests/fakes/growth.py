"""How the CPU time of a function grows with the size of its argument: a check that it is not quadratic."""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS = 9


def growth(prepare: Callable[[int], Callable[[], object]], small: int, large: int) -> float:
    """The CPU time at size `large` over that at size `small`, relative to the ratio of the sizes.

    Args:
        prepare: gives the function to measure for a size; what it does itself is not measured.
        small: the smaller size.
        large: the larger one, at least eight times as large.

    Returns:
        About 1 where the time is proportional to the size, `large / small` where it is quadratic.
    """
    assert large >= 8 * small
    return _cpu_seconds(prepare(large)) / _cpu_seconds(prepare(small)) * small / large


def _cpu_seconds(function: Callable[[], object]) -> float:
    """The least of several rounds: what the machine adds is never negative."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        function()
        best = min(best, time.thread_time() - began)
    return best
