"""Batches that are short beside the way to the worker: few workers get them, and unbatched requests travel together."""

from __future__ import annotations

import pytest
from scheduler_scene import FIXED_S, LARGEST, ROW_S, UNBATCHED, Scene, add_worker

from multitower.supervisor.scheduling.pool import SHORT_BATCH_VALID_FOR
from multitower.supervisor.scheduling.pool_worker import Served


@pytest.mark.parametrize(
    ("factors", "turns"),
    [
        pytest.param((0.05, 0.01), [0, 0, 0, 0], id="short"),
        pytest.param((0.1, 0.01), [1, 1, 1, 1], id="not short"),
    ],
)
def test_short_batches_go_to_the_free_worker_that_was_busy_last(factors: tuple[float, ...], turns: list[int]) -> None:
    scene = Scene(*factors)
    slots = []
    for _ in turns:
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        slots.append(slot)
        scene.answer(slot, factors[slot] * FIXED_S, factors[slot] * FIXED_S)
    assert slots == turns


@pytest.mark.parametrize(
    ("factor", "ways", "turns"),
    [
        pytest.param(0.1, (0.0004, 0.0006), [0, 0, 0, 0], id="short beside the way"),
        pytest.param(0.1, (0.0004, 0.0003), [0, 1, 0, 1], id="not short beside the way to one of them"),
        pytest.param(0.25, (0.002, 0.002), [0, 1, 0, 1], id="not short on any machine"),
    ],
)
def test_what_is_short_depends_on_the_way_to_the_workers(
    factor: float, ways: tuple[float, float], turns: list[int]
) -> None:
    scene = Scene(factor, factor)
    slots = []
    for _ in turns:
        for worker, way in zip(scene.workers, ways, strict=True):
            worker.overhead_s = way
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        slots.append(slot)
        scene.answer(slot, factor * FIXED_S, factor * FIXED_S)
    assert slots == turns


def test_workers_of_other_models_do_not_count_for_short_batches() -> None:
    scene = Scene(0.05, 0.01)
    add_worker(scene.scheduler, 2, "cpu:1", {"n": Served()}, scene.now)
    for _ in range(4):
        scene.submit(1)
        assert scene.dispatch(0.001) == [(0, 1)], "the slower one was busy last"
        scene.answer(0, 0.05 * FIXED_S, 0.05 * FIXED_S)


def test_short_batches_wait_for_a_busy_worker_unless_full_or_late() -> None:
    scene = Scene(0.05, 0.05, 0.05)
    scene.submit(30)
    assert scene.dispatch() == [(0, 30)]
    scene.submit(LARGEST - 1)
    assert scene.dispatch(0.0001) == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert scene.now < wake < scene.now + 0.001
    scene.submit(2)
    assert scene.dispatch() == [(1, LARGEST)]
    scene.answer(0, 0.0001, 0.0001)
    scene.answer(1, 0.0001, 0.0001)
    assert scene.dispatch() == [(1, 1)], "it was busy last"
    scene.submit(5)
    assert scene.dispatch() == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert scene.dispatch(wake - scene.now) == [(0, 5)], "the busy one is late"


def test_short_unbatched_requests_travel_together() -> None:
    scene = Scene(0.005, 0.005)  # 20 us a request
    scene.submit(20, key=UNBATCHED)
    assert scene.dispatch() == [(0, 14)]
    scene.submit(5, key=UNBATCHED)
    assert scene.dispatch(0.0001) == []
    scene.answer(0, 0.0001, 0.0003)
    assert scene.dispatch() == [(0, 11)]


@pytest.mark.parametrize(
    ("factor", "retry"),
    [pytest.param(0.1, 1, id="not short"), pytest.param(0.005, 0, id="no retry")],
)
def test_other_unbatched_requests_travel_in_messages_of_their_own(factor: float, retry: int) -> None:
    scene = Scene(factor, retry=retry)
    scene.submit(20, key=UNBATCHED)
    assert scene.dispatch() == [(0, 1)]


def test_unbatched_requests_of_one_message_run_separately_after_a_death() -> None:
    scene = Scene(0.005, 0.005)
    scene.submit(3, key=UNBATCHED)
    assert scene.dispatch() == [(0, 3)]
    scene.scheduler.remove_process(scene.workers[0], scene.now, crashed=True)
    for _ in range(3):
        assert scene.dispatch() == [(1, 1)]
        scene.answer(1, 0.0001)
    assert not scene.scheduler.busy


def test_a_worker_whose_batches_are_no_longer_short_is_noticed() -> None:
    scene = Scene(0.05, 0.05)
    slots = []
    for _ in range(3 * SHORT_BATCH_VALID_FOR):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.0001)
        slots.append(slot)
        scene.answer(slot, took := (1 if slot == 0 else 0.05) * (FIXED_S + ROW_S), took)
    assert slots[:4] == [0, 0, 0, 0]
    assert slots[-SHORT_BATCH_VALID_FOR // 2 :].count(0) <= 1, "except for a probe"
