"""What a process may use of its machine, read from trees of files like those of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multitower.supervisor.machine.process_limits import CpuQuota, MemoryHeadroom, ProcessLimits

MIB = 2**20
OWN_CORES = frozenset(os.sched_getaffinity(0))


class Tree:
    """A root folder with `proc` and `sys`, of a machine of 8 GiB of which 6 GiB are available."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\nMemAvailable: {6 << 20} kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def mount(self, groups: str, *mounts: str) -> None:
        """Writes /proc/self/cgroup and mountinfo: of each mount its root, its folder, its kind, and its controllers."""
        self.write("proc/self/cgroup", groups)
        lines = ["21 20 0:4 / /proc rw - proc proc rw"]
        for mount in mounts:
            root, folder, kind, *controllers = mount.split()
            lines.append(f"30 20 0:5 {root} {folder} rw,nosuid shared:4 - {kind} none rw,{','.join(controllers)}")
        self.write("proc/self/mountinfo", "\n".join(lines))

    def limits(self) -> ProcessLimits:
        return ProcessLimits(self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def service(tree: Tree) -> Tree:
    """A service of systemd's in a slice, with version 2 of control groups."""
    tree.mount("0::/system.slice/mt.service", "/ /sys/fs/cgroup cgroup2")
    for group in ("system.slice", "system.slice/mt.service"):
        tree.write(f"sys/fs/cgroup/{group}/memory.current", str(100 * MIB))
    return tree


def write_group(tree: Tree, group: str, **files: object) -> None:
    for name, text in files.items():
        tree.write(f"sys/fs/cgroup/{group}/{name.replace('_', '.', 1)}", str(text))


def test_without_control_groups_the_machine_is_the_limit(tree: Tree) -> None:
    limits = tree.limits()
    assert limits.memory() == MemoryHeadroom(6 << 30, 8 << 30, "this machine")
    assert limits.cpu_quota() is None
    assert limits.cores() == OWN_CORES
    assert limits.killed_together() is None


def test_what_cannot_be_read_is_no_limit(tmp_path: Path) -> None:
    limits = ProcessLimits(tmp_path)
    assert limits.memory().available_bytes >= 1 << 60
    assert (limits.cpu_quota(), limits.cores()) == (None, OWN_CORES)


def test_a_group_without_limits_changes_nothing(service: Tree) -> None:
    write_group(service, "system.slice/mt.service", memory_max="max", memory_high="max", cpu_max="max 100000")
    assert service.limits().memory().source == "this machine"
    assert service.limits().cpu_quota() is None


@pytest.mark.parametrize(
    ("own", "above", "available", "source"),
    [
        ({"memory_max": 400 * MIB}, {}, 300, "memory.max of the control group /system.slice/mt.service"),
        ({"memory_high": 300 * MIB, "memory_max": 400 * MIB}, {}, 200, "memory.high of the control group"),
        ({"memory_max": 400 * MIB}, {"memory_max": 350 * MIB}, 250, "memory.max of the control group /system.slice"),
        ({}, {"memory_high": 150 * MIB}, 50, "memory.high of the control group /system.slice"),
        ({"memory_max": 50 * MIB}, {}, 0, "memory.max of the control group"),
        ({"memory_max": 16 << 30}, {}, 6 << 10, "this machine"),
    ],
)
def test_the_narrowest_limit_on_memory_counts(
    service: Tree, own: dict[str, int], above: dict[str, int], available: int, source: str
) -> None:
    write_group(service, "system.slice/mt.service", **own)
    write_group(service, "system.slice", **above)
    found = service.limits().memory()
    assert found.available_bytes == available * MIB
    assert found.source.startswith(source)


def test_cached_files_that_no_process_has_mapped_count_as_available(service: Tree) -> None:
    cached = f"inactive_file {30 * MIB}\nactive_file {25 * MIB}\nfile_mapped {10 * MIB}\nslab_reclaimable {5 * MIB}"
    write_group(service, "system.slice/mt.service", memory_max=400 * MIB, memory_stat=cached)
    assert service.limits().memory().available_bytes == 350 * MIB


def test_limits_that_change_while_the_process_runs_are_noticed(service: Tree) -> None:
    limits = service.limits()
    assert limits.memory().source == "this machine"
    write_group(service, "system.slice/mt.service", memory_max=400 * MIB, cpu_max="50000 100000")
    assert limits.memory().available_bytes == 300 * MIB
    assert limits.cpu_quota() == CpuQuota(0.5, "cpu.max of the control group /system.slice/mt.service")


def test_the_smallest_quota_of_cpu_time_counts(service: Tree) -> None:
    write_group(service, "system.slice/mt.service", cpu_max="300000 100000")
    write_group(service, "system.slice", cpu_max="75000 50000")
    assert service.limits().cpu_quota() == CpuQuota(1.5, "cpu.max of the control group /system.slice")


def test_the_group_whose_processes_are_ended_together_is_found(service: Tree) -> None:
    service.write("sys/fs/cgroup/system.slice/memory.oom.group", "1")
    assert service.limits().killed_together() == "/system.slice"


def test_a_container_with_a_namespace_of_its_own_has_its_group_at_the_mount_point(tree: Tree) -> None:
    tree.mount("0::/", "/ /sys/fs/cgroup cgroup2")
    tree.write("sys/fs/cgroup/memory.max", str(200 * MIB))
    tree.write("sys/fs/cgroup/memory.current", str(50 * MIB))
    assert tree.limits().memory() == MemoryHeadroom(150 * MIB, 200 * MIB, "memory.max of the control group /")


@pytest.mark.parametrize("root", ["/docker/4e", "/elsewhere"])
def test_a_container_that_sees_the_path_of_the_host_has_its_group_at_the_mount_point(tree: Tree, root: str) -> None:
    tree.mount("0::/docker/4e", f"{root} /sys/fs/cgroup cgroup2")
    tree.write("sys/fs/cgroup/memory.max", str(200 * MIB))
    tree.write("sys/fs/cgroup/memory.current", str(50 * MIB))
    assert tree.limits().memory().available_bytes == 150 * MIB


def test_version_1_has_a_hierarchy_for_each_controller(tree: Tree) -> None:
    tree.mount(
        "5:memory:/a/b\n4:cpu,cpuacct:/c\n3:cpuset:/\n0::/",
        "/ /sys/fs/cgroup/memory cgroup memory",
        "/ /sys/fs/cgroup/cpu,cpuacct cgroup cpu,cpuacct",
        "/ /sys/fs/cgroup/cpuset cgroup cpuset",
        "/ /sys/fs/cgroup/unified cgroup2",
    )
    core = min(OWN_CORES)
    for path, text in {
        "memory/a/b/memory.limit_in_bytes": 9223372036854771712,
        "memory/a/b/memory.usage_in_bytes": 100 * MIB,
        "memory/a/memory.limit_in_bytes": 500 * MIB,
        "memory/a/memory.usage_in_bytes": 200 * MIB,
        "memory/a/memory.stat": f"inactive_file 0\ntotal_inactive_file {20 * MIB}\ntotal_mapped_file {5 * MIB}",
        "cpu,cpuacct/c/cpu.cfs_quota_us": 25000,
        "cpu,cpuacct/c/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/cpu.cfs_period_us": 100000,
        "cpuset/cpuset.effective_cpus": core,
    }.items():
        tree.write(f"sys/fs/cgroup/{path}", str(text))
    (tree.root / "sys/fs/cgroup/unified").mkdir()
    limits = tree.limits()
    assert limits.memory() == MemoryHeadroom(315 * MIB, 500 * MIB, "memory.limit_in_bytes of the control group /a")
    assert limits.cpu_quota() == CpuQuota(0.25, "cpu.cfs_quota_us of the control group /c")
    assert limits.cores() == {core}


def test_cores_that_a_group_does_not_allow_are_left_out(service: Tree) -> None:
    service.write("sys/fs/cgroup/system.slice/mt.service/cpuset.cpus.effective", f"{max(OWN_CORES)},4000-4001")
    assert service.limits().cores() == {max(OWN_CORES)}


@pytest.mark.parametrize("text", ["", "x-y", "4000-4001"])
def test_a_list_of_cores_that_makes_no_sense_is_ignored(service: Tree, text: str) -> None:
    service.write("sys/fs/cgroup/system.slice/mt.service/cpuset.cpus.effective", text)
    assert service.limits().cores() == OWN_CORES


def test_paths_with_spaces_are_found(tree: Tree) -> None:
    tree.mount("0::/a b", r"/ /sys/fs/c\040g cgroup2")
    tree.write("sys/fs/c g/a b/memory.max", str(200 * MIB))
    tree.write("sys/fs/c g/a b/memory.current", "0")
    assert tree.limits().memory().source == "memory.max of the control group /a b"
