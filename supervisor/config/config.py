"""The configuration: every key with its meaning, default and limits, and `load`, which reads a file of them.

The daemon, `multitower check` and a reload call `load`; editors get `schema`. A key arrives with its feature:
what is not here is refused as unknown. Defaults stand here as in a file and are validated like what stands there.

Within a class the order of the fields matters, as `config_models` explains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from multitower.wire import DEFAULT_ENDPOINT

from . import overrides as config_overrides
from .devices import CpuDevices, Devices, cpu_names, flat, on_cpus
from .errors import Complaints, key_tree, sift, translate
from .fields import (
    NOT_EMPTY,
    AutoOrCount,
    Context,
    CountFromZero,
    PositiveBytes,
    PositiveSeconds,
    Processes,
    ProcessesFromZero,
    Seconds,
    SecondsOrOff,
    Section,
    context_of,
    key,
)
from .models import ModelConfig
from .source import MAX_PROBLEMS, ConfigError, Node, Position, Problem, read_file
from .units import SIZE_PATTERN, format_duration, format_size, parse_size, shown
from .values import (
    ENDPOINT_PATTERN,
    MEMORY_PATTERN,
    Memory,
    parse_endpoint,
    parse_memory,
    parse_runtime_dir,
)
from .yaml_reader import Reader

__all__ = ["Config", "ConfigError", "CpuDevices", "Memory", "ModelConfig", "Problem", "load", "schema"]

_MIN_MESSAGE_SIZE: Final = 1 << 10
_MIN_WATCH_S: Final = 0.05
_MIN_HEARTBEAT_S: Final = 0.05
_MAX_HEARTBEAT_S: Final = 60.0
_MAX_MESSAGE_SIZE: Final = 1 << 40  # libzmq is told twice that, and counts in 64 bits


class Threads(Section):
    """TensorFlow's threads in each worker."""

    intra_op: AutoOrCount = key("auto", "Threads within one operation; auto is a fair share of the host's cores.")
    inter_op: AutoOrCount = key("auto", "Operations at one time; auto is a fair share of the host's cores.")


class Backoff(Section):
    """The wait before a restart: it doubles from `first` to `max`."""

    first: PositiveSeconds = key("500ms", "The first wait before a restart.")
    max: PositiveSeconds = key("30s", "The longest wait before a restart.")

    @field_validator("max")
    @classmethod
    def _not_below_first(cls, value: float, info: ValidationInfo) -> float:
        first = info.data.get("first", value)
        if value < first:
            raise ValueError(f"{format_duration(value)} is less than first ({format_duration(first)})")
        return value


class Restart(Section):
    """When a dead worker is started again, and when its slot is given up."""

    max_restarts: CountFromZero = key(5, "Restarts within `window` after which a slot is given up as failed.")
    window: PositiveSeconds = key("60s", "The time in which `max_restarts` counts.")
    backoff: Backoff = key({}, "The wait before a restart.")


class Watch(Section):
    """Looking for new versions of models, and for those that are gone, while the daemon runs."""

    interval: SecondsOrOff = key(
        "1s", "How often the folders of versions are looked at; 0 for never: then `multitower reload` takes new ones."
    )
    settle: Seconds = key("5s", "How long the files of a new version must have stayed as they are before it is loaded.")

    @field_validator("interval")
    @classmethod
    def _not_too_often(cls, value: float) -> float:
        if 0 < value < _MIN_WATCH_S:
            raise ValueError(
                f"must be at least {format_duration(_MIN_WATCH_S)}, not {format_duration(value)}; 0: never"
            )
        return value


def _endpoint(value: object, info: ValidationInfo) -> str:
    context = context_of(info)
    endpoint = parse_endpoint(value, context.folder, insecure=info.data.get("insecure"))
    if endpoint in context.endpoints:
        raise ValueError(f"{endpoint} is listed twice")
    context.endpoints.add(endpoint)
    return endpoint


def _memory(value: object, info: ValidationInfo) -> Memory:
    memory = parse_memory(value)
    if memory != Memory() and on_cpus(info.data.get("devices", "all")):
        raise ValueError("limits the memory of GPUs; CPU devices have none of their own")
    return memory


def _optional_size(value: object) -> int | None:
    return None if value is None else parse_size(value)


def _runtime_dir(value: object, info: ValidationInfo) -> Path | None:
    return None if value is None else parse_runtime_dir(value, context_of(info).folder)


class Config(Section):
    """The configuration of one daemon; docs/configuration.md tells it to people."""

    insecure: bool = key(False, "Allow `listen` addresses that other machines can reach, without encryption.")
    listen: Annotated[
        tuple[
            Annotated[str, PlainValidator(_endpoint), WithJsonSchema({"type": "string", "pattern": ENDPOINT_PATTERN})],
            ...,
        ],
        *NOT_EMPTY,
    ] = key([DEFAULT_ENDPOINT], "Endpoints for clients: ipc://PATH or tcp://HOST:PORT; the port may be *.")
    devices: Devices = key(
        "all",
        "Where workers run: all, a list of indices and UUIDs of GPUs, {cpu: N}, or [[0, 1], [2, 3]]: groups of devices "
        "that one worker has together.",
    )
    workers_per_device: Processes = key(1, "Worker processes on each device.")
    memory: Annotated[
        Memory, PlainValidator(_memory), WithJsonSchema({"type": "string", "pattern": MEMORY_PATTERN})
    ] = key(
        "growth",
        "Device memory: growth on demand, a size for each worker (6GiB), or a share of the device, divided among its "
        "workers (80%).",
    )
    threads: Threads = key({}, "TensorFlow's threads in each worker.")
    cores: Literal["auto", "split", "shared"] = key(
        "auto",
        "The host's cores: split binds each worker to its own, of the NUMA node that its device is at, shared binds "
        "none, auto splits where each worker can have two or more.",
    )
    models: Annotated[tuple[ModelConfig, ...], *NOT_EMPTY] = Field(
        description="The models; every worker loads all of them, or those for its device."
    )
    watch: Watch = key({}, "Looking for new versions of models while the daemon runs.")
    spares: ProcessesFromZero = key(1, "Processes that wait with TensorFlow imported, to take over from a dead worker.")
    restart: Restart = key({}, "When a dead worker is started again, and when its slot is given up.")
    dispatch: Literal["earliest_finish", "least_depth"] = key(
        "earliest_finish",
        "Who gets the next batch: earliest_finish is the worker expected to be done with it first, by measured times; "
        "least_depth is whoever has the fewest rows.",
    )
    heartbeat: PositiveSeconds = key("1s", "How often a worker shows that it lives.")
    max_requests: CountFromZero = key(
        0, "Requests after which a worker is replaced, give or take a tenth; 0 for no limit."
    )
    max_rss: Annotated[
        int | None,
        PlainValidator(_optional_size),
        WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN}),
    ] = key(None, "Resident memory above which a worker is replaced, or up to a tenth earlier; no limit without it.")
    exit_when_failed: bool = key(False, "End with exit code 69 once every slot has failed, instead of staying.")
    runtime_dir: Annotated[
        Path | None, PlainValidator(_runtime_dir), WithJsonSchema({"type": "string", "minLength": 1})
    ] = key(None, "The folder of internal sockets; by default one is found or made.")
    drain_timeout: Seconds = key("30s", "How long a stop waits for the answers of accepted requests.")
    max_message_size: PositiveBytes = key("64MiB", "The largest message, all its frames together; at least 1KiB.")

    _path: Path = PrivateAttr()

    @field_validator("max_message_size")
    @classmethod
    def _room_for_a_header(cls, value: int) -> int:
        if value < _MIN_MESSAGE_SIZE:
            raise ValueError(f"{format_size(value)} is less than {format_size(_MIN_MESSAGE_SIZE)}, the least")
        if value > _MAX_MESSAGE_SIZE:
            raise ValueError(f"{format_size(value)} is more than {format_size(_MAX_MESSAGE_SIZE)}, the most")
        return value

    @field_validator("models")
    @classmethod
    def _on_the_daemons_devices(cls, value: tuple[ModelConfig, ...], info: ValidationInfo) -> tuple[ModelConfig, ...]:
        names = cpu_names(info.data.get("devices", "all"))
        if names is None:
            return value
        complaints = Complaints()
        for number, model in enumerate(value):
            for index, item in enumerate(model.devices if model.devices != "all" else ()):
                for device in flat((item,)):
                    if device not in names:
                        message = f"{device} is not one of the daemon's devices, {', '.join(map(str, names))}"
                        complaints.add(message, number, "devices", index)
        complaints()
        return value

    @field_validator("heartbeat")
    @classmethod
    def _not_too_often(cls, value: float) -> float:
        if not _MIN_HEARTBEAT_S <= value <= _MAX_HEARTBEAT_S:
            least, most = format_duration(_MIN_HEARTBEAT_S), format_duration(_MAX_HEARTBEAT_S)
            raise ValueError(f"must be from {least} to {most}, not {format_duration(value)}")
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


def load(
    path: str | os.PathLike[str], *, environment: Mapping[str, str] = os.environ, overrides: Sequence[str] = ()
) -> Config:
    """The configuration in the file at `path`, with what the environment and `--set` say laid over it.

    Args:
        path: a YAML file.
        environment: variables, of which the `MULTITOWER_*` ones are settings.
        overrides: the arguments of `--set`, each `key.path=value`.

    Raises:
        ConfigError: it cannot be read or is wrong; all that is wrong is told at once.
    """
    path = Path(path)
    reader = Reader(str(path))
    root = reader.read(read_file(path))
    if not isinstance(root.value, dict):
        what = "is empty" if root.value is None else f"holds {_kind(root)}, not a mapping of keys to values"
        raise ConfigError([Problem(root.position, (), f"the file {what}"), *reader.problems])
    root, wrong = config_overrides.apply(root, _TREE, environment, overrides)
    problems = [*reader.problems, *wrong]
    data, empty = sift(root, _TREE)
    problems += empty
    absolute = path.absolute()
    config = None
    try:
        config = Config.model_validate(data, context=Context(absolute.parent))
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
    ordered = sorted(
        problems, key=lambda problem: (not problem.position.line, problem.position.line, problem.position.column)
    )
    if len(ordered) > MAX_PROBLEMS:
        rest = len(ordered) - MAX_PROBLEMS
        ordered = [
            *ordered[:MAX_PROBLEMS],
            Problem(Position(ordered[0].position.source), (), f"and {rest} more problems"),
        ]
    return ordered


def schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of the file, for editors; `load` checks more than a schema can say."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "multitower configuration",
        **_without_noise(Config.model_json_schema()),
    }


def _without_noise(part: Any) -> Any:
    """A part of pydantic's schema without names made of the keys, and without null, which no key of a file takes."""
    if isinstance(part, list):
        return [_without_noise(item) for item in part]
    if not isinstance(part, dict):
        return part
    part = {name: value for name, value in part.items() if name != "title" and (name, value) != ("default", None)}
    choices = [choice for choice in part.pop("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        part |= choices[0]
    elif choices:
        part["anyOf"] = choices
    return {name: _without_noise(value) for name, value in part.items()}
