"""The configuration: every key with its meaning, default and limits, and `load`, which reads a file of them.

The daemon, `multitower check` and a reload call `load`; editors get `schema`. A key arrives with its feature:
what is not here is refused as unknown. Defaults stand here as in a file and are validated like what stands there.

Within a class the order of the fields matters: a validator sees the fields above its own (`info.data`), without
those that are wrong themselves. Rules over two fields stand at the lower one, and so are reported together with
everything else; a validator of the whole model would run only when the rest is right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from multitower.spec import ModelSpec
from multitower.supervisor import config_overrides
from multitower.supervisor.config_errors import Complaints, key_tree, refuse_missing, sift, translate
from multitower.supervisor.config_source import (
    MAX_PROBLEMS,
    ConfigError,
    Node,
    Place,
    Problem,
    read_file,
)
from multitower.supervisor.config_values import (
    ENDPOINT_PATTERN,
    HANDLER_PATTERN,
    MEMORY_PATTERN,
    NAME_PATTERN,
    UUID_PATTERN,
    Memory,
    parse_device,
    parse_endpoint,
    parse_handler,
    parse_memory,
    parse_model_path,
    parse_name,
    parse_runtime_dir,
)
from multitower.supervisor.config_yaml import Reader
from multitower.supervisor.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    shown,
)
from multitower.wire import DEFAULT_ENDPOINT

__all__ = ["Config", "ConfigError", "Memory", "ModelConfig", "Problem", "load", "schema"]

_MAX_INT: Final = 2**31 - 1  # what TensorFlow and libzmq take for a count
_MIN_MESSAGE_SIZE: Final = 1024


@dataclass(slots=True)
class _Context:
    """What validators need to know beside their value: the file's folder, and what came before in a list."""

    folder: Path
    endpoints: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


def _context(info: ValidationInfo) -> _Context:
    assert isinstance(info.context, _Context)  # `load` is the only one that validates
    return info.context


def _key(default: Any, description: str) -> Any:
    return Field(default, description=description)


def _positive(seconds: float) -> float:
    if seconds == 0:
        raise ValueError("must be longer than nothing")
    return seconds


def _some_bytes(size: int) -> int:
    if size == 0:
        raise ValueError("must be more than nothing")
    return size


def _auto_or_count(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_INT:
        raise ValueError(f"must be auto or a whole number from 1, not {shown(value)}")
    return value


Seconds = Annotated[
    float, PlainValidator(parse_duration), WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})
]
PositiveSeconds = Annotated[Seconds, AfterValidator(_positive)]
Bytes = Annotated[int, PlainValidator(parse_size), WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN})]
PositiveBytes = Annotated[Bytes, AfterValidator(_some_bytes)]
Count = Annotated[int, Field(ge=1, le=_MAX_INT)]
CountFromZero = Annotated[int, Field(ge=0, le=_MAX_INT)]
AutoOrCount = Annotated[
    int | Literal["auto"],
    PlainValidator(_auto_or_count),
    WithJsonSchema({"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_default=True)


class Threads(_Section):
    """TensorFlow's threads in each worker."""

    intra_op: AutoOrCount = _key("auto", "Threads within one operation; auto is a fair share of the host's cores.")
    inter_op: AutoOrCount = _key("auto", "Operations at one time; auto is a fair share of the host's cores.")


class CpuDevices(_Section):
    """Workers on the CPU instead of on GPUs."""

    cpu: Count = Field(description="How many CPU devices; each gets `workers_per_device` workers.")


class Backoff(_Section):
    """The wait before a restart: it doubles from `first` to `max`."""

    first: PositiveSeconds = _key("500ms", "The first wait before a restart.")
    max: PositiveSeconds = _key("30s", "The longest wait before a restart.")

    @field_validator("max")
    @classmethod
    def _not_below_first(cls, value: float, info: ValidationInfo) -> float:
        first = info.data.get("first", value)
        if value < first:
            raise ValueError(f"{format_duration(value)} is less than first ({format_duration(first)})")
        return value


class Restart(_Section):
    """When a dead worker is started again, and when its slot is given up."""

    max_restarts: CountFromZero = _key(5, "Restarts within `window` after which a slot is given up as failed.")
    window: PositiveSeconds = _key("60s", "The time in which `max_restarts` counts.")
    backoff: Backoff = _key({}, "The wait before a restart.")


class Batching(_Section):
    """How requests are put together into one call of the model."""

    max_batch_size: Count = _key(32, "Rows of a batch at the most.")
    allowed_batch_sizes: Annotated[tuple[Count, ...], Field(strict=False)] = _key(
        [],
        "Sizes that batches are padded to, ascending, the last being `max_batch_size`; none for no padding.",
    )
    max_queue_delay: Seconds = _key(
        "0ms", "How long a request may wait for others to fill its batch while a worker is free."
    )

    @field_validator("allowed_batch_sizes")
    @classmethod
    def _ascending_to_the_largest(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        complaints = Complaints()
        for index, (before, size) in enumerate(pairwise(value), 1):
            if size <= before:
                complaints.add(f"{size} after {before}: the sizes must ascend", index)
        largest = info.data.get("max_batch_size")
        if value and largest is not None and value[-1] != largest:
            complaints.add(f"the last size must be max_batch_size, {largest}, not {value[-1]}", len(value) - 1)
        complaints()
        return value


class Queue(_Section):
    """A model's queue: the requests that no worker has yet. A full one refuses at once."""

    max_size: Count = _key(1000, "Requests that may wait.")
    max_bytes: PositiveBytes = _key("512MiB", "Bytes of tensors that may wait.")
    timeout: PositiveSeconds = _key("30s", "The longest time for a request; its own timeout may be shorter.")


def _name(value: object, info: ValidationInfo) -> str:
    name = parse_name(value)
    context = _context(info)
    if name in context.names:
        raise ValueError(f"'{name}' is the name of a model above as well")
    context.names.add(name)
    return name


def _path(value: object, info: ValidationInfo) -> Path | None:
    return None if value is None else parse_model_path(value, _context(info).folder)


def _handler(value: object, info: ValidationInfo) -> str | None:
    if value is None:
        if info.data.get("path", value) is None and "path" in info.data:
            refuse_missing("path", "handler")
        return None
    if info.data.get("path", value) is not None:
        raise ValueError("a model has a path or a handler, not both")
    return parse_handler(value)


def _parameters(value: object, info: ValidationInfo) -> Mapping[str, Any]:
    if value is None:
        return {}
    if info.data.get("handler", value) is None:
        raise ValueError("goes with a handler only")
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping of keys to values, not {shown(value)}")
    return value


def _signature(value: object, info: ValidationInfo) -> str | None:
    if value is None:
        return None
    if info.data.get("path", value) is None:
        raise ValueError("goes with a path only")
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be the name of a signature, not {shown(value)}")
    return value


class ModelConfig(_Section):
    """One model: where it comes from, and how its requests are queued and batched."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["path"]}, {"required": ["handler"]}],
            "dependentRequired": {"parameters": ["handler"], "signature": ["path"]},
        }
    )

    name: Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})] = Field(
        description="What clients ask for; unique."
    )
    path: Annotated[Path | None, PlainValidator(_path), WithJsonSchema({"type": "string", "minLength": 1})] = _key(
        None, "A SavedModel folder, a folder of numbered versions of one, or a .keras file."
    )
    handler: Annotated[
        str | None, PlainValidator(_handler), WithJsonSchema({"type": "string", "pattern": HANDLER_PATTERN})
    ] = _key(None, "A Python class with load() and infer(), as module:Class; the file's folder is searched first.")
    parameters: Annotated[Mapping[str, Any], PlainValidator(_parameters), WithJsonSchema({"type": "object"})] = _key(
        None, "What the handler's load() is given."
    )
    signature: Annotated[str | None, PlainValidator(_signature), WithJsonSchema({"type": "string", "minLength": 1})] = (
        _key(None, "The SavedModel's signature; without it serving_default, else serve, else the only one.")
    )
    batching: Batching | None = _key(
        None, "How requests are batched. Without it a path takes the defaults, and a handler gets one at a time."
    )
    queue: Queue = _key({}, "The model's queue.")
    retry: Annotated[int, Field(ge=0, le=5)] = _key(
        1, "How many deaths of workers a request may survive while it is being executed."
    )

    @field_validator("batching")
    @classmethod
    def _paths_are_batched(cls, value: Batching | None, info: ValidationInfo) -> Batching | None:
        return Batching() if value is None and info.data.get("path") is not None else value

    def to_spec(self) -> ModelSpec:
        """What a worker is told of the model."""
        batching = self.batching
        return ModelSpec(
            name=self.name,
            path=str(self.path) if self.path is not None else None,
            handler=self.handler,
            parameters=dict(self.parameters),
            signature=self.signature,
            max_batch_size=batching.max_batch_size if batching is not None else 0,
            allowed_batch_sizes=batching.allowed_batch_sizes if batching is not None else (),
        )


def _endpoint(value: object, info: ValidationInfo) -> str:
    context = _context(info)
    endpoint = parse_endpoint(value, context.folder, insecure=info.data.get("insecure"))
    if endpoint in context.endpoints:
        raise ValueError(f"{endpoint} is listed twice")
    context.endpoints.add(endpoint)
    return endpoint


def _devices(value: object) -> Literal["all"] | tuple[int | str, ...] | CpuDevices:
    if value == "all":
        return "all"
    if isinstance(value, dict):
        return CpuDevices.model_validate(value)
    if not isinstance(value, list):
        raise ValueError(f"must be all, a list of devices or {{cpu: N}}, not {shown(value)}")
    if not value:
        raise ValueError("the list is empty; name a device, or leave the key out for all of them")
    complaints = Complaints()
    devices: list[int | str] = []
    for index, entry in enumerate(value):
        try:
            device = parse_device(entry)
        except ValueError as error:
            complaints.add(str(error), index)
            continue
        if device in devices:
            complaints.add(f"{device} is listed twice; workers_per_device gives a device several workers", index)
        devices.append(device)
    complaints()
    return tuple(devices)


def _memory(value: object, info: ValidationInfo) -> Memory:
    return parse_memory(value, info.data.get("workers_per_device"))


def _runtime_dir(value: object, info: ValidationInfo) -> Path | None:
    return None if value is None else parse_runtime_dir(value, _context(info).folder)


_DEVICES_SCHEMA: Final[dict[str, Any]] = {
    "oneOf": [
        {"const": "all"},
        {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": UUID_PATTERN}]},
        },
        {
            "type": "object",
            "properties": {"cpu": {"type": "integer", "minimum": 1, "description": "How many CPU devices."}},
            "required": ["cpu"],
            "additionalProperties": False,
        },
    ]
}


class Config(_Section):
    """The configuration of one daemon; docs/configuration.md tells it to people."""

    insecure: bool = _key(False, "Allow `listen` addresses that other machines can reach, without encryption.")
    listen: Annotated[
        tuple[
            Annotated[str, PlainValidator(_endpoint), WithJsonSchema({"type": "string", "pattern": ENDPOINT_PATTERN})],
            ...,
        ],
        Field(strict=False, min_length=1),
    ] = _key([DEFAULT_ENDPOINT], "Endpoints for clients: ipc://PATH or tcp://HOST:PORT; the port may be *.")
    devices: Annotated[
        Literal["all"] | tuple[int | str, ...] | CpuDevices,
        PlainValidator(_devices),
        WithJsonSchema(_DEVICES_SCHEMA),
    ] = _key("all", "Where workers run: all, a list of indices and UUIDs of GPUs, or {cpu: N}.")
    workers_per_device: Count = _key(1, "Worker processes on each device.")
    memory: Annotated[
        Memory, PlainValidator(_memory), WithJsonSchema({"type": "string", "pattern": MEMORY_PATTERN})
    ] = _key("growth", "Device memory of each worker: growth on demand, a size (6GiB) or a share of the device (80%).")
    threads: Threads = _key({}, "TensorFlow's threads in each worker.")
    cores: Literal["auto", "split", "shared"] = _key(
        "auto",
        "The host's cores: split binds each worker to its own equal slice, shared binds none, "
        "auto splits where each worker can have two or more.",
    )
    models: Annotated[tuple[ModelConfig, ...], Field(strict=False, min_length=1)] = Field(
        description="The models; every worker loads all of them."
    )
    spares: CountFromZero = _key(1, "Processes that wait with TensorFlow imported, to take over from a dead worker.")
    restart: Restart = _key({}, "When a dead worker is started again, and when its slot is given up.")
    exit_when_failed: bool = _key(False, "End with exit code 69 once every slot has failed, instead of staying.")
    runtime_dir: Annotated[
        Path | None, PlainValidator(_runtime_dir), WithJsonSchema({"type": "string", "minLength": 1})
    ] = _key(None, "The folder of internal sockets; by default one is found or made.")
    drain_timeout: Seconds = _key("30s", "How long a stop waits for the answers of accepted requests.")
    max_message_size: PositiveBytes = _key("64MiB", "The largest message, all its frames together; at least 1KiB.")

    _path: Path = PrivateAttr()

    @field_validator("max_message_size")
    @classmethod
    def _room_for_a_header(cls, value: int) -> int:
        if value < _MIN_MESSAGE_SIZE:
            raise ValueError(f"{format_size(value)} is less than {format_size(_MIN_MESSAGE_SIZE)}, the least")
        return value

    @property
    def path(self) -> Path:
        """The file's absolute path."""
        return self._path

    @property
    def folder(self) -> Path:
        """The file's absolute folder, where its relative paths start."""
        return self._path.parent


_TREE: Final = key_tree(Config)


def load(path: Path, *, environment: Mapping[str, str] = os.environ, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the file at `path`, with what the environment and `--set` say laid over it.

    Args:
        path: a YAML file.
        environment: variables, of which the `MULTITOWER_*` ones are settings.
        overrides: the arguments of `--set`, each `key.path=value`.

    Raises:
        ConfigError: it cannot be read or is wrong; all that is wrong is told at once.
    """
    reader = Reader(str(path))
    root = reader.read(read_file(path))
    if not isinstance(root.value, dict):
        what = "is empty" if root.value is None else f"holds {_kind(root)}, not a mapping of keys to values"
        raise ConfigError([Problem(root.place, (), f"the file {what}"), *reader.problems])
    root, wrong = config_overrides.apply(root, _TREE, environment, overrides)
    problems = [*reader.problems, *wrong]
    data, empty = sift(root, _TREE)
    problems += empty
    absolute = path.absolute()
    config = None
    try:
        config = Config.model_validate(data, context=_Context(absolute.parent))
    except ValidationError as error:
        problems += translate(error, root, _TREE, {problem.location for problem in problems})
    if config is None or problems:
        raise ConfigError(_ordered(problems))
    config._path = absolute
    return config


def _kind(root: Node) -> str:
    return "a list" if isinstance(root.value, list) else shown(root.value)


def _ordered(problems: list[Problem]) -> list[Problem]:
    """The file's problems by line, then those of overrides; no more of them than somebody reads."""
    ordered = sorted(problems, key=lambda problem: (not problem.place.line, problem.place.line, problem.place.column))
    if len(ordered) > MAX_PROBLEMS:
        rest = len(ordered) - MAX_PROBLEMS
        ordered = [
            *ordered[:MAX_PROBLEMS],
            Problem(Place(ordered[0].place.source), (), f"and {rest} more problems"),
        ]
    return ordered


def schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of the file, for editors; `load` checks more than a schema can say."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
        "title": "multitower configuration",
    }
