"""What loading and warming up a model took of memory, as far as the process and the driver can tell.

The host's is how much the process's resident memory grew. What the first model of a kind sets up for all, as
TensorFlow its runtime, is in its figure, and memory that was free within the process is in none. The devices' is what
TensorFlow's allocators hold for tensors, or, for a handler, what NVML says of the process, CUDA's context and all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("multitower.worker")


@dataclass(frozen=True, slots=True)
class Growth:
    """In bytes; the devices' are the sum over the worker's devices.

    Attributes:
        host_memory_bytes: by how much the process's resident memory grew; negative where it shrank.
        device_memory_bytes: the same of device memory; None without a GPU, and where nobody says.
        device_memory_peak_bytes: the most that there was of it meanwhile, beyond what there was before; None as well
            where only TensorFlow could say.
    """

    host_memory_bytes: int
    device_memory_bytes: int | None
    device_memory_peak_bytes: int | None


class MemoryMeter:
    """Looks at the construction, and again for `growth`.

    Args:
        devices: names of the worker's devices.
        tensorflow: the model is one of TensorFlow, which keeps account of it.
    """

    def __init__(self, devices: Sequence[str], *, tensorflow: bool) -> None:
        self._gpus = [device for device in devices if not device.startswith("cpu")]
        self._tensorflow = tensorflow
        self._device = self._device_bytes(reset=True)
        self._host = _resident_bytes()

    def growth(self) -> Growth:
        """Since the construction."""
        host, after = _resident_bytes() - self._host, self._device_bytes()
        if after is None:
            return Growth(host, None, None)
        # Whoever has not touched a device yet holds nothing there.
        before = self._device[0] if self._device is not None else 0
        peak = after[1] - before if self._tensorflow else None
        return Growth(host, after[0] - before, peak)

    def _device_bytes(self, *, reset: bool = False) -> tuple[int, int] | None:
        """In use now, and the most there was since the last reset."""
        if not self._gpus:
            return None
        try:
            return _tensorflow_bytes(reset=reset) if self._tensorflow else _process_bytes(self._gpus)
        except Exception:  # a figure that cannot be had must not cost the model
            log.warning("device memory cannot be measured", exc_info=True)
            return None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _tensorflow_bytes(*, reset: bool) -> tuple[int, int] | None:
    """What TensorFlow's allocators of all GPUs hold; None where it sees none."""
    import tensorflow as tf

    names = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
    if reset:
        for name in names:
            tf.config.experimental.reset_memory_stats(name)
    told = [tf.config.experimental.get_memory_info(name) for name in names]
    return (sum(each["current"] for each in told), sum(each["peak"] for each in told)) if told else None


def _process_bytes(gpus: Sequence[str]) -> tuple[int, int] | None:
    """What NVML says that this process holds; None where it does not know it, as in a container."""
    import pynvml

    pynvml.nvmlInit()
    try:
        found = [used for uuid in gpus if (used := _of_process(pynvml, uuid)) is not None]
    finally:
        pynvml.nvmlShutdown()
    return (sum(found), sum(found)) if found else None


def _of_process(nvml: Any, uuid: str) -> int | None:
    processes = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)
