"""Devices, and `resolve`, which finds those that a configuration names. Pure.

`discovery.py` finds the machine's devices; `placement.py` places workers on those that `resolve` returns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ..config.devices import ONE_SLICE, CpuDevices

NONE_REPORTED: Final = (
    "the NVIDIA driver is loaded but reports no GPU; check nvidia-smi, systemd's PrivateDevices, and in a "
    "container NVIDIA_VISIBLE_DEVICES"
)

_PREFIX: Final = "gpu-"
_MIG_PREFIX: Final = "mig-"
CPU_PREFIX: Final = "cpu:"


class DeviceError(Exception):
    """The configuration names devices that this machine does not have, or uses them in an impossible way.

    Args:
        problems: one sentence for each problem.
        context: what helps to correct them, such as the devices that exist.

    Attributes:
        problems: one sentence for each problem; the error's message has them all, and the context.
        context: as given.
    """

    def __init__(self, problems: Sequence[str], context: str = "") -> None:
        super().__init__("\n".join([*problems, *([context] if context else [])]))
        self.problems = tuple(problems)
        self.context = context


class MissingDevicesError(DeviceError):
    """The configuration is possible, but names GPUs that this machine does not have now: a driver may be loading.

    Attributes:
        entries: the entries without a GPU; empty for `all` where there is none at all.
    """

    def __init__(self, problems: Sequence[str], context: str, entries: Sequence[int | str]) -> None:
        super().__init__(problems, context)
        self.entries = frozenset(entries)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU, a slice of a GPU in MIG mode, or a CPU device.

    Attributes:
        name: the UUID of a GPU or slice, else `cpu:0`, `cpu:1`, ...
        kind: `gpu`, `mig` or `cpu`.
        index: the GPU's number in PCI order, as in nvidia-smi; None for other kinds.
        product: such as `NVIDIA A100-SXM4-80GB`, or for a slice `NVIDIA A100-SXM4-80GB MIG 1g.10gb`.
        memory_bytes: the device's memory; None if it has none of its own.
        memory_used_bytes: memory in use now, by all processes and the driver.
        pci_bus_id: such as `00000000:17:00.0`; for a slice that of its GPU; None for `cpu`.
        parent: the GPU of a slice; None for other kinds.
        numa_node: the NUMA node of the host near the device; None if unknown, or not exactly one.
        cores: numbers of the host's CPUs near the device; None if unknown.
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
    """The GPUs that NVML reports.

    Attributes:
        gpus: all usable GPUs in PCI order, with the slices instead of a GPU in MIG mode.
        problem: why there is none, or why some are missing; None if all are there.
    """

    gpus: tuple[Device, ...]
    problem: str | None = None


ListedDevices: TypeAlias = Sequence[int | str | Sequence[int | str]]
"""Devices, and groups of them, as listed in a configuration."""

Group: TypeAlias = tuple[Device, ...]
"""The devices of one worker: one, or several of the same kind."""


def resolve(selection: Literal["all"] | ListedDevices | CpuDevices, discovery: Discovery) -> tuple[Group, ...]:
    """The devices that a configuration's `devices` names.

    Args:
        selection: `all`; a number of CPU devices; or a list of indices in PCI order (integers), beginnings of UUIDs
            (text in any case; `GPU-` may be omitted), `cpu:N`, and lists of these, which are groups.
        discovery: the machine's GPUs.

    Returns:
        One group for each worker, in the order of the configuration; of one device, unless it is listed as a group.

    Raises:
        MissingDevicesError: an entry matches no GPU, or there is none at all, and nothing else is wrong.
        DeviceError: an entry matches several devices, or one that is listed already; or a group is empty, or of devices
            that one process cannot use together. The message names all problems, and the devices that exist.
    """
    if selection == "all":
        if not discovery.gpus:
            raise MissingDevicesError(
                [f"devices: all finds no GPU: {discovery.problem or NONE_REPORTED}."],
                "To serve on the CPU, write devices: {cpu: 1}.",
                (),
            )
        return tuple((gpu,) for gpu in discovery.gpus)
    if isinstance(selection, CpuDevices):
        return tuple((_cpu(number),) for number in range(selection.cpu))
    if not selection:
        raise DeviceError(["devices is an empty list; name a GPU, or write all or {cpu: 1}."])
    chosen: dict[str, int | str] = {}
    problems: list[str] = []
    missing: list[int | str] = []
    groups = tuple(_group(item, discovery, chosen, problems, missing) for item in selection)
    context = "\n".join(_describe_gpus(discovery))
    if missing and len(missing) == len(problems):
        raise MissingDevicesError(problems, context, missing)
    if problems:
        raise DeviceError(problems, context)
    return groups


def without_entries(selection: ListedDevices, entries: Collection[int | str]) -> ListedDevices:
    """Returns a list of devices without these entries, and without the groups that have one of them."""
    return [
        item
        for item in selection
        if (item not in entries if isinstance(item, int | str) else not set(item).intersection(entries))
    ]


def _group(
    item: int | str | Sequence[int | str],
    discovery: Discovery,
    chosen: dict[str, int | str],
    problems: list[str],
    missing: list[int | str],
) -> Group:
    """The devices of one item of a list.

    Args:
        item: an entry, or a list of them.
        discovery: the machine's GPUs.
        chosen: the entries of all devices listed so far, by device name; extended.
        problems: extended.
        missing: extended by the entries that match no GPU.
    """
    group: list[Device] = []
    entries = [item] if isinstance(item, int | str) else item
    for entry in entries:
        match = _find(entry, discovery.gpus)
        if isinstance(match, _Missing):
            missing.append(entry)
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
        problems.append("devices: [] is an empty group; name the devices of one worker.")
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


class _Missing(str):
    """The rest of a sentence that says that there is no such device."""

    __slots__ = ()


def _find(entry: int | str, gpus: Sequence[Device]) -> Device | str:
    """The device that an entry names, or the rest of a sentence that says why there is none."""
    if isinstance(entry, int):
        found = next((gpu for gpu in gpus if gpu.index == entry), None)
        parent = next((gpu.parent for gpu in gpus if gpu.parent is not None and gpu.parent.index == entry), None)
        if found is None and parent is not None:
            return _name_slices(parent, gpus)
        return found or _Missing("is not the index of a GPU here")
    wanted = entry.strip().lower()
    number = wanted.removeprefix(CPU_PREFIX)
    if number != wanted:
        return _cpu(int(number)) if number.isdecimal() else "is not a CPU device: write cpu:0"
    if wanted.isdecimal():
        # `devices: ["0"]` is nearly always a quoted index. As the beginning of a UUID it would match by chance.
        return "is text: write an index without quotes, and the beginning of a UUID with GPU-"
    if wanted.startswith(_MIG_PREFIX):
        return _find_by_uuid(wanted, _MIG_PREFIX, [gpu for gpu in gpus if gpu.kind == "mig"], "MIG slice")
    parents = {gpu.parent.name: gpu.parent for gpu in gpus if gpu.parent is not None}
    whole = [gpu for gpu in gpus if gpu.kind == "gpu"]
    match = _find_by_uuid(wanted.removeprefix(_PREFIX), _PREFIX, [*whole, *parents.values()], "GPU")
    return _name_slices(match, gpus) if isinstance(match, Device) and match.name in parents else match


def _find_by_uuid(wanted: str, prefix: str, devices: Sequence[Device], what: str) -> Device | str:
    """The device whose UUID begins with `wanted`, ignoring the prefix, or why there is not exactly one."""
    beginning = wanted.removeprefix(prefix)
    if not beginning:
        return f"names no {what}: write {'an index or ' if prefix == _PREFIX else ''}the beginning of a UUID"
    matches = [device for device in devices if device.name.lower().removeprefix(prefix).startswith(beginning)]
    if len(matches) > 1:
        return f"is the beginning of {len(matches)} {what}s' UUIDs: write more of it"
    return matches[0] if matches else _Missing(f"is not the beginning of a {what}'s UUID here")


def _name_slices(gpu: Device, gpus: Sequence[Device]) -> str:
    slices = [device.name for device in gpus if device.parent == gpu]
    return f"is a GPU in MIG mode: name its slices, {', '.join(slices)}"


def _describe_gpus(discovery: Discovery) -> Iterator[str]:
    if discovery.gpus:
        yield "The GPUs of this machine:"
    for gpu in discovery.gpus:
        index = gpu.index if gpu.parent is None else f"in {gpu.parent.index}"
        yield f"  {index}  {gpu.name}  {gpu.product}  {format_bytes(gpu.memory_bytes)}"
    if discovery.problem:
        yield f"{'Also' if discovery.gpus else 'No GPU is seen'}: {discovery.problem}."


def format_bytes(size: int | None) -> str:
    """A size for people, such as `80.0 GiB`; `-` for None."""
    if size is None:
        return "-"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
