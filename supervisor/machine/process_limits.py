"""What this process may use of its machine: memory, CPU time and cores.

The machine itself is one limit. The others are those of the process's control group and of every group above it, as in
a container or with systemd's `MemoryMax` and `CPUQuota`, in both versions of cgroups(7). Placement, capacity, `devices`
and `doctor` all ask this module, so that they agree.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .cores import parse_core_list

UNLIMITED: Final = 1 << 60
"""Version 1 reports a limit of about this many bytes where there is none."""

ROOT: Final = Path("/")
"""The folder with `proc` and `sys`; tests have others."""


@dataclass(frozen=True, slots=True)
class MemoryHeadroom:
    """The memory that is left within one limit.

    Attributes:
        available_bytes: what processes can still take within it. Memory counts as available if the kernel can take it
            back from the cache of files that no process has mapped.
        total_bytes: the limit.
        source: what limits it, for people: `this machine`, or `memory.max of the control group /a`.
    """

    available_bytes: int
    total_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """The smallest quota of CPU time.

    Attributes:
        cores: the number of cores whose whole time may be used, such as 1.5.
        source: what limits it, for people: `cpu.max of the control group /a`.
    """

    cores: float
    source: str


class ProcessLimits:
    """Reads the limits of this process.

    The control groups are found once. Their files are read with each call, since an operator may change limits while
    the process runs.

    Args:
        root: the folder with `proc` and `sys`. What cannot be read there counts as no limit.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._memory = list(_find_groups(root, "memory"))
        self._cpu = list(_find_groups(root, "cpu"))
        self._cpuset = list(_find_groups(root, "cpuset"))

    def memory(self) -> MemoryHeadroom:
        """Returns the memory that is left within the narrowest limit."""
        return min(self.all_memory(), key=lambda limit: limit.available_bytes)

    def all_memory(self) -> list[MemoryHeadroom]:
        """Returns the memory that is left on the machine, and within each limit of a control group."""
        return [_machine_memory(self._root), *(limit for group in self._memory for limit in group.memory_limits())]

    def cpu_quota(self) -> CpuQuota | None:
        """Returns the smallest quota of CPU time; None without one."""
        quotas = [quota for group in self._cpu if (quota := group.cpu_quota()) is not None]
        return min(quotas, key=lambda quota: quota.cores, default=None)

    def cores(self) -> frozenset[int]:
        """Returns the CPU numbers that this process may run on, at least one."""
        cores = frozenset(os.sched_getaffinity(0))
        for group in self._cpuset:
            # The kernel keeps the affinity within it, but some sandboxes do not.
            cores = cores.intersection(group.cpuset()) or cores
        return cores

    def killed_together(self) -> str | None:
        """Returns the control group whose processes the kernel ends all at once if memory runs out; None if none."""
        return next((group.name for group in self._memory if _read_int(group.folder / "memory.oom.group") == 1), None)


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group.

    Attributes:
        folder: its files.
        name: its path within the hierarchy, for people.
        version: of cgroups, 1 or 2.
    """

    folder: Path
    name: str
    version: int

    def memory_limits(self) -> Iterator[MemoryHeadroom]:
        """The limits on memory that it sets: a process over `memory.high` is slowed down until it stands still."""
        version_2 = self.version == 2
        used = _read_int(self.folder / ("memory.current" if version_2 else "memory.usage_in_bytes"))
        if used is None:
            return  # the root group, or this hierarchy does not account for memory
        used -= min(used, _reclaimable(self.folder / "memory.stat", "" if version_2 else "total_"))
        for file in ("memory.max", "memory.high") if version_2 else ("memory.limit_in_bytes",):
            limit = _read_int(self.folder / file)
            if limit is not None and limit < UNLIMITED:
                yield MemoryHeadroom(max(0, limit - used), limit, f"{file} of the control group {self.name}")

    def cpu_quota(self) -> CpuQuota | None:
        """The quota that it sets."""
        if self.version == 2:
            file, words = "cpu.max", _read(self.folder / "cpu.max").split()
        else:
            file = "cpu.cfs_quota_us"
            words = [*_read(self.folder / file).split(), *_read(self.folder / "cpu.cfs_period_us").split()]
        numbers = [int(word) for word in words if word.isdigit()]
        if len(numbers) != 2 or 0 in numbers:
            return None  # `max`, or -1 in version 1
        return CpuQuota(numbers[0] / numbers[1], f"{file} of the control group {self.name}")

    def cpuset(self) -> list[int]:
        """The CPU numbers that it allows; empty without a restriction."""
        for file in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            try:
                cores = parse_core_list(_read(self.folder / file))
            except ValueError:
                continue
            if cores:
                return cores
        return []


def unified_group(root: Path = ROOT, pid: int | None = None) -> Path | None:
    """Finds the control group of a process in the hierarchy of version 2.

    Args:
        root: the folder with `proc` and `sys`.
        pid: its process id; None for this process.

    Returns:
        The folder of the group; None if that hierarchy is not mounted, or the process has ended.
    """
    groups = _find_groups(root, "", "self" if pid is None else str(pid))
    return next((group.folder for group in groups if group.version == 2), None)


def _find_groups(root: Path, controller: str, process: str = "self") -> Iterator[_Group]:
    """The control group of a process and those above it, as far as they are mounted, in all hierarchies.

    A line of /proc/self/cgroup is `number:controllers:path`; version 2 has no controllers. In a line of
    /proc/self/mountinfo, the path of the mounted group is the fourth word and the mount point the fifth; behind a `-`
    stand the kind of file system, a source and its options (proc_pid_mountinfo(5)).
    """
    paths: dict[int, str] = {}
    for line in _read(root / "proc" / process / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    found: set[Path] = set()
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        words, kind = mount.split(), system.split()
        if len(words) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        if version not in paths or (version == 1 and controller not in kind[2].split(",")):
            continue
        mount_point = root / _unescape(words[4]).lstrip("/")
        # In a container, the group that is mounted may be the container's own, or the path may lie outside of it.
        inside = os.path.relpath(paths[version], _unescape(words[3])) if words[3].startswith("/") else "."
        parts = () if inside == "." or inside.startswith("..") else Path(inside).parts
        for depth in range(len(parts), -1, -1):
            folder = mount_point.joinpath(*parts[:depth])
            if folder not in found and folder.is_dir():
                found.add(folder)
                yield _Group(folder, f"/{'/'.join(parts[:depth])}", version)


def _unescape(path: str) -> str:
    """A path of mountinfo, where spaces and some other characters are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _machine_memory(root: Path) -> MemoryHeadroom:
    values = _values(root / "proc/meminfo")
    total, available = (values.get(name, 0) << 10 for name in ("MemTotal:", "MemAvailable:"))
    return (
        MemoryHeadroom(available, total, "this machine") if total else MemoryHeadroom(UNLIMITED, UNLIMITED, "nothing")
    )


def _reclaimable(file: Path, prefix: str) -> int:
    """Bytes of a group's usage that the kernel takes back when processes need them."""
    values = _values(file)
    cached = sum(values.get(f"{prefix}{name}", 0) for name in ("inactive_file", "active_file"))
    mapped = values.get(f"{prefix}mapped_file" if prefix else "file_mapped", 0)
    return max(0, cached - mapped) + values.get("slab_reclaimable", 0)


def _values(file: Path) -> dict[str, int]:
    """The numbers in a file of the kernel's with one pair of a name and a number a line; the first of each name."""
    values: dict[str, int] = {}
    for line in _read(file).splitlines():
        words = line.split(None, 2)
        if len(words) > 1 and words[1].isdigit():
            values.setdefault(words[0], int(words[1]))
    return values


def _read_int(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    """The file's text; empty if it does not exist or cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
