"""The configuration: all keys with their meanings, defaults and limits, and their schema for editors.

`loading.py` reads it from a file. Unknown keys are refused. Defaults are written as in a file, and validated in the
same way.

Within a class the order of the fields matters; `models.py` explains why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from multitower.liveness import MAX_PEER_TIMEOUT_S, MIN_PEER_TIMEOUT_S
from multitower.wire import DEFAULT_ENDPOINT

from .devices import CpuDevices, Devices, cpu_names, flatten, on_cpus
from .gateway import GatewayConfig
from .models import ModelConfig
from .principals import Principals
from .request_log import RequestLogConfig
from .section_types import (
    NOT_EMPTY,
    AutoOrConnections,
    AutoOrCount,
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
    one_or_more,
    one_or_more_schema,
)
from .security import SecurityConfig
from .source import Problem
from .tracing import TracingConfig
from .units import SIZE_PATTERN, format_duration, format_size, parse_size
from .validation_errors import ValueProblems
from .value_syntax import (
    ENDPOINT_PATTERN,
    MEMORY_PATTERN,
    MemoryLimit,
    either,
    parse_endpoint,
    parse_memory,
    parse_runtime_dir,
)

__all__ = ["Config", "CpuDevices", "MemoryLimit", "ModelConfig", "schema"]

_MIN_MESSAGE_SIZE: Final = 1 << 10
_MIN_WATCH_S: Final = 0.05
_MIN_HEARTBEAT_S: Final = 0.05
_MAX_HEARTBEAT_S: Final = 60.0
_MAX_SPIN_S: Final = 0.001  # a wake-up takes far less
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


class Metrics(Section):
    """What the daemon reports to monitoring systems."""

    compatibility: Annotated[tuple[Literal["triton", "tensorflow_serving"], ...], Field(strict=False)] = key(
        [], "Systems whose names of metrics are exported as well, a list: triton, tensorflow_serving, or both."
    )


def _endpoints(value: object, info: ValidationInfo) -> tuple[str, ...]:
    """Parses one endpoint or a list of them."""
    context = context_of(info)

    def parse(item: object) -> str:
        lacks_curve = context.security and context.curve is False
        guarded = either(context.insecure, context.curve) if not lacks_curve else None
        endpoint = parse_endpoint(item, context.folder, guarded=guarded)
        if lacks_curve and endpoint.startswith("tcp://"):
            raise ValueError(f"{endpoint} needs `security.curve`: without it no client could show who it is")
        if endpoint in context.endpoints:
            raise ValueError(f"{endpoint} is listed twice")
        context.endpoints.add(endpoint)
        return endpoint

    return one_or_more(value, parse, "must not be empty")


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

    insecure: bool = key(False, "Allow addresses that other machines can reach without encryption or credentials.")
    security: SecurityConfig | None = key(
        None, "Who may do what, and encryption; without it, anybody who connects may."
    )
    listen: Annotated[
        tuple[str, ...],
        PlainValidator(_endpoints),
        WithJsonSchema(one_or_more_schema({"type": "string", "pattern": ENDPOINT_PATTERN})),
    ] = key(DEFAULT_ENDPOINT, "Endpoints for clients: ipc://PATH or tcp://HOST:PORT, or a list; the port may be *.")
    gateway: GatewayConfig | None = key(None, "Serving HTTP and gRPC through the gateway; without it, neither.")
    tracing: TracingConfig | None = key(None, "Sending traces of requests to a collector; without it, none.")
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
    slow_load: SecondsOrOff = key(
        "1m",
        "The time for loading one model after which a second worker serves the other models of the slot until it has "
        "been loaded, if memory suffices for two; 0 for never.",
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
    request_log: RequestLogConfig | None = key(
        None, "Writing a line of JSON for each request to a file; without it, none."
    )
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
    spin: SecondsOrOff = key(
        0,
        "How long the router and idle workers look for messages again and again before they sleep, at most 1ms; 0 for "
        "not at all. Off by itself where there are fewer cores than threads that are busy.",
    )
    metrics: Metrics = key({}, "What is reported to monitoring systems.")

    _path: Path = PrivateAttr()
    _not_yet: Mapping[str, Problem] = PrivateAttr(default_factory=dict)
    _principals: Principals | None = PrivateAttr(default=None)

    @field_validator("insecure")
    @classmethod
    def _noted(cls, value: bool, info: ValidationInfo) -> bool:
        context_of(info).insecure = value  # addresses below, in sections too, are parsed with it
        return value

    @field_validator("security", mode="before")
    @classmethod
    def _known_to_be_there(cls, value: object, info: ValidationInfo) -> object:
        if value is not None:
            context = context_of(info)
            context.security = context.curve = None  # until it has been found to be right
        return value

    @field_validator("security")
    @classmethod
    def _known_to_be_right(cls, value: SecurityConfig | None, info: ValidationInfo) -> SecurityConfig | None:
        context_of(info).security = value is not None
        return value

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

    @field_validator("spin")
    @classmethod
    def _short(cls, value: float) -> float:
        if value > _MAX_SPIN_S:
            raise ValueError(f"must be at most {format_duration(_MAX_SPIN_S)}, not {format_duration(value)}; 0: off")
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

    def record_source(self, path: Path, not_yet: Mapping[str, Problem], principals: Principals | None = None) -> None:
        """Records where the configuration was read, and what was read with it; for `load`.

        Args:
            path: the file's absolute path.
            not_yet: see `Config.not_yet`.
            principals: see `Config.principals`.
        """
        self._path, self._not_yet, self._principals = path, not_yet, principals

    @property
    def path(self) -> Path:
        """The file's absolute path."""
        return self._path

    @property
    def not_yet(self) -> Mapping[str, Problem]:
        """The files and folders that were not there yet when the file was read, by the model's name."""
        return self._not_yet

    @property
    def principals(self) -> Principals | None:
        """Who may do what, as the file of `security.principals` had it then; None without `security`."""
        return self._principals

    @property
    def folder(self) -> Path:
        """The file's absolute folder. Relative paths in the file start there."""
        return self._path.parent


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
