"""What the selftest checks: the devices of each worker, found as the daemon finds them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from multitower.supervisor.config.devices import on_cpus
from multitower.supervisor.config.loading import load
from multitower.supervisor.machine.devices import NONE_REPORTED, Device, Discovery, Group, MissingDevicesError, resolve
from multitower.supervisor.machine.discovery import discover
from multitower.temporary_folder import temporary_folder

_PREFIX_LENGTH: Final = 12

_SMALLEST_CONFIG: Final = "models: [{name: probe, handler: 'multitower.tools.selftest.probe:Probe'}]\n"


@dataclass(frozen=True, slots=True)
class Target:
    """One worker of the private daemon, in the slot of the same number.

    Attributes:
        number: the number of its slot, from 0.
        devices: its devices; several are a group.
    """

    number: int
    devices: Group

    @property
    def on_cpu(self) -> bool:
        """Whether its devices are CPU devices."""
        return self.devices[0].kind == "cpu"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its devices: UUIDs, or `cpu:N`."""
        return tuple(device.name for device in self.devices)

    @property
    def label(self) -> str:
        """A short name for people, such as `GPU 0`, `GPU 0+1`, `MIG-5e0c8f7a` or `cpu:0`."""
        if self.devices[0].index is not None:
            return f"GPU {'+'.join(str(device.index) for device in self.devices)}"
        return "+".join(name[:_PREFIX_LENGTH] for name in self.names)

    @property
    def memory_bytes(self) -> int | None:
        """The memory of its smallest device; None if that is unknown."""
        sizes = [device.memory_bytes for device in self.devices]
        known = [size for size in sizes if size is not None]
        return min(known) if len(known) == len(sizes) else None


def find_targets(devices: str) -> tuple[tuple[Target, ...], Discovery]:
    """The workers for a value of the configuration's key `devices`, and what NVML reports; it is not asked for CPUs.

    Args:
        devices: the value as YAML, such as `all`, `[0, 2]` or `{cpu: 2}`.

    Raises:
        ConfigError: the text is no value of `devices`.
        DeviceError: this machine does not have the devices; `MissingDevicesError` if nothing else is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mt-selftest-", dir=temporary_folder()) as folder:
        path = Path(folder, "devices.yaml")
        path.write_text(_SMALLEST_CONFIG)
        config = load(path, environment={}, overrides=[f"devices={devices}"])
    found = Discovery(()) if on_cpus(config.devices) else discover()
    if config.devices == "all" and not found.gpus:
        remedy = "to test CPU devices: multitower selftest --devices '{cpu: 2}'"
        raise MissingDevicesError([f"no GPU found: {found.problem or NONE_REPORTED}; {remedy}"], "", ())
    groups = resolve(config.devices, found)
    return tuple(Target(number, group) for number, group in enumerate(groups)), found


def describe(device: Device) -> str:
    """The device with its product, for the first lines of the report."""
    return device.name if device.kind == "cpu" else f"{device.name} ({device.product})"
