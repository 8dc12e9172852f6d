from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.spec import ModelReport, ModelSpec
from multitower.supervisor.machine.process_limits import MemoryHeadroom
from multitower.supervisor.machine.resources import DeviceSample, Sample
from multitower.supervisor.workers.capacity import Capacity

MIB = 2**20


def gpu(used: int | None, free: int | None) -> DeviceSample:
    return DeviceSample(
        name="GPU-a",
        memory_bytes=None if used is None else used * MIB,
        free_bytes=None if free is None else free * MIB,
    )


def obstacle(
    devices: tuple[DeviceSample, ...] | None,
    *,
    kind: str = "GPU",
    limit: int | None = None,
    available: int = 1000,
    rss: int = 1,
    models: Mapping[str, int] | None = None,
    wanted: Sequence[str] = (),
    pid: int | None = None,
) -> str | None:
    """Why a second process does not fit.

    Args:
        devices: what is measured of them; None before the first sample.
        kind: `GPU` or `cpu`.
        limit: MiB of device memory of a worker.
        available: MiB of host memory.
        rss: MiB of the process that serves.
        models: MiB of each of its models.
        wanted: the models of the second process.
        pid: of the process that serves.
    """
    sample = None
    if devices is not None:
        sample = Sample(pid=1, at=0.0, rss_bytes=rss * MIB, cpu_percent=None, devices=devices)
    names = tuple(f"{kind}:{number}" for number in range(2))
    placement = SimpleNamespace(devices=names, memory_limit_bytes=None if limit is None else limit * MIB)
    process = None if pid is None else SimpleNamespace(child=SimpleNamespace(pid=pid))
    reports = [ModelReport(name=name, host_memory_bytes=size * MIB) for name, size in (models or {}).items()]
    slot: Any = SimpleNamespace(number=0, placement=placement, process=process, models=reports)
    memory = MemoryHeadroom(available * MIB, 2000 * MIB, "memory.max of the control group /a")
    sampler = SimpleNamespace(sample=lambda slot: sample, memory=memory)
    specs = [ModelSpec(name=name, handler="h:M") for name in wanted]
    return Capacity(cast("Any", sampler)).obstacle_to_second_process(slot, specs)


def fits(devices: tuple[DeviceSample, ...] | None, **arguments: Any) -> bool:
    return obstacle(devices, **arguments) is None


@pytest.mark.parametrize(
    ("devices", "limit", "expected"),
    [
        ((gpu(100, 120),), None, True),
        ((gpu(100, 119),), None, False),
        ((gpu(100, 500), gpu(100, 120)), None, True),
        ((gpu(100, 500), gpu(100, 119)), None, False),  # room on one device is none for the worker
        ((gpu(10, 500), gpu(400, 500)), None, True),
        ((gpu(10, 400), gpu(10, 400)), 400, False),  # it may take its limit, whatever the other has taken
        ((gpu(100, 500), gpu(None, None)), None, False),
        (None, None, False),
    ],
)
def test_a_second_process_needs_room_on_every_device(
    devices: tuple[DeviceSample, ...] | None, limit: int | None, expected: bool
) -> None:
    assert fits(devices, limit=limit) is expected


def test_cpu_devices_have_no_memory_of_their_own() -> None:
    assert fits(None, kind="cpu")


@pytest.mark.parametrize(("available", "expected"), [(2, True), (1, False)])
def test_a_second_process_needs_host_memory(available: int, expected: bool) -> None:
    assert fits((gpu(100, 500),), available=available) is expected


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        (["a"], 120, True),
        (["a"], 119, False),
        (["a", "a"], 180, True),  # two versions, where the old process has one
        (["a", "a"], 179, False),
        ([], 119, False),  # a process without models is not sure to be smaller
        (["new"], 120, True),  # nothing is known of it
    ],
)
def test_a_second_process_may_have_more_models_than_the_first(
    wanted: list[str], available: int, expected: bool
) -> None:
    models = {"a": 50, "b": 0}
    assert fits((), kind="cpu", rss=100, models=models, wanted=wanted, available=available) is expected


def test_a_process_without_a_sample_is_measured_at_once() -> None:
    assert fits(None, kind="cpu", pid=os.getpid(), available=100_000)
    assert not fits(None, kind="cpu", pid=os.getpid(), available=1)


def test_the_obstacle_names_the_limit_and_both_sizes() -> None:
    assert obstacle((), kind="cpu", rss=1000, available=500) == (
        "it would take about 1.2 GiB of host memory, and memory.max of the control group /a leaves 500 MiB"
    )
