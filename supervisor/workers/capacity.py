"""What is measured of slots: memory, whether devices are present, and whether a second process would fit."""

from __future__ import annotations

from collections.abc import Iterable

from ..machine.devices import CPU_PREFIX
from ..machine.resources import DeviceSample, Sampler
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

    def fits_second_process(self, slot: Slot) -> bool:
        """Whether host memory and each device can hold a second process of the slot beside the one that serves.

        A GPU whose free memory is unknown holds none.
        """
        sample = self._sampler.sample(slot.number)
        if sample is not None and self._sampler.available_bytes < MARGIN * sample.rss_bytes:
            return False
        if all(device.startswith(CPU_PREFIX) for device in slot.placement.devices):
            return True
        return sample is not None and all(
            _fits(device, slot.placement.memory_limit_bytes or device.memory_bytes) for device in sample.devices
        )


def _fits(device: DeviceSample, needed: int | None) -> bool:
    return device.free_bytes is not None and needed is not None and device.free_bytes >= MARGIN * needed
