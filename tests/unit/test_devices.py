"""Which devices the entries of a configuration name, as tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from multitower.supervisor.config.devices import CpuDevices
from multitower.supervisor.machine.devices import (
    Device,
    DeviceError,
    Discovery,
    ListedDevices,
    format_bytes,
    resolve,
)

Selection = Literal["all"] | ListedDevices

GIB = 2**30
UUIDS = ("GPU-8f3a1c02-5b7e", "GPU-8f3a9d47-1c2b", "GPU-2e6b7710-93af", "GPU-41750e9b-0f6a")


def gpu(index: int) -> Device:
    return Device(
        name=UUIDS[index],
        kind="gpu",
        index=index,
        product=f"NVIDIA Product {index}",
        memory_bytes=(40 + index) * GIB,
        memory_used_bytes=0,
        pci_bus_id=f"00000000:{0x17 + index:02X}:00.0",
    )


FOUR = Discovery(tuple(gpu(index) for index in range(4)))
NONE = Discovery((), "the driver is asleep")
SLICES = ("MIG-5e0c8f7a-2d31", "MIG-5e91b7d3-8a05", "MIG-GPU-41750e9b-0f6a/1/0")


def mig(number: int, parent: Device) -> Device:
    return replace(gpu(0), name=SLICES[number], kind="mig", index=None, parent=parent)


SPLIT = Discovery((gpu(0), mig(0, gpu(1)), mig(1, gpu(1)), gpu(2), mig(2, gpu(3))))


def problems_of(selection: Selection, discovery: Discovery = FOUR) -> tuple[str, ...]:
    with pytest.raises(DeviceError) as caught:
        resolve(selection, discovery)
    return caught.value.problems


@pytest.mark.parametrize(
    ("selection", "indices"),
    [
        ("all", [0, 1, 2, 3]),
        ([0], [0]),
        ((2, 0), [2, 0]),
        (["GPU-8f3a1"], [0]),
        (["8f3a9"], [1]),
        (["gpu-2E6B", "GPU-41750e9b-0f6a"], [2, 3]),
        (["2"], None),  # an index that was quoted, not the UUID that begins with 2
        (["GPU-2"], [2]),
        (["41750"], None),
        (["GPU-41750"], [3]),
        (["4175", 0], None),
        (["41750e"], [3]),
        ([2, "GPU-8f3a1c02-5b7e"], [2, 0]),
    ],
)
def test_entries_name_devices_by_index_or_beginning_of_uuid(selection: Selection, indices: list[int] | None) -> None:
    if indices is None:
        assert "write an index without quotes" in problems_of(selection)[0]
    else:
        assert [[device.index for device in group] for group in resolve(selection, FOUR)] == [[i] for i in indices]


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ([[0, 1], [2, 3]], [UUIDS[:2], UUIDS[2:]]),
        ([[3, "8f3a1"], 1], [(UUIDS[3], UUIDS[0]), (UUIDS[1],)]),  # within a group the order is kept, too
        ([[2]], [(UUIDS[2],)]),
        (["cpu:1", "CPU:0"], [("cpu:1",), ("cpu:0",)]),
        ([["cpu:0", "cpu:1"], ["cpu:2", "cpu:3"]], [("cpu:0", "cpu:1"), ("cpu:2", "cpu:3")]),
        ([0, "cpu:0"], [(UUIDS[0],), ("cpu:0",)]),  # a worker of each kind
    ],
)
def test_groups_and_cpu_devices_are_kept_in_order(selection: Selection, names: list[tuple[str, ...]]) -> None:
    assert [tuple(device.name for device in group) for group in resolve(selection, FOUR)] == names


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ([4], ["4", "is not the index"]),
        ([-1], ["-1", "is not the index"]),
        (["GPU-8f3a"], ["'GPU-8f3a'", "beginning of 2 GPUs' UUIDs"]),
        (["beef"], ["'beef'", "is not the beginning of a GPU's UUID"]),
        (["GPU-8f3a1c02-5b7e-and-more"], ["is not the beginning"]),
        (["GPU-"], ["names no GPU"]),
        ([""], ["names no GPU"]),
        (["cpu:x"], ["'cpu:x' is not a CPU device"]),
        (["cpu:0", "cpu:0"], ["'cpu:0' is listed twice"]),
        ([[0, 1], [1, 2]], ["1 is listed twice"]),
        ([0, [2, "gpu-8f3a1"]], ["'gpu-8f3a1' is the same device as 0"]),
        ([[0, 1], []], ["[] is an empty group"]),
        ([[0, "cpu:0"]], ["[0, 'cpu:0'] mixes GPUs with CPU devices"]),
        ([[0, 9]], ["9 is not the index"]),
        (["MIG-3a1c"], ["'MIG-3a1c'", "is not the beginning of a MIG slice's UUID here"]),
        ([1, 1], ["1 is listed twice"]),
        ([0, "gpu-8f3a1"], ["'gpu-8f3a1' is the same device as 0"]),
        (["8f3a1c", "GPU-8f3a1"], ["'GPU-8f3a1' is the same device as '8f3a1c'"]),
        ([], ["empty list"]),
    ],
)
def test_an_entry_that_names_no_device_is_reported(selection: Selection, words: list[str]) -> None:
    (problem,) = problems_of(selection)
    for word in words:
        assert word in problem


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("all", [UUIDS[0], *SLICES[:2], UUIDS[2], SLICES[2]]),
        ([2, "MIG-5e9"], [UUIDS[2], SLICES[1]]),
        (["mig-5E0c", ["MIG-5e91b7d3-8a05"]], SLICES[:2]),
        (["MIG-GPU-41750e9b-0f6a/1/0"], [SLICES[2]]),
    ],
)
def test_mig_slices_are_named_like_gpus(selection: Selection, names: list[str]) -> None:
    assert [device.name for (device,) in resolve(selection, SPLIT)] == list(names)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ([1], "1 is a GPU in MIG mode: name its slices, MIG-5e0c8f7a-2d31, MIG-5e91b7d3-8a05"),
        (["GPU-8f3a9"], "'GPU-8f3a9' is a GPU in MIG mode: name its slices, MIG-5e0c8f7a-2d31, "),
        (["MIG-5e"], "'MIG-5e' is the beginning of 2 MIG slices' UUIDs"),
        (["MIG-"], "'MIG-' names no MIG slice: write the beginning of a UUID"),
        (["GPU-8f3a"], "'GPU-8f3a' is the beginning of 2 GPUs' UUIDs"),
        (["MIG-5e0", "MIG-5e0c"], "'MIG-5e0c' is the same device as 'MIG-5e0'"),
        ([["MIG-5e0", "MIG-5e9"]], "['MIG-5e0', 'MIG-5e9'] has MIG slices; a worker can use one slice only"),
        ([[0, "MIG-5e9"]], "[0, 'MIG-5e9'] has MIG slices"),
    ],
)
def test_wrong_entries_for_mig_slices_are_reported(selection: Selection, words: str) -> None:
    (problem,) = problems_of(selection, SPLIT)
    assert words in problem


def test_the_list_of_devices_shows_slices_with_their_gpu() -> None:
    with pytest.raises(DeviceError, match=f"\n  in 1  {SLICES[0]}  "):
        resolve([9], SPLIT)


def test_all_wrong_entries_are_reported_with_the_devices_that_exist() -> None:
    with pytest.raises(DeviceError) as caught:
        resolve([9, 0, "8f3a", "MIG-1", 0], FOUR)
    assert [problem.split()[1] for problem in caught.value.problems] == ["9", "'8f3a'", "'MIG-1'", "0"]
    message = str(caught.value)
    for problem in caught.value.problems:
        assert problem in message
    for device in FOUR.gpus:
        assert f"{device.index}  {device.name}  {device.product}  {40 + device.index}.0 GiB" in message


def test_the_reason_for_a_missing_gpu_is_reported() -> None:
    partial = Discovery((gpu(0), gpu(2)), "GPU 1 cannot be used: it fell off the bus")
    assert [device.index for (device,) in resolve([0, 2], partial)] == [0, 2]
    with pytest.raises(DeviceError, match="fell off the bus"):
        resolve([1], partial)
    with pytest.raises(DeviceError, match="No GPU is seen: the driver is asleep"):
        resolve([0], NONE)


def test_all_without_a_gpu_reports_why_and_an_alternative() -> None:
    with pytest.raises(DeviceError, match=r"the driver is asleep(.|\n)*devices: \{cpu: 1\}"):
        resolve("all", NONE)


@pytest.mark.parametrize("discovery", [FOUR, NONE])
def test_cpu_devices_are_numbered_and_need_no_gpu(discovery: Discovery) -> None:
    devices = [device for (device,) in resolve(CpuDevices(cpu=3), discovery)]
    assert [device.name for device in devices] == ["cpu:0", "cpu:1", "cpu:2"]
    assert {(device.kind, device.index, device.memory_bytes) for device in devices} == {("cpu", None, None)}


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0 MiB"), (512 * 2**20, "512 MiB"), (GIB, "1.0 GiB"), (85_520_809_984, "79.6 GiB")],
)
def test_sizes_are_formatted_for_people(size: int | None, text: str) -> None:
    assert format_bytes(size) == text
