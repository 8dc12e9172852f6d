"""Throughput by the number of workers: which numbers, how much load, and the efficiency. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

FIRST_PER_WORKER: Final = 4
"""Requests outstanding for each worker in the first step: one is computed, the others wait."""

GAIN: Final = 1.05
"""A step of twice the load that does not reach this factor of the best throughput shows saturation."""

MAX_STEPS: Final = 8


def worker_counts(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    return sorted({*(1 << exponent for exponent in range(most.bit_length())), most})


def next_concurrency(workers: int, throughputs: Sequence[float]) -> int | None:
    """How many requests to keep outstanding in the next step towards saturation.

    Args:
        workers: the number of workers.
        throughputs: requests a second of the earlier steps, in order.

    Returns:
        None when the last step showed saturation, or there were `MAX_STEPS`.
    """
    done = len(throughputs)
    if done == MAX_STEPS:
        return None
    # Compared with the best earlier step: a slow one by chance must not make the following step look like a gain.
    if done > 1 and throughputs[-1] < max(throughputs[:-1]) * GAIN:
        return None
    return workers * FIRST_PER_WORKER << done


def max_concurrency(workers: int) -> int:
    """The largest number that `next_concurrency` can return."""
    return workers * FIRST_PER_WORKER << MAX_STEPS - 1


def efficiency(throughputs: Mapping[int, float]) -> dict[int, float]:
    """The throughput of each worker relative to that with the fewest workers; 1.0 is perfect scaling.

    Args:
        throughputs: requests a second by the number of workers.

    Returns:
        For each number N of workers `throughput(N) / (N * throughput(1))`. Where 1 was not measured, the smallest
        number stands for it. 0.0 where the smallest number answered nothing.
    """
    if not throughputs:
        return {}
    fewest = min(throughputs)
    one = throughputs[fewest] / fewest
    return {workers: rate / workers / one if one else 0.0 for workers, rate in sorted(throughputs.items())}
