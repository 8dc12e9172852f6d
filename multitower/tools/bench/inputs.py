"""The inputs of a model's requests: of the datatypes and shapes that it declares, with random or given values. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multitower import tensors

Array: TypeAlias = NDArray[Any]
Request: TypeAlias = dict[str, Array]

VARIANTS: Final = 8
"""How many different requests are sent in turn, so that nothing that caches looks good."""

MAX_BYTES: Final = 64 << 20
"""Of all variants together; one is made in any case."""

_WORD: Final = 8  # bytes of a made-up element of BYTES


class InputsError(Exception):
    """The inputs cannot be made; the message is for people."""


class Shape(NamedTuple):
    """What `--shape` says of an input.

    Attributes:
        dims: all of them, each 1 or more; none for a scalar.
        datatype: the protocol's name, or None where the model declares it.
    """

    dims: tuple[int, ...]
    datatype: str | None


def parse_shape(text: str) -> tuple[str, Shape]:
    """Reads `NAME:DIM,DIM,…` and `NAME:DATATYPE:DIM,DIM,…`; names may hold colons, as TensorFlow's tensors do.

    Raises:
        InputsError: it is neither.
    """
    name, colon, dims = text.rpartition(":")
    before, inner, last = name.rpartition(":")
    datatype = None
    if inner and last in tensors.DATATYPES:
        name, datatype = before, last
    sizes = dims.split(",") if dims else []
    if not (colon and name and all(size.isdecimal() and int(size) > 0 for size in sizes)):
        raise InputsError(f"{text!r} is not NAME:DIM,DIM,… or NAME:DATATYPE:DIM,DIM,…, as in x:1,224,224,3")
    return name, Shape(tuple(map(int, sizes)), datatype)


def described(
    declared: Sequence[Mapping[str, Any]], shapes: Mapping[str, Shape], rows: int | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The datatype and shape of each input.

    Args:
        declared: the model's `inputs` as its metadata has them; empty for a handler that declares none.
        shapes: of `--shape`.
        rows: dimension 0 where the model leaves it open; None for 1. Other open dimensions are 1, as in a warm-up.

    Raises:
        InputsError: a shape is not one of the model's, or the model declares nothing and no shape is given.
    """
    if not declared:
        if not shapes:
            raise InputsError("the model declares no inputs: describe each with --shape NAME:DATATYPE:DIM,DIM,…")
        return {name: (shape.datatype or "FP32", _sized(shape.dims, rows)) for name, shape in shapes.items()}
    names = [str(tensor["name"]) for tensor in declared]
    for name in shapes:
        if name not in names:
            raise InputsError(f"there is no input {name!r}, only {', '.join(map(repr, names))}")
    return {name: _described(tensor, shapes.get(name), rows) for name, tensor in zip(names, declared, strict=True)}


def _sized(dims: tuple[int, ...], rows: int | None) -> tuple[int, ...]:
    return (rows, *dims[1:]) if rows is not None and dims else dims


def _described(tensor: Mapping[str, Any], shape: Shape | None, rows: int | None) -> tuple[str, tuple[int, ...]]:
    name, datatype, wanted = tensor["name"], str(tensor["datatype"]), list(tensor["shape"])
    if shape is None:
        dims = [1 if size == -1 else size for size in wanted]
        if rows is not None and wanted and wanted[0] == -1:
            dims[0] = rows
        return datatype, tuple(dims)
    if shape.datatype not in (None, datatype):
        raise InputsError(f"input {name!r} is {datatype}, not {shape.datatype}")
    dims = list(_sized(shape.dims, rows if wanted and wanted[0] == -1 else None))
    if len(dims) != len(wanted) or any(size not in (-1, dim) for size, dim in zip(wanted, dims, strict=True)):
        raise InputsError(f"input {name!r} takes the shape {wanted}, not {dims}")
    return datatype, tuple(dims)


def make(wanted: Mapping[str, tuple[str, tuple[int, ...]]], seed: int) -> list[Request]:
    """Requests with random values, `VARIANTS` of them or as many as `MAX_BYTES` hold.

    Floats are from 0 up to 1, complex numbers likewise in both parts, 8-bit integers of their whole range, wider ones
    0 or 1 (they are often indices, and those are always valid), BYTES words of eight letters.

    Args:
        wanted: datatype and shape of each input.
        seed: the same one gives the same values.

    Raises:
        InvalidRequest: `datatype_mismatch`: BF16 without the package ml_dtypes.
    """
    size = sum(math.prod(dims) * (tensors.ITEM_SIZE[datatype] or _WORD) for datatype, dims in wanted.values())
    rng = np.random.default_rng(seed)
    count = max(1, min(VARIANTS, MAX_BYTES // max(size, 1)))
    return [{name: _random(rng, *each) for name, each in wanted.items()} for _ in range(count)]


def _random(rng: np.random.Generator, datatype: str, dims: tuple[int, ...]) -> Array:
    if datatype == tensors.BYTES:
        letters = rng.integers(ord("a"), ord("z") + 1, (*dims, _WORD), np.uint8)
        words = [bytes(word) for word in letters.reshape(-1, _WORD)]
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


def cut(arrays: Mapping[str, Array], rows: int | None) -> list[Request]:
    """Requests out of given arrays.

    Args:
        arrays: by the inputs' names.
        rows: rows of each request: the arrays are cut along dimension 0, and what does not fill a request is left
            out; None for one request with all of them.

    Raises:
        InputsError: the arrays cannot be cut so.
    """
    if not arrays:
        raise InputsError("the file of inputs is empty")
    if rows is None:
        return [dict(arrays)]
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    least = min(lengths.values())
    if len(set(lengths.values())) > 1 or least < rows:
        told = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise InputsError(f"requests of {rows} rows cannot be cut from the file's arrays; their lengths are {told}")
    return [
        {name: np.ascontiguousarray(array[first : first + rows]) for name, array in arrays.items()}
        for first in range(0, least - rows + 1, rows)
    ]


def rows_of(request: Request) -> int:
    """The rows of a request: dimension 0 of its inputs, 1 where they have none."""
    first = next(iter(request.values()))
    return len(first) if first.ndim else 1


def bytes_of(request: Request) -> int:
    """How large a request is; of BYTES, its references only."""
    return sum(array.nbytes for array in request.values())
