"""The section `models` of a configuration: where each model comes from, and how its requests are queued and batched.

Within a class the order of the fields matters: a validator sees the valid fields above its own (`info.data`). A rule
about two fields belongs to the lower one, and so is reported together with all other problems. A validator of the whole
section would run only if each field is valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from multitower.format_registry import FORMATS
from multitower.spec import ModelSpec

from .devices import ModelDevices
from .section_types import (
    Count,
    CountFromZero,
    OptionalPositiveSeconds,
    PositiveBytes,
    PositiveSeconds,
    Seconds,
    SecondsOrOff,
    Section,
    context_of,
    format_of,
    key,
)
from .units import short_repr
from .validation_errors import ValueProblems, raise_missing_key
from .value_syntax import (
    HANDLER_PATTERN,
    NAME_PATTERN,
    NotYetError,
    UnansweredError,
    parse_handler,
    parse_name,
)
from .versions import VersionLabels, VersionPolicy


class Batching(Section):
    """How requests are batched for one call of the model."""

    max_batch_size: CountFromZero = key(32, "The most rows of a batch; 0 runs requests one by one.")
    allowed_batch_sizes: Annotated[tuple[Count, ...], Field(strict=False)] = key(
        [],
        "Sizes that batches are padded to, ascending, the last being `max_batch_size`; empty for no padding.",
    )
    pad_variable_length_inputs: bool = key(
        False, "Pad requests that differ in dimensions other than the rows, so that they share batches."
    )
    trust: bool = key(
        False, "Batch the model without comparing values, which may show that rows of a batch influence each other."
    )
    max_queue_delay: Seconds = key(
        "0ms", "How long a request waits for others to fill its batch although a worker is free."
    )

    @field_validator("allowed_batch_sizes")
    @classmethod
    def _ascending_to_the_largest(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        problems = ValueProblems()
        for index, (before, size) in enumerate(pairwise(value), 1):
            if size <= before:
                problems.add(f"{size} after {before}: the sizes must ascend", index)
        largest = info.data.get("max_batch_size")
        if value and largest == 0:
            raise ValueError("needs batches, but max_batch_size is 0")
        if value and largest is not None and value[-1] != largest:
            problems.add(f"the last size must be max_batch_size, {largest}, not {value[-1]}", len(value) - 1)
        problems.raise_any()
        return value


class Queue(Section):
    """A model's queue: the requests that no worker has yet. A full queue refuses requests."""

    max_size: Count = key(1000, "Requests that may wait.")
    max_bytes: PositiveBytes = key("512MiB", "Bytes of tensors that may wait.")
    timeout: PositiveSeconds = key("30s", "The longest time for a request; its own timeout may be shorter.")


def _name(value: object, info: ValidationInfo) -> str:
    name = parse_name(value)
    context = context_of(info)
    if name in context.names:
        raise ValueError(f"'{name}' is the name of a model above as well")
    context.names.add(name)
    return name


def _path(value: object, info: ValidationInfo) -> Path | None:
    if value is None:
        return None
    try:
        return context_of(info).files.parse_model_path(value)
    except NotYetError as error:
        return _accept_later(error, info)


def _accept_later(error: NotYetError, info: ValidationInfo) -> Path:
    """Returns the path of what is not there yet, unless that is a problem."""
    context = context_of(info)
    if context.strict:
        raise error
    if isinstance(error, UnansweredError):
        context.unanswered.add(error.path)
    context.not_yet.setdefault((str(info.data.get("name")), str(info.field_name)), str(error))
    return error.path


def _handler(value: object, info: ValidationInfo) -> str | None:
    if value is None:
        if info.data.get("path", value) is None and "path" in info.data:
            raise_missing_key("path", "handler")
        return None
    if info.data.get("path", value) is not None:
        raise ValueError("a model has a path or a handler, not both")
    handler = parse_handler(value)
    context = context_of(info)
    cause = context.files.why_handler_missing(handler) if context.find_handlers else None
    if cause is not None:
        raise ValueError(cause)
    return handler


def _parameters(value: object, info: ValidationInfo) -> Mapping[str, Any]:
    if value is None:
        return {}
    if info.data.get("handler", value) is None:
        raise ValueError("is allowed with a handler only")
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping of keys to values, not {short_repr(value)}")
    return value


def _signature(value: object, info: ValidationInfo) -> str | None:
    if value is None:
        return None
    if info.data.get("path", value) is None:
        raise ValueError("is allowed with a path only")
    path = info.data.get("path")
    if path is not None and not format_of(info).has_signatures:
        raise ValueError(f"is allowed with a SavedModel only; {format_of(info).title} has no signatures")
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be the name of a signature, not {short_repr(value)}")
    return value


def _tags(value: object, info: ValidationInfo) -> tuple[str, ...]:
    """The tags of a SavedModel's MetaGraph."""
    if value is None:
        return ()
    path = info.data.get("path")
    if path is None or not format_of(info).has_signatures:
        if "path" not in info.data:
            return ()  # `path` is wrong itself, and reported
        raise ValueError("is allowed with a SavedModel only")
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of tags, as in [serve, gpu], not {short_repr(value)}")
    problems = ValueProblems()
    for index, tag in enumerate(value):
        if not isinstance(tag, str) or not tag:
            problems.add(f"must be a tag of a MetaGraph, as in serve, not {short_repr(tag)}", index)
        elif tag in value[:index]:
            problems.add(f"{short_repr(tag)} is listed twice", index)
    problems.raise_any()
    return tuple(value)


def _tensors(value: object, info: ValidationInfo) -> Mapping[str, str]:
    """The inputs or outputs of a frozen graph, which does not name them itself."""
    if value is None:
        if format_of(info).names_tensors:
            example = _TENSORS_EXAMPLE[str(info.field_name)]
            raise ValueError(
                f"{format_of(info).title} needs it: {example}; the page 'Frozen graphs' of multitower's documentation "
                "shows how to find the names"
            )
        return {}
    if not format_of(info).names_tensors:
        if "path" not in info.data:
            return {}  # `path` is wrong itself, and reported
        allowed = [f"{each.title} ({', '.join(each.suffixes)})" for each in FORMATS if each.names_tensors]
        raise ValueError(f"is allowed with {' or '.join(allowed)} only")
    if not isinstance(value, dict) or not value:
        example = _TENSORS_EXAMPLE[str(info.field_name)]
        raise ValueError(f"must be a mapping of names to tensors, as in {example}, not {short_repr(value)}")
    problems = ValueProblems()
    for name, tensor in value.items():
        if not name:
            raise ValueError("a name must not be empty")
        if not isinstance(tensor, str) or not tensor:
            problems.add(f'must be a tensor of the graph, as in "softmax:0", not {short_repr(tensor)}', name)
    problems.raise_any()
    return value


_TENSORS_EXAMPLE = {"inputs": '{x: "x:0"}', "outputs": '{scores: "softmax:0"}'}
Tensors = Annotated[
    Mapping[str, str],
    PlainValidator(_tensors),
    WithJsonSchema({"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "minLength": 1}}),
]


def _warmup(value: object, info: ValidationInfo) -> Path | None:
    if value is None:
        return None
    try:
        return context_of(info).files.parse_file(value, ".npz", "inputs")
    except NotYetError as error:
        return _accept_later(error, info)


def _custom_ops(value: object, info: ValidationInfo) -> tuple[Path, ...]:
    if value == []:
        return ()
    if info.data.get("path", value) is None:
        raise ValueError("needs a path; a handler loads its libraries itself")
    if not isinstance(value, list):
        raise ValueError(f"must be a list of libraries, as in [ops/libops.so], not {short_repr(value)}")
    problems = ValueProblems()
    libraries: list[Path] = []
    for index, item in enumerate(value):
        try:
            library = _library(item, info)
        except ValueError as error:
            problems.add(str(error), index)
            continue
        if library in libraries:
            problems.add(f"{short_repr(item)} is listed twice", index)
        libraries.append(library)
    problems.raise_any()
    return tuple(libraries)


def _library(value: object, info: ValidationInfo) -> Path:
    try:
        return context_of(info).files.parse_file(value, ".so", "operations")
    except NotYetError as error:
        return _accept_later(error, info)


def _needs_path(value: Any, info: ValidationInfo) -> Any:
    if "path" in info.data and info.data["path"] is None and value not in ("towers", False):
        raise ValueError("needs a path; a handler chooses its devices itself")
    return value


class ModelConfig(Section):
    """One model: where it comes from, and how its requests are queued and batched."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["path"]}, {"required": ["handler"]}],
            "dependentRequired": {
                "parameters": ["handler"],
                "signature": ["path"],
                "tags": ["path"],
                "inputs": ["path"],
                "outputs": ["path"],
                "custom_ops": ["path"],
                "versions": ["path"],
                "version_labels": ["path"],
            },
        }
    )

    name: Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})] = Field(
        description="The name in requests; unique."
    )
    path: Annotated[Path | None, PlainValidator(_path), WithJsonSchema({"type": "string", "minLength": 1})] = key(
        None,
        "A SavedModel folder, a folder of numbered versions of one, or a file: .keras, .h5, or a frozen graph (.pb).",
    )
    versions: VersionPolicy = key(
        "latest",
        "Which versions in the folder are served: latest, all, {latest: N} for the N highest, or {specific: [N, …]}.",
    )
    version_labels: VersionLabels = key(None, "Names of versions, which requests may use instead of numbers.")
    handler: Annotated[
        str | None, PlainValidator(_handler), WithJsonSchema({"type": "string", "pattern": HANDLER_PATTERN})
    ] = key(None, "A Python class with load() and infer(), as module:Class; the file's folder is searched last.")
    parameters: Annotated[Mapping[str, Any], PlainValidator(_parameters), WithJsonSchema({"type": "object"})] = key(
        None, "Arguments of the handler's load()."
    )
    inputs: Tensors = key(None, "Of a frozen graph: its input tensors, by the names in requests.")
    outputs: Tensors = key(None, "Of a frozen graph: its output tensors, by the names in replies.")
    signature: Annotated[str | None, PlainValidator(_signature), WithJsonSchema({"type": "string", "minLength": 1})] = (
        key(None, "The SavedModel's default signature; without it serving_default, else serve, else the only one.")
    )
    tags: Annotated[
        tuple[str, ...],
        PlainValidator(_tags),
        WithJsonSchema(
            {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string", "minLength": 1}}
        ),
    ] = key(None, "The tags of the SavedModel's MetaGraph; by default [serve], the only one with it, or the only one.")
    devices: ModelDevices = key(
        "all", "Which of the daemon's devices load it: all, or a list of indices, of UUIDs of GPUs, or of cpu:0, cpu:1."
    )
    load_at_startup: bool = key(True, "Load it when the daemon starts; false waits for `multitower load`.")
    batching: Batching | None = key(
        None,
        "How requests are batched; by default with its defaults for a path, and one request at a time for a handler.",
    )
    warmup: Annotated[Path | None, PlainValidator(_warmup), WithJsonSchema({"type": "string", "minLength": 1})] = key(
        None, "An .npz file with inputs for the warm-up, by name; without it they are generated."
    )
    custom_ops: Annotated[
        tuple[Path, ...],
        PlainValidator(_custom_ops),
        WithJsonSchema({"type": "array", "items": {"type": "string", "minLength": 1}}),
    ] = key([], "Libraries (.so) with operations that the model uses; workers load them before the model.")
    jit_compile: bool = key(False, "Compile the model with XLA, for each allowed batch size, before it is ready.")
    placement: Annotated[Literal["towers", "as_saved"], AfterValidator(_needs_path)] = key(
        "towers",
        "In a worker with several devices: towers places a replica on each; as_saved places one on all of them, as the "
        "graph says.",
    )
    log_device_placement: Annotated[bool, AfterValidator(_needs_path)] = key(
        False, "Log the device of each node of the graph, once, before the model is ready."
    )
    queue: Queue = key({}, "The model's queue.")
    retry: Annotated[int, Field(ge=0, le=5)] = key(
        1, "How many workers may die while executing a request before it fails."
    )
    quarantine: SecondsOrOff = key(
        "60s",
        "How long requests equal to one that crashed a worker are refused, and all requests of a model that crashed "
        "repeatedly; 0 refuses none.",
    )
    max_execution_time: PositiveSeconds = key(
        "30s", "The longest time for one call of the model. If a call takes longer, its worker is killed and replaced."
    )
    load_timeout: OptionalPositiveSeconds = key(
        None,
        "The longest time for loading the model in a worker, with its warm-up; then it fails there. By default the "
        "daemon's `load_timeout`.",
    )

    @field_validator("batching")
    @classmethod
    def _paths_are_batched(cls, value: Batching | None, info: ValidationInfo) -> Batching | None:
        return Batching() if value is None and info.data.get("path") is not None else value

    @field_validator("jit_compile")
    @classmethod
    def _sizes_are_known(cls, value: bool, info: ValidationInfo) -> bool:
        batching = info.data.get("batching")
        if not value:
            return value
        if "path" in info.data and not format_of(info).can_compile:
            raise ValueError("needs a SavedModel or a Keras file")
        if batching is not None and batching.max_batch_size and not batching.allowed_batch_sizes:
            raise ValueError("needs batching.allowed_batch_sizes, since XLA compiles each size separately")
        return value

    def to_spec(self) -> ModelSpec:
        """The description of the model for workers."""
        batching = self.batching
        return ModelSpec(
            name=self.name,
            path=str(self.path) if self.path is not None else None,
            handler=self.handler,
            parameters=dict(self.parameters),
            inputs=dict(self.inputs),
            outputs=dict(self.outputs),
            signature=self.signature,
            tags=self.tags,
            max_batch_size=batching.max_batch_size if batching is not None else 0,
            allowed_batch_sizes=batching.allowed_batch_sizes if batching is not None else (),
            warmup=str(self.warmup) if self.warmup is not None else None,
            custom_ops=tuple(map(str, self.custom_ops)),
            jit_compile=self.jit_compile,
            pad_variable_length_inputs=batching is not None and batching.pad_variable_length_inputs,
            trust_batching=batching is not None and batching.trust,
            placement=self.placement,
            log_device_placement=self.log_device_placement,
        )
