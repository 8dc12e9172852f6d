"""Counts and latencies of the last minute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitower.supervisor.routing.recent import (
    MAX_KEYS,
    OTHER,
    SLOTS,
    STEP_S,
    WINDOW_S,
    LatencyHistogram,
    RecentCounts,
    RefusedRequests,
)


def histogram(*seconds: float) -> LatencyHistogram:
    made = LatencyHistogram()
    for each in seconds:
        made.add(int(each * 1e9))
    return made


def percentiles(made: LatencyHistogram, now: float = 0.0) -> list[float | None]:
    return made.percentiles_ms(now, (0.5, 0.99))


def test_without_requests_there_are_no_percentiles() -> None:
    assert percentiles(LatencyHistogram()) == [None, None]


@given(st.floats(2e-5, 3600.0))
def test_a_latency_is_shown_within_a_sixteenth_of_its_value(seconds: float) -> None:
    p50, p99 = percentiles(histogram(seconds))
    assert p50 == p99 == pytest.approx(seconds * 1000, rel=1 / 16)


@given(st.lists(st.floats(0.0001, 10.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentiles_are_nearest_ranks_within_the_width_of_a_slot(times: list[float], share: float) -> None:
    (found,) = histogram(*times).percentiles_ms(0.0, (share,))
    rank = max(1, -(-round(share * len(times) * 1e6) // 10**6))
    assert found == pytest.approx(sorted(times)[rank - 1] * 1000, rel=1 / 8)


@pytest.mark.parametrize("ns", [-5, 0, 1, 1023, 1024, 10**9, 10**12, 10**18])
def test_every_time_has_a_slot(ns: int) -> None:
    made = LatencyHistogram()
    made.add(ns)
    (found,) = made.percentiles_ms(0.0, (1.0,))
    assert found is not None
    assert found > 0


def test_slots_are_enough_for_an_hour() -> None:
    assert SLOTS < 300
    assert percentiles(histogram(3600.0))[0] == pytest.approx(3600e3, rel=1 / 16)


def test_a_latency_counts_for_a_minute() -> None:
    made = LatencyHistogram()
    made.tick(0.0)
    made.add(1_000_000)
    for tenth in range(1, 10 * int(WINDOW_S)):
        made.tick(tenth / 10)
        assert percentiles(made, tenth / 10)[0] == pytest.approx(1.0, rel=1 / 16), tenth
    late = WINDOW_S + 2 * STEP_S
    made.tick(late)
    made.tick(late + WINDOW_S)
    assert percentiles(made, late + WINDOW_S) == [None, None]


def test_recent_slow_requests_are_seen_behind_many_fast_ones_of_before() -> None:
    made = histogram(*[0.001] * 10_000)
    made.tick(0.0)
    made.tick(100.0)
    made.add(500_000_000)
    assert percentiles(made, 101.0)[0] == pytest.approx(500, rel=1 / 16)


def test_counts_of_the_last_minute_leave_out_what_was_before() -> None:
    counts = RecentCounts()
    counts.tick(0.0)
    counts.add("deadline")
    counts.tick(1.0 + STEP_S)
    assert counts.last_minute(30.0) == {"deadline": 1}
    counts.tick(70.0)
    counts.add("model_error")
    assert counts.last_minute(71.0 + STEP_S) == {"model_error": 1}
    assert counts.total == {"deadline": 1, "model_error": 1}


def test_memory_does_not_grow_with_time() -> None:
    counts, made = RecentCounts(), LatencyHistogram()
    for second in range(1000):
        counts.add("deadline")
        made.add(second)
        counts.tick(float(second))
        made.tick(float(second))
    most = WINDOW_S / STEP_S + 2
    assert len(counts._copies._kept) <= most
    assert len(made._copies._kept) <= most


def test_reasons_that_handlers_make_up_do_not_grow_the_memory() -> None:
    counts = RecentCounts()
    counts.add("deadline")
    for number in range(1000):
        counts.add(f"made up {number}")
    counts.add("x" * 1000)
    counts.add("deadline")
    assert len(counts.total) <= MAX_KEYS + 1
    assert counts.total["deadline"] == 2
    assert sum(counts.total.values()) == 1003
    assert counts.total[OTHER] == 1001 - (MAX_KEYS - 1)


def test_an_idle_model_makes_no_copies() -> None:
    made = histogram(0.1)
    for second in range(1000):
        made.tick(float(second))
    assert len(made._copies._kept) == 1


def test_refused_requests_are_counted_by_model_and_in_all() -> None:
    refused = RefusedRequests()
    refused.add("malformed")
    refused.add("queue_full")
    refused.add_of_model("m", "queue_full")
    refused.tick(0.0)
    assert refused.count == 2
    assert refused.by_reason.last_minute(1.0) == {"malformed": 1, "queue_full": 1}
    assert refused.of_models["m"].last_minute(1.0) == {"queue_full": 1}
    refused.remove_model("m")
    refused.remove_model("unknown")
    assert not refused.of_models
