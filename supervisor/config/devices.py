"""The key `devices` of a configuration: the devices to use, and groups of them for one worker.

Only the syntax is checked here. `resolve` in `machine/devices.py` finds out whether the machine has the devices.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema

from .section_types import Processes, Section
from .units import short_repr
from .validation_errors import ValueProblems
from .value_syntax import CPU_DEVICE_PATTERN, UUID_PATTERN, is_cpu_device, is_slice, parse_device

ONE_SLICE: Final = "a worker can use one slice only, since CUDA does not guarantee a process a second one"
"""Why there are no groups of slices. Drivers from R570 on enumerate one per GPU instance, older ones a single one:
https://docs.nvidia.com/datacenter/tesla/mig-user-guide/mig-device-names.html#cuda-device-enumeration
"""

Entry: TypeAlias = int | str
"""One device: an index, (the beginning of) a UUID, or `cpu:N`."""

DeviceList: TypeAlias = tuple[Entry | tuple[Entry, ...], ...]
"""One item per worker; a tuple in it is a group of devices for one worker."""

_TWICE: Final = "is listed twice; workers_per_device gives a device several workers"


class CpuDevices(Section):
    """Workers on the CPU instead of on GPUs."""

    cpu: Processes = Field(description="How many CPU devices; each gets `workers_per_device` workers.")


def parse_devices(value: object) -> Literal["all"] | DeviceList | CpuDevices:
    """Parses the daemon's `devices`.

    Raises:
        ValueError: it is none of the allowed forms.
        ValidationError: a part of it is wrong; each problem has its own location.
    """
    if value == "all":
        return "all"
    if isinstance(value, dict):
        return CpuDevices.model_validate(value)
    if not isinstance(value, list):
        raise ValueError(f"must be all, a list of devices or {{cpu: N}}, not {short_repr(value)}")
    return parse_device_list(value)


def parse_device_list(value: list[object]) -> DeviceList:
    """Parses a list of devices and of groups of them.

    Raises:
        ValueError: the list is empty.
        ValidationError: a part of it is wrong; each problem has its own location.
    """
    if not value:
        raise ValueError("the list is empty; name a device, or leave the key out for all of them")
    problems = ValueProblems()
    devices: list[Entry | tuple[Entry, ...]] = []
    known: set[Entry] = set()
    for index, item in enumerate(value):
        if isinstance(item, list):
            devices.append(_group(item, index, known, problems))
            continue
        entry = _entry(item, (index,), known, problems)
        if entry is not None:
            devices.append(entry)
    problems.raise_any()
    return tuple(devices)


def parse_model_devices(value: object) -> Literal["all"] | DeviceList:
    """Parses a model's `devices`; errors as with `parse_devices`."""
    if value == "all":
        return "all"
    if not isinstance(value, list):
        raise ValueError(f"must be all or a list of devices, as in [0, 2] or [cpu:0], not {short_repr(value)}")
    return parse_device_list(value)


def cpu_names(devices: Literal["all"] | DeviceList | CpuDevices) -> list[Entry] | None:
    """The names of CPU devices; None for GPUs, whose names only the machine can tell."""
    if isinstance(devices, CpuDevices):
        return [f"cpu:{number}" for number in range(devices.cpu)]
    return flatten(devices) if devices != "all" and on_cpus(devices) else None


def flatten(devices: DeviceList) -> list[Entry]:
    """All devices of a list, including those in groups."""
    return [entry for item in devices for entry in (item if isinstance(item, tuple) else (item,))]


def on_cpus(devices: Literal["all"] | DeviceList | CpuDevices) -> bool:
    """Whether all devices are CPU devices."""
    if devices == "all" or isinstance(devices, CpuDevices):
        return devices != "all"
    return all(is_cpu_device(entry) for entry in flatten(devices))


def _group(items: list[object], index: int, known: set[Entry], problems: ValueProblems) -> tuple[Entry, ...]:
    entries = [_entry(item, (index, inner), known, problems) for inner, item in enumerate(items)]
    group = tuple(entry for entry in entries if entry is not None)
    if not items:
        problems.add("the group is empty; name the devices of one worker", index)
    elif len(group) > 1 and any(map(is_slice, group)):
        problems.add(f"the group has MIG slices; {ONE_SLICE}", index)
    elif len({is_cpu_device(entry) for entry in group}) > 1:
        problems.add("the group mixes GPUs with CPU devices; a worker has devices of one kind", index)
    return group


def _entry(item: object, location: tuple[int, ...], known: set[Entry], problems: ValueProblems) -> Entry | None:
    try:
        entry = parse_device(item)
    except ValueError as error:
        problems.add(str(error), *location)
        return None
    if entry in known:
        problems.add(f"{entry} {_TWICE}", *location)
    known.add(entry)
    return entry


_DEVICE_SCHEMA: Final[list[dict[str, Any]]] = [
    {"type": "integer", "minimum": 0},
    {"type": "string", "pattern": UUID_PATTERN},
    {"type": "string", "pattern": CPU_DEVICE_PATTERN},
]
_LIST_SCHEMA: Final[dict[str, Any]] = {"type": "array", "minItems": 1, "uniqueItems": True}
_SCHEMA: Final[dict[str, Any]] = {
    "oneOf": [
        {"const": "all"},
        {
            **_LIST_SCHEMA,
            "items": {"oneOf": [*_DEVICE_SCHEMA, {**_LIST_SCHEMA, "items": {"oneOf": _DEVICE_SCHEMA}}]},
        },
        {
            "type": "object",
            "properties": {"cpu": {"type": "integer", "minimum": 1, "description": "How many CPU devices."}},
            "required": ["cpu"],
            "additionalProperties": False,
        },
    ]
}

ModelDevices = Annotated[
    Literal["all"] | DeviceList,
    PlainValidator(parse_model_devices),
    WithJsonSchema({"oneOf": _SCHEMA["oneOf"][:2]}),
]

Devices = Annotated[
    Literal["all"] | DeviceList | CpuDevices,
    PlainValidator(parse_devices),
    WithJsonSchema(_SCHEMA),
]
