"""Finds the GPUs and MIG slices of this machine through NVML, which opens no CUDA context.

The daemon calls `discover` at the start and at a reload. After a problem of the driver a call of NVML may take seconds:
while the event loop runs, it is called in a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .devices import NONE_REPORTED, Device, Discovery

_ADVICE: Final = {
    "LibraryNotFound": (
        "libnvidia-ml.so.1 was not found; is the NVIDIA driver installed? A container must be started with its "
        "GPUs (docker run --gpus all)"
    ),
    "DriverNotLoaded": "the NVIDIA driver is not loaded; check nvidia-smi and /proc/driver/nvidia/version",
    "LibRmVersionMismatch": (
        "the NVIDIA driver's library and kernel module are of different versions, as after an upgrade; reboot or "
        "reload the module"
    ),
    "NoPermission": (
        "the NVIDIA driver refuses access; check the permissions of /dev/nvidia* and systemd's PrivateDevices"
    ),
}
_CPU_WORDS: Final = 128  # of 64 bits: the most CPUs and nodes that Linux supports
_NODE_WORDS: Final = 16


def discover() -> Discovery:
    """The GPUs of this machine. Initialises NVML and shuts it down.

    The slices of a GPU in MIG mode are returned instead of the GPU, whose UUID CUDA would resolve to the first slice.
    A GPU that does not answer (it fell off the bus, or access is denied), or that is in MIG mode without a slice, is
    omitted and named in `problem`; the others keep their indices.
    """
    import pynvml  # imported here since only this function needs it

    try:
        pynvml.nvmlInit()
        try:
            return _enumerate(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Discovery((), _describe(error))


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A GPU without its index yet: its PCI address, and its handle if it is in MIG mode, else None."""

    address: tuple[int, int, int]
    device: Device
    mig_handle: Any


def _enumerate(nvml: Any) -> Discovery:
    readable: list[int] = []
    found: list[_Gpu] = []
    problems: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append(_read(nvml, handle, index))
            readable.append(index)
        except nvml.NVMLError as error:
            problems.append(f"GPU {index} cannot be used: {_describe(error)}")
    # NVML does not guarantee an order, though all drivers enumerate by PCI address. An omitted GPU keeps its number:
    # otherwise `devices: [2]` would name another GPU after the loss of one.
    found.sort(key=lambda entry: entry.address)
    gpus: list[Device] = []
    for index, entry in zip(readable, found, strict=True):
        device = dataclasses.replace(entry.device, index=index)
        gpus += [device] if entry.mig_handle is None else _read_slices(nvml, entry.mig_handle, device, problems)
    if not gpus and not problems:
        problems.append(NONE_REPORTED)
    return Discovery(tuple(gpus), "; ".join(problems) or None)


def _read(nvml: Any, handle: Any, index: int) -> _Gpu:
    pci = nvml.nvmlDeviceGetPciInfo(handle)
    in_mig_mode = _is_in_mig_mode(nvml, handle)
    # Reading the memory of all slices together needs privileges.
    total, used = (None, None) if in_mig_mode else _read_memory(nvml, handle)
    device = Device(
        name=_read_text(nvml.nvmlDeviceGetUUID, handle),
        kind="gpu",
        index=index,
        product=_read_text(nvml.nvmlDeviceGetName, handle),
        memory_bytes=total,
        memory_used_bytes=used,
        pci_bus_id=_to_text(pci.busId),
        numa_node=_read_numa_node(nvml, handle),
        cores=_read_cores(nvml, handle),
    )
    return _Gpu((pci.domain, pci.bus, pci.device), device, handle if in_mig_mode else None)


def _read_slices(nvml: Any, handle: Any, gpu: Device, problems: list[str]) -> list[Device]:
    """The MIG slices of a GPU.

    They are numbered up to the most that the GPU can have, with gaps
    (https://docs.nvidia.com/deploy/nvml-api/group__nvmlMultiInstanceGPU.html).

    Args:
        nvml: the bindings.
        handle: the GPU's.
        gpu: the GPU.
        problems: extended.
    """
    slices: list[Device] = []
    failed: list[str] = []
    try:
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                slices.append(_read_slice(nvml, part, gpu))
            except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
                continue  # a gap
            except nvml.NVMLError as error:
                failed.append(f"MIG slice {number} of GPU {gpu.index} cannot be used: {_describe(error)}")
    except nvml.NVMLError as error:
        failed.append(f"the MIG slices of GPU {gpu.index} cannot be used: {_describe(error)}")
    if not slices and not failed:
        failed.append(
            f"GPU {gpu.index} is in MIG mode and has no slice; create some (nvidia-smi mig -cgi ... -C), or turn the "
            f"mode off (nvidia-smi -i {gpu.index} -mig 0)"
        )
    problems += failed
    return slices


def _read_slice(nvml: Any, handle: Any, gpu: Device) -> Device:
    total, used = _read_memory(nvml, handle)
    return Device(
        name=_read_text(nvml.nvmlDeviceGetUUID, handle),
        kind="mig",
        index=None,
        product=_read_text(nvml.nvmlDeviceGetName, handle),
        memory_bytes=total,
        memory_used_bytes=used,
        pci_bus_id=gpu.pci_bus_id,
        parent=gpu,
        numa_node=gpu.numa_node,
        cores=gpu.cores,
    )


def _read_memory(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """The bytes of a device, and those in use; None where it has no memory of its own."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        return None, None  # it shares the host's memory
    return int(memory.total), int(memory.used)


def _read_cores(nvml: Any, handle: Any) -> tuple[int, ...] | None:
    """The CPUs near a GPU, as in `nvidia-smi topo -m`; None if unknown.

    https://docs.nvidia.com/deploy/nvml-api/group__nvmlAffinity.html
    """
    try:
        return _bits(nvml.nvmlDeviceGetCpuAffinity(handle, _CPU_WORDS)) or None
    except nvml.NVMLError:
        return None  # not reported by this driver, or in this virtual machine


def _read_numa_node(nvml: Any, handle: Any) -> int | None:
    try:
        nodes = _bits(nvml.nvmlDeviceGetMemoryAffinity(handle, _NODE_WORDS, nvml.NVML_AFFINITY_SCOPE_NODE))
    except nvml.NVMLError:
        return None
    return nodes[0] if len(nodes) == 1 else None


def _bits(words: Sequence[int]) -> tuple[int, ...]:
    """The indices of the bits that are set in words of 64 bits."""
    return tuple(64 * index + bit for index, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def _is_in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False  # the GPU or the driver does not support MIG
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _read_text(call: Callable[[Any], str | bytes], handle: Any) -> str:
    """A text of NVML. The bindings decode strictly; undecodable bytes are replaced here."""
    try:
        return _to_text(call(handle))
    except UnicodeDecodeError as error:
        return _to_text(error.object)


def _to_text(value: str | bytes) -> str:
    """A value of the bindings, which return bytes in some releases and text in others."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _describe(error: Exception) -> str:
    """What is wrong and what to check, or NVML's own message."""
    return _ADVICE.get(type(error).__name__.removeprefix("NVMLError_"), f"NVML says: {error}")
