"""Translates TensorFlow Serving's batching parameters to keys of multitower's configuration.

The fields are those of `BatchingParameters` in
`tensorflow_serving/servables/tensorflow/session_bundle_config.proto`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from multitower.supervisor.config.models import Batching
from multitower.supervisor.config.section_types import MAX_INT
from multitower.supervisor.config.units import MAX_DURATION_S, format_duration
from multitower.tools.convert.fields import AddNote, Note, effective_fields, unwrap
from multitower.tools.convert.text_format import Field, Message, Word

_PAD: Final = "pad_variable_length_inputs"


@dataclass(slots=True)
class BatchingParameters:
    """The batching parameters, which apply to all models."""

    max_batch_size: int | None = None
    allowed_batch_sizes: list[int] = field(default_factory=list)
    max_delay_s: float = 0.0
    max_size: int | None = None
    pad: bool = False
    notes: list[Note] = field(default_factory=list)


def batching_keys(batching: BatchingParameters) -> Iterator[str]:
    """The keys that the file sets; multitower's defaults are meant for the others."""
    if batching.max_batch_size is not None:
        yield f"max_batch_size: {batching.max_batch_size}"
    if batching.allowed_batch_sizes:
        yield f"allowed_batch_sizes: [{', '.join(map(str, batching.allowed_batch_sizes))}]"
    if batching.pad:
        yield f"{_PAD}: true"
    if batching.max_delay_s:
        yield f"max_queue_delay: {format_duration(batching.max_delay_s)}"


def convert_batching(config: Message, file: str) -> BatchingParameters:
    """Converts batching parameters.

    Args:
        config: `BatchingParameters` of TensorFlow Serving.
        file: the name of the file that it was read from, for notes.
    """
    batching = BatchingParameters()
    executed: int | None = None
    enqueued: tuple[Field, int] | None = None

    def note(at: Field | None, text: str) -> None:
        batching.notes.append(Note(file, at.line if at is not None else 1, text))

    for part in effective_fields(config, "allowed_batch_sizes", note):
        value = unwrap(part.value)
        count = value if isinstance(value, int) and 1 <= value <= MAX_INT else None
        if part.name == "max_batch_size" and count is not None:
            batching.max_batch_size = count
        elif part.name == "max_execution_batch_size" and count is not None:
            executed = count
            note(part, "max_execution_batch_size became max_batch_size: larger requests are always split")
        elif part.name == "enable_large_batch_splitting" and isinstance(value, Word):
            if not _is_true(value):
                note(part, "enable_large_batch_splitting is false, but requests over max_batch_size are split here")
        elif part.name == "batch_timeout_micros" and isinstance(value, int) and 0 <= value <= MAX_DURATION_S * 1e6:
            batching.max_delay_s = value / 1e6
        elif part.name == "max_enqueued_batches" and count is not None:
            enqueued = part, count
        elif part.name == "allowed_batch_sizes" and count is not None:
            batching.allowed_batch_sizes.append(count)
        elif part.name == _PAD and (isinstance(value, Word) or value in (0, 1)):
            batching.pad = _is_true(value)
        elif part.name == "num_batch_threads":
            note(
                part,
                f"num_batch_threads ({value}) was not carried over: see devices and workers_per_device",
            )
        elif part.name == "thread_pool_name":
            note(part, "thread_pool_name was not carried over: a worker runs one batch at a time")
        else:
            why = "an unknown field, or an invalid value"
            note(part, f"{part.name} was not carried over: {why}")
    if executed is not None:
        batching.max_batch_size = min(executed, batching.max_batch_size or executed)
    _set_batch_sizes(batching, config, note)
    if enqueued is not None:
        part, batches = enqueued
        batching.max_size = min(batches * (batching.max_batch_size or Batching().max_batch_size), MAX_INT)
        note(
            part,
            f"max_enqueued_batches ({batches}) became queue.max_size: {batching.max_size}, which counts requests: as "
            "many as there are rows in these batches",
        )
    return batching


def _set_batch_sizes(batching: BatchingParameters, config: Message, note: AddNote) -> None:
    """Sets sizes that ascend and end with the largest batch, as a configuration requires."""
    if not batching.allowed_batch_sizes:
        return
    at = next(part for part in config.fields if part.name == "allowed_batch_sizes")
    sizes = sorted(set(batching.allowed_batch_sizes))
    if sizes != batching.allowed_batch_sizes:
        note(at, f"allowed_batch_sizes {batching.allowed_batch_sizes} were sorted")
    if batching.max_batch_size is None:
        batching.max_batch_size = sizes[-1]
    elif sizes[-1] != batching.max_batch_size:
        fitting = [size for size in sizes if size < batching.max_batch_size]
        sizes = [*fitting, batching.max_batch_size]
        note(at, f"allowed_batch_sizes must end with max_batch_size, {batching.max_batch_size}: they became {sizes}")
    batching.allowed_batch_sizes = sizes


def _is_true(value: object) -> bool:
    return value in ("true", "True", "t", 1)
