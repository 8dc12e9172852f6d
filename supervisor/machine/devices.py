"""What a device is, and which of those there are a configuration means. Pure.

`discovery` finds the devices, `resolve` turns the configuration's `devices` into groups of them, and `placement`
spreads workers over these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from ..config.devices import ONE_SLICE

NONE_REPORTED: Final = (
    "the NVIDIA driver is loaded but reports no GPU; check nvidia-smi, systemd's PrivateDevices, and in a "
    "container NVIDIA_VISIBLE_DEVICES"
)

_PREFIX: Final = "gpu-"
_MIG_PREFIX: Final = "mig-"
CPU_PREFIX: Final = "cpu:"


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
    """A GPU, a slice of one that is in MIG mode, or one of the pretended devices `cpu:N`.

    Attributes:
        name: what it is called everywhere: the UUID of a GPU or slice, else `cpu:0`, `cpu:1`, ...
        kind: `gpu`, `mig` or `cpu`.
        index: the GPU's number in PCI order, the same that nvidia-smi shows; None for the others.
        product: such as `NVIDIA A100-SXM4-80GB`, or of a slice `NVIDIA A100-SXM4-80GB MIG 1g.10gb`.
        memory_bytes: the device's memory, None where it has none of its own.
        memory_used_bytes: what all processes, and the driver, hold of it at the moment.
        pci_bus_id: such as `00000000:17:00.0`, of a slice that of its GPU, None for `cpu`.
        parent: the GPU that a slice is of.
        numa_node: the NUMA node of the host that it is at; None where that is not known, or not one.
        cores: numbers of the host's CPUs near it; None where they are not known.
    """

    name: str
    kind: Literal["gpu", "mig", "cpu"]
    index: int | None
    product: str
    memory_bytes: int | None
    memory_used_bytes: int | None
    pci_bus_id: str | None
    parent: Device | None = None
    numa_node: int | None = None
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Discovery:
    """What NVML has to say.

    Attributes:
        gpus: every GPU that can be used, in PCI order; in place of one in MIG mode its slices.
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


def resolve(selection: Selection, discovery: Discovery) -> tuple[Group, ...]:
    """The devices that the configuration's `devices` means, in its order: a group for each worker.

    Args:
        selection: `"all"`; a list of indices in PCI order (integers), beginnings of UUIDs (text, in either case, of
            GPUs with or without `GPU-`), `cpu:N`, and lists of these, which are groups; or an object whose `cpu` says
            how many CPU devices there are to be. All but the lists within a list give groups of one.
        discovery: what there is to choose from.

    Raises:
        DeviceError: an entry means no device, several, or one that is listed already; a group is empty, or of devices
            that no process can have together; or there is no GPU at all. Everything that is wrong is named, and
            what there is to choose from.
    """
    if selection == "all":
        if not discovery.gpus:
            raise DeviceError(
                [f"devices: all finds no GPU: {discovery.problem or NONE_REPORTED}."],
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
            named = "is listed twice" if earlier == entry else f"is the same device as {earlier!r}"
            problems.append(f"devices: {entry!r} {named}.")
        else:
            chosen[match.name] = entry
            group.append(match)
    if not entries:
        problems.append("devices: [] is an empty group; name the devices that one worker has together.")
    elif len(entries) > 1 and any(device.kind == "mig" for device in group):
        problems.append(f"devices: {list(entries)} has MIG slices; {ONE_SLICE}.")
    elif len({device.kind for device in group}) > 1:
        problems.append(f"devices: {list(entries)} mixes GPUs with CPU devices; a worker has devices of one kind.")
    return tuple(group)


def _cpu(number: int) -> Device:
    return Device(
        name=f"{CPU_PREFIX}{number}",
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
        found = next((gpu for gpu in gpus if gpu.index == entry), None)
        split = next((gpu.parent for gpu in gpus if gpu.parent is not None and gpu.parent.index == entry), None)
        return found or (_split(split, gpus) if split is not None else "is not the index of a GPU here")
    wanted = entry.strip().lower()
    number = wanted.removeprefix(CPU_PREFIX)
    if number != wanted:
        return _cpu(int(number)) if number.isdecimal() else "is no CPU device: write cpu:0"
    if wanted.isdecimal():
        # `devices: ["0"]` is nearly always an index that was quoted, by a person or a template. Taking it for a
        # UUID would pick some GPU or none by chance.
        return "is text: write an index without quotes, and a UUID of which this is the beginning with GPU-"
    if wanted.startswith(_MIG_PREFIX):
        return _beginning(wanted, _MIG_PREFIX, [gpu for gpu in gpus if gpu.kind == "mig"], "MIG slice")
    parents = {gpu.parent.name: gpu.parent for gpu in gpus if gpu.parent is not None}
    whole = [gpu for gpu in gpus if gpu.kind == "gpu"]
    match = _beginning(wanted.removeprefix(_PREFIX), _PREFIX, [*whole, *parents.values()], "GPU")
    return _split(match, gpus) if isinstance(match, Device) and match.name in parents else match


def _beginning(wanted: str, prefix: str, devices: Sequence[Device], what: str) -> Device | str:
    """The one of the devices whose UUID begins so, the prefix left out, or why there is not one."""
    beginning = wanted.removeprefix(prefix)
    if not beginning:
        return f"names no {what}: write {'an index or ' if prefix == _PREFIX else ''}the beginning of a UUID"
    matches = [device for device in devices if device.name.lower().removeprefix(prefix).startswith(beginning)]
    if len(matches) > 1:
        return f"is the beginning of {len(matches)} {what}s' UUIDs: write more of it"
    return matches[0] if matches else f"is not the beginning of a {what}'s UUID here"


def _split(gpu: Device, gpus: Sequence[Device]) -> str:
    slices = [device.name for device in gpus if device.parent == gpu]
    return f"is a GPU in MIG mode: name its slices, {', '.join(slices)}"


def _inventory(discovery: Discovery) -> Iterator[str]:
    if discovery.gpus:
        yield "The GPUs of this machine:"
    for gpu in discovery.gpus:
        place = gpu.index if gpu.parent is None else f"in {gpu.parent.index}"
        yield f"  {place}  {gpu.name}  {gpu.product}  {format_bytes(gpu.memory_bytes)}"
    if discovery.problem:
        yield f"{'Also' if discovery.gpus else 'No GPU is seen'}: {discovery.problem}."


def format_bytes(size: int | None) -> str:
    """A size for people, such as `80.0 GiB`; a dash where it is unknown."""
    if size is None:
        return "-"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
