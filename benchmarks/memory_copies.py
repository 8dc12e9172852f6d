"""Ways to copy a tensor of 602,112 bytes from and to memory that is shared with a client.

    python benchmarks/memory_copies.py [--rounds 20]

- system call: `preadv` and `pwritev` on the memfd, as a worker does the first time.
- mapping: a copy from and to a mapping of the memfd whose pages have been used before.
- new memory: `preadv` to memory that has just been allocated, so that each of its pages causes a page fault.

Each round goes through 64 areas of one region, 37 MiB in all, so that the CPU caches have little of it. Figures are
microseconds of CPU time for one tensor: medians over the rounds, which take the ways in turn.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import time
from collections.abc import Callable
from typing import Final

import numpy as np

BYTES: Final = 602_112
AREA: Final = -(-BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
AREAS: Final = 64

Way = Callable[[int], object]


def ways(region: int) -> dict[str, Way]:
    """Each way, as a function of an area's number."""
    own = np.ones(BYTES, np.uint8)
    mapped = np.frombuffer(mmap.mmap(region, AREA * AREAS), np.uint8)

    def area(number: int) -> np.ndarray:
        return mapped[number * AREA : number * AREA + BYTES]

    def to_new_memory(number: int) -> object:
        with mmap.mmap(-1, AREA, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as new:
            return os.preadv(region, [new], number * AREA)

    return {
        "from: system call": lambda number: os.preadv(region, [own], number * AREA),
        "from: mapping": lambda number: np.copyto(own, area(number)),
        "from: system call, new memory": to_new_memory,
        "to: system call": lambda number: os.pwritev(region, [own], number * AREA),
        "to: mapping": lambda number: np.copyto(area(number), own),
    }


def microseconds(way: Way) -> float:
    """The CPU time for one area, over all of them."""
    begun = time.thread_time()
    for number in range(AREAS):
        way(number)
    return (time.thread_time() - begun) / AREAS * 1e6


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    region = os.memfd_create("multitower-benchmark")
    os.ftruncate(region, AREA * AREAS)
    candidates = ways(region)
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for way in candidates.values():
        microseconds(way)  # the pages exist from now on
    for _ in range(options.rounds):
        for name, way in candidates.items():
            figures[name].append(microseconds(way))
    for name, each in figures.items():
        print(f"{name:>30}{statistics.median(each):8.1f} us")


if __name__ == "__main__":
    main()
