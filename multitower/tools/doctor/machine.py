"""Cores, NUMA nodes, memory and limits of this machine or container, read from the system's files."""

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
        cores: numbers of the cores that it may run on.
        quota: cores whose time the container may use; None without such a limit.
        nodes: the cores of each NUMA node.
        available_bytes: memory that is still available.
        descriptors: the soft and the hard limit of file descriptors.
        shm_bytes: the size of /dev/shm; None if there is none.
        memfd_error: why a memfd cannot be created; None if it can.
    """

    cores: tuple[int, ...]
    quota: float | None
    nodes: Mapping[int, frozenset[int]]
    available_bytes: int
    descriptors: tuple[int, int]
    shm_bytes: int | None
    memfd_error: str | None


def inspect_machine() -> Machine:
    """Reads the facts about this machine."""
    return Machine(
        cores=tuple(sorted(os.sched_getaffinity(0))),
        quota=read_quota(CGROUP),
        nodes=read_nodes(NODES),
        available_bytes=read_available_memory(CGROUP),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE),
        shm_bytes=_file_system_size(SHM),
        memfd_error=_memfd_error(),
    )


def read_quota(cgroup: Path) -> float | None:
    """Cores whose time a control group may use (v2 or v1); None without a limit."""
    words = _read(cgroup / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        return int(words[0]) / int(words[1])
    quota = _parse_int(_read(cgroup / "cpu" / "cpu.cfs_quota_us"))
    period = _parse_int(_read(cgroup / "cpu" / "cpu.cfs_period_us"))
    return quota / period if quota is not None and quota > 0 and period else None


def read_available_memory(cgroup: Path) -> int:
    """Bytes that the host has left, or the container, whichever is less."""
    available = int(psutil.virtual_memory().available)
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _parse_int(_read(cgroup / limit_name)), _parse_int(_read(cgroup / used_name))
        if limit is not None and used is not None:
            return min(available, max(0, limit - used))
    return available


def read_nodes(folder: Path) -> dict[int, frozenset[int]]:
    """The cores of each NUMA node."""
    nodes = {}
    for entry in sorted(folder.glob("node[0-9]*")):
        nodes[int(entry.name.removeprefix("node"))] = frozenset(parse_core_list(_read(entry / "cpulist")))
    return nodes


def _file_system_size(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_frsize * status.f_blocks


def _memfd_error() -> str | None:
    try:
        os.close(os.memfd_create("multitower-doctor"))
    except OSError as error:
        return str(error.strerror)
    return None


def _read(path: Path) -> str:
    """The file's text; empty if the file does not exist or cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _parse_int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
