"""The outputs of a batch: from the arrays that a model returns to one reply an entry. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, make
from multitower.spec import TensorReport

from .formats.model import Array, Arrays

Answer = list[Any] | MultitowerError
"""What one request gets: the header and the outputs of its reply, or an error."""

Output = tuple[str, Array, str]
"""Name, array and datatype."""

MAX_HEADERS: Final = 1024
MAX_HEADERS_BYTES: Final = 4 << 20
"""Bounds of the headers that are remembered."""

_Description = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, datatype and shape of each output."""


def declared_datatypes(declared: Sequence[TensorReport] | None) -> dict[str, str] | None:
    """The datatypes of declared outputs, by name and in their order; None where nothing is declared."""
    return {tensor.name: tensor.datatype for tensor in declared} if declared is not None else None


def select_outputs(outputs: Arrays, wanted: Sequence[str] | None, datatypes: Mapping[str, str] | None) -> list[Output]:
    """Checks what a model has returned, and selects what was asked for.

    Args:
        outputs: what the model returned.
        wanted: the names asked for, in their order; None for all outputs.
        datatypes: the datatypes that the model declares, by name; None where it declares none.

    Raises:
        ModelError: `output_invalid`: an output is missing, or has another datatype than declared, or one that the
            protocol does not carry.
        InvalidRequest: `output_unknown`: there is no such output; of models that declare none.
    """
    names: Sequence[str] = wanted if wanted is not None else list(outputs if datatypes is None else datatypes)
    selected: list[Output] = []
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
        selected.append((name, array, datatype))
    return selected


def have_rows(outputs: Sequence[Output], size: int) -> bool:
    """Whether dimension 0 of each output is `size`."""
    return all(array.ndim and len(array) == size for _, array, _ in outputs)


def describe_shapes(outputs: Sequence[Output]) -> str:
    """The outputs' names and shapes, for log lines and errors."""
    return ", ".join(f"{name!r} {list(array.shape)}" for name, array, _ in outputs)


def concatenate_outputs(parts: Sequence[Sequence[Output]]) -> list[Output]:
    """The outputs of a batch that was run in parts, one after the other.

    Raises:
        ModelError: `output_invalid`: the parts' outputs do not fit together.
    """
    try:
        return [
            (name, np.concatenate([part[index][1] for part in parts]), datatype)
            for index, (name, _, datatype) in enumerate(parts[0])
        ]
    except ValueError as error:
        raise make(Reason.OUTPUT_INVALID, f"the batch was run in parts, and their outputs differ: {error}") from None


def travel_joined(outputs: Sequence[Output]) -> bool:
    """Whether the outputs of all entries go to the router in joined frames; see `worker_wire`."""
    return all(
        datatype != tensors.BYTES and array.nbytes // len(array) < tensors.BULKY_BYTES for _, array, datatype in outputs
    )


class ReplyBuilder:
    """Makes replies of a model's outputs. Headers of equal shapes are made once.

    Args:
        model: the model's name.
        version: its version.
    """

    def __init__(self, model: str, version: str) -> None:
        self._model = model
        self._version = version
        self._headers: dict[_Description, bytes] = {}
        self._headers_bytes = 0

    def build(self, outputs: Sequence[Output], rows: slice | None) -> list[Any]:
        """The header and the output frames of one entry.

        Args:
            outputs: of the batch.
            rows: the entry's rows in them; None where all of them are its own.

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

    def header(self, outputs: Sequence[Output], rows: int) -> bytes:
        """The header of a reply with `rows` rows of each output."""
        return self._header(tuple([(name, datatype, (rows, *array.shape[1:])) for name, array, datatype in outputs]))

    def _header(self, described: _Description) -> bytes:
        header = self._headers.get(described)
        if header is None:
            header = wire.reply_header(self._model, self._version, [wire.Tensor(*each) for each in described])
            self._headers_bytes += len(header)
            if len(self._headers) >= MAX_HEADERS or self._headers_bytes > MAX_HEADERS_BYTES:
                self._headers.clear()
                self._headers_bytes = len(header)
            self._headers[described] = header
        return header


class JoinedReplies(Sequence[list[Any]]):
    """The replies of a batch whose outputs travel joined. A single reply is made only when it is asked for.

    Args:
        builder: makes the replies.
        outputs: of the batch; rows behind those of the entries are padding.
        rows: the number of rows of each entry.

    Attributes:
        rows: as given.
        headers: the header of a reply, for each number of rows in the batch.
        frames: one an output, with the rows of all entries.
    """

    def __init__(self, builder: ReplyBuilder, outputs: Sequence[Output], rows: Sequence[int]) -> None:
        total = sum(rows)
        self.rows = rows
        self.headers = {count: builder.header(outputs, count) for count in dict.fromkeys(rows)}
        self.frames = [tensors.encode(array[:total] if len(array) > total else array) for _, array, _ in outputs]
        self._builder = builder
        self._outputs = outputs

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        start = sum(self.rows[:index])
        return self._builder.build(self._outputs, slice(start, start + self.rows[index]))

    def __iter__(self) -> Iterator[list[Any]]:
        start = 0
        for count in self.rows:
            yield self._builder.build(self._outputs, slice(start, start + count))
            start += count
