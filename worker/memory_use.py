"""How much memory a model takes, measured while it is loaded and warmed up.

Host memory is the growth of the process's resident memory. It includes what the first model of its kind sets up for all
of them, such as TensorFlow's runtime, and not what was free within the process before. Device memory is what
TensorFlow's allocators use; for a handler it is what NVML reports of the process, which includes CUDA's context.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .model_errors import log_traceback


@dataclass(frozen=True, slots=True)
class Growth:
    """Memory in bytes; that of the devices is the sum over the worker's devices.

    Attributes:
        host_memory_bytes: the growth of the process's resident memory; negative where it shrank.
        device_memory_bytes: the growth of device memory; None without a GPU, and where it cannot be measured.
        device_memory_peak_bytes: the largest growth in between; None also where TensorFlow does not run the model.
    """

    host_memory_bytes: int
    device_memory_bytes: int | None
    device_memory_peak_bytes: int | None


class MemoryMeter:
    """Measures from its construction on.

    Args:
        devices: names of the worker's devices.
        tensorflow: whether TensorFlow runs the model, and can tell its device memory.
    """

    def __init__(self, devices: Sequence[str], *, tensorflow: bool) -> None:
        self._gpus = [device for device in devices if not device.startswith("cpu")]
        self._tensorflow = tensorflow
        self._device = self._device_bytes(reset_peak=True)
        self._host = _resident_bytes()

    def growth(self) -> Growth:
        """The growth since the construction."""
        host, after = _resident_bytes() - self._host, self._device_bytes()
        if after is None:
            return Growth(host, None, None)
        # A process that has not used a device yet is not listed, and has no memory there.
        before = self._device[0] if self._device is not None else 0
        peak = after[1] - before if self._tensorflow else None
        return Growth(host, after[0] - before, peak)

    def _device_bytes(self, *, reset_peak: bool = False) -> tuple[int, int] | None:
        """Bytes in use, and their peak since the last reset; None where they cannot be measured."""
        if not self._gpus:
            return None
        try:
            if self._tensorflow:
                from .formats.tensorflow_process import device_memory

                return device_memory(reset_peak=reset_peak)
            return _process_bytes(self._gpus)
        except Exception as error:  # noqa: BLE001  a missing figure must not cost the model
            log_traceback("device memory cannot be measured", error)
            return None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _process_bytes(gpus: Sequence[str]) -> tuple[int, int] | None:
    """What NVML reports of this process; None where it does not list it, as in a container."""
    import pynvml

    pynvml.nvmlInit()
    try:
        found = [used for uuid in gpus if (used := _bytes_on_gpu(pynvml, uuid)) is not None]
    finally:
        pynvml.nvmlShutdown()
    return (sum(found), sum(found)) if found else None


def _bytes_on_gpu(nvml: Any, uuid: str) -> int | None:
    processes = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)
