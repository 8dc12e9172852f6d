"""Which cores of the host each worker is bound to: those near its devices, divided among the workers that share them.

`placement.py` calls it. `divide_cores` is the rule, and pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

CPU_FOLDER: Final = Path("/sys/devices/system/cpu")


def sort_by_physical_core(cores: Iterable[int], folder: Path = CPU_FOLDER) -> tuple[int, ...]:
    """CPU numbers with threads of the same physical core next to each other.

    Linux numbers the second threads of all cores after the first ones. In numerical order one worker would get the
    first threads and another one the second threads of the same cores.
    """
    return tuple(sorted(cores, key=lambda core: (_first_thread(core, folder), core)))


def divide_cores(
    available: Sequence[int], near: Sequence[Sequence[Collection[int] | None]]
) -> tuple[tuple[int, ...], ...]:
    """Each worker's cores.

    The cores of a NUMA node are divided equally, in contiguous runs, among the workers with a device at that node; the
    remainder stays free for the supervisor. A worker with devices at two nodes gets a share of both. A worker whose
    share would be empty shares a core with others.

    Args:
        available: the CPU numbers to divide, at least one, with threads of the same core next to each other.
        near: for each worker and each of its devices, the CPU numbers near the device. None for a device whose CPUs are
            not known; it counts as near all of them, as does one that is near none of those available.

    Returns:
        The CPU numbers of each worker, ascending.
    """
    candidates = [_candidates(devices, frozenset(available)) for devices in near]
    nodes = {frozenset(cores) for devices in near for cores in devices if cores is not None}
    # Cores of the same nodes that the same workers may use.
    pools: dict[tuple[tuple[int, ...], frozenset[frozenset[int]]], list[int]] = {}
    for core in available:
        workers = tuple(worker for worker, cores in enumerate(candidates) if core in cores)
        pools.setdefault((workers, frozenset(node for node in nodes if core in node)), []).append(core)
    shares: list[list[int]] = [[] for _ in near]
    for (workers, _), cores in pools.items():
        size = len(cores) // max(1, len(workers))
        for index, worker in enumerate(workers):
            shares[worker] += cores[index * size : (index + 1) * size]
    turns: dict[frozenset[int], int] = {}
    for worker, share in enumerate(shares):
        if not share:
            turn = turns[candidates[worker]] = turns.get(candidates[worker], -1) + 1
            choice = [core for core in available if core in candidates[worker]]
            share.append(choice[turn % len(choice)])
    return tuple(tuple(sorted(share)) for share in shares)


def parse_core_list(text: str | bytes) -> list[int]:
    """The numbers of a list in the kernel's format, such as `0-3,8`.

    Raises:
        ValueError: it has another format.
    """
    text = text.decode("ascii") if isinstance(text, bytes) else text
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def format_core_list(cores: Iterable[int]) -> str:
    """CPU numbers in the kernel's format, such as `0-3,8`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _candidates(devices: Sequence[Collection[int] | None], available: frozenset[int]) -> frozenset[int]:
    """The cores that a worker with these devices gets a share of."""
    if None in devices:
        return available
    return available.intersection(core for cores in devices for core in cores or ()) or available


def _first_thread(core: int, folder: Path) -> int:
    """The first thread of the same physical core; `core` itself if the system does not report it."""
    try:
        siblings = (folder / f"cpu{core}" / "topology" / "thread_siblings_list").read_bytes()
        return min(parse_core_list(siblings), default=core)
    except (OSError, ValueError):
        return core
