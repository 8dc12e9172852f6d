"""Cores, NUMA nodes, memory and limits of this machine or container, read from the system's files."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from multitower.supervisor.machine.cores import parse_core_list
from multitower.supervisor.machine.pidfds import pidfd_error
from multitower.supervisor.machine.process_limits import CpuQuota, MemoryHeadroom, ProcessLimits

NODES: Final = Path("/sys/devices/system/node")
SHM: Final = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What this process may use.

    Attributes:
        cores: numbers of the cores that it may run on.
        quota: the limit on CPU time; None without one.
        nodes: the cores of each NUMA node.
        memory: what is left of each limit on memory, the machine's first.
        killed_together: the control group whose processes the kernel ends all at once if memory runs out, or None.
        descriptors: the soft and the hard limit of file descriptors.
        shm_bytes: the size of /dev/shm; None if there is none.
        memfd_error: why a memfd cannot be created; None if it can.
        pidfd_error: why processes cannot be watched through pidfds; None if they can.
    """

    cores: tuple[int, ...]
    quota: CpuQuota | None
    nodes: Mapping[int, frozenset[int]]
    memory: Sequence[MemoryHeadroom]
    killed_together: str | None
    descriptors: tuple[int, int]
    shm_bytes: int | None
    memfd_error: str | None
    pidfd_error: str | None


def inspect_machine() -> Machine:
    """Reads the facts about this machine."""
    process = ProcessLimits()
    return Machine(
        cores=tuple(sorted(process.cores())),
        quota=process.cpu_quota(),
        nodes=read_nodes(NODES),
        memory=process.all_memory(),
        killed_together=process.killed_together(),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE),
        shm_bytes=_file_system_size(SHM),
        memfd_error=_memfd_error(),
        pidfd_error=pidfd_error(),
    )


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
