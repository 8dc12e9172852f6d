"""The section `models` of a configuration: where each model comes from, how its requests are queued and batched.

Within a class the order of the fields matters: a validator sees the fields above its own (`info.data`), without
those that are wrong themselves. Rules over two fields stand at the lower one, and so are reported together with
everything else; a validator of the whole section would run only when the rest is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from multitower.spec import GRAPH_SUFFIXES, MODEL_SUFFIXES, ModelSpec

from .devices import ModelDevices
from .errors import Complaints, refuse_missing
from .fields import (
    Count,
    CountFromZero,
    PositiveBytes,
    PositiveSeconds,
    Seconds,
    SecondsOrOff,
    Section,
    context_of,
    key,
)
from .units import shown
from .values import (
    HANDLER_PATTERN,
    NAME_PATTERN,
    parse_file,
    parse_handler,
    parse_model_path,
    parse_name,
)
from .versions import VersionLabels, VersionPolicy


class Batching(Section):
    """How requests are put together into one call of the model."""

    max_batch_size: CountFromZero = key(32, "Rows of a batch at the most; 0 runs each request by itself.")
    allowed_batch_sizes: Annotated[tuple[Count, ...], Field(strict=False)] = key(
        [],
        "Sizes that batches are padded to, ascending, the last being `max_batch_size`; none for no padding.",
    )
    pad_variable_length_inputs: bool = key(
        False, "Pad requests that differ in other dimensions than their rows, so that they share batches."
    )
    max_queue_delay: Seconds = key(
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
        if value and largest == 0:
            raise ValueError("goes with batches only, and max_batch_size is 0")
        if value and largest is not None and value[-1] != largest:
            complaints.add(f"the last size must be max_batch_size, {largest}, not {value[-1]}", len(value) - 1)
        complaints()
        return value


class Queue(Section):
    """A model's queue: the requests that no worker has yet. A full one refuses at once."""

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
    return None if value is None else parse_model_path(value, context_of(info).folder)


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
    path = info.data.get("path")
    if path is not None and path.suffix in MODEL_SUFFIXES:
        raise ValueError(f"goes with a SavedModel only; a {path.suffix} file has no signatures")
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be the name of a signature, not {shown(value)}")
    return value


def _tensors(value: object, info: ValidationInfo) -> Mapping[str, str]:
    """What a frozen graph's inputs or outputs are; nothing but the configuration can tell."""
    path = info.data.get("path")
    if value is None:
        if path is not None and path.suffix in GRAPH_SUFFIXES:
            example = _TENSORS_EXAMPLE[str(info.field_name)]
            raise ValueError(f"a frozen graph needs it: {example}; docs/frozen-graphs.md tells how to find the names")
        return {}
    if path is None or path.suffix not in GRAPH_SUFFIXES:
        if "path" not in info.data:
            return {}  # which is wrong itself
        raise ValueError(f"goes with a frozen graph ({', '.join(GRAPH_SUFFIXES)}) only")
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f"must be a mapping of names to tensors, as in {_TENSORS_EXAMPLE[str(info.field_name)]}, not {shown(value)}"
        )
    complaints = Complaints()
    for name, tensor in value.items():
        if not name:
            raise ValueError("a name must not be empty")
        if not isinstance(tensor, str) or not tensor:
            complaints.add(f'must be a tensor of the graph, as in "softmax:0", not {shown(tensor)}', name)
    complaints()
    return value


_TENSORS_EXAMPLE = {"inputs": '{x: "x:0"}', "outputs": '{scores: "softmax:0"}'}
Tensors = Annotated[
    Mapping[str, str],
    PlainValidator(_tensors),
    WithJsonSchema({"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "minLength": 1}}),
]


def _warmup(value: object, info: ValidationInfo) -> Path | None:
    return None if value is None else parse_file(value, context_of(info).folder, ".npz", "inputs")


def _of_a_path(value: Any, info: ValidationInfo) -> Any:
    if "path" in info.data and info.data["path"] is None and value not in ("towers", False):
        raise ValueError("goes with a path only; a handler places itself")
    return value


class ModelConfig(Section):
    """One model: where it comes from, and how its requests are queued and batched."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["path"]}, {"required": ["handler"]}],
            "dependentRequired": {
                "parameters": ["handler"],
                "signature": ["path"],
                "inputs": ["path"],
                "outputs": ["path"],
                "versions": ["path"],
                "version_labels": ["path"],
            },
        }
    )

    name: Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})] = Field(
        description="What clients ask for; unique."
    )
    path: Annotated[Path | None, PlainValidator(_path), WithJsonSchema({"type": "string", "minLength": 1})] = key(
        None,
        "A SavedModel folder, a folder of numbered versions of one, or a file: .keras, .h5, or a frozen graph (.pb).",
    )
    versions: VersionPolicy = key(
        "latest",
        "Which versions of the folder are served: latest, all, {latest: N} for the N highest, or {specific: [N, …]}.",
    )
    version_labels: VersionLabels = key(None, "Names of versions, which requests may give instead of their numbers.")
    handler: Annotated[
        str | None, PlainValidator(_handler), WithJsonSchema({"type": "string", "pattern": HANDLER_PATTERN})
    ] = key(None, "A Python class with load() and infer(), as module:Class; the file's folder is searched first.")
    parameters: Annotated[Mapping[str, Any], PlainValidator(_parameters), WithJsonSchema({"type": "object"})] = key(
        None, "What the handler's load() is given."
    )
    inputs: Tensors = key(None, "Of a frozen graph: the tensors that requests give, by the names that clients use.")
    outputs: Tensors = key(None, "Of a frozen graph: the tensors that requests get, by name.")
    signature: Annotated[str | None, PlainValidator(_signature), WithJsonSchema({"type": "string", "minLength": 1})] = (
        key(None, "The SavedModel's signature; without it serving_default, else serve, else the only one.")
    )
    devices: ModelDevices = key(
        "all", "Which of the daemon's devices load it: all, or a list of indices, of UUIDs of GPUs, or of cpu:0, cpu:1."
    )
    load_at_startup: bool = key(True, "Load it when the daemon starts; false waits for `multitower load`.")
    batching: Batching | None = key(
        None, "How requests are batched. Without it a path takes the defaults, and a handler gets one at a time."
    )
    warmup: Annotated[Path | None, PlainValidator(_warmup), WithJsonSchema({"type": "string", "minLength": 1})] = key(
        None, "An .npz file with inputs for the warm-up, by name; without it they are made up."
    )
    jit_compile: bool = key(False, "XLA compiles the model, for each of the allowed batch sizes, before it is ready.")
    placement: Annotated[Literal["towers", "as_saved"], AfterValidator(_of_a_path)] = key(
        "towers",
        "In a worker of several devices: towers puts a replica on each; as_saved one that spans them, on the devices "
        "that the graph itself names.",
    )
    log_device_placement: Annotated[bool, AfterValidator(_of_a_path)] = key(
        False, "Log the device of each node of the graph, once, before the model is ready."
    )
    queue: Queue = key({}, "The model's queue.")
    retry: Annotated[int, Field(ge=0, le=5)] = key(
        1, "How many deaths of workers a request may survive while it is being executed."
    )
    quarantine: SecondsOrOff = key(
        "60s",
        "How long requests are refused that equal one which crashed a worker, and all of a model that crashes with one "
        "after the other; 0 refuses none.",
    )
    max_execution_time: PositiveSeconds = key("30s", "The longest time for one call of the model; then it hangs.")

    @field_validator("batching")
    @classmethod
    def _paths_are_batched(cls, value: Batching | None, info: ValidationInfo) -> Batching | None:
        return Batching() if value is None and info.data.get("path") is not None else value

    @field_validator("jit_compile")
    @classmethod
    def _sizes_are_known(cls, value: bool, info: ValidationInfo) -> bool:
        path, batching = info.data.get("path"), info.data.get("batching")
        if not value:
            return value
        if "path" in info.data and (path is None or path.suffix in GRAPH_SUFFIXES):
            raise ValueError("goes with a SavedModel or a file of Keras only")
        if batching is not None and batching.max_batch_size and not batching.allowed_batch_sizes:
            raise ValueError("needs batching.allowed_batch_sizes, since XLA compiles each size by itself")
        return value

    def to_spec(self) -> ModelSpec:
        """What a worker is told of the model."""
        batching = self.batching
        return ModelSpec(
            name=self.name,
            path=str(self.path) if self.path is not None else None,
            handler=self.handler,
            parameters=dict(self.parameters),
            inputs=dict(self.inputs),
            outputs=dict(self.outputs),
            signature=self.signature,
            max_batch_size=batching.max_batch_size if batching is not None else 0,
            allowed_batch_sizes=batching.allowed_batch_sizes if batching is not None else (),
            warmup=str(self.warmup) if self.warmup is not None else None,
            jit_compile=self.jit_compile,
            pad_variable_length_inputs=batching is not None and batching.pad_variable_length_inputs,
            placement=self.placement,
            log_device_placement=self.log_device_placement,
        )
