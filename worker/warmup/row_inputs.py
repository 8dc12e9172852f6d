"""Different rows to compare a model's outputs with: recorded ones, variants of them, or made-up ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from multitower import tensors
from multitower.spec import TensorReport

from ..formats.model import Array, Arrays
from .warmup import Sample

WANTED_ROWS: Final = 8
"""Rows of a candidate; some may be equal, for instance of an input with two possible values."""

_SEED: Final = 20261201
"""The rows are the same in every worker, so that all of them come to the same conclusion."""


class _Style(NamedTuple):
    """What made-up values are like.

    Attributes:
        floats: from and to. Positive, since logarithms and roots of other numbers are NaN and so show nothing.
        integers: from and to, both included. Small, since most are indices of tables.
        has_text: whether BYTES are numbers as text, which most parsers accept; otherwise they are empty.
    """

    floats: tuple[float, float]
    integers: tuple[int, int]
    has_text: bool


_STYLES: Final = (
    _Style((0.0, 1.0), (0, 3), True),
    _Style((0.5, 4.0), (0, 1), True),
    _Style((0.0, 1.0), (1, 2), False),
)


def candidates(
    declared: Sequence[TensorReport], samples: Sequence[Sample], *, make_up: bool, open_dimensions: Sequence[int]
) -> Iterator[Arrays]:
    """Inputs of several rows, the most instructive first. Rows of recorded requests come before all others.

    Args:
        declared: the model's inputs.
        samples: recorded requests.
        make_up: whether the model may be run on inputs that are not recorded.
        open_dimensions: sizes to try for dimensions that the model leaves open, other than the first.
    """
    rng = np.random.default_rng(_SEED)
    recorded = _recorded_rows(samples)
    if recorded is not None:
        yield recorded
    if not make_up:
        return
    if recorded is not None:
        yield _variants(recorded, rng)
    has_open = any(-1 in (tensor.shape or ())[1:] for tensor in declared)
    for size in open_dimensions if has_open else open_dimensions[:1]:
        for style in _STYLES:
            yield {tensor.name: _made_up(tensor, style, size, rng) for tensor in declared}


def distinct_rows(inputs: Arrays) -> list[int]:
    """The indices of rows that differ from all rows before them."""
    seen: dict[tuple[object, ...], int] = {}
    for row in range(min(map(len, inputs.values()), default=0)):
        key = tuple(
            tuple(array[row : row + 1].ravel().tolist()) if array.dtype == object else array[row].tobytes()
            for array in inputs.values()
        )
        seen.setdefault(key, row)
    return list(seen.values())


def _recorded_rows(samples: Sequence[Sample]) -> Arrays | None:
    """The first rows of all recorded requests whose shapes are those of the first one; None without any."""
    if not samples:
        return None
    shapes = {name: array.shape[1:] for name, array in samples[0].inputs.items()}
    alike = [
        sample.inputs
        for sample in samples
        if {name: array.shape[1:] for name, array in sample.inputs.items()} == shapes
    ]
    joined = {name: np.concatenate([inputs[name] for inputs in alike]) for name in shapes}
    rows = distinct_rows(joined)[:WANTED_ROWS]
    return {name: array[rows] for name, array in joined.items()}


def _variants(recorded: Arrays, rng: np.random.Generator) -> Arrays:
    """Rows that resemble recorded ones: other floating point values, and the same integers and texts, rotated.

    Every value of an integer or text occurs in the recorded row, so that indices stay within their tables.
    """
    rows = np.arange(WANTED_ROWS) % len(next(iter(recorded.values())))
    varied: Arrays = {}
    for name, array in recorded.items():
        repeated = array[rows]
        if _is_float(array):
            factors = rng.uniform(0.5, 1.5, repeated.shape)
            varied[name] = (repeated.astype(np.float64) * factors).astype(array.dtype)
        else:
            flat = repeated.reshape(WANTED_ROWS, -1)
            rotated = np.stack([np.roll(row, number) for number, row in enumerate(flat)])
            varied[name] = rotated.reshape(repeated.shape)
    return varied


def _made_up(tensor: TensorReport, style: _Style, open_size: int, rng: np.random.Generator) -> Array:
    dims = [open_size if size == -1 else size for size in (tensor.shape or ())[1:]]
    shape = (WANTED_ROWS, *dims)
    dtype = tensors.dtype_of(tensor.datatype)
    if tensor.datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.uniform(*style.floats, shape) + 1j * rng.uniform(*style.floats, shape)).astype(dtype)
    if _is_float_type(dtype):
        return rng.uniform(*style.floats, shape).astype(dtype)
    numbers = rng.integers(style.integers[0], style.integers[1] + 1, shape)
    if tensor.datatype != tensors.BYTES:
        return numbers.astype(dtype)
    texts = np.empty(shape, object)
    texts.ravel()[:] = [str(number).encode() if style.has_text else b"" for number in numbers.ravel()]
    return texts


def nudged(inputs: Arrays) -> Arrays:
    """The inputs with floating point values that differ by about as much as roundings inside a model do."""
    rng = np.random.default_rng(_SEED)
    return {
        name: (array.astype(np.float64) * (1 + rng.uniform(-1e-3, 1e-3, array.shape))).astype(array.dtype)
        if _is_float(array)
        else array
        for name, array in inputs.items()
    }


def _is_float(array: Array) -> bool:
    return _is_float_type(array.dtype)


def _is_float_type(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"
