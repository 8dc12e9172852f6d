"""Which slots load which models, as tables of `devices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from multitower.supervisor.machine.devices import Device, DeviceError
from multitower.supervisor.machine.placement import assign_models

GPUS = ("GPU-8f3a0000", "GPU-8f3b0000", "GPU-2e000000")
CPUS = ("cpu:0", "cpu:1", "cpu:2")
Selection = Literal["all"] | Sequence[int | str]


def device(name: str, index: int | None) -> Device:
    return Device(
        name=name,
        kind="cpu" if index is None else "gpu",
        index=index,
        product="",
        memory_bytes=None,
        memory_used_bytes=None,
        pci_bus_id=None,
    )


DEVICES = {
    GPUS: [device(name, index) for index, name in enumerate(GPUS)],
    CPUS: [device(name, None) for name in CPUS],
}


def assigned(names: tuple[str, ...], slots: Sequence[tuple[str, ...]], **models: Selection) -> list[str]:
    found = assign_models(models, slots, DEVICES[names])
    return ["".join(loads) for loads in found]


def one_slot_each(names: tuple[str, ...], workers: int = 1) -> list[tuple[str, ...]]:
    return [(name,) for name in names for _ in range(workers)]


@pytest.mark.parametrize(
    ("names", "m", "n", "loads"),
    [
        (GPUS, "all", "all", ["mn", "mn", "mn"]),
        (GPUS, "all", [1], ["m", "mn", "m"]),
        (GPUS, [0, 2], [1, 2], ["m", "n", "mn"]),
        (GPUS, ["GPU-8f3a", "GPU-2e"], [1], ["m", "n", "m"]),
        (GPUS, [0, "gpu-8F3B"], [2], ["m", "m", "n"]),
        (CPUS, ["cpu:0"], ["cpu:2", "cpu:1"], ["m", "n", "n"]),
        (CPUS, "all", ["cpu:1"], ["m", "mn", "m"]),
    ],
)
def test_each_slot_loads_the_models_for_its_device(
    names: tuple[str, ...], m: Selection, n: Selection, loads: list[str]
) -> None:
    assert assigned(names, one_slot_each(names), m=m, n=n) == loads
    assert assigned(names, one_slot_each(names, 2), m=m, n=n) == [each for each in loads for _ in range(2)]


def test_a_worker_with_several_devices_loads_models_that_name_all_of_them() -> None:
    slots = [GPUS[:2], GPUS[2:]]
    assert assigned(GPUS, slots, m=[0, 1], n=[2]) == ["m", "n"]
    assert assigned(GPUS, slots, m=[[0, 1]], n="all") == ["mn", "n"]
    with pytest.raises(DeviceError, match=r"models\[1\].devices: lacks GPU-8f3a0000, whose worker has one of those"):
        assigned(GPUS, slots, m="all", n=[1, 2])


@pytest.mark.parametrize(
    ("names", "m", "n", "problems"),
    [
        (GPUS, "all", [3], ["models[1].devices: 3 is not the index of a GPU here."]),
        (GPUS, "all", ["cpu:0"], ["models[1].devices: 'cpu:0' is not one of the daemon's devices."]),
        (GPUS, ["GPU-8f"], "all", ["models[0].devices: 'GPU-8f' is the beginning of 2 GPUs' UUIDs: write more of it."]),
        (CPUS, [0], "all", ["models[0].devices: 0 is not the index of a GPU here."]),
        (
            CPUS,
            ["cpu:3"],
            ["cpu:0", "cpu:10"],
            [
                "models[0].devices: 'cpu:3' is not one of the daemon's devices.",
                "models[1].devices: 'cpu:10' is not one of the daemon's devices.",
            ],
        ),
        (
            GPUS,
            [0],
            [0],
            [
                f"devices: {idle} has no model: name it in the devices of one, or leave it out of the daemon's."
                for idle in GPUS[1:]
            ],
        ),
    ],
)
def test_impossible_selections_are_reported_with_their_key_and_the_devices(
    names: tuple[str, ...], m: Selection, n: Selection, problems: list[str]
) -> None:
    with pytest.raises(DeviceError) as caught:
        assigned(names, one_slot_each(names, 2), m=m, n=n)
    assert list(caught.value.problems) == problems
    shown = "0 (GPU-8f3a0000), 1 (GPU-8f3b0000), 2 (GPU-2e000000)" if names == GPUS else "cpu:0, cpu:1, cpu:2"
    assert str(caught.value).endswith(f"The daemon's devices: {shown}.")
