"""From the frames of a batch to one array an input, and from the model's arrays to one answer an entry. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, make
from multitower.spec import TensorReport

from ..worker_wire import KeySpec
from .formats.model import Array, Arrays

MAX_HEADERS = 1024

MUCH_PADDING = 64 << 20
"""Bytes of a padded input from which on it matters how much of it is padding."""

MOST_PADDING = 8
"""So many times the size of what is padded, at the most."""

_Described = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, datatype and shape of each output."""


def decode(key: KeySpec, rows: int, frames: Sequence[Any]) -> Arrays:
    """The inputs of one entry: read-only, and views of its frames where they are numbers.

    Args:
        key: of the batch.
        rows: of the entry.
        frames: one an input, in the key's order.

    Raises:
        InvalidRequest: `size_mismatch`: a BYTES frame does not hold as many elements as its shape says;
            `datatype_mismatch`: BF16 without ml_dtypes.
    """
    arrays: Arrays = {}
    for (name, datatype, dims), frame in zip(*_sized(key, frames), strict=True):
        try:
            array = tensors.decode(datatype, (rows, *dims) if key.batched else dims, frame)
        except MultitowerError as error:
            raise make(Reason(error.reason), f"input {name!r}: {error.message}", field=name) from None
        arrays[name] = _read_only(array if array.flags.aligned else array.copy())
    return arrays


def _sized(key: KeySpec, frames: Sequence[Any]) -> tuple[Sequence[tuple[str, str, tuple[int, ...]]], Sequence[Any]]:
    """The inputs with an entry's own dimensions, and their frames."""
    if not key.padded:
        return key.inputs, frames
    sizes = iter(np.frombuffer(frames[-1], np.int64).tolist())
    inputs = [
        (name, datatype, tuple(next(sizes) if size == -1 else size for size in dims))
        for name, datatype, dims in key.inputs[:-1]
    ]
    return inputs, frames[:-1]


def _read_only(array: Array) -> Array:
    # Frames are, and a handler must not work or fail depending on what else was in the batch.
    array.flags.writeable = False
    return array


def join(entries: Sequence[Arrays], padded_rows: int) -> Arrays:
    """One array an input, the entries one after the other, the last row repeated up to `padded_rows`.

    Entries that differ in other dimensions are padded to the largest of each, every one with its own first element.

    Raises:
        MemoryError: that would be far more padding than there are elements.
    """
    joined: Arrays = {}
    for name, first in entries[0].items():
        parts = [entry[name] for entry in entries] if len(entries) > 1 else [first]
        if any(part.shape[1:] != first.shape[1:] for part in parts):
            parts = [_of_one_size(name, parts)]
        missing = padded_rows - sum(map(len, parts))
        if missing:
            # Not zeros: a row that the model can compute cannot raise where real ones would not.
            parts.append(np.repeat(parts[-1][-1:], missing, axis=0))
        joined[name] = _read_only(np.concatenate(parts)) if len(parts) > 1 else parts[0]
    return joined


def _of_one_size(name: str, parts: Sequence[Array]) -> Array:
    dims = tuple(map(max, zip(*(part.shape[1:] for part in parts), strict=True)))
    rows = sum(map(len, parts))
    size = rows * tensors.element_count(dims)
    if size * parts[0].itemsize > MUCH_PADDING and size > MOST_PADDING * sum(part.size for part in parts):
        # A few odd shapes can make any amount of it. Whoever catches this runs fewer entries together.
        raise MemoryError(f"{name!r} would be padded to {rows} rows of {list(dims)}")
    whole = np.empty((rows, *dims), parts[0].dtype)
    start = 0
    for part in parts:
        own = whole[start : start + len(part)]
        own[...] = part.flat[0]
        own[tuple(slice(size) for size in part.shape)] = part
        start += len(part)
    return _read_only(whole)


def rows_of(arrays: Arrays, start: int, rows: int) -> Arrays:
    """These rows of each array, views."""
    return {name: array[start : start + rows] for name, array in arrays.items()}


def joined_outputs(parts: Sequence[Sequence[tuple[str, Array, str]]]) -> list[tuple[str, Array, str]]:
    """The outputs of a batch that was run in parts, one after the other.

    Raises:
        ModelError: `output_invalid` when the parts' outputs do not fit together.
    """
    try:
        return [
            (name, np.concatenate([part[index][1] for part in parts]), datatype)
            for index, (name, _, datatype) in enumerate(parts[0])
        ]
    except ValueError as error:
        raise make(Reason.OUTPUT_INVALID, f"the batch was run in parts, and their outputs differ: {error}") from None


def padded(rows: int, allowed: Sequence[int]) -> int:
    """The smallest allowed size that holds `rows`; `rows` where there is none."""
    return next((size for size in allowed if size >= rows), rows)


def check(
    outputs: Arrays, wanted: Sequence[str] | None, declared: Sequence[TensorReport] | None
) -> list[tuple[str, Array, str]]:
    """The outputs asked for, in their order: name, array and datatype.

    Raises:
        ModelError: `output_invalid`: the model did not return what it declares, or a datatype that cannot be sent.
        InvalidRequest: `output_unknown`, for a handler that declares nothing.
    """
    datatypes = {tensor.name: tensor.datatype for tensor in declared} if declared is not None else None
    names = wanted if wanted is not None else list(outputs if datatypes is None else datatypes)
    checked = []
    for name in names:
        if name not in outputs:
            known = ", ".join(map(repr, outputs)) or "none"
            reason = Reason.OUTPUT_UNKNOWN if datatypes is None else Reason.OUTPUT_INVALID
            raise make(reason, f"the model returned no output {name!r}, only {known}", field=name)
        array = outputs[name]
        try:
            datatype = tensors.datatype_of(array)
        except MultitowerError as error:
            raise make(Reason.OUTPUT_INVALID, f"output {name!r}: {error.message}", field=name) from None
        if datatypes is not None and datatype != datatypes[name]:
            message = f"the model returned the output {name!r} as {datatype}, but declares {datatypes[name]}"
            raise make(Reason.OUTPUT_INVALID, message, field=name)
        checked.append((name, array, datatype))
    return checked


class Answers:
    """Makes replies of a model's outputs; headers of equal shapes are written once.

    Args:
        model: its name.
        version: its version.
    """

    def __init__(self, model: str, version: str) -> None:
        self._model = model
        self._version = version
        self._headers: dict[_Described, bytes] = {}

    def make(self, outputs: Sequence[tuple[str, Array, str]], rows: slice | None) -> list[Any]:
        """The header and the output frames of one entry: these rows of each output, or all of it.

        Raises:
            ModelError: `output_invalid` for elements that cannot be sent.
        """
        frames: list[Any] = [b""]
        described = []
        for name, whole, datatype in outputs:
            array = whole if rows is None else whole[rows]
            described.append((name, datatype, array.shape))
            try:
                frames.append(tensors.encode(array))
            except MultitowerError as error:
                raise make(Reason.OUTPUT_INVALID, f"output {name!r}: {error.message}", field=name) from None
        frames[0] = self._header(tuple(described))
        return frames

    def header(self, outputs: Sequence[tuple[str, Array, str]], rows: int) -> bytes:
        """The reply header of an entry that has so many rows of the outputs."""
        return self._header(tuple([(name, datatype, (rows, *array.shape[1:])) for name, array, datatype in outputs]))

    def _header(self, described: _Described) -> bytes:
        header = self._headers.get(described)
        if header is None:
            if len(self._headers) >= MAX_HEADERS:
                self._headers.clear()
            header = self._headers[described] = wire.reply_header(
                self._model, self._version, [wire.Tensor(*each) for each in described]
            )
        return header


class Joined(Sequence[list[Any]]):
    """The answers of a batch whose outputs travel joined; made one by one only where somebody asks for one.

    Args:
        answers: makes the replies.
        outputs: name, array and datatype of each; the first rows are the entries'.
        rows: of each entry.

    Attributes:
        rows: as given.
        headers: the reply header of an entry with so many rows, for each number that there is.
        frames: one an output, of all entries' rows.
    """

    def __init__(self, answers: Answers, outputs: Sequence[tuple[str, Array, str]], rows: Sequence[int]) -> None:
        total = sum(rows)
        self.rows = rows
        self.headers = {count: answers.header(outputs, count) for count in dict.fromkeys(rows)}
        self.frames = [tensors.encode(array[:total] if len(array) > total else array) for _, array, _ in outputs]
        self._answers = answers
        self._outputs = outputs

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        start = sum(self.rows[:index])
        return self._answers.make(self._outputs, slice(start, start + self.rows[index]))


def joinable(outputs: Sequence[tuple[str, Array, str]]) -> bool:
    """Whether the outputs travel joined; see `worker_wire`."""
    return all(
        datatype != tensors.BYTES and array.nbytes // len(array) < tensors.BULKY_BYTES for _, array, datatype in outputs
    )
