"""The inputs of a bench's requests: the model's datatypes and shapes, with random values or those of a file. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multitower import tensors
from multitower.tools.errors import ToolError

Array: TypeAlias = NDArray[Any]
Request: TypeAlias = dict[str, Array]
"""Arrays by the inputs' names."""

InputSpec: TypeAlias = tuple[str, tuple[int, ...]]
"""The datatype of an input, as the protocol names it, and its dimensions."""

VARIANTS: Final = 8
"""Different requests that are sent in turn, so that caches do not make the figures look better."""

MAX_BYTES: Final = 64 << 20
"""Of all variants together; there is always at least one variant."""

_WORD_BYTES: Final = 8  # of a random element of BYTES


class InputsError(ToolError):
    """The inputs do not match the model; the message tells the user how."""


class InputShape(NamedTuple):
    """The value of one `--shape`.

    Attributes:
        dims: all dimensions, each 1 or more; empty for a scalar.
        datatype: the protocol's name of a datatype; None to take the one that the model declares.
    """

    dims: tuple[int, ...]
    datatype: str | None


def parse_shape(text: str) -> tuple[str, InputShape]:
    """Parses `NAME:DIM,DIM,…` or `NAME:DATATYPE:DIM,DIM,…`. Names may contain colons, as those of tensors do.

    Raises:
        InputsError: the text has neither form.
    """
    name, colon, dims = text.rpartition(":")
    before, inner, last = name.rpartition(":")
    datatype = None
    if inner and last in tensors.DATATYPES:
        name, datatype = before, last
    sizes = dims.split(",") if dims else []
    if not (colon and name and all(size.isdecimal() and int(size) > 0 for size in sizes)):
        raise InputsError(f"{text!r} is not NAME:DIM,DIM,… or NAME:DATATYPE:DIM,DIM,…, as in x:1,224,224,3")
    return name, InputShape(tuple(map(int, sizes)), datatype)


def resolve_inputs(
    declared: Sequence[Mapping[str, Any]], shapes: Mapping[str, InputShape], rows: int | None
) -> dict[str, InputSpec]:
    """Determines the datatype and dimensions of each input.

    Args:
        declared: `inputs` of the model's metadata; empty for a handler that declares none.
        shapes: the values of `--shape` by input.
        rows: dimension 0 where the model leaves it open; None for 1. Other open dimensions become 1, as in a warm-up.

    Raises:
        InputsError: a shape contradicts the model, or the model declares no inputs and no shape is given.
    """
    if not declared:
        if not shapes:
            raise InputsError("the model declares no inputs: describe each with --shape NAME:DATATYPE:DIM,DIM,…")
        return {name: (shape.datatype or "FP32", _with_rows(shape.dims, rows)) for name, shape in shapes.items()}
    names = [str(tensor["name"]) for tensor in declared]
    for name in shapes:
        if name not in names:
            raise InputsError(f"there is no input {name!r}, only {', '.join(map(repr, names))}")
    return {name: _resolve(tensor, shapes.get(name), rows) for name, tensor in zip(names, declared, strict=True)}


def _with_rows(dims: tuple[int, ...], rows: int | None) -> tuple[int, ...]:
    return (rows, *dims[1:]) if rows is not None and dims else dims


def _resolve(tensor: Mapping[str, Any], shape: InputShape | None, rows: int | None) -> InputSpec:
    name, datatype, declared = tensor["name"], str(tensor["datatype"]), list(tensor["shape"])
    has_rows = bool(declared) and declared[0] == -1
    if shape is None:
        dims = [1 if size == -1 else size for size in declared]
        if rows is not None and has_rows:
            dims[0] = rows
        return datatype, tuple(dims)
    if shape.datatype not in (None, datatype):
        raise InputsError(f"the model takes {datatype} for the input {name!r}; --shape gives {shape.datatype}")
    dims = list(_with_rows(shape.dims, rows if has_rows else None))
    if len(dims) != len(declared) or any(size not in (-1, dim) for size, dim in zip(declared, dims, strict=True)):
        raise InputsError(f"the model takes the shape {declared} for the input {name!r}; --shape gives {dims}")
    return datatype, tuple(dims)


def random_requests(specs: Mapping[str, InputSpec], seed: int) -> list[Request]:
    """Requests with random values: `VARIANTS` of them, or as many as fit in `MAX_BYTES`.

    Floats and both parts of complex numbers lie in [0, 1), 8-bit integers in their whole range. Wider integers are 0 or
    1: they are often indices, and these two are always valid. An element of BYTES is a word of eight letters.

    Args:
        specs: datatype and dimensions of each input.
        seed: the same seed gives the same values.

    Raises:
        InvalidRequest: `datatype_mismatch`: BF16 without the package ml_dtypes.
    """
    size = sum(math.prod(dims) * (tensors.ITEM_SIZE[datatype] or _WORD_BYTES) for datatype, dims in specs.values())
    rng = np.random.default_rng(seed)
    count = max(1, min(VARIANTS, MAX_BYTES // max(size, 1)))
    return [{name: _random_array(rng, *spec) for name, spec in specs.items()} for _ in range(count)]


def _random_array(rng: np.random.Generator, datatype: str, dims: tuple[int, ...]) -> Array:
    if datatype == tensors.BYTES:
        letters = rng.integers(ord("a"), ord("z") + 1, (*dims, _WORD_BYTES), np.uint8)
        words = [bytes(word) for word in letters.reshape(-1, _WORD_BYTES)]
        array = np.empty(len(words), object)
        array[:] = words
        return array.reshape(dims)
    dtype = tensors.dtype_of(datatype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, dims, dtype, endpoint=True)
    if dtype.kind in "biu":
        return rng.integers(0, 2, dims).astype(dtype)
    values = rng.random(dims)
    if dtype.kind == "c":
        return np.asarray(values + 1j * rng.random(dims), dtype)
    return np.asarray(values, dtype)


def split_into_requests(arrays: Mapping[str, Array], rows: int | None) -> list[Request]:
    """Splits given arrays into requests.

    Args:
        arrays: arrays by the inputs' names.
        rows: rows of each request: the arrays are split along dimension 0, and rows that do not fill a request are left
            out. None for one request with the whole arrays.

    Raises:
        InputsError: there are no arrays, they differ in length, or they have fewer rows.
    """
    if not arrays:
        raise InputsError("the file of inputs is empty")
    if rows is None:
        return [dict(arrays)]
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    shortest = min(lengths.values())
    if len(set(lengths.values())) > 1 or shortest < rows:
        text = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise InputsError(f"requests of {rows} rows cannot be cut from the file's arrays; their lengths are {text}")
    return [
        {name: np.ascontiguousarray(array[first : first + rows]) for name, array in arrays.items()}
        for first in range(0, shortest - rows + 1, rows)
    ]


def row_count(request: Request) -> int:
    """The rows of a request: dimension 0 of its first input; 1 for a scalar."""
    first = next(iter(request.values()))
    return len(first) if first.ndim else 1


def byte_count(request: Request) -> int:
    """The bytes of a request's arrays; elements of BYTES count as references."""
    return sum(array.nbytes for array in request.values())
