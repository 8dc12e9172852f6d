"""The inputs of a batch: from frames to one array an input, as the model is called with them. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from multitower import tensors
from multitower.errors import MultitowerError, Reason, make
from multitower.worker_wire import KeySpec

from .formats.model import Array, Arrays
from .replies import Answer

LARGE_INPUT: Final = 64 << 20
"""Bytes of a padded input from which on the share of padding in it is limited."""

MAX_PADDING: Final = 8
"""Such an input may be this many times as large as its content."""


class Entry:
    """One request of a batch.

    Attributes:
        number: its index in the batch.
        rows: the number of its rows.
        source: the inputs that contain them.
        start: its first row in `source`; None where all of `source` belongs to it.
    """

    __slots__ = ("number", "rows", "source", "start")

    def __init__(self, number: int, rows: int, source: Arrays, start: int | None = None) -> None:
        self.number = number
        self.rows = rows
        self.source = source
        self.start = start

    @property
    def arrays(self) -> Arrays:
        """Its inputs."""
        return self.source if self.start is None else slice_rows(self.source, self.start, self.rows)


class PreparedBatch:
    """A batch that can be run.

    Attributes:
        key: what its entries have in common.
        rows: the number of rows of each entry.
        answers: one an entry; None for entries that can be run.
        joined: the inputs of all entries, where they came joined; they may be padded.
        entries: the entries that can be run, where they did not come joined.
        model_inputs: the inputs of all these entries, joined and padded, as the model will be called with them; None
            where only running the batch shows whether it will.
        assemble_ns: nanoseconds that preparing it took.
    """

    __slots__ = ("answers", "assemble_ns", "entries", "joined", "key", "model_inputs", "rows")

    def __init__(
        self,
        key: KeySpec,
        rows: Sequence[int],
        answers: list[Answer | None],
        joined: Arrays | None,
        entries: list[Entry],
        model_inputs: Arrays | None,
        assemble_ns: int,
    ) -> None:
        self.key = key
        self.rows = rows
        self.answers = answers
        self.joined = joined
        self.entries = entries
        self.model_inputs = model_inputs
        self.assemble_ns = assemble_ns


def split_entries(joined: Arrays, rows: Sequence[int]) -> list[Entry]:
    """The entries of joined inputs, given the number of rows of each."""
    starts = itertools.accumulate(rows[:-1], initial=0)
    return [Entry(index, count, joined, start) for index, (count, start) in enumerate(zip(rows, starts, strict=True))]


def decode_inputs(key: KeySpec, rows: int, frames: Sequence[Any]) -> Arrays:
    """Makes arrays of the frames of one entry, or of joined frames.

    Args:
        key: the key of the batch.
        rows: the number of rows in the frames.
        frames: one an input, in the key's order.

    Returns:
        Read-only arrays by input name. Numbers are views of their frames.

    Raises:
        InvalidRequest: `size_mismatch`: a BYTES frame does not hold as many elements as its shape says;
            `datatype_mismatch`: BF16 without ml_dtypes.
    """
    arrays: Arrays = {}
    for (name, datatype, dims), frame in zip(*_with_sizes(key, frames), strict=True):
        try:
            array = tensors.decode(datatype, (rows, *dims) if key.batched else dims, frame)
        except MultitowerError as error:
            raise make(Reason(error.reason), f"input {name!r}: {error.message}", field=name) from None
        arrays[name] = _read_only(array if array.flags.aligned else array.copy())
    return arrays


def _with_sizes(
    key: KeySpec, frames: Sequence[Any]
) -> tuple[Sequence[tuple[str, str, tuple[int, ...]]], Sequence[Any]]:
    """The inputs with the entry's own sizes in place of -1, and their frames."""
    if not key.padded:
        return key.inputs, frames
    sizes = iter(np.frombuffer(frames[-1], np.int64).tolist())
    inputs = [
        (name, datatype, tuple(next(sizes) if size == -1 else size for size in dims))
        for name, datatype, dims in key.inputs[:-1]
    ]
    return inputs, frames[:-1]


def _read_only(array: Array) -> Array:
    # Frames are; and whether a handler works must not depend on what else was in the batch.
    array.flags.writeable = False
    return array


def join_inputs(entries: Sequence[Arrays], size: int) -> Arrays:
    """Concatenates the inputs of entries, and repeats the last row until there are `size` rows.

    Entries that differ in other dimensions are padded to the largest size of each, every entry with its own first
    element.

    Raises:
        MemoryError: the result would be far more padding than content.
    """
    joined: Arrays = {}
    for name, first in entries[0].items():
        parts = [entry[name] for entry in entries] if len(entries) > 1 else [first]
        if any(part.shape[1:] != first.shape[1:] for part in parts):
            parts = [_pad_dimensions(name, parts)]
        missing = size - sum(map(len, parts))
        if missing:
            # Not zeros: a row that the model can compute cannot raise where real ones would not.
            parts.append(np.repeat(parts[-1][-1:], missing, axis=0))
        joined[name] = _read_only(np.concatenate(parts)) if len(parts) > 1 else parts[0]
    return joined


def _pad_dimensions(name: str, parts: Sequence[Array]) -> Array:
    """Concatenates arrays that differ in dimensions other than the first."""
    dims = tuple(map(max, zip(*(part.shape[1:] for part in parts), strict=True)))
    rows = sum(map(len, parts))
    size = rows * tensors.element_count(dims)
    if size * parts[0].itemsize > LARGE_INPUT and size > MAX_PADDING * sum(part.size for part in parts):
        # A few unusual shapes can cause any amount of padding. The caller then runs fewer entries together.
        raise MemoryError(f"{name!r} would be padded to {rows} rows of {list(dims)}")
    whole = np.empty((rows, *dims), parts[0].dtype)
    start = 0
    for part in parts:
        target = whole[start : start + len(part)]
        target[...] = part.flat[0]
        target[tuple(slice(size) for size in part.shape)] = part
        start += len(part)
    return _read_only(whole)


def slice_rows(arrays: Arrays, start: int, rows: int) -> Arrays:
    """Views of `rows` rows of each array, from `start` on."""
    return {name: array[start : start + rows] for name, array in arrays.items()}


def padded_size(rows: int, allowed: Sequence[int]) -> int:
    """The smallest allowed size that holds `rows` rows; `rows` where there is none."""
    return next((size for size in allowed if size >= rows), rows)
