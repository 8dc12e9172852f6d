"""Which GPUs this machine has, and which of them a configuration means.

The daemon calls `discover` once at the start and at a reload, `resolve` turns the configuration's `devices` into
`Device`s, and `placement` spreads workers over them. GPUs are seen through NVML alone: it opens no CUDA context,
so the supervisor never holds one. A call into NVML can take seconds after a driver's hiccup: a running event loop
calls `discover` in a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

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
_NONE_REPORTED: Final = (
    "the NVIDIA driver is loaded but reports no GPU; check nvidia-smi, systemd's PrivateDevices, and in a "
    "container NVIDIA_VISIBLE_DEVICES"
)
_PREFIX: Final = "gpu-"
_CPU_PREFIX: Final = "cpu:"


class DeviceError(Exception):
    """The configuration asks for devices, or for a use of them, that this machine cannot give.

    Attributes:
        problems: one sentence for each thing that is wrong; the message holds them all.
    """

    def __init__(self, problems: Sequence[str], context: str = "") -> None:
        super().__init__("\n".join([*problems, *([context] if context else [])]))
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU, or one of the pretended devices `cpu:N`.

    Attributes:
        name: what it is called everywhere: the UUID of a GPU, else `cpu:0`, `cpu:1`, ...
        kind: `gpu` or `cpu`.
        index: the GPU's number in PCI order, the same that nvidia-smi shows; None for `cpu`.
        product: such as `NVIDIA A100-SXM4-80GB`.
        memory_bytes: the GPU's memory, None where it has none of its own.
        memory_used_bytes: what all processes, and the driver, hold of it at the moment.
        pci_bus_id: such as `00000000:17:00.0`, None for `cpu`.
    """

    name: str
    kind: Literal["gpu", "cpu"]
    index: int | None
    product: str
    memory_bytes: int | None
    memory_used_bytes: int | None
    pci_bus_id: str | None


@dataclass(frozen=True, slots=True)
class Discovery:
    """What NVML has to say.

    Attributes:
        gpus: every GPU that can be used, in PCI order.
        problem: why there is none, or why some are missing; None when all is well.
    """

    gpus: tuple[Device, ...]
    problem: str | None = None


class CpuDevices(Protocol):
    """`devices: {cpu: N}` as an object."""

    @property
    def cpu(self) -> int:
        """How many workers' worth of CPU devices there are to be."""


Selection: TypeAlias = Literal["all"] | Sequence[int | str | Sequence[int | str]] | CpuDevices

Group: TypeAlias = tuple[Device, ...]
"""The devices that one worker has together: one, or several of the same kind."""


def discover() -> Discovery:
    """Asks NVML for the GPUs of this machine; it is initialised and shut down inside.

    A GPU that does not answer (it fell off the bus, access is denied) or is split into MIG devices is left out and
    named in `problem`; the others keep their indices.
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


def _enumerate(nvml: Any) -> Discovery:
    readable: list[int] = []
    found: list[tuple[tuple[int, int, int], Device]] = []
    problems: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _is_split(nvml, handle):
                problems.append(f"GPU {index} is split into MIG devices, which this release cannot use yet")
                continue
            found.append(_read(nvml, handle, index))
            readable.append(index)
        except nvml.NVMLError as error:
            problems.append(f"GPU {index} cannot be used: {_advice(error)}")
    # NVML promises no order, though every driver enumerates by PCI address. A GPU that is left out keeps its
    # number, so that the loss of one never makes `devices: [2]` mean its neighbour.
    found.sort(key=lambda entry: entry[0])
    gpus = tuple(dataclasses.replace(device, index=index) for index, (_, device) in zip(readable, found, strict=True))
    if not gpus and not problems:
        problems.append(_NONE_REPORTED)
    return Discovery(gpus, "; ".join(problems) or None)


def _read(nvml: Any, handle: Any, index: int) -> tuple[tuple[int, int, int], Device]:
    """A GPU and its PCI address."""
    pci = nvml.nvmlDeviceGetPciInfo(handle)
    total, used = _memory(nvml, handle)
    device = Device(
        name=_text(nvml.nvmlDeviceGetUUID(handle)),
        kind="gpu",
        index=index,
        product=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=total,
        memory_used_bytes=used,
        pci_bus_id=_text(pci.busId),
    )
    return (pci.domain, pci.bus, pci.device), device


def _memory(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        return None, None  # it shares the host's memory and has no size of its own
    return int(memory.total), int(memory.used)


def _is_split(nvml: Any, handle: Any) -> bool:
    """Whether the GPU is in MIG mode: its UUID would then mean its first MIG device to CUDA."""
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


def resolve(selection: Selection, discovery: Discovery) -> tuple[Group, ...]:
    """The devices that the configuration's `devices` means, in its order: a group for each worker.

    Args:
        selection: `"all"`; a list of indices in PCI order (integers), beginnings of UUIDs (text, in either case, with
            or without `GPU-`), `cpu:N`, and lists of these, which are groups; or an object whose `cpu` says how many
            CPU devices there are to be. All but the lists within a list give groups of one.
        discovery: what there is to choose from.

    Raises:
        DeviceError: an entry means no device, several, or one that is listed already; a group is empty, or of devices
            that no process can have together; or there is no GPU at all. Everything that is wrong is named, and
            what there is to choose from.
    """
    if selection == "all":
        if not discovery.gpus:
            raise DeviceError(
                [f"devices: all finds no GPU: {discovery.problem or _NONE_REPORTED}."],
                "To serve on the CPU, write devices: {cpu: 1}.",
            )
        return tuple((gpu,) for gpu in discovery.gpus)
    if not isinstance(selection, Sequence):
        if selection.cpu < 1:
            raise DeviceError([f"devices: {{cpu: {selection.cpu}}} is no device; write 1 or more."])
        return tuple((_cpu(number),) for number in range(selection.cpu))
    if not selection:
        raise DeviceError(["devices is an empty list; name a GPU, or write all or {cpu: 1}."])
    chosen: dict[str, int | str] = {}
    problems: list[str] = []
    groups = tuple(_group(item, discovery, chosen, problems) for item in selection)
    if problems:
        raise DeviceError(problems, "\n".join(_inventory(discovery)))
    return groups


def _group(
    item: int | str | Sequence[int | str], discovery: Discovery, chosen: dict[str, int | str], problems: list[str]
) -> Group:
    """The devices of one item of a list.

    Args:
        item: the list's.
        discovery: what there is to choose from.
        chosen: how each device that is taken already was spelled, by its name; grows.
        problems: what is wrong; grows.
    """
    group: list[Device] = []
    entries = [item] if isinstance(item, int | str) else item
    for entry in entries:
        match = _find(entry, discovery.gpus)
        if isinstance(match, str):
            problems.append(f"devices: {entry!r} {match}.")
        elif match.name in chosen:
            earlier = chosen[match.name]
            named = "is listed twice" if earlier == entry else f"is the same GPU as {earlier!r}"
            problems.append(f"devices: {entry!r} {named}.")
        else:
            chosen[match.name] = entry
            group.append(match)
    if not entries:
        problems.append("devices: [] is an empty group; name the devices that one worker has together.")
    elif len({device.kind for device in group}) > 1:
        problems.append(f"devices: {list(entries)} mixes GPUs with CPU devices; a worker has devices of one kind.")
    return tuple(group)


def _cpu(number: int) -> Device:
    return Device(
        name=f"{_CPU_PREFIX}{number}",
        kind="cpu",
        index=None,
        product="CPU",
        memory_bytes=None,
        memory_used_bytes=None,
        pci_bus_id=None,
    )


def _find(entry: int | str, gpus: Sequence[Device]) -> Device | str:
    """The device that an entry means, or the rest of a sentence that says why it means none."""
    if isinstance(entry, int):
        return next((gpu for gpu in gpus if gpu.index == entry), "is not the index of a GPU here")
    wanted = entry.strip().lower()
    number = wanted.removeprefix(_CPU_PREFIX)
    if number != wanted:
        return _cpu(int(number)) if number.isdecimal() else "is no CPU device: write cpu:0"
    if wanted.startswith("mig-"):
        return "is a MIG device, which this release cannot use yet: name the whole GPU"
    if wanted.isdecimal():
        # `devices: ["0"]` is nearly always an index that was quoted, by a person or a template. Taking it for a
        # UUID would pick some GPU or none by chance.
        return "is text: write an index without quotes, and a UUID of which this is the beginning with GPU-"
    beginning = wanted.removeprefix(_PREFIX)
    if not beginning:
        return "names no GPU: write an index or the beginning of a UUID"
    matches = [gpu for gpu in gpus if gpu.name.lower().removeprefix(_PREFIX).startswith(beginning)]
    if len(matches) > 1:
        return f"is the beginning of {len(matches)} GPUs' UUIDs: write more of it"
    return matches[0] if matches else "is not the beginning of a GPU's UUID here"


def _inventory(discovery: Discovery) -> Iterator[str]:
    if discovery.gpus:
        yield "The GPUs of this machine:"
    for gpu in discovery.gpus:
        yield f"  {gpu.index}  {gpu.name}  {gpu.product}  {format_bytes(gpu.memory_bytes)}"
    if discovery.problem:
        yield f"{'Also' if discovery.gpus else 'No GPU is seen'}: {discovery.problem}."


def format_bytes(size: int | None) -> str:
    """A size for people, such as `80.0 GiB`; a dash where it is unknown."""
    if size is None:
        return "-"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
