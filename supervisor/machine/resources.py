"""What the workers use of the machine: memory and CPU of each process, memory and utilisation of its device.

Threads of their own measure, since the system, and the GPU driver above all, may take its time to answer; the daemon
says whom to watch and reads the latest figures, and never waits. GPUs are asked through NVML alone, which opens no
CUDA context, and only when a GPU is watched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import psutil

from ..loop.log import event
from .devices import CPU_PREFIX

log = logging.getLogger("multitower.resources")

INTERVAL_S: Final = 1.0
"""How often everything is measured."""

STALE_S: Final = 10.0
"""Figures this old are none: the driver does not answer, and what was true then need not be now."""

REOPEN_S: Final = 10.0
"""How often NVML is opened anew while it, or a GPU, is missing: a GPU that comes back shows only then."""

CLOSE_S: Final = 1.0
"""How long the end of the threads is waited for: a call into a driver that hangs cannot be interrupted."""

Watched: TypeAlias = tuple[int | None, tuple[str, ...]]
"""A slot's process's pid, or None while it has none, and its devices: UUIDs of GPUs, or `cpu:N`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """What is known of one device of a worker.

    Attributes:
        name: the UUID of a GPU, or `cpu:N`.
        memory_bytes: device memory in use; None for a CPU device, and where NVML does not say.
        memory_of: whether that is the memory of the `process` or, where NVML does not know the process (in a
            container, or before it has opened the device), of everything on the `device`.
        free_bytes: device memory that nobody uses; None as above.
        utilization_percent: the share of time in which the device computed, whoever for; None as above.
        present: False for a GPU that has gone, as one fallen off the bus; None when NVML does not answer.
    """

    name: str
    memory_bytes: int | None = None
    memory_of: Literal["process", "device"] | None = None
    free_bytes: int | None = None
    utilization_percent: int | None = None
    present: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One worker's use of the machine at one moment.

    Attributes:
        pid: the process that was measured.
        at: when, in monotonic seconds.
        rss_bytes: its resident memory.
        cpu_percent: its CPU time since the sample before, 100 being one core; None in its first sample.
        devices: each of its devices.
    """

    pid: int
    at: float
    rss_bytes: int
    cpu_percent: float | None
    devices: tuple[DeviceSample, ...]

    @property
    def device_memory_bytes(self) -> int | None:
        """Memory in use, summed over the devices; None unless it is known of each."""
        each = [device.memory_bytes for device in self.devices if device.memory_bytes is not None]
        return sum(each) if each and len(each) == len(self.devices) else None

    @property
    def device_memory_of(self) -> Literal["process", "device"] | None:
        """Whose memory that is: the `process`'s where it is on each device."""
        if self.device_memory_bytes is None:
            return None
        return "process" if all(device.memory_of == "process" for device in self.devices) else "device"

    @property
    def utilization_percent(self) -> int | None:
        """The mean over the devices; None unless it is known of each."""
        each = [device.utilization_percent for device in self.devices if device.utilization_percent is not None]
        return round(sum(each) / len(each)) if each and len(each) == len(self.devices) else None


class Sampler:
    """Measures from the time of its construction to `close`.

    Processes and GPUs are measured in a thread each: a driver that hangs takes nothing with it but the GPUs' figures.

    Args:
        interval_s: how often.
    """

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        # Long intervals make old figures, not wrong ones.
        self._stale_s = max(STALE_S, 2 * interval_s)
        # Each is replaced as a whole and never changed, so no side needs a lock.
        self._watched: Mapping[int, Watched] = {}
        self._usages: Mapping[int, _Usage] = {}
        self._looks: tuple[float, Mapping[str, _Gpu]] = (0.0, {})
        self._processes: dict[int, psutil.Process] = {}
        self._gpus = _Gpus()
        self._end = threading.Event()
        self._loops = (
            _Loop("sampler", interval_s, self._end, self._measure),
            _Loop("sampler-gpus", interval_s, self._end, self._look, self._gpus.close),
        )
        for loop in self._loops:
            loop.start()

    @property
    def failures(self) -> int:
        """Rounds that ended in an error nobody foresaw; the first one is in the log."""
        return sum(loop.failures for loop in self._loops)

    def watch(self, watched: Mapping[int, Watched]) -> None:
        """Says what to measure from the next round on, instead of what was said before.

        Args:
            watched: by slot.
        """
        self._watched = dict(watched)

    def sample(self, slot: int) -> Sample | None:
        """The latest figures of a slot's process; None when there are none, or none any more."""
        now = time.monotonic()
        pid, _ = self._watched.get(slot, _NOTHING)
        usage = self._usages.get(slot)
        if usage is None or usage.pid != pid or now - usage.at > self._stale_s:
            return None
        return Sample(
            pid=usage.pid,
            at=usage.at,
            rss_bytes=usage.rss_bytes,
            cpu_percent=usage.cpu_percent,
            devices=self.devices(slot),
        )

    def devices(self, slot: int) -> tuple[DeviceSample, ...]:
        """Each device of a slot, also while the slot has no process."""
        now = time.monotonic()
        pid, names = self._watched.get(slot, _NOTHING)
        return tuple(self._device(name, pid, now) for name in names)

    def present(self, slot: int) -> bool | None:
        """Whether all devices of a slot are there, also while it has no process; None when that is not known."""
        present = {device.present for device in self.devices(slot)}
        return None if not present else False if False in present else None if None in present else True

    def _device(self, name: str, pid: int | None, now: float) -> DeviceSample:
        if name.startswith(CPU_PREFIX):
            return DeviceSample(name=name, present=True)
        looked_at, gpus = self._looks
        gpu = gpus.get(name, _UNKNOWN) if now - looked_at <= self._stale_s else _UNKNOWN
        own = gpu.by_pid.get(pid) if pid is not None else None
        used = own if own is not None else gpu.used_bytes
        return DeviceSample(
            name=name,
            memory_bytes=used,
            memory_of=None if used is None else "process" if own is not None else "device",
            free_bytes=gpu.free_bytes,
            utilization_percent=gpu.utilization,
            present=gpu.present,
        )

    def close(self) -> None:
        """Ends the threads; returns within `CLOSE_S`."""
        self._end.set()
        until = time.monotonic() + CLOSE_S
        for loop in self._loops:
            loop.join(max(0.0, until - time.monotonic()))

    def _look(self) -> None:
        names = {name for _, names in self._watched.values() for name in names if not name.startswith(CPU_PREFIX)}
        gpus = self._gpus.look(names)
        self._looks = (time.monotonic(), gpus)

    def _measure(self) -> None:
        watched = self._watched
        pids = {slot: pid for slot, (pid, _) in watched.items() if pid is not None}
        wanted = set(pids.values())
        self._processes = {pid: process for pid, process in self._processes.items() if pid in wanted}
        usages = {slot: self._usage(pid) for slot, pid in pids.items()}
        self._usages = {slot: usage for slot, usage in usages.items() if usage is not None}

    def _usage(self, pid: int) -> _Usage | None:
        """None when the process has ended, or the system does not say."""
        try:
            process = self._processes.get(pid)
            first = process is None
            if process is None:
                process = self._processes[pid] = psutil.Process(pid)
            # The parent may not have noticed yet that it has ended; another process may even have its pid by now.
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                self._processes.pop(pid)
                return None
            with process.oneshot():
                percent = process.cpu_percent(None)  # since the call before: the first one has no meaning
                # Memory of clients that a worker maps is theirs.
                own = process.memory_info().rss - _mapped_shared_memory(pid)
                return _Usage(pid, time.monotonic(), own, None if first else percent)
        except (psutil.Error, OSError):
            self._processes.pop(pid, None)
            return None


def _mapped_shared_memory(pid: int) -> int:
    """Bytes of memory files that a process has mapped and looked at (proc(5), RssShmem)."""
    with open(f"/proc/{pid}/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"RssShmem:"):
                return int(line.split()[1]) << 10
    return 0


class _Loop(threading.Thread):
    """Does its work again and again, until the end, whatever comes of it."""

    def __init__(
        self,
        name: str,
        interval_s: float,
        end: threading.Event,
        work: Callable[[], None],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.failures = 0
        self._interval_s = interval_s
        self._end = end
        self._work = work
        self._finish = finish

    def run(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            try:
                self._work()
            except Exception:  # whatever it was, the next round may go well
                self.failures += 1
                if self.failures == 1:
                    log.warning("the use of resources could not be measured", exc_info=True)
            self._end.wait(max(0.0, began + self._interval_s - time.monotonic()))
        self._finish()


@dataclass(frozen=True, slots=True)
class _Usage:
    """What the system says of a process."""

    pid: int
    at: float
    rss_bytes: int
    cpu_percent: float | None


@dataclass(frozen=True, slots=True)
class _Gpu:
    """What NVML says of a GPU: whether it is there, bytes in use and free, per cent, and bytes of each process."""

    present: bool | None
    used_bytes: int | None = None
    free_bytes: int | None = None
    utilization: int | None = None
    by_pid: Mapping[int, int] = field(default_factory=dict)


_NOTHING: Final[Watched] = (None, ())
_UNKNOWN: Final = _Gpu(None)


class _Gpus:
    """NVML, kept open while GPUs are watched: its initialisation may take seconds. For one thread."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._open_at = 0.0  # not before this time
        self._problem: str | None = None
        self._gone: set[str] = set()

    def look(self, uuids: Collection[str]) -> dict[str, _Gpu]:
        """What NVML says of these GPUs; nothing when it cannot be used."""
        if not uuids:
            self.close()
            return {}
        now = time.monotonic()
        if self._nvml is None and now >= self._open_at:
            self._open(now)
        if self._nvml is None:
            return {}
        found = {uuid: self._read(uuid) for uuid in uuids}
        if self._problem is not None and all(gpu.present is not None for gpu in found.values()):
            self._problem = None
            event(log, logging.INFO, "NVML answers again")
        if any(not gpu.present for gpu in found.values()) and now >= self._open_at:
            self.close()  # opened again in the next round
        return found

    def close(self) -> None:
        """Gives NVML back."""
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                self._told(error)

    def _open(self, now: float) -> None:
        import pynvml  # here, as in `devices`: whoever watches no GPU does without

        self._open_at = now + REOPEN_S
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._told(error)
        else:
            self._nvml = pynvml

    def _told(self, error: Exception) -> None:
        """Logs a problem of NVML as a whole, once until it works again."""
        if self._problem is None:
            event(log, logging.WARNING, "NVML does not answer: nothing is known of the GPUs", cause=error)
        self._problem = str(error)

    def _read(self, uuid: str) -> _Gpu:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
            rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
            processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        except nvml.NVMLError as error:
            if error.value not in self._losses:
                self._told(error)
                return _UNKNOWN
            if uuid not in self._gone:
                self._gone.add(uuid)
                event(log, logging.WARNING, "device is gone", device=uuid, cause=error)
            return _Gpu(False)
        if uuid in self._gone:
            self._gone.remove(uuid)
            event(log, logging.INFO, "device is back", device=uuid)
        return _Gpu(
            True,
            int(memory.used) if memory is not None else None,
            int(memory.free) if memory is not None else None,
            int(rates.gpu) if rates is not None else None,
            {each.pid: int(each.usedGpuMemory) for each in processes if each.usedGpuMemory is not None},
        )

    def _ask(self, call: Callable[[Any], Any], handle: Any) -> Any:
        """One question about a GPU; None when it, or its driver, has no answer to this one."""
        nvml = self._nvml
        try:
            return call(handle)
        except nvml.NVMLError as error:
            if error.value in (*self._losses, nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                raise
            return None

    @property
    def _losses(self) -> tuple[int, ...]:
        """The errors that mean: this GPU cannot be used any more, the others may well be."""
        nvml = self._nvml
        return nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_RESET_REQUIRED
