"""Batches that cannot be sent to their worker: their requests get an error, and the worker is as before."""

from __future__ import annotations

import pytest
from scheduler_scene import FIXED_S, LARGEST, ROW_S, Scene

from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.scheduling.pool import LOOP_DELAY_S
from multitower.supervisor.scheduling.pool_worker import Batch, Worker
from multitower.supervisor.scheduling.request import Request


def fail(scene: Scene, batch: Batch | None) -> list[Request]:
    """Fails a batch; the requests that got the error for it."""
    assert batch is not None
    scene.scheduler.fail_batch(batch, make(Reason.INTERNAL_ERROR, "a defect"), scene.now)
    failed = []
    for reply in scene.scheduler.pop_replies():
        request, answer = reply.request, reply.answer
        assert isinstance(answer, MultitowerError)
        assert answer.reason == Reason.INTERNAL_ERROR
        failed.append(request)
    return failed


def serves_as_before(scene: Scene, worker: Worker) -> None:
    """The worker gets and answers the next batch."""
    requests = scene.submit(2)
    scene.dispatch(1.0)
    while worker.batch is not None:
        scene.answer(0)
    assert all(request.answered for request in requests)


def test_a_worker_is_free_again_when_its_only_batch_cannot_be_sent() -> None:
    scene = Scene(1)
    worker = scene.workers[0]
    requests = scene.submit(2)
    assert scene.dispatch() == [(0, 2)]
    assert fail(scene, worker.batch) == requests
    assert worker.batch is None
    assert worker in scene.scheduler.pool.free
    serves_as_before(scene, worker)


@pytest.mark.parametrize("first_fails", [True, False])
def test_of_two_batches_of_a_worker_either_can_fail(first_fails: bool) -> None:
    scene = Scene(1)
    worker = scene.workers[0]
    first = scene.submit(1)
    assert scene.dispatch() == [(0, 1)]
    second = scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S - LOOP_DELAY_S / 2) == [(0, LARGEST)]
    one, other = worker.batch, worker.next_batch
    assert fail(scene, one if first_fails else other) == (first if first_fails else second)
    assert (worker.batch, worker.next_batch) == (other if first_fails else one, None)
    assert scene.answer(0).requests == (second if first_fails else first)
    serves_as_before(scene, worker)


def test_a_worker_may_get_another_second_batch_when_one_cannot_be_sent() -> None:
    scene = Scene(1)
    worker = scene.workers[0]
    scene.submit(1)
    scene.dispatch()
    scene.submit(LARGEST)
    scene.dispatch(FIXED_S + ROW_S - LOOP_DELAY_S / 2)
    fail(scene, worker.next_batch)
    scene.submit(LARGEST)
    assert scene.dispatch() == [(0, LARGEST)]
