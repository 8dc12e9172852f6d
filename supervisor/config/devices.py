"""The key `devices` of a configuration: which devices, and which of them one worker has together.

`config` hangs it into its models. Whether the devices exist is found out by `devices.resolve`, on the machine that is
to have them: here is only what can be said of the text.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema

from .errors import Complaints
from .fields import Processes, Section
from .units import shown
from .values import CPU_DEVICE_PATTERN, UUID_PATTERN, is_cpu_device, is_slice, parse_device

ONE_SLICE: Final = "a worker has a slice alone, since CUDA assures a process of no second one"
"""Why there are no groups of slices. Drivers from R570 on enumerate one for each GPU instance, older ones a single one:
https://docs.nvidia.com/datacenter/tesla/mig-user-guide/mig-device-names.html#cuda-device-enumeration
"""

Entry: TypeAlias = int | str
"""One device: an index, (the beginning of) a UUID, or `cpu:N`."""

DeviceList: TypeAlias = tuple[Entry | tuple[Entry, ...], ...]
"""One entry for each worker; a tuple within it is a group, which one worker has together."""

_TWICE: Final = "is listed twice; workers_per_device gives a device several workers"


class CpuDevices(Section):
    """Workers on the CPU instead of on GPUs."""

    cpu: Processes = Field(description="How many CPU devices; each gets `workers_per_device` workers.")


def parse_devices(value: object) -> Literal["all"] | DeviceList | CpuDevices:
    """What `devices` says."""
    if value == "all":
        return "all"
    if isinstance(value, dict):
        return CpuDevices.model_validate(value)
    if not isinstance(value, list):
        raise ValueError(f"must be all, a list of devices or {{cpu: N}}, not {shown(value)}")
    return parse_device_list(value)


def parse_device_list(value: list[object]) -> DeviceList:
    """Devices and groups of them; every part that is wrong is told at its own place."""
    if not value:
        raise ValueError("the list is empty; name a device, or leave the key out for all of them")
    complaints = Complaints()
    devices: list[Entry | tuple[Entry, ...]] = []
    known: set[Entry] = set()
    for index, item in enumerate(value):
        if isinstance(item, list):
            devices.append(_group(item, index, known, complaints))
            continue
        entry = _entry(item, (index,), known, complaints)
        if entry is not None:
            devices.append(entry)
    complaints()
    return tuple(devices)


def parse_model_devices(value: object) -> Literal["all"] | DeviceList:
    """What a model's `devices` says."""
    if value == "all":
        return "all"
    if not isinstance(value, list):
        raise ValueError(f"must be all or a list of devices, as in [0, 2] or [cpu:0], not {shown(value)}")
    return parse_device_list(value)


def cpu_names(devices: Literal["all"] | DeviceList | CpuDevices) -> list[Entry] | None:
    """The names of the daemon's devices, where they are CPUs; which GPUs there are is the machine's to tell."""
    if isinstance(devices, CpuDevices):
        return [f"cpu:{number}" for number in range(devices.cpu)]
    return flat(devices) if devices != "all" and on_cpus(devices) else None


def flat(devices: DeviceList) -> list[Entry]:
    """All devices of a list, those of its groups among them."""
    return [entry for item in devices for entry in (item if isinstance(item, tuple) else (item,))]


def on_cpus(devices: Literal["all"] | DeviceList | CpuDevices) -> bool:
    """Whether no GPU is meant."""
    if devices == "all" or isinstance(devices, CpuDevices):
        return devices != "all"
    return all(is_cpu_device(entry) for entry in flat(devices))


def _group(items: list[object], index: int, known: set[Entry], complaints: Complaints) -> tuple[Entry, ...]:
    entries = [_entry(item, (index, inner), known, complaints) for inner, item in enumerate(items)]
    group = tuple(entry for entry in entries if entry is not None)
    if not items:
        complaints.add("the group is empty; name the devices that one worker has together", index)
    elif len(group) > 1 and any(map(is_slice, group)):
        complaints.add(f"the group has MIG slices; {ONE_SLICE}", index)
    elif len({is_cpu_device(entry) for entry in group}) > 1:
        complaints.add("the group mixes GPUs with CPU devices; a worker has devices of one kind", index)
    return group


def _entry(item: object, location: tuple[int, ...], known: set[Entry], complaints: Complaints) -> Entry | None:
    try:
        entry = parse_device(item)
    except ValueError as error:
        complaints.add(str(error), *location)
        return None
    if entry in known:
        complaints.add(f"{entry} {_TWICE}", *location)
    known.add(entry)
    return entry


_ONE: Final[list[dict[str, Any]]] = [
    {"type": "integer", "minimum": 0},
    {"type": "string", "pattern": UUID_PATTERN},
    {"type": "string", "pattern": CPU_DEVICE_PATTERN},
]
_LIST: Final[dict[str, Any]] = {"type": "array", "minItems": 1, "uniqueItems": True}
_SCHEMA: Final[dict[str, Any]] = {
    "oneOf": [
        {"const": "all"},
        {**_LIST, "items": {"oneOf": [*_ONE, {**_LIST, "items": {"oneOf": _ONE}}]}},
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
