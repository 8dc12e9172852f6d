"""The configuration: all keys with their meanings, defaults and limits, and `load`, which reads a file.

The daemon, `multitower check` and a reload call `load`; `schema` is for editors. Unknown keys are refused. Defaults are
written as in a file, and validated in the same way.

Within a class the order of the fields matters; `models.py` explains why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

from multitower.liveness import MAX_PEER_TIMEOUT_S, MIN_PEER_TIMEOUT_S
from multitower.wire import DEFAULT_ENDPOINT

from .devices import CpuDevices, Devices, cpu_names, flatten, on_cpus
from .errors import ValueProblems, drop_empty_keys, key_tree, to_problems
from .fields import (
    NOT_EMPTY,
    AutoOrConnections,
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
from .overrides import apply_overrides
from .source import MAX_PROBLEMS, ConfigError, Node, Position, Problem, read_file
from .units import SIZE_PATTERN, format_duration, format_size, parse_size, short_repr
from .values import (
    ENDPOINT_PATTERN,
    MEMORY_PATTERN,
    MemoryLimit,
    parse_endpoint,
    parse_memory,
    parse_runtime_dir,
)
from .yaml_reader import Reader

__all__ = [
    "Config",
    "ConfigError",
    "CpuDevices",
    "MemoryLimit",
    "ModelConfig",
    "Problem",
    "UnknownModelError",
    "load",
    "load_model",
    "schema",
]

_MIN_MESSAGE_SIZE: Final = 1 << 10
_MIN_WATCH_S: Final = 0.05
_MIN_HEARTBEAT_S: Final = 0.05
_MAX_HEARTBEAT_S: Final = 60.0
_MAX_MESSAGE_SIZE: Final = 1 << 40  # libzmq is given twice this value, in 64 bits


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
    """When a dead worker is restarted, and when its slot fails."""

    max_restarts: CountFromZero = key(5, "Restarts within `window` after which the slot fails.")
    window: PositiveSeconds = key("60s", "The time in which `max_restarts` counts.")
    backoff: Backoff = key({}, "The wait before a restart.")


class Watch(Section):
    """Watching the files of models while the daemon runs."""

    interval: SecondsOrOff = key(
        "1s", "How often the files of models are checked; 0 for never: `multitower reload` then finds what is new."
    )
    settle: Seconds = key("5s", "How long new or changed files must be unchanged before they are loaded.")

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


def _memory(value: object, info: ValidationInfo) -> MemoryLimit:
    memory = parse_memory(value)
    if memory != MemoryLimit() and on_cpus(info.data.get("devices", "all")):
        raise ValueError("limits the memory of GPUs; CPU devices have none of their own")
    return memory


def _optional_size(value: object) -> int | None:
    return None if value is None else parse_size(value)


def _runtime_dir(value: object, info: ValidationInfo) -> Path | None:
    return None if value is None else parse_runtime_dir(value, context_of(info).folder)


class Config(Section):
    """The configuration of one daemon. docs/configuration.md describes it for users."""

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
        "Where workers run: all, a list of indices and UUIDs of GPUs, {cpu: N}, or groups of devices, each for one "
        "worker, as in [[0, 1], [2, 3]].",
    )
    workers_per_device: Processes = key(1, "Worker processes on each device.")
    memory: Annotated[
        MemoryLimit, PlainValidator(_memory), WithJsonSchema({"type": "string", "pattern": MEMORY_PATTERN})
    ] = key(
        "growth",
        "Device memory: growth on demand, a size for each worker (6GiB), or a share of the device, divided among its "
        "workers (80%).",
    )
    threads: Threads = key({}, "TensorFlow's threads in each worker.")
    cores: Literal["auto", "split", "shared"] = key(
        "auto",
        "The host's cores: split binds each worker to cores of its own, on the NUMA node of its device; shared binds "
        "none; auto splits if each worker can have two or more.",
    )
    models: Annotated[tuple[ModelConfig, ...], *NOT_EMPTY] = Field(
        description="The models; every worker loads all of them, or those for its device."
    )
    watch: Watch = key({}, "Watching the files of models while the daemon runs.")
    spares: ProcessesFromZero = key(1, "Processes that have imported TensorFlow and wait to replace a dead worker.")
    restart: Restart = key({}, "When a dead worker is restarted, and when its slot fails.")
    dispatch: Literal["earliest_finish", "least_depth"] = key(
        "earliest_finish",
        "Which worker gets the next batch: earliest_finish is the one expected to finish it first, by measured times; "
        "least_depth is the one with the fewest rows.",
    )
    load_timeout: PositiveSeconds = key(
        "30m",
        "The longest time for loading one model in a worker, with its warm-up, and for the start of a worker before "
        "that; `models[].load_timeout` overrides it for one model.",
    )
    heartbeat: PositiveSeconds = key("1s", "How often a worker sends a heartbeat.")
    max_requests: CountFromZero = key(
        0, "Requests after which a worker is replaced, give or take a tenth; 0 for no limit."
    )
    max_rss: Annotated[
        int | None,
        PlainValidator(_optional_size),
        WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN}),
    ] = key(None, "Resident memory above which a worker is replaced, or up to a tenth earlier; no limit without it.")
    exit_when_failed: bool = key(False, "Exit with code 69 once every slot has failed, instead of running on.")
    runtime_dir: Annotated[
        Path | None, PlainValidator(_runtime_dir), WithJsonSchema({"type": "string", "minLength": 1})
    ] = key(None, "The folder of internal sockets; by default a private one is chosen or created.")
    drain_timeout: Seconds = key("30s", "How long a stop waits for the answers of accepted requests.")
    max_message_size: PositiveBytes = key("64MiB", "The largest message, all its frames together; at least 1KiB.")
    max_unread_bytes: PositiveBytes = key(
        "2GiB",
        "Replies that all clients together may leave unread; those that hold the most are refused from half of it on.",
    )
    unread_timeout: PositiveSeconds = key(
        "30s",
        "How long a client may read nothing, near `max_unread_bytes`, before replies to it are dropped.",
    )
    max_connections: AutoOrConnections = key(
        "auto",
        "Connections of clients that may be open at one time; others wait. auto: as many as the limit of file "
        "descriptors allows, less a reserve.",
    )
    peer_timeout: SecondsOrOff = key(
        "30s",
        "A client over tcp that sends nothing for so long, no answer to heartbeats either, is gone; 0 for never.",
    )

    _path: Path = PrivateAttr()
    _not_yet: Mapping[str, Problem] = PrivateAttr(default_factory=dict)

    @field_validator("max_message_size")
    @classmethod
    def _within_limits(cls, value: int) -> int:
        if value < _MIN_MESSAGE_SIZE:
            raise ValueError(f"{format_size(value)} is less than {format_size(_MIN_MESSAGE_SIZE)}, the least")
        if value > _MAX_MESSAGE_SIZE:
            raise ValueError(f"{format_size(value)} is more than {format_size(_MAX_MESSAGE_SIZE)}, the most")
        return value

    @field_validator("peer_timeout")
    @classmethod
    def _within_heartbeats(cls, value: float) -> float:
        if value != 0 and not MIN_PEER_TIMEOUT_S <= value <= MAX_PEER_TIMEOUT_S:
            least, most = format_duration(MIN_PEER_TIMEOUT_S), format_duration(MAX_PEER_TIMEOUT_S)
            raise ValueError(f"must be from {least} to {most}, not {format_duration(value)}; 0: never")
        return value

    @field_validator("models")
    @classmethod
    def _on_the_daemons_devices(cls, value: tuple[ModelConfig, ...], info: ValidationInfo) -> tuple[ModelConfig, ...]:
        names = cpu_names(info.data.get("devices", "all"))
        if names is None:
            return value
        problems = ValueProblems()
        for number, model in enumerate(value):
            for index, item in enumerate(model.devices if model.devices != "all" else ()):
                for device in flatten((item,)):
                    if device not in names:
                        message = f"{device} is not one of the daemon's devices, {', '.join(map(str, names))}"
                        problems.add(message, number, "devices", index)
        problems.raise_any()
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
    def not_yet(self) -> Mapping[str, Problem]:
        """The files and folders that were not there yet when the file was read, by the model's name."""
        return self._not_yet

    @property
    def folder(self) -> Path:
        """The file's absolute folder. Relative paths in the file start there."""
        return self._path.parent


_TREE: Final = key_tree(Config)


class UnknownModelError(LookupError):
    """A configuration file names no such model."""


def load(
    path: str | os.PathLike[str],
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Sequence[str] = (),
    strict: bool = True,
) -> Config:
    """Reads the configuration file at `path`, with overrides from the environment and from `--set`.

    Args:
        path: a YAML file.
        environment: variables; those that begin with `MULTITOWER_` are overrides.
        overrides: the arguments of `--set`, each `key.path=value`.
        strict: whether it is a problem that a model's files are not there yet; otherwise `Config.not_yet` has them.

    Raises:
        ConfigError: the file cannot be read, or the configuration is wrong; it holds all problems.
    """
    path = Path(path)
    root, problems = _read(path, environment, overrides)
    return _check(root, problems, path.absolute(), strict=strict)


def load_model(
    path: str | os.PathLike[str],
    name: str,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Sequence[str] = (),
    strict: bool = True,
) -> Config:
    """Reads the section of one model. What is wrong elsewhere in the file does not matter, as long as it is YAML.

    Args:
        path: see `load`.
        name: the model's name.
        environment: see `load`.
        overrides: see `load`.
        strict: see `load`.

    Returns:
        A configuration with that model only; all other keys have their defaults.

    Raises:
        UnknownModelError: no section has this name.
        ConfigError: the file cannot be read, or the section is wrong; it holds all problems of the section.
    """
    path = Path(path)
    root, problems = _read(path, environment, overrides)
    key_position, models = root.value.get("models", (root.position, Node(root.position, None)))
    sections = models.value if isinstance(models.value, list) else []
    names = [_name_in(section) for section in sections]
    if name not in names:
        known = ", ".join(map(str, filter(None, names)))
        raise UnknownModelError(f"{path.absolute()} names no model {name[:128]!r}, only {known}")
    kept = [index for index, other in enumerate(names) if other == name]
    only = Node(root.position, {"models": (key_position, Node(models.position, [sections[index] for index in kept]))})
    own = [
        _moved(problem, {old: new for new, old in enumerate(kept)})
        for problem in problems
        if _model_of(problem) in kept
    ]
    try:
        return _check(only, own, path.absolute(), strict=strict)
    except ConfigError as error:
        raise ConfigError([_moved(problem, dict(enumerate(kept))) for problem in error.problems]) from None


def _model_of(problem: Problem) -> str | int | None:
    """The index of the model whose section has the problem; None if it is elsewhere."""
    return problem.location[1] if problem.location[:1] == ("models",) and len(problem.location) > 1 else None


def _moved(problem: Problem, new_index: Mapping[str | int, int]) -> Problem:
    """The problem with another index of its model."""
    model = _model_of(problem)
    if model is None:
        return problem
    return replace(problem, location=("models", new_index[model], *problem.location[2:]))


def _name_in(section: Node) -> object:
    """The name of a model in its section, whatever else is wrong there; None where it has none."""
    return section.value["name"][1].value if isinstance(section.value, dict) and "name" in section.value else None


def _read(path: Path, environment: Mapping[str, str], overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """The file's mapping with all overrides, and the problems of both.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    reader = Reader(str(path))
    root = reader.read(read_file(path))
    if not isinstance(root.value, dict):
        what = "is empty" if root.value is None else f"holds {_kind(root)}, not a mapping of keys to values"
        raise ConfigError([Problem(root.position, (), f"the file {what}"), *reader.problems])
    root, override_problems = apply_overrides(root, _TREE, environment, overrides)
    return root, [*reader.problems, *override_problems]


def _check(root: Node, problems: list[Problem], path: Path, *, strict: bool) -> Config:
    """Checks the file's keys and values.

    Args:
        root: the file's mapping.
        problems: what is wrong already; not changed.
        path: the file's absolute path.
        strict: see `load`.

    Raises:
        ConfigError: something is wrong.
    """
    data, empty = drop_empty_keys(root, _TREE)
    problems = [*problems, *empty]
    config = None
    context = Context(path.parent, strict)
    try:
        config = Config.model_validate(data, context=context)
    except ValidationError as error:
        problems += to_problems(error, root, _TREE, {problem.location for problem in problems})
    if config is None or problems:
        raise ConfigError(_in_file_order(problems))
    config._path = path
    config._not_yet = {}
    for index, model in enumerate(config.models):
        for key_name in ("path", "warmup", "custom_ops"):
            message = context.not_yet.get((model.name, key_name))
            if message is not None:
                location = ("models", index, key_name)
                config._not_yet.setdefault(model.name, Problem(root.find(location), location, message))
    return config


def _kind(root: Node) -> str:
    return "a list" if isinstance(root.value, list) else short_repr(root.value)


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    """The file's problems by line, then those of overrides; at most `MAX_PROBLEMS`."""
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
    """A JSON Schema (draft 2020-12) of the file, for editors. `load` also checks what a schema cannot express."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "multitower configuration",
        **_simplify(Config.model_json_schema()),
    }


def _simplify(part: Any) -> Any:
    """A part of pydantic's schema without generated titles, and without null, which no key accepts."""
    if isinstance(part, list):
        return [_simplify(item) for item in part]
    if not isinstance(part, dict):
        return part
    part = {name: value for name, value in part.items() if name != "title" and (name, value) != ("default", None)}
    choices = [choice for choice in part.pop("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        part |= choices[0]
    elif choices:
        part["anyOf"] = choices
    return {name: _simplify(value) for name, value in part.items()}
