"""Different rows to compare a model's outputs with: recorded ones, variants of them, or made-up ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
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


_LOWEST: Final = 0.002
_HIGHEST: Final = 0.998
"""Shares of a range that its smallest and its largest values have. The bounds themselves are left out: logarithms."""


class _Spread(Enum):
    """Where the values of even rows are within a range. Odd rows have both ends of it.

    Row 0 is compared in a batch with the other even rows, and in one with odd rows. So these batches differ in what
    all of their rows may be scaled or cut by, and row 0 does not determine it.

    MIDDLE: batches differ in their largest and smallest values; so row 0 has neither.
    LOWER: batches differ in the largest values of a row, in its sum, and in how many of its elements are not 0.
    """

    MIDDLE = 0
    LOWER = 1


class Candidate(NamedTuple):
    """Rows to compare outputs of.

    Attributes:
        rows: inputs of several rows. The rows with even indices resemble each other, where they are made up.
        more: likewise, for a second comparison, which is not needed to show that outputs differ between rows.
    """

    rows: Arrays
    more: Arrays


_STYLES: Final = (
    _Style((0.0, 1.0), (0, 3), True),
    _Style((0.5, 4.0), (0, 1), True),
    _Style((0.0, 1.0), (1, 2), False),
)


def candidates(
    declared: Sequence[TensorReport], samples: Sequence[Sample], *, make_up: bool, open_dimensions: Sequence[int]
) -> Iterator[Candidate]:
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
        yield Candidate(recorded, _variants(recorded, _Spread.LOWER, rng) if make_up else recorded)
    if not make_up:
        return
    if recorded is not None:
        yield Candidate(_variants(recorded, _Spread.MIDDLE, rng), _variants(recorded, _Spread.LOWER, rng))
    has_open = any(-1 in (tensor.shape or ())[1:] for tensor in declared)
    for size in open_dimensions if has_open else open_dimensions[:1]:
        for style in _STYLES:
            rows, more = (
                {tensor.name: _made_up(tensor, style, size, spread, rng) for tensor in declared} for spread in _Spread
            )
            yield Candidate(rows, more)


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


def _variants(recorded: Arrays, spread: _Spread, rng: np.random.Generator) -> Arrays:
    """Rows that resemble recorded ones: other floating point values, and the same integers and texts, rotated.

    Every value of an integer or text occurs in the recorded row, so that indices stay within their tables.
    """
    rows = np.arange(WANTED_ROWS) % len(next(iter(recorded.values())))
    varied: Arrays = {}
    for name, array in recorded.items():
        repeated = array[rows]
        flat = repeated.reshape(WANTED_ROWS, -1)
        if _is_float(array):
            factors = (
                rng.uniform(0.75, 1.25, flat.shape) if spread is _Spread.MIDDLE else rng.uniform(0.5, 1, flat.shape)
            )
            factors[1::4] = rng.uniform(1.25, 1.5, factors[1::4].shape)
            factors[3::4] = rng.uniform(0.5, 0.75, factors[3::4].shape)
            varied[name] = (flat.astype(np.float64) * factors).astype(array.dtype).reshape(repeated.shape)
        else:
            rotated = np.stack([_without_extremes(np.roll(row, i), i, spread) for i, row in enumerate(flat)])
            varied[name] = rotated.reshape(repeated.shape)
    return varied


def _without_extremes(values: Array, row: int, spread: _Spread) -> Array:
    """The integers of a recorded row, without its smallest or largest ones where `_Spread` wants that."""
    if values.dtype.kind not in "iu":
        return values
    known = np.unique(values)
    if len(known) < 3:
        return values
    least, largest = known[0], known[-1]
    if row % 2 == 0:
        least, largest = known[1] if spread is _Spread.MIDDLE else least, known[-2]
    elif row == 1 and spread is _Spread.LOWER:
        least = known[1]
    inner: Array = np.clip(values, least, largest)
    return inner


def _made_up(tensor: TensorReport, style: _Style, open_size: int, spread: _Spread, rng: np.random.Generator) -> Array:
    dims = [open_size if size == -1 else size for size in (tensor.shape or ())[1:]]
    shape = (WANTED_ROWS, *dims)
    dtype = tensors.dtype_of(tensor.datatype)
    low, high = style.floats
    if dtype.kind == "c":
        real, imaginary = (low + (high - low) * _shares(shape, spread, rng) for _ in range(2))
        return (real + 1j * imaginary).astype(dtype)
    if _is_float_type(dtype):
        return (low + (high - low) * _shares(shape, spread, rng)).astype(dtype)
    least, largest = (0, 1) if tensor.datatype == "BOOL" else style.integers
    count = largest - least + 1
    numbers: Array = least + np.floor(count * _shares(shape, spread, rng, has_middle=count > 2)).astype(np.int64)
    if tensor.datatype != tensors.BYTES:
        return numbers.astype(dtype)
    texts = np.empty(shape, object)
    texts.ravel()[:] = [str(number).encode() if style.has_text else b"" for number in numbers.ravel()]
    return texts


def _shares(shape: tuple[int, ...], spread: _Spread, rng: np.random.Generator, *, has_middle: bool = True) -> Array:
    """Where values are within a range, from 0 to 1.

    Args:
        shape: of the values.
        spread: of even rows.
        rng: draws them.
        has_middle: whether there are values that are neither the smallest nor the largest. Without them `MIDDLE` is the
            upper half.
    """
    shares = rng.uniform(size=(WANTED_ROWS, tensors.element_count(shape[1:])))
    if not shares.size:
        return shares.reshape(shape)
    if spread is _Spread.LOWER:
        shares[::2] *= 0.5
        shares[::2, -1] = _LOWEST
        shares[1] = 0.5 + shares[1] / 2
    else:
        shares[::2] = (0.25 if has_middle else 0.5) + shares[::2] / 2
    for number, row in enumerate(shares):
        # A row of one element has the end that is set last.
        if number % 4 == 1:
            if spread is _Spread.MIDDLE:
                row[row.argmin()] = _LOWEST
            row[row.argmax()] = _HIGHEST
        elif number % 4 == 3:
            row[row.argmax()] = _HIGHEST
            row[row.argmin()] = _LOWEST
    return shares.reshape(shape)


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
