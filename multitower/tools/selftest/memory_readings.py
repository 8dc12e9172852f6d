"""Reads how much memory a worker and its devices use, beside the daemon, and decides whether memory was freed.

NVML lists the processes that compute on a GPU with their memory, but not everywhere: in most containers it lists none.
There the memory of the whole device is compared, which other programs change as well; `tolerance` says by how much.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from multitower.supervisor.machine.gpu_sampler import UNKNOWN, GpuSampler, GpuUsage
from multitower.supervisor.machine.resources import read_rss
from multitower.tools.selftest import MIB
from multitower.tools.selftest.targets import Target

_SHARE: Final = 4
_LEAST_TOLERANCE: Final = 16 * MIB


def tolerance(memory: int) -> int:
    """Bytes by which figures may differ from what is expected: a quarter of the memory that is taken, or 16 MiB."""
    return max(memory // _SHARE, _LEAST_TOLERANCE)


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory in use at one moment, summed over the devices of a worker.

    Attributes:
        own: bytes of the process; None if it is not listed, or has ended.
        used: bytes of all processes and the driver on the devices; None for CPU devices, and if unknown.
        unlisted: of these, the bytes that belong to no process that NVML lists.
        free: bytes that nothing uses on the device with the least; None for CPU devices, and if unknown.
        answered: whether NVML answered for every device; always true of CPU devices.
    """

    own: int | None
    used: int | None = None
    unlisted: int | None = None
    free: int | None = None
    answered: bool = True

    @property
    def known(self) -> int | None:
        """The bytes of the process if they are known, otherwise those in use on the devices, as `status` shows them."""
        return self.own if self.own is not None else self.used


class HostMeter:
    """Reads the resident memory of processes."""

    def read(self, pid: int) -> Reading:
        """Reads the memory of a process now."""
        return Reading(read_rss(pid))

    def close(self) -> None:
        """Holds nothing."""


class DeviceMeter:
    """Reads device memory through NVML, which stays initialised. All methods must be called in one thread.

    Args:
        uuids: of the GPUs or slices.
    """

    def __init__(self, uuids: Collection[str]) -> None:
        self._uuids = uuids
        self._sampler = GpuSampler()

    def read(self, pid: int) -> Reading:
        """Reads the memory of a process and of the devices now."""
        return reading(self._sampler.read(self._uuids), self._uuids, pid)

    def close(self) -> None:
        """Shuts NVML down."""
        self._sampler.close()


def meter_of(target: Target) -> HostMeter | DeviceMeter:
    """The meter for the devices of a worker."""
    return HostMeter() if target.on_cpu else DeviceMeter(target.names)


def reading(usages: Mapping[str, GpuUsage], uuids: Collection[str], pid: int) -> Reading:
    """The memory of a process and of some devices, from what NVML reported of them.

    Args:
        usages: what NVML reported, by UUID; devices that it did not report are missing.
        uuids: of the devices.
        pid: of the process; 0 for none.
    """
    chosen = [usages.get(uuid, UNKNOWN) for uuid in uuids]
    if not all(usage.present for usage in chosen):
        return Reading(None, answered=False)
    held = [usage.process_bytes[pid] for usage in chosen if pid in usage.process_bytes]
    own = sum(held) if held else None
    used = [usage.used_bytes for usage in chosen if usage.used_bytes is not None]
    if len(used) < len(chosen):
        return Reading(own)
    listed = sum(sum(usage.process_bytes.values()) for usage in chosen)
    free = [usage.free_bytes for usage in chosen if usage.free_bytes is not None]
    return Reading(own, sum(used), sum(used) - listed, min(free, default=None))


def memory_left(before: Reading, after: Reading, *, listed: bool, allowed: int) -> str | None:
    """Says what memory is left of a process that has ended; None if it is free.

    Where the memory in use was known before and is not any more, nobody knows that it is free: this is a problem too.
    Where it was not known before, only the list of processes counts.

    Args:
        before: the reading before the process took the memory.
        after: the reading after it ended, for the same process.
        listed: whether NVML listed the process while it ran.
        allowed: bytes by which memory of the whole device may have grown meanwhile.
    """
    if not after.answered:
        return "NVML does not answer any more for the device"
    if after.own is not None:
        return f"the process that was killed still holds {mebibytes(after.own)}"
    old, new = (before.unlisted, after.unlisted) if listed else (before.used, after.used)
    if old is None:
        return None
    if new is None:
        return "NVML does not report any more how much memory of the device is in use"
    grown = new - old
    if grown <= allowed:
        return None
    whose = "belong to no process that NVML lists" if listed else "are in use on the device"
    return f"{mebibytes(grown)} more than before {whose}"


def mebibytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / MIB:,.0f} MiB"
