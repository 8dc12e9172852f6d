"""Which devices the selftest leaves alone, since a worker there would take what other users of the device need.

Each process that opens a CUDA context takes some hundred MiB of the device, before any check runs. So this is decided
through NVML, which opens none, before the daemon starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from multitower.supervisor.machine.devices import Device
from multitower.tools.selftest import MIB
from multitower.tools.selftest.memory_readings import mebibytes
from multitower.tools.selftest.targets import Target

CONTEXT_BYTES: Final = 1024 * MIB
"""What the contexts of a worker and of the process that replaces it may take on a device, estimated generously."""

_MODES: Final = {1: "EXCLUSIVE_THREAD", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}
"""Compute modes of NVML in which a device does not take another process, or locks others out while it has one."""

MPS_VARIABLE: Final = "CUDA_MPS_PIPE_DIRECTORY"
"""Names the folder in which CUDA looks for the control daemon of MPS; where there is none, it works without MPS."""

_MPS_FOLDER: Final = "/tmp/nvidia-mps"


def find_mps() -> Path | None:
    """The folder of the control daemon of NVIDIA's Multi-Process Service that processes here use; None without one."""
    folder = Path(os.environ.get(MPS_VARIABLE) or _MPS_FOLDER)
    return folder if (folder / "control").exists() else None


def leave_out_occupied(targets: Sequence[Target], memory: int) -> tuple[tuple[Target, ...], Mapping[Target, str]]:
    """Separates the workers that may start from those with a device that others need.

    Args:
        targets: all workers.
        memory: bytes that the probe takes on each device.

    Returns:
        The workers that may start, numbered anew from 0, and the reason for each of the others, numbered after them.
    """
    reasons = _find_reasons([device for target in targets for device in target.devices], 2 * memory + CONTEXT_BYTES)
    occupied = {target: reason for target in targets if (reason := _reason_of(target, reasons)) is not None}
    free = [target for target in targets if target not in occupied]
    kept = tuple(replace(target, number=number) for number, target in enumerate(free))
    others = {replace(target, number=number): occupied[target] for number, target in enumerate(occupied, len(free))}
    return kept, others


def _reason_of(target: Target, reasons: Mapping[str, str]) -> str | None:
    found = [reasons[name] for name in target.names if name in reasons]
    return "; ".join(found) or None


def _find_reasons(devices: Sequence[Device], needed: int) -> Mapping[str, str]:
    """Why a device must be left alone, by its name. A device that does not answer is checked, which then fails."""
    devices = [device for device in devices if device.kind != "cpu"]
    if not devices:
        return {}
    import pynvml  # imported here since CPU devices do not need it

    try:
        pynvml.nvmlInit()
        try:
            found = {device.name: _reason(pynvml, device, needed) for device in devices}
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return {}
    return {name: reason for name, reason in found.items() if reason is not None}


def _reason(nvml: Any, device: Device, needed: int) -> str | None:
    mode = _query(nvml, nvml.nvmlDeviceGetComputeMode, (device.parent or device).name)
    if mode in _MODES:
        return f"{device.name} is in compute mode {_MODES[mode]}, in which it serves one process at most"
    memory = _query(nvml, nvml.nvmlDeviceGetMemoryInfo, device.name)
    if memory is not None and memory.free < needed:
        return f"only {mebibytes(memory.free)} are free on {device.name}; a worker needs {mebibytes(needed)} for checks"
    return None


def _query(nvml: Any, call: Any, uuid: str) -> Any:
    """The result of one query; None if NVML does not tell, which is no reason to leave the device alone."""
    try:
        return call(nvml.nvmlDeviceGetHandleByUUID(uuid))
    except nvml.NVMLError:
        return None
