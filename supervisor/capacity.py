"""Whether the machine can hold a second process of a slot beside the one that serves."""

from __future__ import annotations

import psutil

from multitower.supervisor.member import Place
from multitower.supervisor.resources import Sampler

MARGIN = 1.2
"""A process that loads needs more for a moment than one that serves."""


class Capacity:
    """Judges by what is measured.

    Args:
        sampler: measures the workers.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def rss(self, place: Place) -> int | None:
        """Bytes of resident memory of the slot's process, as last measured; None before it has been."""
        sample = self._sampler.sample(place.slot.number)
        # Just after a renewal, the figure may be that of the process that has left.
        measured = sample is not None and place.member is not None and sample.pid == place.member.process.pid
        return sample.rss_bytes if sample is not None and measured else None

    def fits(self, place: Place) -> bool:
        """A second process fits, in host memory and in the device's. What is not known of a GPU does not fit."""
        sample = self._sampler.sample(place.slot.number)
        if sample is not None and psutil.virtual_memory().available < MARGIN * sample.rss_bytes:
            return False
        if all(device.startswith("cpu") for device in place.placement.devices):
            return True
        if sample is None or sample.device_free_bytes is None:
            return False
        needed = place.placement.memory_limit_bytes or sample.device_memory_bytes
        return needed is not None and sample.device_free_bytes >= MARGIN * needed
