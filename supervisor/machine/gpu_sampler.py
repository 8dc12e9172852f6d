"""Measures GPUs through NVML: whether they are present, their memory, utilization, power and temperature."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..loop.log import event

log = logging.getLogger("multitower.resources")

REOPEN_S: Final = 10.0
"""How often NVML is initialised again while it fails or a GPU is missing: only then does a GPU that returns appear."""


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """What NVML reports of a GPU.

    Attributes:
        present: False if the GPU is lost; None if NVML does not answer.
        used_bytes: memory in use; None if unknown, as for the others.
        free_bytes: memory that nothing uses.
        utilization_percent: the share of time in which the GPU computed.
        total_bytes: its memory.
        power_watts: the power that it draws.
        temperature_celsius: of the GPU.
        energy_joules: that it has used since the driver was loaded.
        process_bytes: memory in use by each process, by pid.
    """

    present: bool | None
    used_bytes: int | None = None
    free_bytes: int | None = None
    utilization_percent: int | None = None
    process_bytes: Mapping[int, int] = field(default_factory=dict)
    total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: int | None = None
    energy_joules: float | None = None


UNKNOWN: Final = GpuUsage(None)


class GpuSampler:
    """Reads GPUs through NVML, which stays initialised while GPUs are watched: initialisation may take seconds.

    All methods must be called in one thread. A call may block for as long as the driver does.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._open_at = 0.0  # not before, monotonic seconds
        self._problem: str | None = None
        self._lost: set[str] = set()

    def read(self, uuids: Collection[str]) -> dict[str, GpuUsage]:
        """The usage of these GPUs by UUID; empty while NVML cannot be used."""
        if not uuids:
            self.close()
            return {}
        now = time.monotonic()
        if self._nvml is None and now >= self._open_at:
            self._open(now)
        if self._nvml is None:
            return {}
        usages = {uuid: self._read_gpu(uuid) for uuid in uuids}
        if self._problem is not None and all(usage.present is not None for usage in usages.values()):
            self._problem = None
            event(log, logging.INFO, "NVML answers again")
        if any(not usage.present for usage in usages.values()) and now >= self._open_at:
            self.close()  # the next call initialises it again
        return usages

    def close(self) -> None:
        """Shuts NVML down. No-op if it is not initialised."""
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                self._report(error)

    def _open(self, now: float) -> None:
        import pynvml  # imported here since a daemon without GPUs does not need it

        self._open_at = now + REOPEN_S
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._report(error)
        else:
            self._nvml = pynvml

    def _report(self, error: Exception) -> None:
        """Logs that NVML fails, once until it answers again."""
        if self._problem is None:
            event(log, logging.WARNING, "NVML does not answer: the state of the GPUs is unknown", cause=error)
        self._problem = str(error)

    def _read_gpu(self, uuid: str) -> GpuUsage:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = self._query(nvml.nvmlDeviceGetMemoryInfo, handle)
            rates = self._query(nvml.nvmlDeviceGetUtilizationRates, handle)
            processes = self._query(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
            milliwatts = self._query(nvml.nvmlDeviceGetPowerUsage, handle)
            celsius = self._query(lambda each: nvml.nvmlDeviceGetTemperature(each, nvml.NVML_TEMPERATURE_GPU), handle)
            millijoules = self._query(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        except nvml.NVMLError as error:
            if error.value not in self._loss_codes:
                self._report(error)
                return UNKNOWN
            if uuid not in self._lost:
                self._lost.add(uuid)
                event(log, logging.WARNING, "device is gone", device=uuid, cause=error)
            return GpuUsage(False)
        if uuid in self._lost:
            self._lost.remove(uuid)
            event(log, logging.INFO, "device is back", device=uuid)
        return GpuUsage(
            True,
            int(memory.used) if memory is not None else None,
            int(memory.free) if memory is not None else None,
            int(rates.gpu) if rates is not None else None,
            {each.pid: int(each.usedGpuMemory) for each in processes if each.usedGpuMemory is not None},
            int(memory.total) if memory is not None else None,
            milliwatts / 1000 if milliwatts is not None else None,
            int(celsius) if celsius is not None else None,
            millijoules / 1000 if millijoules is not None else None,
        )

    def _query(self, call: Callable[[Any], Any], handle: Any) -> Any:
        """The result of one query; None if the GPU or its driver does not support it.

        Raises:
            NVMLError: the GPU is lost, or NVML cannot be used.
        """
        nvml = self._nvml
        try:
            return call(handle)
        except nvml.NVMLError as error:
            if error.value in (*self._loss_codes, nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                raise
            return None

    @property
    def _loss_codes(self) -> tuple[int, ...]:
        """The errors that mean that this GPU cannot be used, although others may be."""
        nvml = self._nvml
        return nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_RESET_REQUIRED
