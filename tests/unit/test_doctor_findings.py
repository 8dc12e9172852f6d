"""The rules of the doctor about versions, the driver, threads and limits: tables of facts and their findings."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor_findings import BUILD, CPU_BUILD, GIB, MIB, gpu, slot, worst

from multitower.supervisor.config.gateway import GatewayConfig
from multitower.supervisor.config.loading import load
from multitower.supervisor.machine.devices import Discovery
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.machine.process_limits import CpuQuota, MemoryHeadroom
from multitower.tools.doctor import gpu_driver, limits, machine, packages
from multitower.tools.doctor.findings import Finding, Level, count_levels, join_names
from multitower.tools.doctor.gpu_driver import Driver
from multitower.tools.doctor.machine import Machine


def test_findings_are_counted_by_level() -> None:
    found = [Finding("a", Level.OK, "x"), Finding("a", Level.PROBLEM, "y"), Finding("b", Level.OK, "z")]
    assert count_levels(found) == {Level.OK: 2, Level.NOTE: 0, Level.WARNING: 0, Level.PROBLEM: 1}
    assert join_names("abcd", 3) == "a, b, c and 1 more"
    assert join_names("abc", 3) == "a, b, c"


# Versions.

NEEDED = {"Python": "3.11", "numpy": "1.24", "tensorflow": "2.21"}
GOOD: dict[str, str | None] = {"Python": "3.11.2", "multitower": "0.1.0", "numpy": "1.24", "tensorflow": "2.21.0rc1"}


@pytest.mark.parametrize(
    ("changes", "needs_tensorflow", "level", "words"),
    [
        ({}, True, Level.OK, "numpy 1.24, tensorflow 2.21.0rc1"),
        ({"tensorflow": "2.100.0"}, True, Level.OK, "tensorflow 2.100.0"),
        ({"tensorflow": None}, True, Level.PROBLEM, "TensorFlow is not installed, and models need it"),
        ({"tensorflow": None}, False, Level.OK, ""),
        ({"tensorflow": "2.9.1"}, True, Level.PROBLEM, "tensorflow 2.9.1 is too old"),
        ({"numpy": None}, True, Level.PROBLEM, "numpy is not installed"),
        ({"Python": "3.9.0"}, True, Level.PROBLEM, "Python 3.9.0 is too old"),
    ],
)
def test_package_versions_are_compared_with_the_required_ones(
    changes: dict[str, str | None], needs_tensorflow: bool, level: Level, words: str
) -> None:
    found = worst(packages.findings(GOOD | changes, NEEDED, tensorflow_needed=needs_tensorflow))
    assert found.level is level
    assert words in found.text
    assert (found.advice is not None) == (level is Level.PROBLEM)


def test_without_an_installation_required_versions_are_unknown() -> None:
    found = worst(packages.findings(GOOD | {"multitower": None}, {}, tensorflow_needed=True))
    assert found.level is Level.NOTE
    assert "not installed" in found.text


@pytest.mark.parametrize(
    ("interpreted", "level", "words"),
    [
        ((), Level.OK, "data path is compiled"),
        (("multitower._frames",), Level.NOTE, "is not compiled: multitower._frames"),
        (("a", "b", "c", "d", "e"), Level.NOTE, "is not compiled: a, b, c and 2 more"),
    ],
)
def test_an_installation_that_is_not_all_compiled_gets_advice(
    interpreted: tuple[str, ...], level: Level, words: str
) -> None:
    found = packages.compiled_finding(interpreted)
    assert found.level is level
    assert words in found.text
    assert ("C compiler" in (found.advice or "")) == (level is Level.NOTE)


def test_required_versions_are_those_of_the_project() -> None:
    needed = packages.required_versions()
    assert needed["Python"] == "3.11"
    assert {"numpy", "pyzmq", "psutil", "pydantic", "tensorflow", "nvidia-ml-py"} <= set(needed)
    assert not {"pytest", "matplotlib", "scikit-learn"} & set(needed)
    assert packages.installed_versions(["numpy", "no-such-package"])["no-such-package"] is None


# The driver.

DRIVER = Driver(discovery=Discovery(()), version="550.54", cuda=(12, 4))
NO_DRIVER = Driver(discovery=Discovery((), "no driver"), not_loadable={gpu_driver.DRIVER_LIBRARY: "not found"})


@pytest.mark.parametrize(
    ("driver", "build", "missing", "gpus", "level", "words"),
    [
        (DRIVER, BUILD, {}, True, Level.OK, "NVIDIA driver 550.54, for CUDA up to 12.4"),
        (NO_DRIVER, BUILD, {}, True, Level.PROBLEM, "libcuda.so.1 cannot be loaded: not found"),
        (NO_DRIVER, BUILD, {}, False, Level.OK, "need none"),
        (NO_DRIVER, CPU_BUILD, {}, False, Level.OK, "need none"),
        (DRIVER, CPU_BUILD, {}, True, Level.PROBLEM, "built without CUDA"),
        (DRIVER, BUILD, {"libcudnn.so.9": "not found"}, True, Level.PROBLEM, "not found: libcudnn.so.9"),
        (replace(DRIVER, cuda=(11, 8)), BUILD, {}, True, Level.PROBLEM, "the driver supports it up to 11.8"),
        (DRIVER, None, {}, True, Level.OK, "550.54"),
    ],
)
def test_findings_about_the_gpu_driver(
    driver: Driver, build: dict[str, Any] | None, missing: dict[str, str], gpus: bool, level: Level, words: str
) -> None:
    found = worst(gpu_driver.findings(driver, build, missing, gpus_wanted=gpus))
    assert found.level is level
    assert words in found.text


def test_the_cuda_libraries_of_a_tensorflow_build() -> None:
    assert gpu_driver.cuda_libraries(BUILD) == ["libcudart.so.12", "libcublas.so.12", "libcudnn.so.9"]
    assert gpu_driver.cuda_libraries(CPU_BUILD) == []


def test_cuda_libraries_in_wheels_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nvidia" / "cudnn" / "lib"
    folder.mkdir(parents=True)
    (folder / "libnosuch.so.9").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert gpu_driver.missing_libraries(["libnosuch.so.9"]) == {}
    assert "libnosuch.so.8" in gpu_driver.missing_libraries(["libnosuch.so.9", "libnosuch.so.8"])


# Threads and limits.

MACHINE = Machine(
    cores=tuple(range(8)),
    quota=None,
    nodes={0: frozenset(range(8))},
    memory=[MemoryHeadroom(GIB, 2 * GIB, "this machine")],
    killed_together=None,
    descriptors=(65536, 65536),
    shm_bytes=GIB,
    memfd_error=None,
    pidfd_error=None,
)
NODE_0, NODE_1 = tuple(range(4)), tuple(range(4, 8))
TWO_NODES = replace(MACHINE, nodes={0: frozenset(range(4)), 1: frozenset(range(4, 8))})


@pytest.mark.parametrize(
    ("slots", "machine_", "near", "level", "words"),
    [
        ([slot(0), slot(1)], MACHINE, {}, Level.OK, "2 workers with 2 intra-op threads on 8 cores"),
        ([slot(0, intra_op_threads=8), slot(1)], MACHINE, {}, Level.WARNING, "2 or 8 intra-op threads on 8 cores"),
        ([slot(0, intra_op_threads=1)] * 9, MACHINE, {}, Level.WARNING, "9 workers with 1 intra-op thread on 8 cores"),
        ([slot(0)], TWO_NODES, {"GPU-a": (1, NODE_1)}, Level.NOTE, "run on any of them"),
        ([slot(0, cores=(0, 1))], TWO_NODES, {"GPU-a": (1, NODE_1)}, Level.WARNING, "slot 0 (its device is at node 1)"),
        ([slot(0, cores=(4, 5))], TWO_NODES, {"GPU-a": (1, NODE_1)}, Level.OK, "2 NUMA nodes"),
        ([slot(0, cores=(0, 1))], TWO_NODES, {"GPU-a": (None, None)}, Level.NOTE, "which cores are near GPU-a"),
        ([slot(0, device="cpu:0", cores=(0, 1))], TWO_NODES, {"cpu:0": (None, None)}, Level.OK, "2 NUMA nodes"),
        (
            [replace(slot(0, cores=(0, 1, 4, 5)), devices=("GPU-a", "GPU-b"))],
            TWO_NODES,
            {"GPU-a": (0, NODE_0), "GPU-b": (1, NODE_1)},
            Level.OK,
            "2 NUMA nodes",
        ),
    ],
)
def test_findings_about_threads_and_numa_nodes(
    slots: list[Placement],
    machine_: Machine,
    near: dict[str, tuple[int | None, tuple[int, ...] | None]],
    level: Level,
    words: str,
) -> None:
    devices = {
        name: replace(gpu(name=name), kind="cpu" if name.startswith("cpu") else "gpu", numa_node=node, cores=cores)
        for name, (node, cores) in near.items()
    }
    found = max(
        (finding for finding in limits.thread_findings(slots, machine_, devices) if words in finding.text),
        key=lambda finding: list(Level).index(finding.level),
    )
    assert found.level is level
    assert words in found.text


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, Level.OK, "65536 file descriptors"),
        (
            {"descriptors": (100, 65536)},
            Level.OK,
            "to which the daemon raises the limit of 100",
        ),
        ({"descriptors": (100, 110)}, Level.PROBLEM, "110 file descriptors, to which"),
        ({"descriptors": (256, 256)}, Level.WARNING, "256 file descriptors; the daemon needs about 124"),
        ({"descriptors": (256, 1024)}, Level.WARNING, "many that arrive at one time could exhaust the rest"),
        ({"descriptors": (1024, 4096)}, Level.OK, "4096 file descriptors"),
        ({"pidfd_error": "pidfd_open: Function not implemented"}, Level.PROBLEM, "cannot be watched (pidfd_open"),
        ({"memfd_error": "Function not implemented"}, Level.PROBLEM, "memfd_create: Function not implemented"),
        ({"shm_bytes": 64 * MIB}, Level.NOTE, "/dev/shm has 64 MiB"),
        ({"shm_bytes": None}, Level.NOTE, "there is no /dev/shm"),
    ],
)
def test_findings_about_system_limits(changes: dict[str, Any], level: Level, words: str) -> None:
    found = worst(limits.limit_findings(replace(MACHINE, **changes), 5, None, shares_memory=False))
    assert found.level is level
    assert words in found.text


def test_shared_memory_regions_need_file_descriptors() -> None:
    found = next(limits.limit_findings(MACHINE, 5, None, shares_memory=True))
    assert "needs about 380" in found.text


def test_more_connections_than_descriptors_are_a_problem() -> None:
    few = replace(MACHINE, descriptors=(1024, 4096))
    found = next(limits.limit_findings(few, 5, 2000, shares_memory=True))
    assert found.level is Level.OK
    assert "2000 connections" in found.text
    found = next(limits.limit_findings(few, 5, 5000, shares_memory=True))
    assert found.level is Level.PROBLEM
    assert "not max_connections: 5000" in found.text
    # A soft limit is raised as far as max_connections needs, beyond what is enough otherwise.
    many = replace(MACHINE, descriptors=(1024, 1 << 20))
    assert next(limits.limit_findings(many, 5, 200_000, shares_memory=True)).level is Level.OK


@pytest.mark.parametrize(
    ("hard", "settings", "level", "words"),
    [
        (4096, {}, Level.OK, "4096 file descriptors for the gateway; it needs about 128, and 1024 connections of"),
        (4096, {"max_connections": 3968}, Level.OK, "3968 connections of its clients may be open"),
        (4096, {"max_connections": 3969}, Level.PROBLEM, "3968 connections of its clients may be open, not gat"),
        (4096, {"max_connections": 3968, "threads": 2}, Level.PROBLEM, "it needs about 144, and 3952 connections"),
        (1024, {}, Level.WARNING, "896 connections of its clients may be open, not gateway.max_connections: 1024"),
    ],
)
def test_descriptors_are_compared_with_the_gateways_connections(
    hard: int, settings: dict[str, int], level: Level, words: str, tmp_path: Path
) -> None:
    found = limits.gateway_finding(replace(MACHINE, descriptors=(256, hard)), _gateway(tmp_path, settings))
    assert found is not None
    assert (found.section, found.level) == ("limits", level)
    assert words in found.text
    assert (found.advice is None) is (level is Level.OK)


def test_a_gateway_without_a_limit_of_descriptors_gets_no_finding(tmp_path: Path) -> None:
    machine = replace(MACHINE, descriptors=(1024, resource.RLIM_INFINITY))
    assert limits.gateway_finding(machine, _gateway(tmp_path, {"max_connections": 1_000_000})) is None


def _gateway(folder: Path, settings: dict[str, int]) -> GatewayConfig:
    section = {"http": "127.0.0.1:8000", **settings}
    path = folder / "config.yaml"
    path.write_text(f"gateway: {json.dumps(section)}\nmodels: [{{name: m, handler: 'h:M'}}]\n")
    gateway = load(path, environment={}).gateway
    assert gateway is not None
    return gateway


def test_numa_nodes_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    (tmp_path / "node1").mkdir()
    (tmp_path / "node1" / "cpulist").write_text("4-7\n")
    assert machine.read_nodes(tmp_path) == {1: frozenset((4, 5, 6, 7))}


@pytest.mark.parametrize(
    ("quota", "level", "words"),
    [
        (1.5, Level.WARNING, "cpu.max of the control group /a allows the time of 1.5 cores, and the workers have 2"),
        (1.0, Level.WARNING, "the time of 1 core, and"),
        (2.0, Level.OK, "the time of 2 cores, and the workers have 2 threads"),
    ],
)
def test_findings_about_the_quota_of_cpu_time(quota: float, level: Level, words: str) -> None:
    limited = replace(MACHINE, quota=CpuQuota(quota, "cpu.max of the control group /a"))
    (found,) = (each for each in limits.thread_findings([slot(0)], limited, {}) if "allows the time" in each.text)
    assert found.level is level
    assert words in found.text


def test_cores_of_a_running_daemon_are_noted() -> None:
    claims = {"12:ab": frozenset((1, 2, 3)), "34:cd": frozenset((6,))}
    (found,) = limits.claim_findings([slot(0, cores=(0, 1)), slot(1, cores=(2, 3))], claims)
    assert found.level is Level.NOTE
    assert "a running daemon (pid 12) has bound its workers to the cores 1-3" in found.text
