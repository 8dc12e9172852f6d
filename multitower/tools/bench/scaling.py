"""Throughput over the number of workers: which numbers, how much load is enough, and the efficiency. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

FIRST_PER_WORKER: Final = 4
"""Requests outstanding for each worker in the first step: one computes, some wait."""

GAIN: Final = 1.05
"""Twice the load that does not answer this many times as much is saturation."""

MAX_STEPS: Final = 8


def worker_counts(most: int) -> list[int]:
    """1, 2, 4, … and the largest number itself."""
    return sorted({*(1 << exponent for exponent in range(most.bit_length())), most})


def next_concurrency(workers: int, throughputs: Sequence[float]) -> int | None:
    """How many requests to keep outstanding in the next step towards saturation.

    Args:
        workers: how many there are.
        throughputs: requests a second of the steps before, in their order.

    Returns:
        None when the last step has shown saturation, or there were `MAX_STEPS`.
    """
    done = len(throughputs)
    if done == MAX_STEPS:
        return None
    # Compared with the best one before: a step that was unlucky must not make the one after it look like a gain.
    if done > 1 and throughputs[-1] < max(throughputs[:-1]) * GAIN:
        return None
    return workers * FIRST_PER_WORKER << done


def most_concurrency(workers: int) -> int:
    """The most requests that `next_concurrency` ever asks for."""
    return workers * FIRST_PER_WORKER << MAX_STEPS - 1


def efficiency(throughputs: Mapping[int, float]) -> dict[int, float]:
    """What each worker answers beside a worker of the smallest number measured; 1.0 is perfect.

    Args:
        throughputs: requests a second for each number of workers.

    Returns:
        For each number of workers `throughput(N) / (N * throughput(1))`; where 1 was not measured, a worker of the
        smallest number stands for it. 0.0 where the smallest number answered nothing.
    """
    if not throughputs:
        return {}
    least = min(throughputs)
    one = throughputs[least] / least
    return {workers: rate / workers / one if one else 0.0 for workers, rate in sorted(throughputs.items())}
