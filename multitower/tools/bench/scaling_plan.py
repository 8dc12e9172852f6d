"""How `--scaling` serves a configuration with fewer workers. The only module of bench that reads configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multitower.supervisor.config.config import Config, CpuDevices
from multitower.supervisor.machine import devices
from multitower.supervisor.machine.discovery import discover
from multitower.tools.bench.scaling import worker_counts
from multitower.tools.errors import ToolError


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """How a configuration is served with fewer workers.

    Attributes:
        devices: an item of `devices` for each device: a name, or a group of names in brackets; None for `{cpu: N}`.
        workers_per_device: as configured.
        workers: the numbers of workers to measure, ascending.
    """

    devices: tuple[str, ...] | None
    workers_per_device: int
    workers: tuple[int, ...]

    def override(self, workers: int) -> str:
        """The value of `--set` that gives the configuration this many workers, on its first devices."""
        count = workers // self.workers_per_device
        chosen = f"{{cpu: {count}}}" if self.devices is None else f"[{', '.join(self.devices[:count])}]"
        return f"devices={chosen}"


def plan_scaling(config: Config, workers: Sequence[int] | None) -> ScalingPlan:
    """Chooses the numbers of workers to measure.

    Args:
        config: the configuration whose devices are used.
        workers: the numbers; None for 1, 2, 4, … up to all workers of the configuration.

    Raises:
        ToolError: the configuration's devices cannot have such a number of workers.
        DeviceError: this machine does not have the devices.
    """
    found = devices.resolve(config.devices, discover())
    names = None if isinstance(config.devices, CpuDevices) else tuple(_device_item(group) for group in found)
    each = config.workers_per_device
    if workers is None:
        workers = [count * each for count in worker_counts(len(found))]
    for count in workers:
        if count % each:
            raise ToolError(f"{count} workers cannot be made of devices with {each} each (workers_per_device)")
        if names is not None and count > len(names) * each:
            raise ToolError(f"there are devices for {len(names) * each} workers, not for {count}")
    return ScalingPlan(names, each, tuple(sorted(set(workers))))


def _device_item(group: devices.Group) -> str:
    names = ", ".join(device.name for device in group)
    return f"[{names}]" if len(group) > 1 else names
