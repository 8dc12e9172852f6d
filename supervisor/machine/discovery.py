"""Which GPUs and MIG slices this machine has, as NVML tells.

The daemon calls `discover` at the start and at a reload. GPUs are seen through NVML alone: it opens no CUDA context, so
the supervisor never holds one. A call into NVML can take seconds after a driver's hiccup: a running event loop calls it
in a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
_CPU_WORDS: Final = 128  # of 64 bits: as many CPUs and nodes as Linux can be built for
_NODE_WORDS: Final = 16


def discover() -> Discovery:
    """Asks NVML for the GPUs of this machine; it is initialised and shut down inside.

    In place of a GPU in MIG mode stand its slices: its own UUID means its first slice to CUDA. A GPU that does not
    answer (it fell off the bus, access is denied) or has MIG mode on and no slice is left out and named in `problem`;
    the others keep their indices.
    """
    import pynvml  # here: nothing but this function needs it

    try:
        pynvml.nvmlInit()
        try:
            return _enumerate(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Discovery((), _advice(error))


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU before it has its index: its PCI address, and its handle where it is in MIG mode."""

    address: tuple[int, int, int]
    device: Device
    split: Any


def _enumerate(nvml: Any) -> Discovery:
    readable: list[int] = []
    found: list[_Found] = []
    problems: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append(_read(nvml, handle, index))
            readable.append(index)
        except nvml.NVMLError as error:
            problems.append(f"GPU {index} cannot be used: {_advice(error)}")
    # NVML promises no order, though every driver enumerates by PCI address. A GPU that is left out keeps its
    # number, so that the loss of one never makes `devices: [2]` mean its neighbour.
    found.sort(key=lambda entry: entry.address)
    gpus: list[Device] = []
    for index, entry in zip(readable, found, strict=True):
        device = dataclasses.replace(entry.device, index=index)
        gpus += [device] if entry.split is None else _slices(nvml, entry.split, device, problems)
    if not gpus and not problems:
        problems.append(NONE_REPORTED)
    return Discovery(tuple(gpus), "; ".join(problems) or None)


def _read(nvml: Any, handle: Any, index: int) -> _Found:
    pci = nvml.nvmlDeviceGetPciInfo(handle)
    split = _is_split(nvml, handle)
    # Only the privileged may ask for the memory of all slices together.
    total, used = (None, None) if split else _memory(nvml, handle)
    device = Device(
        name=_text(nvml.nvmlDeviceGetUUID(handle)),
        kind="gpu",
        index=index,
        product=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=total,
        memory_used_bytes=used,
        pci_bus_id=_text(pci.busId),
        numa_node=_node(nvml, handle),
        cores=_cores(nvml, handle),
    )
    return _Found((pci.domain, pci.bus, pci.device), device, handle if split else None)


def _slices(nvml: Any, handle: Any, gpu: Device, problems: list[str]) -> list[Device]:
    """The MIG slices of a GPU.

    Their numbers run up to the most that the GPU can have, with gaps where there are fewer
    (https://docs.nvidia.com/deploy/nvml-api/group__nvmlMultiInstanceGPU.html); UUID, name and memory are asked for as
    of a GPU.
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
                failed.append(f"MIG slice {number} of GPU {gpu.index} cannot be used: {_advice(error)}")
    except nvml.NVMLError as error:
        failed.append(f"the MIG slices of GPU {gpu.index} cannot be used: {_advice(error)}")
    if not slices and not failed:
        failed.append(
            f"GPU {gpu.index} is in MIG mode and has no slice; make some (nvidia-smi mig -cgi ... -C), or turn the "
            f"mode off (nvidia-smi -i {gpu.index} -mig 0)"
        )
    problems += failed
    return slices


def _read_slice(nvml: Any, handle: Any, gpu: Device) -> Device:
    total, used = _memory(nvml, handle)
    return Device(
        name=_text(nvml.nvmlDeviceGetUUID(handle)),
        kind="mig",
        index=None,
        product=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=total,
        memory_used_bytes=used,
        pci_bus_id=gpu.pci_bus_id,
        parent=gpu,
        numa_node=gpu.numa_node,
        cores=gpu.cores,
    )


def _memory(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        return None, None  # it shares the host's memory and has no size of its own
    return int(memory.total), int(memory.used)


def _cores(nvml: Any, handle: Any) -> tuple[int, ...] | None:
    """The CPUs near a GPU, as `nvidia-smi topo -m` shows them.

    https://docs.nvidia.com/deploy/nvml-api/group__nvmlAffinity.html
    """
    try:
        return _bits(nvml.nvmlDeviceGetCpuAffinity(handle, _CPU_WORDS)) or None
    except nvml.NVMLError:
        return None  # a virtual machine, or a driver, that does not tell


def _node(nvml: Any, handle: Any) -> int | None:
    try:
        nodes = _bits(nvml.nvmlDeviceGetMemoryAffinity(handle, _NODE_WORDS, nvml.NVML_AFFINITY_SCOPE_NODE))
    except nvml.NVMLError:
        return None
    return nodes[0] if len(nodes) == 1 else None


def _bits(words: Sequence[int]) -> tuple[int, ...]:
    """The numbers of the bits that are set in words of 64 bits."""
    return tuple(64 * index + bit for index, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def _is_split(nvml: Any, handle: Any) -> bool:
    """Whether the GPU is in MIG mode."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False  # a GPU, or a driver, that knows no MIG
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _text(value: str | bytes) -> str:
    """NVML's bindings gave bytes in some releases and text in others."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _advice(error: Exception) -> str:
    """What is wrong and what to check; NVML's own words where there is nothing better to say."""
    return _ADVICE.get(type(error).__name__.removeprefix("NVMLError_"), f"NVML says: {error}")
