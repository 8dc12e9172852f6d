"""Which part of the machine each worker gets, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.value_syntax import MemoryLimit
from multitower.supervisor.machine.devices import Device, DeviceError, Group
from multitower.supervisor.machine.placement import (
    Placement,
    divide_machine,
    has_idle_cores,
    place_workers_on,
    spare_environment,
)
from multitower.supervisor.machine.process_limits import CpuQuota, ProcessLimits

GIB = 2**30


GROWTH = MemoryLimit()


def share(percent: float) -> MemoryLimit:
    return MemoryLimit(fraction=percent / 100)


def gpu(index: int, memory: int | None = 40 * GIB) -> Device:
    return Device(
        name=f"GPU-{index:08x}",
        kind="gpu",
        index=index,
        product="NVIDIA Product",
        memory_bytes=memory,
        memory_used_bytes=0,
        pci_bus_id=None,
    )


def cpu(number: int) -> Device:
    return Device(
        name=f"cpu:{number}",
        kind="cpu",
        index=None,
        product="CPU",
        memory_bytes=None,
        memory_used_bytes=None,
        pci_bus_id=None,
    )


def libraries(threads: int) -> dict[str, str]:
    """The variables of libraries that compute with so many threads."""
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


def placed(
    devices: Sequence[Device | Group], available: Sequence[int] = range(8), **options: Any
) -> tuple[Placement, ...]:
    defaults = {
        "workers_per_device": 1,
        "memory": GROWTH,
        "intra_op": "auto",
        "inter_op": "auto",
        "cores": "auto",
    }
    groups = [item if isinstance(item, tuple) else (item,) for item in devices]
    return divide_machine(groups, **(defaults | options), available=available)


def test_with_one_worker_per_device_slot_i_has_device_i() -> None:
    placements = placed([gpu(3), gpu(0)])
    assert [(placement.slot, placement.device) for placement in placements] == [
        (0, "GPU-00000003"),
        (1, "GPU-00000000"),
    ]
    assert placements[0].devices == ("GPU-00000003",)


def test_the_workers_of_a_device_have_consecutive_slots() -> None:
    placements = placed([gpu(0), gpu(1)], workers_per_device=2)
    assert [placement.slot for placement in placements] == [0, 1, 2, 3]
    assert [placement.device[-1] for placement in placements] == ["0", "0", "1", "1"]


def test_a_gpu_worker_sees_its_gpu_by_uuid_and_has_threads_that_launch_kernels() -> None:
    (placement,) = placed([gpu(5)])
    assert placement.environment == {
        "CUDA_VISIBLE_DEVICES": "GPU-00000005",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "TF_GPU_THREAD_MODE": "gpu_private",
        **libraries(8),
    }


def test_a_worker_on_a_mig_slice_sees_only_that_slice() -> None:
    slice_ = replace(gpu(0, 10 * GIB), name="MIG-5e0c8f7a", kind="mig", index=None, parent=gpu(0))
    (placement,) = placed([slice_], memory=share(80))
    assert placement.device == placement.environment["CUDA_VISIBLE_DEVICES"] == "MIG-5e0c8f7a"
    assert placement.environment["TF_GPU_THREAD_MODE"] == "gpu_private"
    assert placement.memory_limit_bytes == 8 * GIB


def test_a_worker_with_several_gpus_sees_only_these_in_their_order() -> None:
    first, second = placed([(gpu(2), gpu(0)), (gpu(1), gpu(3))])
    assert first.devices == ("GPU-00000002", "GPU-00000000")
    assert first.device == first.environment["CUDA_VISIBLE_DEVICES"] == "GPU-00000002,GPU-00000000"
    assert second.environment["CUDA_VISIBLE_DEVICES"] == "GPU-00000001,GPU-00000003"


def test_workers_of_groups_share_the_cores() -> None:
    placements = placed([(cpu(0), cpu(1)), cpu(2)], workers_per_device=2)
    assert [placement.device for placement in placements] == ["cpu:0,cpu:1", "cpu:0,cpu:1", "cpu:2", "cpu:2"]
    assert [placement.cores for placement in placements] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert {placement.environment["CUDA_VISIBLE_DEVICES"] for placement in placements} == {"-1"}


def test_a_cpu_worker_sees_no_gpu() -> None:
    (placement,) = placed([cpu(0)])
    assert placement.environment == {
        "CUDA_VISIBLE_DEVICES": "-1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **libraries(8),
    }
    assert placement.device == "cpu:0"


@pytest.mark.parametrize(
    ("cores", "workers", "intra", "inter"),
    [
        (8, 1, 8, 2),
        (8, 2, 4, 2),
        (8, 3, 2, 2),
        (8, 5, 1, 1),
        (2, 4, 1, 1),
        (1, 1, 1, 1),
    ],
)
def test_workers_share_the_cores_evenly(cores: int, workers: int, intra: int, inter: int) -> None:
    for placement in placed([cpu(number) for number in range(workers)], range(cores)):
        assert (placement.intra_op_threads, placement.inter_op_threads) == (intra, inter)


def test_configured_threads_are_used_unchanged() -> None:
    for placement in placed([cpu(0), cpu(1)], range(2), intra_op=7, inter_op=5):
        assert (placement.intra_op_threads, placement.inter_op_threads) == (7, 5)


@pytest.mark.parametrize(
    ("cores", "available", "workers", "expected"),
    [
        ("auto", range(8), 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("auto", range(4), 2, [(0, 1), (2, 3)]),
        ("auto", range(3), 2, [(), ()]),  # one core each is too little to be bound to
        ("auto", range(1), 2, [(), ()]),
        ("auto", [3, 5, 7, 9, 11], 2, [(3, 5), (7, 9)]),  # a container's cores; the odd one is the supervisor's
        ("split", range(3), 2, [(0,), (1,)]),
        ("split", range(7), 3, [(0, 1), (2, 3), (4, 5)]),
        ("split", [4, 6], 5, [(4,), (6,), (4,), (6,), (4,)]),
        ("shared", range(64), 2, [(), ()]),
    ],
)
def test_cores_are_split_or_shared_as_configured(
    cores: str, available: Sequence[int], workers: int, expected: list[tuple[int, ...]]
) -> None:
    placements = placed([cpu(number) for number in range(workers)], available, cores=cores)
    assert [placement.cores for placement in placements] == expected


def near(device: Device, *cores: int) -> Device:
    return replace(device, cores=cores)


@pytest.mark.parametrize(
    ("cores", "expected", "threads"),
    [
        ("auto", [(4, 5), (6, 7), (0, 1, 2, 3)], [2, 2, 4]),
        ("split", [(4, 5), (6, 7), (0, 1, 2, 3)], [2, 2, 4]),
        ("shared", [(), (), ()], [2, 2, 2]),
    ],
)
def test_workers_are_bound_near_their_devices_with_as_many_threads_as_cores(
    cores: str, expected: list[tuple[int, ...]], threads: list[int]
) -> None:
    devices = [near(gpu(3), 4, 5, 6, 7), near(gpu(2), 4, 5, 6, 7), near(gpu(0), 0, 1, 2, 3)]
    placements = placed(devices, cores=cores)
    assert [placement.cores for placement in placements] == expected
    assert [placement.intra_op_threads for placement in placements] == threads


def test_a_group_at_two_nodes_is_bound_to_both() -> None:
    placements = placed([(near(gpu(0), 0, 1), near(gpu(1), 4, 5)), near(gpu(2), 2, 3, 6, 7)], workers_per_device=2)
    assert [placement.cores for placement in placements] == [(0, 4), (1, 5), (2, 3), (6, 7)]


def test_the_devices_of_a_group_share_its_threads() -> None:
    placements = placed([(cpu(0), cpu(1)), (cpu(2), cpu(3))], range(8))
    assert [(placement.intra_op_threads, placement.inter_op_threads) for placement in placements] == [(2, 2)] * 2
    (single,) = placed([(cpu(0), cpu(1), cpu(2))], range(2))
    assert (single.intra_op_threads, single.inter_op_threads) == (1, 1)


def test_auto_binds_no_worker_if_one_would_have_a_single_core() -> None:
    devices = [near(gpu(index), 0, 1, 2) for index in range(2)] + [near(gpu(2), 3, 4, 5, 6, 7)]
    placements = placed(devices)
    assert [(placement.cores, placement.intra_op_threads) for placement in placements] == [((), 2)] * 3


@pytest.mark.parametrize(
    ("memory", "workers_per_device", "total", "limit"),
    [
        (GROWTH, 2, 40 * GIB, None),
        (MemoryLimit(6 * GIB), 1, 40 * GIB, 6 * GIB),
        (MemoryLimit(6 * GIB), 3, 40 * GIB, 6 * GIB),  # a size is each worker's
        (MemoryLimit(20 * GIB), 2, 40 * GIB, 20 * GIB),
        (MemoryLimit(6 * GIB), 1, None, 6 * GIB),
        (share(80), 1, 40 * GIB, 32 * GIB),
        (share(80), 2, 40 * GIB, 16 * GIB),  # a percentage is the device's
        (share(12.5), 1, 40 * GIB, 5 * GIB),
        (share(100), 3, 40 * GIB + 1, (40 * GIB + 1) // 3),
        (GROWTH, 1, None, None),
    ],
)
def test_memory_limits_are_per_worker_and_shares_per_device(
    memory: MemoryLimit, workers_per_device: int, total: int | None, limit: int | None
) -> None:
    placements = placed([gpu(0, total)], memory=memory, workers_per_device=workers_per_device)
    assert {placement.memory_limit_bytes for placement in placements} == {limit}


def test_a_percentage_refers_to_the_memory_of_each_device() -> None:
    limits = [p.memory_limit_bytes for p in placed([gpu(0, 40 * GIB), gpu(1, 80 * GIB)], memory=share(50))]
    assert limits == [20 * GIB, 40 * GIB]


@pytest.mark.parametrize(
    ("memory", "limit"),
    [
        (GROWTH, None),
        (MemoryLimit(6 * GIB), 6 * GIB),  # of each device
        (share(50), 10 * GIB),  # of the smaller device, divided between two workers
    ],
)
def test_the_memory_limit_of_a_group_holds_for_each_device(memory: MemoryLimit, limit: int | None) -> None:
    placements = placed([(gpu(0, 80 * GIB), gpu(1, 40 * GIB))], memory=memory, workers_per_device=2)
    assert [placement.memory_limit_bytes for placement in placements] == [limit, limit]


def test_all_devices_with_too_little_memory_are_named() -> None:
    devices = [(gpu(0, 40 * GIB), gpu(1, 80 * GIB)), gpu(2, 24 * GIB)]
    with pytest.raises(DeviceError) as caught:
        placed(devices, memory=MemoryLimit(21 * GIB), workers_per_device=2)
    first, second = caught.value.problems
    assert "2 workers of 21.0 GiB" in first
    assert "40.0 GiB of GPU-00000000" in first
    assert "24.0 GiB of GPU-00000002" in second


@pytest.mark.parametrize("memory", [MemoryLimit(GIB), share(50)])
def test_a_memory_limit_on_cpu_devices_is_refused(memory: MemoryLimit) -> None:
    with pytest.raises(DeviceError, match="cpu:0 write memory: growth"):
        placed([cpu(0)], memory=memory)


def test_a_share_of_unknown_memory_is_refused() -> None:
    with pytest.raises(DeviceError, match="50% of GPU-00000000, whose size is unknown"):
        placed([gpu(0, None)], memory=share(50))


# Limits on CPU time, other daemons, and libraries with threads of their own.


@pytest.mark.parametrize(
    ("quota", "workers", "threads"),
    [
        (None, 2, (4, 2)),
        (8.0, 2, (4, 2)),
        (6.0, 2, (3, 2)),
        (3.9, 1, (3, 2)),
        (1.5, 1, (1, 1)),
        (0.5, 1, (1, 1)),
        (2.0, 4, (1, 1)),
    ],
)
def test_automatic_threads_stay_within_the_quota_of_cpu_time(
    quota: float | None, workers: int, threads: tuple[int, int]
) -> None:
    placements = placed([cpu(number) for number in range(workers)], quota=quota)
    assert {(each.intra_op_threads, each.inter_op_threads) for each in placements} == {threads}


def test_configured_threads_do_not_depend_on_the_quota() -> None:
    (placement,) = placed([cpu(0)], intra_op=8, inter_op=3, quota=1.0)
    assert (placement.intra_op_threads, placement.inter_op_threads) == (8, 3)
    assert libraries(8).items() <= placement.environment.items()


@pytest.mark.parametrize(
    ("cores", "taken", "expected"),
    [
        ("split", range(4), [(4, 5), (6, 7)]),
        ("auto", range(4), [(4, 5), (6, 7)]),
        ("auto", range(6), [(), ()]),  # a core each is not enough to bind a worker
        ("split", range(6), [(6,), (7,)]),
        ("split", range(7), [(), ()]),  # better on any core than both on the last one
        ("split", range(8), [(), ()]),
        ("split", range(100, 200), [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("shared", range(4), [(), ()]),
    ],
)
def test_workers_are_not_bound_to_cores_of_other_daemons(
    cores: str, taken: Sequence[int], expected: list[tuple[int, ...]]
) -> None:
    placements = placed([cpu(0), cpu(1)], cores=cores, taken=taken)
    assert [placement.cores for placement in placements] == expected


@pytest.mark.parametrize(
    ("inherited", "left"),
    [
        ([], libraries(8)),
        (["OMP_NUM_THREADS"], {}),  # the other libraries follow it
        (["MKL_NUM_THREADS"], {"OMP_NUM_THREADS": "8", "OPENBLAS_NUM_THREADS": "8"}),
    ],
)
def test_libraries_get_as_many_threads_as_tensorflow_unless_set(inherited: list[str], left: dict[str, str]) -> None:
    (placement,) = placed([cpu(0)], inherited=inherited)
    assert {name: value for name, value in placement.environment.items() if name.endswith("_THREADS")} == left


def test_a_spare_gets_the_threads_of_the_slot_with_the_fewest() -> None:
    placements = placed([(cpu(0), cpu(1)), (cpu(2),)])
    assert [placement.intra_op_threads for placement in placements] == [2, 4]
    assert spare_environment(placements) == libraries(2)


def limits(cores: int, quota: float | None = None) -> ProcessLimits:
    """What a process may use that runs on so many cores."""
    found = CpuQuota(quota, "cpu.max") if quota is not None else None
    return cast(ProcessLimits, SimpleNamespace(cores=lambda: frozenset(range(cores)), cpu_quota=lambda: found))


@pytest.mark.parametrize(
    ("cores", "quota", "workers", "gateway_threads", "idle"),
    [
        (4, None, 2, None, True),
        (3, None, 2, None, False),
        (4, None, 2, 1, False),
        (6, None, 2, 2, True),
        (64, 3.5, 2, None, False),
        (64, 4.0, 2, None, True),
    ],
)
def test_threads_may_spin_where_there_is_a_core_for_each_that_is_busy(
    cores: int, quota: float | None, workers: int, gateway_threads: int | None, idle: bool
) -> None:
    gateway = None if gateway_threads is None else SimpleNamespace(threads=gateway_threads)
    config = cast(Config, SimpleNamespace(gateway=gateway))
    assert has_idle_cores(config, workers, limits(cores, quota)) is idle


@pytest.mark.parametrize(("cores", "spin_s"), [(4, 0.00005), (3, 0.0)])
def test_workers_are_told_for_how_long_they_may_spin(cores: int, spin_s: float, tmp_path: Path) -> None:
    path = tmp_path / "multitower.yaml"
    path.write_text("spin: 50us\ndevices: {cpu: 2}\nmodels: [{name: m, handler: 'handlers:Echo'}]\n")
    config = load(path, environment={})
    placements = place_workers_on(config, [(cpu(0),), (cpu(1),)], limits=limits(cores))
    assert [placement.make_assignment(0, 1, ()).spin_s for placement in placements] == [spin_s, spin_s]
