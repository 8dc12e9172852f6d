"""Prefetch: a worker gets a second batch just in time, shortly before the end of the first."""

from __future__ import annotations

import pytest
from scheduler_scene import FIXED_S, LARGEST, ROW_S, UNBATCHED, Scene

from multitower.supervisor.scheduling.pool import LOOP_DELAY_S, MAX_LEAD_SHARE


def busy(scene: Scene) -> float:
    """Gives the only worker a batch of one row; returns when it is expected to finish."""
    scene.submit(1)
    assert scene.dispatch() == [(0, 1)]
    return scene.now + FIXED_S + ROW_S


def test_a_full_batch_is_sent_shortly_before_the_end_of_the_first() -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(LARGEST)
    assert scene.dispatch() == []
    wake = scene.scheduler.next_wake()
    assert wake == pytest.approx(end - LOOP_DELAY_S, abs=0.0002)
    assert scene.dispatch(wake - scene.now - 0.0001) == []
    assert scene.dispatch(0.0002) == [(0, LARGEST)]
    (worker,) = scene.workers
    assert worker.depth == 1 + LARGEST
    scene.submit(3 * LARGEST)
    assert scene.dispatch() == []
    assert scene.dispatch(end - scene.now) == [], "no third one"
    first = scene.answer(0)
    assert (worker.depth, first.queued) == (LARGEST, False)
    assert worker.batch is not None
    assert (worker.batch.queued, worker.batch.started) == (True, scene.now)


def test_a_batch_that_is_not_full_waits_and_may_grow() -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(LARGEST - 1)
    assert scene.dispatch(end - scene.now) == []
    scene.answer(0)
    assert scene.dispatch() == [(0, LARGEST - 1)]


def test_an_unbatched_request_is_a_full_batch() -> None:
    scene = Scene(1)
    scene.submit(2, key=UNBATCHED)
    assert scene.dispatch() == [(0, 1)]
    assert scene.dispatch(FIXED_S - LOOP_DELAY_S / 2) == [(0, 1)]


@pytest.mark.parametrize("late", [0.002, 0.05, 10.0])
def test_nothing_is_sent_behind_a_late_batch(late: float) -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(LARGEST)
    assert scene.dispatch(end + late - scene.now) == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert wake > scene.now + 1000, "the loop must not spin"


@pytest.mark.parametrize("overhead_s", [0.0, 0.0003, 0.002])
def test_prefetch_allows_for_the_measured_overhead(overhead_s: float) -> None:
    """The batch is sent earlier by that, but at most by a share of the time of the first one."""
    scene = Scene(1)
    for _ in range(50):
        scene.submit(1)
        scene.dispatch()
        scene.answer(0, FIXED_S + ROW_S + overhead_s, FIXED_S + ROW_S)
    busy(scene)
    scene.submit(LARGEST)
    scene.dispatch()
    wake = scene.scheduler.next_wake()
    assert wake is not None
    lead = min(overhead_s + LOOP_DELAY_S, MAX_LEAD_SHARE * (FIXED_S + ROW_S))
    assert wake - scene.now == pytest.approx(FIXED_S + ROW_S + overhead_s - lead, abs=0.0002)


def test_a_worker_about_to_finish_may_be_better_than_a_slow_idle_one() -> None:
    scene = Scene(4, 1)
    scene.submit(1)
    assert scene.dispatch() == [(1, 1)]
    scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S - LOOP_DELAY_S / 2) == [(1, LARGEST)]


def test_stop_dispatch_also_stops_prefetch() -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(2 * LARGEST)
    scene.scheduler.stop_dispatch(scene.workers[0])
    assert scene.dispatch(end - scene.now) == []
    scene.answer(0)
    assert scene.dispatch() == []
