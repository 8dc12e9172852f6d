"""Which slots load which models: each model all of them, or those on its own `devices`. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol, TypeAlias

from .devices import Device, DeviceError, Discovery, resolve

ModelSelection: TypeAlias = Literal["all"] | Sequence[int | str | Sequence[int | str]]


class Wanted(Protocol):
    """What this needs of a model's configuration."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def devices(self) -> ModelSelection:
        """Where it is to be loaded."""


def allot(
    models: Sequence[Wanted], slots: Sequence[Collection[str]], devices: Sequence[Device]
) -> tuple[tuple[str, ...], ...]:
    """The names of the models that each slot loads, in the order of the models.

    Args:
        models: all that are configured.
        slots: the names of each slot's devices.
        devices: the daemon's, which the names are of.

    Raises:
        DeviceError: a model names a device that is not the daemon's, or a part of a worker's; or a slot has no model.
            Each such entry is named with its key, and what there is to choose from.
    """
    problems: list[str] = []
    chosen: dict[str, frozenset[str]] = {}
    for number, model in enumerate(models):
        try:
            chosen[model.name] = _names(model.devices, slots, devices)
        except DeviceError as error:
            problems += [f"models[{number}].{problem}" for problem in error.problems]
    allotted = tuple(tuple(name for name, names in chosen.items() if names.issuperset(slot)) for slot in slots)
    if not problems:
        idle = dict.fromkeys(",".join(slot) for slot, loads in zip(slots, allotted, strict=True) if not loads)
        problems = [
            f"devices: {device} has no model: name it in the devices of one, or leave it out of the daemon's."
            for device in idle
        ]
    if problems:
        raise DeviceError(problems, f"The daemon's devices: {', '.join(map(_shown, devices))}.")
    return allotted


def _names(selection: ModelSelection, slots: Sequence[Collection[str]], devices: Sequence[Device]) -> frozenset[str]:
    """The devices that a model's `devices` means; a slot has it when all of the slot's are among them."""
    names = {device.name for device in devices}
    if selection == "all":
        return frozenset(names)
    groups = resolve(selection, Discovery(tuple(device for device in devices if device.kind != "cpu")))
    chosen = {device.name for group in groups for device in group}
    problems = [f"devices: {name!r} is not one of the daemon's devices." for name in sorted(chosen - names)]
    for slot in slots:
        missing = set(slot) - chosen
        if missing and not chosen.isdisjoint(slot):
            missed = ", ".join(sorted(missing))
            problems.append(f"devices: lacks {missed}, whose worker has one of those that it names.")
    if problems:
        raise DeviceError(list(dict.fromkeys(problems)))
    return frozenset(chosen)


def _shown(device: Device) -> str:
    return device.name if device.index is None else f"{device.index} ({device.name})"
