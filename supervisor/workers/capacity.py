"""Whether the machine can hold a second process of a slot beside the one that serves."""

from __future__ import annotations

import psutil

from ..machine.resources import DeviceSample, Sampler
from .slot import Slot

MARGIN = 1.2
"""A process that loads needs more for a moment than one that serves."""


class Capacity:
    """Judges by what is measured.

    Args:
        sampler: measures the workers.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def rss(self, slot: Slot) -> int | None:
        """Bytes of resident memory of the slot's process, as last measured; None before it has been."""
        sample = self._sampler.sample(slot.number)
        # Just after a renewal, the figure may be that of the process that has left.
        measured = sample is not None and slot.process is not None and sample.pid == slot.process.child.pid
        return sample.rss_bytes if sample is not None and measured else None

    def fits(self, slot: Slot) -> bool:
        """A second process fits, in host memory and in each device's. What is not known of a GPU does not fit."""
        sample = self._sampler.sample(slot.number)
        if sample is not None and psutil.virtual_memory().available < MARGIN * sample.rss_bytes:
            return False
        if all(device.startswith("cpu") for device in slot.placement.devices):
            return True
        return sample is not None and all(
            _fits(device, slot.placement.memory_limit_bytes or device.memory_bytes) for device in sample.devices
        )


def _fits(device: DeviceSample, needed: int | None) -> bool:
    return device.free_bytes is not None and needed is not None and device.free_bytes >= MARGIN * needed
