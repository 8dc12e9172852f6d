"""Outputs are equal within a tolerance, and comparing them takes little memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from multitower.worker.row_comparison import Tolerance, are_equal

MANY = 300_000
"""Elements of several chunks."""

PLACES = (0, 131_071, 131_072, MANY - 1)
"""Of an element that differs: at both ends, and on both sides of the first border of two chunks."""


@pytest.mark.parametrize("tolerance", Tolerance)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.complex64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("place", PLACES)
def test_one_element_of_many_that_differs_is_found(place: int, dtype: Any, tolerance: Tolerance) -> None:
    one = np.ones((MANY // 3, 3), dtype)
    other = one.copy()
    assert are_equal(one, other, tolerance)
    other.flat[place] = 3
    assert not are_equal(one, other, tolerance)


@pytest.mark.parametrize("place", PLACES)
def test_the_largest_value_of_all_chunks_counts(place: int) -> None:
    one = np.ones(MANY, np.float32)
    one[place] = 1000
    other = one.copy()
    other[MANY // 2] = 15
    assert are_equal(one, other, Tolerance.WIDE)
    other[MANY // 2] = 30
    assert not are_equal(one, other, Tolerance.WIDE)


@pytest.mark.parametrize("tolerance", Tolerance)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_equal_themselves_alone(value: float, tolerance: Tolerance) -> None:
    one = np.ones(MANY, np.float32)
    one[-1] = value
    other = one.copy()
    other[0] += 1e-7
    assert are_equal(one, other, tolerance)
    other[-1] = 1
    assert not are_equal(one, other, tolerance)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,)])
def test_small_arrays_are_compared(shape: tuple[int, ...]) -> None:
    one = np.ones(shape, np.float32)
    assert are_equal(one, one.copy(), Tolerance.STRICT)
    assert are_equal(one, one * 2, Tolerance.WIDE) == (one.size == 0)


@pytest.mark.parametrize("tolerance", Tolerance)
def test_comparing_large_outputs_takes_a_few_mebibytes(tolerance: Tolerance) -> None:
    one = np.ones(4 << 20, np.float32)  # 16 MiB
    other = one * np.float32(1 + 1e-7)
    tracemalloc.start()
    try:
        assert are_equal(one, other, tolerance)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
