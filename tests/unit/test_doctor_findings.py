"""The rules of the doctor: tables of facts and the findings that they give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multitower.load_step import LoadStep
from multitower.spec import ModelReport, ModelSpec, SignatureReport, TensorReport
from multitower.supervisor.config.config import Config, load
from multitower.supervisor.machine.devices import Device, Discovery
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.machine.process_limits import CpuQuota, MemoryHeadroom
from multitower.tools.doctor import gpu_driver, limits, machine, memory, models, operations, packages
from multitower.tools.doctor.consequences import Situation
from multitower.tools.doctor.findings import Finding, Level, count_levels, join_names
from multitower.tools.doctor.gpu_driver import Driver
from multitower.tools.doctor.machine import Machine
from multitower.tools.doctor.models import LoadedModel

GIB = 1 << 30
MIB = 1 << 20


def levels(findings: Any) -> list[tuple[str, str]]:
    return [(finding.level.value, finding.text) for finding in findings]


def worst(findings: Any) -> Finding:
    found = list(findings)
    return max(found, key=lambda finding: list(Level).index(finding.level))


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

BUILD = {"version": "2.21.0", "gpu": True, "cuda": True, "cuda_version": "12.5.1", "cudnn_version": "9"}
CPU_BUILD = {"version": "2.21.0", "gpu": False, "cuda": False, "cuda_version": None, "cudnn_version": None}
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


# Memory.


def gpu(used: int = 0, total: int | None = 40 * GIB, name: str = "GPU-a") -> Device:
    return Device(
        name=name,
        kind="gpu",
        index=0,
        product="",
        memory_bytes=total,
        memory_used_bytes=used if total is not None else None,
        pci_bus_id=None,
    )


def slot(number: int = 0, device: str = "GPU-a", limit: int | None = None, **more: Any) -> Placement:
    settings: dict[str, Any] = {"intra_op_threads": 2, "inter_op_threads": 1, "cores": (), "models": ("m", "h")} | more
    return Placement(slot=number, devices=(device,), environment={}, memory_limit_bytes=limit, **settings)


@pytest.mark.parametrize(
    ("device", "workers", "limit", "sizes", "level", "words"),
    [
        (
            gpu(),
            1,
            None,
            {"m": 10 * GIB},
            Level.OK,
            "about 12.6 GiB, without the memory for batches; 40.0 GiB are free",
        ),
        (gpu(), 2, None, {"m": 10 * GIB}, Level.OK, "2 workers of about 12.6 GiB"),
        (gpu(), 4, None, {"m": 10 * GIB}, Level.PROBLEM, "40.0 GiB in all"),
        (gpu(used=30 * GIB), 1, None, {"m": 10 * GIB}, Level.WARNING, "10.0 GiB are free"),
        (gpu(), 1, 4 * GIB, {"m": 10 * GIB}, Level.WARNING, "memory limits each worker to 4.0 GiB"),
        (gpu(), 1, 20 * GIB, {"m": 10 * GIB}, Level.OK, "an estimate"),
        (gpu(total=None), 1, None, {"m": 10 * GIB}, Level.NOTE, "the device uses the host's memory"),
        (replace(gpu(), kind="mig"), 1, None, {"m": GIB, "h": None}, Level.NOTE, "handlers need is unknown: h"),
        (gpu(), 1, None, {"m": GIB, "h": None}, Level.NOTE, "the device memory that handlers need is unknown: h"),
    ],
)
def test_device_memory_is_compared_with_an_estimate(
    device: Device, workers: int, limit: int | None, sizes: dict[str, int | None], level: Level, words: str
) -> None:
    slots = [slot(number, limit=limit) for number in range(workers)]
    found = worst(memory.device_findings([device], slots, sizes))
    assert found.level is level
    assert words in found.text


def test_cpu_devices_have_no_finding_about_device_memory() -> None:
    device = replace(gpu(name="cpu:0"), kind="cpu")
    assert list(memory.device_findings([device], [slot(device="cpu:0")], {"m": 1, "h": None})) == []


@pytest.mark.parametrize(
    ("measured", "available", "level", "words"),
    [
        (
            {"m": (500 * MIB, 1500 * MIB)},
            10 * GIB,
            Level.OK,
            "2 workers of 1.5 GiB and 1 spare of 500 MiB take 3.4 GiB",
        ),
        ({"m": (500 * MIB, 1500 * MIB)}, 3 * GIB, Level.PROBLEM, "measured here on the CPU"),
        ({}, 10 * GIB, Level.OK, "estimated, since not every model was loaded"),
        ({}, 1 * GIB, Level.WARNING, "estimated"),
    ],
)
def test_host_memory_is_compared_with_what_loading_took(
    measured: dict[str, tuple[int, int]], available: int, level: Level, words: str
) -> None:
    found = next(memory.host_findings([["m"]] * 2, 1, {"m": 100 * MIB}, measured, left(available)))
    assert found.level is level
    assert words in found.text


def left(*available: int) -> list[MemoryHeadroom]:
    """What is left of the machine's memory, and of the limits of control groups."""
    sources = ["this machine", *(f"memory.max of the control group /{number}" for number in range(1, 5))]
    return [MemoryHeadroom(each, 2 * each, source) for each, source in zip(available, sources, strict=False)]


def test_host_memory_is_compared_with_the_narrowest_limit() -> None:
    measured = {"m": (100 * MIB, 200 * MIB)}
    found = next(memory.host_findings([["m"]] * 2, 0, {"m": None}, measured, left(GIB, 399 * MIB, 500 * MIB)))
    assert found.level is Level.PROBLEM
    assert "memory.max of the control group /1 leaves 399 MiB" in found.text


@pytest.mark.parametrize(("available", "level"), [(640, Level.OK), (639, Level.NOTE)])
def test_doctor_notes_that_a_replacement_has_no_room_beside_the_old_worker(available: int, level: Level) -> None:
    measured = {"m": (100 * MIB, 200 * MIB)}
    found = list(memory.host_findings([["m"]] * 2, 0, {"m": None}, measured, left(GIB, available * MIB)))
    assert found[-1].level is level
    assert level is Level.OK or "the old one ends first" in found[-1].text


@pytest.mark.parametrize(("available", "warned"), [(1000, False), (999, True)])
def test_doctor_compares_the_peak_of_warm_ups_with_the_memory(available: int, warned: bool) -> None:
    measured = {"m": (100 * MIB, 200 * MIB), "n": (100 * MIB, 150 * MIB)}
    peaks = {"m": (450 * MIB, 1000), "n": (160 * MIB, 8)}
    found = memory.warm_up_finding([["m", "n"], ["m", "n"]], measured, peaks, left(2 * GIB, available * MIB))
    assert (found is not None) is warned
    if found is not None:
        assert found.level is Level.WARNING
        assert "2 workers that warm up at the same time take up to 1000 MiB, and memory.max of" in found.text
        assert "max_batch_size of m (1000)" in str(found.advice)


def test_no_warm_up_is_compared_where_no_model_was_loaded() -> None:
    assert memory.warm_up_finding([["m"]], {}, {}, left(0)) is None


def test_doctor_names_the_rows_whose_warm_up_ends_the_process() -> None:
    step = LoadStep("m", "7", rows=1000, fewer_rows=512)
    loaded = LoadedModel(spec=SPEC, cause=f"its process killed by SIGKILL (9) while {step}", step=step)
    (found,) = models.findings(loaded)
    assert found.level is Level.PROBLEM
    assert found.text.startswith("m ends its process in the warm-up with 1000 rows: its process killed by SIGKILL")
    assert "max_batch_size to 512 or less" in str(found.advice)


ALONE = Situation(has_others=False, load_s=60.0, max_restarts=5)
OTHERS = Situation(has_others=True, load_s=60.0, max_restarts=5)
LOADING = LoadStep("m", "7")
WARM_UP = LoadStep("m", "7", rows=32, fewer_rows=16)
UNLOADABLE = ModelReport(name="m", version="7", state="failed", cause="a cause")


@pytest.mark.parametrize(
    ("failure", "situation", "words"),
    [
        ({"report": UNLOADABLE}, OTHERS, "would show it as failed and serve the others"),
        ({"report": UNLOADABLE}, ALONE, "would show it as failed, and serve nothing on its slots"),
        ({"crashed": True}, OTHERS, "would start its worker again, up to 5 times within restart.window"),
        ({"step": WARM_UP, "timed_out": True}, OTHERS, "end the worker, start another worker without it, which serves"),
        ({"step": WARM_UP, "gave_up": True}, OTHERS, "would wait for up to 60 s (load_timeout)"),
        (
            {"step": LOADING, "crashed": True},
            OTHERS,
            "would start another worker without it, which serves the other models, and try it again beside that one, "
            "up to 3 times in all",
        ),
        ({"step": LOADING, "crashed": False}, OTHERS, "would load all once more, and after a second death start"),
        (
            {"step": LOADING, "crashed": True},
            replace(OTHERS, max_restarts=0),
            "would start another worker without it, which serves the other models; ",
        ),
        ({"step": LOADING, "crashed": True}, ALONE, "up to 5 times within restart.window (restart.max_restarts), and"),
        ({"step": LOADING, "timed_out": True}, OTHERS, "end the worker, start another worker without it, which serves"),
        ({"step": LOADING, "timed_out": True}, ALONE, "end the worker, show its slot as failed, and not try it again"),
        ({"step": LOADING, "gave_up": True}, OTHERS, "would wait for up to 60 s (load_timeout)"),
    ],
)
def test_doctor_says_what_the_daemon_would_do(failure: dict[str, Any], situation: Situation, words: str) -> None:
    (found,) = models.findings(LoadedModel(spec=SPEC, cause="a cause", **failure), situation)
    assert found.level is Level.PROBLEM
    assert found.text == "m cannot be loaded: a cause"
    assert words in str(found.advice)


def config_of(folder: Path, *names: str) -> Config:
    """A configuration with these models; the one with the name `later` is not loaded at the start."""
    models = "".join(
        f"  - {{name: {name}, handler: 'h:M', load_at_startup: {str(name != 'later').lower()}}}\n" for name in names
    )
    file = folder / "config.yaml"
    file.write_text(f"devices: {{cpu: 1}}\nmodels:\n{models}")
    return load(file, environment={})


@pytest.mark.parametrize(
    ("served", "models_of_slots", "others"),
    [
        ([("m", "1")], [("m",)], False),
        ([("m", "1"), ("m", "2")], [("m",)], True),
        ([("m", "1"), ("n", "1")], [("m", "n")], True),
        ([("m", "1"), ("n", "1")], [("m",), ("n",)], False),
        ([("m", "1"), ("n", "1")], [], True),
        ([("m", "1"), ("later", "1")], [("m", "later")], False),
        ([("m", "1")], [("m", "missing")], False),
    ],
)
def test_other_models_are_those_that_a_worker_loads_with_it(
    served: list[tuple[str, str]], models_of_slots: list[tuple[str, ...]], others: bool, tmp_path: Path
) -> None:
    config = config_of(tmp_path, "m", "n", "later", "missing")
    placements = [slot(number, models=models) for number, models in enumerate(models_of_slots)]
    specs = [ModelSpec(name=name, version=version) for name, version in served]
    assert Situation.of("m", config, placements, 60.0, specs).has_others == others


def test_a_model_that_only_an_order_loads_has_the_others_beside_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "later", "m")
    specs = [ModelSpec(name="later"), ModelSpec(name="m")]
    assert Situation.of("later", config, [slot(models=("later", "m"))], 60.0, specs).has_others


def test_doctor_warns_if_the_kernel_ends_all_processes_at_once() -> None:
    found = memory.killed_together_finding("/kubepods/pod1")
    assert found.level is Level.WARNING
    assert "every process of the control group /kubepods/pod1" in found.text


def test_a_slot_needs_memory_for_its_own_models_only() -> None:
    sizes: dict[str, int | None] = {"m": 10 * GIB, "n": 20 * GIB}
    devices = [gpu(name="GPU-a"), gpu(name="GPU-b")]
    slots = [slot(0, "GPU-a", models=("m",)), slot(1, "GPU-b", models=("m", "n"))]
    texts = [finding.text for finding in memory.device_findings(devices, slots, sizes)]
    assert ["12.6 GiB" in texts[0], "36.6 GiB" in texts[1]] == [True, True]
    found = next(memory.host_findings([each.models for each in slots], 0, sizes, {}, left(100 * GIB)))
    assert "2 workers of up to 36.6 GiB and 0 spares of 600 MiB take 49.2 GiB" in found.text


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("cpu:0",), ["t", "s", "h"]),
        (("cpu:0", "cpu:1", "cpu:2"), ["t", "t", "t", "s", "h"]),
        (("GPU-a", "GPU-b"), ["t", "s", "h"]),  # the weights are in device memory
    ],
)
def test_each_tower_on_a_cpu_device_has_its_weights_in_host_memory(
    devices: tuple[str, ...], expected: list[str]
) -> None:
    specs = [
        ModelSpec(name="t", path="/t"),
        ModelSpec(name="s", path="/s", placement="as_saved"),
        ModelSpec(name="h", handler="a:B"),
    ]
    assert memory.models_in_host_memory(replace(slot(models=("t", "s", "h")), devices=devices), specs) == expected


def test_the_bytes_of_a_models_files(tmp_path: Path) -> None:
    (tmp_path / "3" / "variables").mkdir(parents=True)
    (tmp_path / "3" / "saved_model.pb").write_bytes(b"x" * 10)
    (tmp_path / "3" / "variables" / "variables.data-00000-of-00001").write_bytes(b"x" * 100)
    (tmp_path / "3" / "variables" / "variables.index").write_bytes(b"x")
    (tmp_path / "k.keras").write_bytes(b"x" * 7)
    assert memory.file_bytes(ModelSpec(name="m", path=str(tmp_path), version="3")) == 110
    assert memory.file_bytes(ModelSpec(name="m", path=str(tmp_path / "k.keras"))) == 7
    assert memory.file_bytes(ModelSpec(name="m", handler="a:B")) is None


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
        ({"descriptors": (100, 130)}, Level.PROBLEM, "130 file descriptors, to which"),
        ({"descriptors": (256, 256)}, Level.WARNING, "256 file descriptors; the daemon needs about 144"),
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
    assert "needs about 400" in found.text


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


# Models and their operations.

X = TensorReport(name="x", datatype="FP32", shape=(-1, 6))
Y = TensorReport(name="y", datatype="BYTES", shape=None)
SPEC = ModelSpec(name="m", path="/m", version="7", max_batch_size=8, allowed_batch_sizes=(4, 8))
REPORT = ModelReport(
    name="m", version="7", platform="keras", inputs=(X,), outputs=(Y,), max_batch_size=8, load_s=1.0, warmup_s=0.5
)


def test_findings_about_a_model_that_loads() -> None:
    others = SignatureReport(name="a", inputs=(Y,), outputs=(X,)), SignatureReport(name="b", cause="it is ragged")
    report = replace(REPORT, signature="s", signatures=others, pad_variable_length_inputs=True)
    loaded = LoadedModel(spec=SPEC, report=report, before_bytes=MIB, after_bytes=3 * MIB, log_lines=["no warm-up"])
    assert levels(models.findings(loaded)) == [
        ("ok", "m: version 7, keras, loaded in 1.0 s, warmed up in 0.5 s, 2 MiB of host memory"),
        ("ok", "m, signature s: x FP32 [-1, 6] → y BYTES of any shape"),
        ("ok", "m is batched: up to 8 rows, padded to 4, 8, inputs of varying length padded"),
        ("ok", "requests to m may name a: y BYTES of any shape → x FP32 [-1, 6]"),
        ("warning", "requests to m cannot name its signature b: it is ragged"),
        ("note", "m: its worker logged: no warm-up"),
    ]


@pytest.mark.parametrize(
    ("loaded", "level", "words"),
    [
        (LoadedModel(spec=SPEC, cause="killed"), Level.PROBLEM, "m cannot be loaded: killed"),
        (
            LoadedModel(
                spec=SPEC, report=ModelReport(name="m", state="failed", cause="no such signature"), cause="m: …"
            ),
            Level.PROBLEM,
            "m cannot be loaded: no such signature",
        ),
        (
            LoadedModel(spec=SPEC, report=replace(REPORT, max_batch_size=0, unbatched_because="it has no inputs")),
            Level.WARNING,
            "is unbatched: it has no inputs",
        ),
        (
            LoadedModel(spec=SPEC, report=replace(REPORT, unverified_because="its outputs vary from run to run")),
            Level.NOTE,
            "values could not show that rows of a batch are independent: its outputs vary from run to run",
        ),
        (
            LoadedModel(spec=ModelSpec(name="m", handler="a:B"), report=replace(REPORT, max_batch_size=0, inputs=None)),
            Level.NOTE,
            "unbatched, as configured",
        ),
    ],
)
def test_findings_about_a_model_that_fails_or_is_not_batched_for_sure(
    loaded: LoadedModel, level: Level, words: str
) -> None:
    found = worst(models.findings(loaded))
    assert found.level is level
    assert words in found.text


def test_findings_about_batching_name_the_signature_that_they_concern() -> None:
    others = (
        SignatureReport(name="a", unbatched_because="the values of output 'y' differ"),
        SignatureReport(name="b", max_batch_size=8, unverified_because="its outputs vary from run to run"),
    )
    loaded = LoadedModel(spec=SPEC, report=replace(REPORT, signature="s", signatures=others))
    varying = "values could not show that rows of a batch are independent: its outputs vary from run to run"
    assert [found for found in levels(models.findings(loaded)) if found[0] != "ok"] == [
        ("warning", "m, signature a, is unbatched: the values of output 'y' differ"),
        ("note", f"m, signature b, is batched, but {varying}"),
    ]
    trusted = LoadedModel(spec=replace(SPEC, trust_batching=True), report=loaded.report)
    assert "note" not in {level for level, _ in levels(models.findings(trusted))}


def test_a_model_that_the_configuration_insists_on_batching_has_no_advice() -> None:
    report = replace(REPORT, unverified_because="batching.trust is set")
    found = levels(models.findings(LoadedModel(spec=replace(SPEC, trust_batching=True), report=report)))
    assert ("ok", "m is batched: up to 8 rows, padded to 4, 8, whatever values show (batching.trust)") in found
    assert {level for level, _ in found} == {"ok"}


@pytest.mark.parametrize(
    ("build", "model", "gpus", "level", "words"),
    [
        (BUILD, {"operations": 9, "cpu_only": {}}, True, Level.OK, "all 9 operations have a GPU kernel"),
        (
            BUILD,
            {"operations": 9, "cpu_only": {"StringJoin": 2, "Unique": 1}},
            True,
            Level.WARNING,
            "3 of 9 operations have no GPU kernel: StringJoin (2), Unique",
        ),
        (BUILD, {"operations": 9, "cpu_only": {"StringJoin": 2}}, False, Level.NOTE, "2 of 9"),
        (BUILD, {"error": "ValueError: broken"}, True, Level.NOTE, "cannot be read: ValueError: broken"),
        (CPU_BUILD, {"operations": 9, "cpu_only": {}}, True, Level.NOTE, "built for CPUs only"),
        (BUILD, {"obstacle": "no op X", "needs_gpu": False}, True, Level.PROBLEM, "m can never run: no op X"),
        (CPU_BUILD, {"obstacle": "no op X", "needs_gpu": True}, False, Level.PROBLEM, "m can never run: no op X"),
        (BUILD, {"obstacle": "no op X", "needs_gpu": True}, True, Level.NOTE, "m: it runs on GPUs only: no op X"),
    ],
)
def test_findings_about_operations_without_gpu_kernel(
    build: dict[str, Any], model: dict[str, Any], gpus: bool, level: Level, words: str
) -> None:
    found = worst(operations.findings({"build": build, "models": {"m": model}}, gpus_wanted=gpus))
    assert found.level is level
    assert words in found.text


@pytest.mark.parametrize("gpus", [False, True])
def test_a_model_for_gpus_only_is_no_problem_where_gpus_serve_it(gpus: bool) -> None:
    report = ModelReport(name="m", state="failed", cause="X has a kernel for GPUs only", needs_gpu=True)
    (finding,) = models.findings(LoadedModel(spec=SPEC, report=report), gpus_wanted=gpus)
    assert finding.level is (Level.NOTE if gpus else Level.PROBLEM)
    assert "X has a kernel for GPUs only" in finding.text


def test_a_model_that_did_not_load_gets_no_second_finding() -> None:
    broken = {"error": "no weights"}
    models = {"m": broken, "n": broken, "o": {"obstacle": "no op X", "needs_gpu": False}}
    answer = {"build": BUILD, "models": models}
    found = list(operations.findings(answer, gpus_wanted=True, not_loaded={"m", "o"}))
    assert [finding.text for finding in found] == ["n: its operations cannot be read: no weights"]


def test_bytes_of_the_system_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_bytes(b"\xff\n")
    assert machine._read(tmp_path / "cpu.max") == "\N{REPLACEMENT CHARACTER}\n"


def test_output_of_tensorflow_that_is_not_utf8_does_not_end_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nprintf 'native \\377 code' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(operations.InspectionError, match="ended with code 3: native \N{REPLACEMENT CHARACTER} code"):
        operations.inspect_operations([], 60.0)
