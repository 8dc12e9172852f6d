"""What is measured of slots: memory, whether devices are present, and whether a second process would fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multitower.spec import ModelSpec

from ..machine.devices import CPU_PREFIX, format_bytes
from ..machine.resources import DeviceSample, Sampler, read_rss
from .slot import Slot

MARGIN = 1.2
"""A process needs more memory while it loads than while it serves."""


class Capacity:
    """Answers questions about slots from the sampler's latest figures.

    Args:
        sampler: measures the workers and their devices.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def measure(self, slots: Iterable[Slot]) -> None:
        """Sets the slots whose processes and devices are measured from now on."""
        self._sampler.watch(
            {
                slot.number: (slot.process.child.pid if slot.process is not None else None, slot.placement.devices)
                for slot in slots
            }
        )

    def rss_bytes(self, slot: Slot) -> int | None:
        """Resident memory of the slot's current process in bytes; None before it has been measured."""
        sample = self._sampler.sample(slot.number)
        # Just after a replacement, the sample may still be that of the former process.
        measured = sample is not None and slot.process is not None and sample.pid == slot.process.child.pid
        return sample.rss_bytes if sample is not None and measured else None

    def device_present(self, slot: Slot) -> bool | None:
        """Whether all devices of the slot are present; None when that is unknown."""
        return self._sampler.are_devices_present(slot.number)

    @property
    def available_bytes(self) -> int:
        """Bytes of host memory that processes could still take within the narrowest limit."""
        return self._sampler.memory.available_bytes

    def obstacle_to_second_process(self, slot: Slot, specs: Sequence[ModelSpec]) -> str | None:
        """Why a second process of the slot, beside the one that serves, does not fit on the machine; None if it fits.

        A GPU whose free memory is unknown holds no second process.

        Args:
            slot: a slot with a process that serves.
            specs: the models that the second process would load.
        """
        sample = self._sampler.sample(slot.number)
        memory = self._sampler.memory
        # A process that has just become ready has no sample yet.
        rss = sample.rss_bytes if sample is not None else self._read_rss(slot)
        needed = int(MARGIN * _expected_rss(slot, specs, rss)) if rss is not None else 0
        if memory.available_bytes < needed:
            return (
                f"it would take about {format_bytes(needed)} of host memory, and {memory.source} leaves "
                f"{format_bytes(memory.available_bytes)}"
            )
        if all(device.startswith(CPU_PREFIX) for device in slot.placement.devices):
            return None
        limit = slot.placement.memory_limit_bytes
        if sample is None or not all(_fits(device, limit or device.memory_bytes) for device in sample.devices):
            return "its devices do not have the free memory, or do not report it"
        return None

    def _read_rss(self, slot: Slot) -> int | None:
        return read_rss(slot.process.child.pid) if slot.process is not None else None


def _expected_rss(slot: Slot, specs: Sequence[ModelSpec], rss: int) -> int:
    """Bytes of resident memory of a process with these models, from what the slot's models take in its process."""
    sizes: dict[str, int] = {}
    for model in slot.models:
        sizes[model.name] = max(model.host_memory_bytes or 0, sizes.get(model.name, 0))
    more = sum(sizes.get(spec.name, 0) for spec in specs) - sum(model.host_memory_bytes or 0 for model in slot.models)
    return rss + max(0, more)


def _fits(device: DeviceSample, needed: int | None) -> bool:
    return device.free_bytes is not None and needed is not None and device.free_bytes >= MARGIN * needed
