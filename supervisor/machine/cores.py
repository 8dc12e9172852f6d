"""Which cores of the host each worker is bound to: those near its devices, divided among the workers that share them.

`placement` calls it. `divide` is the rule, and pure.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

SYSTEM: Final = Path("/sys/devices/system/cpu")


def available(system: Path = SYSTEM) -> tuple[int, ...]:
    """The CPU numbers that this process may use, the threads of a physical core side by side.

    Linux numbers the second threads of all cores after the first ones: in the order of the numbers, one worker would
    get the first threads and another the second threads of the same cores.
    """
    return tuple(sorted(os.sched_getaffinity(0), key=lambda core: (_physical(core, system), core)))


def divide(available: Sequence[int], near: Sequence[Sequence[Collection[int] | None]]) -> tuple[tuple[int, ...], ...]:
    """Each worker's cores.

    The cores of a node are divided among the workers that have a device at it, equally and in runs of neighbours; what
    does not divide evenly is left to the supervisor. A worker with devices at two nodes has its part of both. A worker
    that would get none shares one with others.

    Args:
        available: the CPU numbers there are to share, at least one, neighbours side by side.
        near: for each worker, the CPU numbers near each of its devices. Where those of one are not known (None), or
            none of them is available, all that are available count.
    """
    wanted = [_wanted(devices, frozenset(available)) for devices in near]
    nodes = {frozenset(cores) for devices in near for cores in devices if cores is not None}
    alike: dict[tuple[tuple[int, ...], frozenset[frozenset[int]]], list[int]] = {}
    for core in available:
        workers = tuple(worker for worker, cores in enumerate(wanted) if core in cores)
        alike.setdefault((workers, frozenset(node for node in nodes if core in node)), []).append(core)
    shares: list[list[int]] = [[] for _ in near]
    for (workers, _), cores in alike.items():
        each = len(cores) // max(1, len(workers))
        for index, worker in enumerate(workers):
            shares[worker] += cores[index * each : (index + 1) * each]
    turns: dict[frozenset[int], int] = {}
    for worker, share in enumerate(shares):
        if not share:
            turn = turns[wanted[worker]] = turns.get(wanted[worker], -1) + 1
            choice = [core for core in available if core in wanted[worker]]
            share.append(choice[turn % len(choice)])
    return tuple(tuple(sorted(share)) for share in shares)


def parse(text: str) -> list[int]:
    """The numbers of a list as the kernel writes it: `0-3,8`."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def shown(cores: Iterable[int]) -> str:
    """The opposite of `parse`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _wanted(devices: Sequence[Collection[int] | None], available: frozenset[int]) -> frozenset[int]:
    """The cores that a worker with such devices takes its part of."""
    if None in devices:
        return available
    return available.intersection(core for cores in devices for core in cores or ()) or available


def _physical(core: int, system: Path) -> int:
    """The first thread of the physical core; the thread itself where the system does not say."""
    try:
        return min(parse((system / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()), default=core)
    except OSError:
        return core
