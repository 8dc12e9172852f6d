"""Estimates of a batch's time from measured batches: noise, outliers, changes of speed, batches of equal size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from multitower.supervisor.scheduling.estimate import (
    MAX_KEYS,
    MIN_MEASURED,
    OUTLIER_STREAK,
    USUAL_AFTER_S,
    Estimate,
    Estimates,
)
from multitower.supervisor.scheduling.request import BatchKey
from multitower.worker_wire import KeySpec

FIXED_S, ROW_S = 0.004, 0.00003
SPEC = KeySpec("m", (("x", "UINT8", ()),), None, True)


def device(rows: int, factor: float = 1.0) -> float:
    """The true time of a batch."""
    return factor * (FIXED_S + ROW_S * rows)


def estimate_of(batches: Iterable[tuple[int, float]]) -> Estimate:
    estimate = Estimate()
    for rows, seconds in batches:
        estimate.add(rows, seconds, 0.0)
    return estimate


def sizes(count: int, largest: int = 32, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, largest) for _ in range(count)]


def test_an_estimate_is_known_after_some_batches_were_measured() -> None:
    assert not estimate_of([(1, 0.004)] * (MIN_MEASURED - 1)).known
    assert estimate_of([(1, 0.004)] * MIN_MEASURED).known


def test_the_fixed_part_and_the_part_per_row_are_found() -> None:
    estimate = estimate_of((rows, device(rows)) for rows in sizes(200))
    assert estimate.fixed_s == pytest.approx(FIXED_S, rel=0.02)
    assert estimate.row_s == pytest.approx(ROW_S, rel=0.1)
    for rows in (1, 8, 32):
        assert estimate.seconds(rows) == pytest.approx(device(rows), rel=0.02)


def test_noise_averages_out() -> None:
    rng = random.Random(2)
    estimate = estimate_of((rows, device(rows) * rng.lognormvariate(0, 0.2)) for rows in sizes(400))
    for rows in (1, 8, 32):
        assert estimate.seconds(rows) == pytest.approx(device(rows), rel=0.15)


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_equal_batches_give_their_time_and_no_time_per_row(rows: int) -> None:
    estimate = estimate_of([(rows, device(rows))] * 100)
    assert estimate.seconds(rows) == pytest.approx(device(rows), rel=0.001)
    assert estimate.row_s == pytest.approx(0.0, abs=1e-9)


def test_neither_part_is_ever_negative() -> None:
    # Larger batches that take less time; and batches for which a fitted line would begin below zero.
    falling = estimate_of((rows, 0.01 - 0.0002 * rows) for rows in sizes(100))
    steep = estimate_of((rows, 0.00001 * rows * rows) for rows in sizes(100))
    for estimate in (falling, steep):
        assert estimate.fixed_s >= 0
        assert estimate.row_s >= 0


OUTLIERS: dict[str, Callable[[int], float]] = {
    "one in ten takes a second": lambda n: 1.0 if n % 10 == 5 else device(8),
    "three in a row, again and again": lambda n: device(8) * (50 if n % 12 in (6, 7, 8) else 1),
    "the first one, while a device warms up": lambda n: 5.0 if n == 0 else device(8),
    "one takes no time": lambda n: 0.0 if n == 50 else device(8),
}


@pytest.mark.parametrize("name", OUTLIERS)
def test_outliers_count_for_little(name: str) -> None:
    # Their mean is up to 25 times the time of a usual batch.
    estimate = estimate_of((8, OUTLIERS[name](number)) for number in range(120))
    assert device(8) * 0.8 < estimate.seconds(8) < device(8) * 3.5


@pytest.mark.parametrize("factor", [0.1, 0.25, 0.6, 1.6, 4.0, 20.0])
def test_a_changed_speed_is_learned_within_a_few_batches(factor: float) -> None:
    estimate = estimate_of((rows, device(rows)) for rows in sizes(200))
    for rows in sizes(OUTLIER_STREAK, seed=3):
        estimate.add(rows, device(rows, factor), 0.0)
    for rows in (1, 8, 32):
        assert estimate.seconds(rows) == pytest.approx(device(rows, factor), rel=0.15)


def test_rescale_learns_a_changed_speed_from_one_batch() -> None:
    estimate = estimate_of((rows, device(rows, 4.0)) for rows in sizes(200))
    estimate.rescale(1, device(1), 0.0)
    for rows in (1, 8, 32):
        assert estimate.seconds(rows) == pytest.approx(device(rows), rel=0.1)


def test_a_slow_change_is_followed() -> None:
    estimate = estimate_of((8, device(8, 1 + number / 500)) for number in range(500))
    assert estimate.seconds(8) == pytest.approx(device(8, 1.9), rel=0.1)


def test_there_is_one_estimate_per_key_for_the_latest_keys() -> None:
    estimates = Estimates()
    first, *others = (BatchKey(SPEC, 32) for _ in range(MAX_KEYS))
    for _ in range(MIN_MEASURED):
        estimates.add(first, 8, 0.5, 0.0)
    for key in others:
        estimates.add(key, 8, 0.1, 0.0)
        estimates.add(first, 8, 0.5, 0.0)
    found = estimates.find(first.id)
    assert found is not None
    assert found.seconds(8) == pytest.approx(0.5)
    assert estimates.known() == [(first, found)]
    assert estimates.find(others[0].id) is None, "measured once"
    for _ in range(2 * MAX_KEYS):
        estimates.add(BatchKey(SPEC, 32), 8, 0.1, 0.0)
    assert len(estimates) == MAX_KEYS
    assert estimates.find(first.id) is None, "least recently used"


@pytest.mark.parametrize("factor", [0.2, 1.2, 5.0])
def test_a_device_that_has_become_slower_is_slow_until_that_is_usual(factor: float) -> None:
    estimate = estimate_of((8, device(8)) for _ in range(100))
    assert estimate.slowdown(0.0) == 1.0
    for _ in range(OUTLIER_STREAK):
        estimate.add(8, device(8, factor), 1000.0)
    slowdown = estimate.slowdown(1000.0)
    assert slowdown == (pytest.approx(5.0, rel=0.1) if factor == 5.0 else 1.0)
    assert estimate.slowdown(1000.0 + USUAL_AFTER_S) == slowdown
    assert estimate.slowdown(1001.0 + USUAL_AFTER_S) == 1.0


def test_a_device_that_is_as_fast_as_before_is_not_slow_any_more() -> None:
    estimate = estimate_of((8, device(8)) for _ in range(100))
    for factor in (5.0, 1.0):
        for _ in range(OUTLIER_STREAK):
            estimate.add(8, device(8, factor), 1000.0)
    assert estimate.slowdown(1000.0) == pytest.approx(1.0, rel=0.1)


def test_what_is_slow_for_long_is_compared_with_what_is_usual_by_then() -> None:
    estimate = estimate_of((8, device(8)) for _ in range(100))
    for when, factor in ((1000.0, 4.0), (2000.0, 16.0)):
        for _ in range(OUTLIER_STREAK):
            estimate.add(8, device(8, factor), when)
        assert estimate.slowdown(when) == pytest.approx(4.0, rel=0.1)
