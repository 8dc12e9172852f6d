"""Cores, NUMA nodes, memory and limits of this machine or container, from the system's files."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from multitower.supervisor.machine.cores import parse_core_list

CGROUP: Final = Path("/sys/fs/cgroup")
NODES: Final = Path("/sys/devices/system/node")
SHM: Final = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What this process may use.

    Attributes:
        cores: CPU numbers it may run on.
        quota: cores' worth of time that the container may use; None for no such limit.
        nodes: for each NUMA node its CPU numbers.
        available_bytes: memory that can still be taken.
        descriptors: file descriptors a process may have, softly and hardly.
        shm_bytes: the size of /dev/shm; None where there is none.
        memfd: why no memfd can be made; None where it can.
    """

    cores: tuple[int, ...]
    quota: float | None
    nodes: Mapping[int, frozenset[int]]
    available_bytes: int
    descriptors: tuple[int, int]
    shm_bytes: int | None
    memfd: str | None


def look() -> Machine:
    """Looks at this machine."""
    return Machine(
        cores=tuple(sorted(os.sched_getaffinity(0))),
        quota=_quota(CGROUP),
        nodes=_nodes(NODES),
        available_bytes=_available(CGROUP),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE),
        shm_bytes=_size(SHM),
        memfd=_no_memfd(),
    )


def _quota(cgroup: Path) -> float | None:
    words = _read(cgroup / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        return int(words[0]) / int(words[1])
    quota = _number(_read(cgroup / "cpu" / "cpu.cfs_quota_us"))
    period = _number(_read(cgroup / "cpu" / "cpu.cfs_period_us"))
    return quota / period if quota is not None and quota > 0 and period else None


def _available(cgroup: Path) -> int:
    """What the host has left, or the container, where that is less."""
    available = int(psutil.virtual_memory().available)
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _number(_read(cgroup / limit_name)), _number(_read(cgroup / used_name))
        if limit is not None and used is not None:
            return min(available, max(0, limit - used))
    return available


def _nodes(folder: Path) -> dict[int, frozenset[int]]:
    nodes = {}
    for entry in sorted(folder.glob("node[0-9]*")):
        nodes[int(entry.name.removeprefix("node"))] = frozenset(parse_core_list(_read(entry / "cpulist")))
    return nodes


def _size(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_frsize * status.f_blocks


def _no_memfd() -> str | None:
    try:
        os.close(os.memfd_create("multitower-doctor"))
    except OSError as error:
        return str(error.strerror)
    return None


def _read(path: Path) -> str:
    """The file's text; nothing where this system has no such file, or does not show it."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
