"""Times and rates of a worker's latest batches."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitower.supervisor.routing.statistics import KEPT_BATCHES, BatchTimes

BATCHES = st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 5.0), st.integers(0, 64)), max_size=60)


def filled(seconds: list[float], now: float = 100.0) -> BatchTimes:
    batch_times = BatchTimes()
    for each in seconds:
        batch_times.add(now, each, 1)
    return batch_times


def test_without_batches_there_are_no_percentiles_and_no_rate() -> None:
    batch_times = BatchTimes()
    assert batch_times.p50_ms(5.0) is None
    assert batch_times.p99_ms(5.0) is None
    assert batch_times.rows_per_second(5.0) == 0.0


def test_every_percentile_of_one_batch_is_its_time() -> None:
    batch_times = filled([0.004])
    assert batch_times.p50_ms(100.0) == batch_times.p99_ms(100.0) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [(100, 0.5, 50), (100, 0.99, 99), (101, 0.99, 100), (200, 0.99, 198), (3, 0.5, 2), (4, 0.5, 2), (100, 0.07, 7)],
)
def test_percentiles_are_nearest_ranks_in_any_order(count: int, share: float, rank: int) -> None:
    times = [number / 1000 for number in range(1, count + 1)]
    batch_times = filled(times[::2] + times[1::2])
    assert batch_times.percentile_ms(100.0, share) == pytest.approx(rank)


def test_p99_ignores_one_slow_batch_in_a_hundred_and_shows_two() -> None:
    assert filled([0.001] * 99 + [1.0]).p99_ms(100.0) == pytest.approx(1.0)
    assert filled([0.001] * 98 + [1.0] * 2).p99_ms(100.0) == pytest.approx(1000.0)


def test_batches_count_for_a_minute() -> None:
    batch_times = BatchTimes()
    batch_times.add(0.0, 9.0, 1)
    batch_times.add(30.0, 1.0, 1)
    assert batch_times.p99_ms(59.9) == pytest.approx(9000)
    assert batch_times.p99_ms(60.0) == pytest.approx(1000)
    assert batch_times.p99_ms(90.0) is None


def test_of_more_batches_than_are_kept_the_latest_count() -> None:
    batch_times = filled([5.0] * KEPT_BATCHES + [0.001] * KEPT_BATCHES)
    assert batch_times.p99_ms(100.0) == pytest.approx(1.0)


def test_the_rate_of_a_steady_worker_is_exact() -> None:
    batch_times = BatchTimes()
    for number in range(1, 2001):
        batch_times.add(number * 0.01, 0.005, 4)  # 400 rows a second, 1000 batches within RATE_S
    assert batch_times.rows_per_second(20.0) == pytest.approx(400, rel=0.01)


def test_more_batches_than_are_kept_do_not_lower_the_rate() -> None:
    batch_times = BatchTimes()
    for number in range(1, 20 * KEPT_BATCHES + 1):
        batch_times.add(number * 20.0 / (20 * KEPT_BATCHES), 0.001, 2)
    assert batch_times.rows_per_second(20.0) == pytest.approx(2 * KEPT_BATCHES, rel=0.01)


def test_the_rate_of_an_idle_worker_is_zero_after_ten_seconds() -> None:
    batch_times = BatchTimes()
    batch_times.add(3.0, 0.1, 100)
    assert batch_times.rows_per_second(3.0) == pytest.approx(100 / 9.5)
    assert batch_times.rows_per_second(12.0) == pytest.approx(100 / 9.5)
    assert batch_times.rows_per_second(13.0) == 0.0


def test_the_rate_of_a_new_worker_starts_low() -> None:
    batch_times = BatchTimes()
    batch_times.add(1000.0, 0.1, 100)
    assert 0 < batch_times.rows_per_second(1000.1) <= 100 / 9.5


@given(BATCHES, st.floats(0.0, 80.0))
def test_percentiles_and_rate_agree_with_a_plain_list(batches: list[tuple[float, float, int]], later: float) -> None:
    batch_times, now = BatchTimes(), 0.0
    record = []
    for gap, seconds, rows in batches:
        now += gap
        batch_times.add(now, seconds, rows)
        record.append((now, seconds, rows))
    now += later
    kept = sorted(seconds for when, seconds, _ in record if when > now - 60)
    median = batch_times.p50_ms(now)
    assert median == (pytest.approx(statistics.median_low(kept) * 1000) if kept else None)
    assert batch_times.percentile_ms(now, 1.0) == (pytest.approx(kept[-1] * 1000) if kept else None)
    lowest = sum(rows for when, _, rows in record if when >= now - 9.5)
    highest = sum(rows for when, _, rows in record if when > now - 10)
    assert lowest / 10 - 1e-9 <= batch_times.rows_per_second(now) <= highest / 9.5 + 1e-9
