"""Measures what workers use: memory and CPU of each process, memory and utilization of its devices.

Threads measure, since the system, and above all the GPU driver, may take long to answer. The daemon sets what to watch
and reads the latest figures, and never waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import psutil

from .devices import CPU_PREFIX
from .gpu_sampler import UNKNOWN, GpuSampler, GpuUsage
from .process_limits import MemoryHeadroom, ProcessLimits

log = logging.getLogger("multitower.resources")

INTERVAL_S: Final = 1.0
"""How often everything is measured."""

STALE_S: Final = 10.0
"""Figures of this age are ignored: the system or the driver does not answer, and they may be wrong by now."""

CLOSE_S: Final = 1.0
"""How long `close` waits for the threads: a call into a driver that hangs cannot be interrupted."""

Watched: TypeAlias = tuple[int | None, tuple[str, ...]]
"""The pid of a slot's process, or None without one, and the names of its devices: UUIDs of GPUs, or `cpu:N`."""

_NOTHING: Final[Watched] = (None, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """What is known of one device of a slot.

    Attributes:
        name: the UUID of a GPU, or `cpu:N`.
        memory_bytes: device memory in use; None for a CPU device, and if unknown.
        memory_of: whether `memory_bytes` is that of the `process` or, if NVML does not know the process (in a
            container, or before it uses the device), that of all processes on the `device`.
        free_bytes: device memory that nothing uses; None as above.
        utilization_percent: the share of time in which the device computed, for any process; None as above.
        present: False for a GPU that is lost, such as one that fell off the bus; None if NVML does not answer.
    """

    name: str
    memory_bytes: int | None = None
    memory_of: Literal["process", "device"] | None = None
    free_bytes: int | None = None
    utilization_percent: int | None = None
    present: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one worker used at one moment.

    Attributes:
        pid: the process that was measured.
        at: when, monotonic seconds.
        rss_bytes: its resident memory, without memory of clients that it has mapped.
        cpu_percent: its CPU time since the previous sample, 100 being one core; None in its first sample.
        devices: its devices.
    """

    pid: int
    at: float
    rss_bytes: int
    cpu_percent: float | None
    devices: tuple[DeviceSample, ...]

    @property
    def device_memory_bytes(self) -> int | None:
        """Memory in use, summed over the devices; None unless it is known for each."""
        each = [device.memory_bytes for device in self.devices if device.memory_bytes is not None]
        return sum(each) if each and len(each) == len(self.devices) else None

    @property
    def device_memory_of(self) -> Literal["process", "device"] | None:
        """Whether `device_memory_bytes` is that of the process, which it is if that is so for each device."""
        if self.device_memory_bytes is None:
            return None
        return "process" if all(device.memory_of == "process" for device in self.devices) else "device"

    @property
    def utilization_percent(self) -> int | None:
        """The mean over the devices; None unless it is known for each."""
        each = [device.utilization_percent for device in self.devices if device.utilization_percent is not None]
        return round(sum(each) / len(each)) if each and len(each) == len(self.devices) else None


class Sampler:
    """Measures from its construction until `close`.

    One thread measures processes and another one GPUs, so that a driver that hangs delays the GPUs' figures only.

    Args:
        limits: what this process and its workers may use.
        interval_s: how often to measure, seconds.
    """

    def __init__(self, limits: ProcessLimits, interval_s: float = INTERVAL_S) -> None:
        self._stale_s = max(STALE_S, 2 * interval_s)
        # These are replaced as a whole and never changed, so that no lock is needed.
        self._watched: Mapping[int, Watched] = {}
        self._process_usages: Mapping[int, _ProcessUsage] = {}
        self._gpu_usages: tuple[float, Mapping[str, GpuUsage]] = (0.0, {})  # with their time
        self._processes: dict[int, psutil.Process] = {}
        self._own_process = psutil.Process()
        self._own_rss_bytes = self._own_process.memory_info().rss
        self._limits = limits
        self._memory = limits.memory()
        self._gpus = GpuSampler()
        self._end = threading.Event()
        self._threads = (
            _PeriodicThread("sampler", interval_s, self._end, self._measure_processes),
            _PeriodicThread("sampler-gpus", interval_s, self._end, self._measure_gpus, self._gpus.close),
        )
        for thread in self._threads:
            thread.start()

    @property
    def failures(self) -> int:
        """Rounds that ended in an unexpected error; the first one is in the log."""
        return sum(thread.failures for thread in self._threads)

    @property
    def own_rss_bytes(self) -> int:
        """Bytes of resident memory of this process itself, as last measured."""
        return self._own_rss_bytes

    @property
    def memory(self) -> MemoryHeadroom:
        """The memory that processes could still take within the narrowest limit, as last measured."""
        return self._memory

    def watch(self, watched: Mapping[int, Watched]) -> None:
        """Sets what is measured from the next round on.

        Args:
            watched: by slot.
        """
        self._watched = dict(watched)

    def sample(self, slot: int) -> Sample | None:
        """The latest figures of a slot's process; None if there are none, or only old ones."""
        now = time.monotonic()
        pid, _ = self._watched.get(slot, _NOTHING)
        usage = self._process_usages.get(slot)
        if usage is None or usage.pid != pid or now - usage.at > self._stale_s:
            return None
        return Sample(
            pid=usage.pid,
            at=usage.at,
            rss_bytes=usage.rss_bytes,
            cpu_percent=usage.cpu_percent,
            devices=self.sample_devices(slot),
        )

    def sample_devices(self, slot: int) -> tuple[DeviceSample, ...]:
        """The latest figures of a slot's devices, also while it has no process."""
        now = time.monotonic()
        pid, names = self._watched.get(slot, _NOTHING)
        return tuple(self._sample_device(name, pid, now) for name in names)

    def gpus(self) -> Mapping[str, GpuUsage]:
        """The latest figures of all GPUs that are watched, by UUID; empty if there are none, or only old ones."""
        measured_at, usages = self._gpu_usages
        return usages if time.monotonic() - measured_at <= self._stale_s else {}

    def are_devices_present(self, slot: int) -> bool | None:
        """Whether all devices of a slot are present, also while it has no process; None if unknown."""
        present = {device.present for device in self.sample_devices(slot)}
        if False in present:
            return False
        return None if not present or None in present else True

    def close(self) -> None:
        """Ends the threads; returns within `CLOSE_S`."""
        self._end.set()
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _sample_device(self, name: str, pid: int | None, now: float) -> DeviceSample:
        if name.startswith(CPU_PREFIX):
            return DeviceSample(name=name, present=True)
        measured_at, usages = self._gpu_usages
        usage = usages.get(name, UNKNOWN) if now - measured_at <= self._stale_s else UNKNOWN
        own = usage.process_bytes.get(pid) if pid is not None else None
        used = own if own is not None else usage.used_bytes
        return DeviceSample(
            name=name,
            memory_bytes=used,
            memory_of=None if used is None else "process" if own is not None else "device",
            free_bytes=usage.free_bytes,
            utilization_percent=usage.utilization_percent,
            present=usage.present,
        )

    # In the threads.

    def _measure_gpus(self) -> None:
        uuids = {name for _, names in self._watched.values() for name in names if not name.startswith(CPU_PREFIX)}
        usages = self._gpus.read(uuids)
        self._gpu_usages = (time.monotonic(), usages)

    def _measure_processes(self) -> None:
        self._own_rss_bytes = self._own_process.memory_info().rss
        self._memory = self._limits.memory()
        pids = {slot: pid for slot, (pid, _) in self._watched.items() if pid is not None}
        wanted = set(pids.values())
        self._processes = {pid: process for pid, process in self._processes.items() if pid in wanted}
        usages = {slot: self._measure_process(pid) for slot, pid in pids.items()}
        self._process_usages = {slot: usage for slot, usage in usages.items() if usage is not None}

    def _measure_process(self, pid: int) -> _ProcessUsage | None:
        """None if the process has ended, or the system does not report it."""
        try:
            process = self._processes.get(pid)
            first = process is None
            if process is None:
                process = self._processes[pid] = psutil.Process(pid)
            # It may have ended unnoticed by the daemon so far; its pid may even belong to another process by now.
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                self._processes.pop(pid)
                return None
            with process.oneshot():
                percent = process.cpu_percent(None)  # since the previous call; meaningless in the first one
                rss = process.memory_info().rss - _mapped_shared_memory(pid)
                return _ProcessUsage(pid, time.monotonic(), rss, None if first else percent)
        except (psutil.Error, OSError):
            self._processes.pop(pid, None)
            return None


def read_rss(pid: int) -> int | None:
    """Bytes of resident memory of a process, without memory of clients; None if it has ended or cannot be read."""
    try:
        return psutil.Process(pid).memory_info().rss - _mapped_shared_memory(pid)
    except (psutil.Error, OSError):
        return None


def _mapped_shared_memory(pid: int) -> int:
    """Bytes of memfds that a process has mapped and accessed: memory of clients (RssShmem in proc_pid_status(5))."""
    with open(f"/proc/{pid}/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"RssShmem:"):
                return int(line.split()[1]) << 10
    return 0


@dataclass(frozen=True, slots=True)
class _ProcessUsage:
    """What the system reports of a process."""

    pid: int
    at: float
    rss_bytes: int
    cpu_percent: float | None


class _PeriodicThread(threading.Thread):
    """Calls a function periodically until an event is set, whatever the function raises.

    Args:
        name: the thread's.
        interval_s: seconds from one call to the next.
        end: ends the thread.
        function: is called periodically.
        finish: is called at the end.

    Attributes:
        failures: calls that raised.
    """

    def __init__(
        self,
        name: str,
        interval_s: float,
        end: threading.Event,
        function: Callable[[], None],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.failures = 0
        self._interval_s = interval_s
        self._end = end
        self._function = function
        self._finish = finish

    def run(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            try:
                self._function()
            except Exception:  # the next call may succeed
                self.failures += 1
                if self.failures == 1:
                    log.warning("resource use could not be measured", exc_info=True)
            self._end.wait(max(0.0, began + self._interval_s - time.monotonic()))
        self._finish()
