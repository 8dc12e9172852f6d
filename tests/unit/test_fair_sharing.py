"""Requests larger than a batch: they take turns with others, and are refused where they cannot run in their time."""

from __future__ import annotations

import pytest
from scheduler_scene import FIXED_S, KEY, LARGEST, ROW_S, Scene

from multitower.errors import MultitowerError, Reason
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.worker_wire import KeySpec

OTHER_SHAPE = BatchKey(KeySpec("m", (("x", "UINT8", (2,)),), None, True), LARGEST)
BATCH_S = FIXED_S + ROW_S * LARGEST


def run_batch(scene: Scene, slot: int = 0) -> list[tuple[Request, int]]:
    """Runs the next batch of a worker; returns the request and the rows of each entry."""
    assert scene.dispatch()
    batch = scene.answer(slot, BATCH_S, BATCH_S)
    return [(request.whole, request.rows) for request in batch.requests]


def submit(scene: Scene, rows: int, seconds: float, key: BatchKey = KEY) -> Request:
    """Submits a request that has so many seconds."""
    plan = Plan(key, rows, (0,), (rows,), (False,), ("x",), seconds)
    request = Request(("sender",), b"id", plan, [bytes(rows)], rows, scene.now)
    scene.scheduler.submit(request)
    return request


def test_small_requests_run_after_one_part_of_a_large_one() -> None:
    scene = Scene(1.0)
    (large,) = scene.submit(1, 10 * LARGEST)
    small = scene.submit(3, 1)
    assert run_batch(scene) == [(large, LARGEST)]
    assert run_batch(scene) == [*((request, 1) for request in small), (large, LARGEST - 3)]


def test_a_small_request_that_arrives_later_waits_for_one_part_only() -> None:
    scene = Scene(1.0)
    (large,) = scene.submit(1, 100 * LARGEST)
    for _ in range(5):
        assert run_batch(scene) == [(large, LARGEST)]
    (small,) = scene.submit(1, LARGEST)
    assert run_batch(scene) == [(small, LARGEST)]
    assert run_batch(scene) == [(large, LARGEST)]


def test_large_requests_take_turns() -> None:
    scene = Scene(1.0)
    one, other = scene.submit(2, 3 * LARGEST)
    order = [run_batch(scene)[0][0] for _ in range(6)]
    assert order == [one, other] * 3
    assert {reply.request for reply in scene.scheduler.pop_replies()} == {one, other}


def test_requests_of_another_shape_take_turns_with_a_large_one() -> None:
    scene = Scene(1.0)
    (large,) = scene.submit(1, 4 * LARGEST)
    other = scene.submit(2, LARGEST, OTHER_SHAPE)
    order = [run_batch(scene)[0][0] for _ in range(6)]
    assert order == [large, other[0], other[1], large, large, large]


def test_a_large_request_gets_its_turn_in_an_overload_of_small_ones() -> None:
    scene = Scene(1.0)
    (large,) = scene.submit(1, 3 * LARGEST)
    for number in range(9):
        scene.submit(LARGEST, 1)
        if large in [request for request, _ in run_batch(scene)]:
            assert number % 2 == 0 or number > 2
    answered = [reply.request for reply in scene.scheduler.pop_replies()]
    assert large in answered


def test_the_rest_of_a_large_request_does_not_wait_for_its_batch_to_fill() -> None:
    scene = Scene(1.0)
    scene.scheduler.set_limits("m", QueueLimits(10_000, 1 << 30, max_delay_s=10.0))
    (large,) = scene.submit(1, LARGEST + 1)
    assert run_batch(scene) == [(large, LARGEST)]
    (small,) = scene.submit(1, 1)
    assert run_batch(scene) == [(small, 1), (large, 1)]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_request_that_cannot_run_in_its_time_is_refused_at_the_start(workers: int) -> None:
    scene = Scene(*[1.0] * workers)
    # Half a full batch is the mean of what was measured; more is not promised.
    seconds = 1000 * (FIXED_S + ROW_S * LARGEST / 2) / workers
    with pytest.raises(MultitowerError) as caught:
        submit(scene, 1000 * LARGEST, seconds / 2)
    assert caught.value.reason == Reason.DEADLINE
    assert caught.value.details["rows"] == 1000 * LARGEST
    assert caught.value.details["estimated_ms"] == pytest.approx(1000 * seconds, rel=0.1)
    assert "send fewer rows per request" in caught.value.message
    submit(scene, 1000 * LARGEST, seconds)
    assert scene.scheduler.outstanding == 1


def test_a_request_is_accepted_while_the_time_of_one_worker_is_unknown() -> None:
    scene = Scene(1.0)
    scene.worker(None)
    submit(scene, 1000 * LARGEST, 0.001)
    assert scene.scheduler.outstanding == 1


def test_workers_that_are_being_replaced_count_as_if_they_were_there() -> None:
    scene = Scene(1.0, 1.0)
    seconds = 1000 * (FIXED_S + ROW_S * LARGEST / 2) / 2
    scene.scheduler.remove_process(scene.workers[1], scene.now)
    submit(scene, 1000 * LARGEST, seconds)
    assert scene.scheduler.outstanding == 1


def test_batches_of_few_rows_do_not_say_how_long_full_ones_take() -> None:
    scene = Scene(None)
    worker = scene.workers[0]
    for rows in (1, 2, 1, 2, 1, 2):
        worker.estimates.add(KEY, rows, 0.01 * rows, scene.now)
    submit(scene, 100 * LARGEST, 100 * 0.02)
    assert scene.scheduler.outstanding == 1


def test_a_large_request_that_others_made_late_is_answered_before_all_of_it_has_run() -> None:
    scene = Scene(1.0)
    large = submit(scene, 20 * LARGEST, 20 * BATCH_S)
    others = scene.submit(4, 20 * LARGEST)
    entries: list[tuple[Request, int]] = []
    while not (replies := scene.scheduler.pop_replies()):
        entries += run_batch(scene)
    (reply,) = replies
    answer = reply.answer
    assert reply.request is large
    assert isinstance(answer, MultitowerError)
    rows_run = sum(rows for request, rows in entries if request is large)
    assert (answer.reason, answer.details["rows"]) == (Reason.DEADLINE, 20 * LARGEST - rows_run)
    assert rows_run < 10 * LARGEST
    assert scene.now < large.deadline - 5 * BATCH_S, "its workers went on to the other requests"
    assert scene.scheduler.outstanding == len(others)
