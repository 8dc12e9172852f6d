from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.supervisor.machine.resources import DeviceSample, Sample
from multitower.supervisor.workers.capacity import Capacity

MIB = 2**20


def gpu(used: int | None, free: int | None) -> DeviceSample:
    return DeviceSample(
        name="GPU-a",
        memory_bytes=None if used is None else used * MIB,
        free_bytes=None if free is None else free * MIB,
    )


def fits(
    devices: tuple[DeviceSample, ...] | None, *, kind: str = "GPU", limit: int | None = None, available: int = 1000
) -> bool:
    sample = None if devices is None else Sample(pid=1, at=0.0, rss_bytes=MIB, cpu_percent=None, devices=devices)
    names = tuple(f"{kind}:{number}" for number in range(2))
    placement = SimpleNamespace(devices=names, memory_limit_bytes=None if limit is None else limit * MIB)
    slot: Any = SimpleNamespace(number=0, placement=placement)
    sampler = SimpleNamespace(sample=lambda slot: sample, available_bytes=available * MIB)
    return Capacity(cast("Any", sampler)).fits_second_process(slot)


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
