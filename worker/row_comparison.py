"""Compares outputs of a model that must be equal: of one row in different batches, or of one batch run twice. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

RERUNS: Final = 2
"""How often calls are repeated that have shown a difference."""

VARYING: Final = "its outputs vary from run to run, as with random numbers or a state that each call changes"
DEPEND_ON_OTHERS: Final = "the values of output {!r} in a row depend on the other rows of the batch"
DEPEND_ON_POSITION: Final = "the values of output {!r} in a row depend on its position in a batch of {} rows"
DEPEND_ON_SIZE: Final = "the values of output {!r} in a row differ between batches of {} and {} rows"


class Tolerance(Enum):
    """How far two floating point values may differ and still count as equal. All other values must be equal.

    STRICT: both calls had the same shapes, and the row had the same position, so the same instructions computed it.
    Only operations that add in a random order differ then, in the last bits.

    WIDE: the calls had other sizes, for which libraries choose other algorithms, and other precisions inside (TF32,
    half types). The differences add up over the layers of a model.
    """

    STRICT = 0
    WIDE = 1


_WIDE_SHARE: Final = 0.02
"""With `Tolerance.WIDE`, the share of the value and of the output's largest value that a difference may have."""

_STRICT_STEPS: Final = 4
"""With `Tolerance.STRICT`, the number of roundings of the datatype that a difference may have."""

_CHUNK: Final = 1 << 17
"""Elements that are compared at once: 1 MiB for each intermediate array of FP64."""


def differing_output(expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: Tolerance) -> str | None:
    """The name of the first output that differs; None where all are equal.

    NaN equals NaN. Outputs of unequal shapes or datatypes differ.

    Args:
        expected: arrays by name.
        found: likewise.
        tolerance: for floating point values.
    """
    for name in dict.fromkeys((*expected, *found)):
        if name not in expected or name not in found or not are_equal(expected[name], found[name], tolerance):
            return name
    return None


def are_equal(expected: Array, found: Array, tolerance: Tolerance) -> bool:
    """Whether two arrays are equal within a tolerance."""
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        return False
    step = _rounding_step(expected.dtype)
    if step is None:
        return bool(np.array_equal(expected, found))
    # In chunks: arrays of twice the width and of truth values take several times the memory of the outputs.
    one, other = expected.reshape(-1), found.reshape(-1)
    chunks = [slice(start, start + _CHUNK) for start in range(0, one.size, _CHUNK)]
    unequal = [chunk for chunk in chunks if not _are_exact(*_widened(one[chunk], other[chunk])).all()]
    if not unequal:
        return True
    largest = max(_largest(*_widened(one[chunk], other[chunk])) for chunk in chunks)
    return all(
        _are_near(*_widened(one[chunk], other[chunk]), largest=largest, step=step, tolerance=tolerance)
        for chunk in unequal
    )


def _widened(one: Array, other: Array) -> tuple[Array, Array]:
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    return one.astype(wide), other.astype(wide)


def _are_exact(left: Array, right: Array) -> Array:
    exact: Array = (left == right) | (np.isnan(left) & np.isnan(right))  # infinities, too
    return exact


def _largest(left: Array, right: Array) -> float:
    """The largest finite size of a value; 0 where all are infinite or NaN."""
    sizes = np.maximum(np.abs(left), np.abs(right))
    return float(np.max(sizes[np.isfinite(sizes)], initial=0.0))


def _are_near(left: Array, right: Array, *, largest: float, step: float, tolerance: Tolerance) -> bool:
    """Whether values are equal within a tolerance.

    Args:
        left: some values of an output.
        right: as many of the other one.
        largest: the largest value of both outputs.
        step: the relative distance of neighbouring values of their datatype.
        tolerance: how far they may differ.
    """
    sizes = np.maximum(np.abs(left), np.abs(right))
    if tolerance is Tolerance.STRICT:
        allowed = step * (_STRICT_STEPS * sizes + largest)
    else:
        allowed = _WIDE_SHARE * (sizes + largest)
    with np.errstate(invalid="ignore"):  # the difference of infinities is NaN, which is within no tolerance
        near = np.isfinite(sizes) & (np.abs(left - right) <= allowed)
    return bool((_are_exact(left, right) | near).all())


def _rounding_step(dtype: np.dtype[Any]) -> float | None:
    """The relative distance of neighbouring values of a floating point datatype, at least that of FP32; else None."""
    if dtype.kind in "fc":
        return max(float(np.finfo(dtype).eps), float(np.finfo(np.float32).eps))
    if dtype.name == "bfloat16":
        return 2.0**-7
    return None
