"""Split requests while workers of several generations start, retire and die: each ends, and nothing spins."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from scheduler_scene import add_worker

from multitower import wire
from multitower.errors import MultitowerError, Reason
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.pool_worker import Batch, Served, Worker
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import NORMAL_PRIORITY, BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec

LARGEST = 2
KEY = BatchKey(KeySpec("m", (("x", "UINT8", ()),), None, True), LARGEST)

# For a loop that spins.
pytestmark = pytest.mark.timeout(20)


class Scene:
    """One model, whose workers have the generations that they are given."""

    def __init__(self, retry: int = 1) -> None:
        self.scheduler = Scheduler({"m": QueueLimits(1000, 1 << 20, retry=retry, quarantine_s=60.0)})
        self.deaths = 0
        self._workers = self._requests = 0

    def worker(self, generation: int, device: str | None = None) -> Worker:
        self._workers += 1
        return add_worker(
            self.scheduler,
            self._workers,
            device or f"cpu:{self._workers}",
            {"m": Served("1", generation=generation)},
            0.0,
        )

    def submit(self, rows: int, priority: int = NORMAL_PRIORITY) -> Request:
        self._requests += 1
        plan = Plan(KEY, rows, (0,), (rows,), (False,), ("x",), 30.0, priority)
        request = Request(("sender",), bytes([self._requests]), plan, [bytes(rows)], rows, 0.0)
        self.scheduler.submit(request)
        return request

    def dispatch(self) -> dict[Worker, Batch]:
        return {batch.worker: batch for batch in self.scheduler.dispatch(0.0)}

    def answer(self, batch: Batch) -> None:
        answers = []
        for request in batch.requests:
            header = wire.reply_header("m", "1", [wire.Tensor("y", "UINT8", (request.rows,))])
            answers.append([header, bytes(request.rows)])
        self.scheduler.finish(batch.worker, batch.id, answers, 0.0)

    def die(self, worker: Worker) -> None:
        self.deaths += 1
        self.scheduler.remove_process(worker, 0.0, crashed=True)

    def errors(self) -> list[str]:
        return [
            reply.answer.reason for reply in self.scheduler.pop_replies() if isinstance(reply.answer, MultitowerError)
        ]


@pytest.mark.parametrize("large", [1, 2, 5])
@pytest.mark.parametrize("behind", [[], [1], [1, 1, 1], [2], [5]])
def test_requests_of_another_generation_do_not_block_those_behind_them(large: int, behind: list[int]) -> None:
    scene = Scene()
    # Each has a part on the only worker of its generation, and rows that wait for that worker.
    for generation in range(large):
        worker = scene.worker(generation)
        bound = scene.submit(rows=3 * LARGEST)
        assert scene.dispatch()[worker].requests[0].parent is bound
    small = [scene.submit(rows) for rows in behind]
    new = scene.worker(generation=large)
    given = scene.dispatch()
    assert set(given) == ({new} if behind else set())
    if behind:
        first = given[new].requests[0]
        assert (first.parent or first) is small[0]


def test_expired_requests_at_the_head_do_not_block_either() -> None:
    scene = Scene()
    scene.worker(generation=1)
    scene.submit(rows=3 * LARGEST)
    assert scene.dispatch()
    new = scene.worker(generation=2)
    late = scene.submit(rows=1)
    (batch,) = scene.scheduler.dispatch(0.0)
    scene.answer(batch)
    assert (batch.worker, batch.requests) == (new, [late])
    scene.scheduler.pop_replies()
    scene.submit(rows=1)
    assert scene.scheduler.dispatch(1000.0) == []
    assert scene.errors().count(Reason.DEADLINE) == 1, "the waiting one; `expire` answers the other"


# A worker is retired first if it hangs or is being replaced. Its requests may have started again meanwhile.
RETIRED_FIRST = pytest.mark.parametrize("retired", [False, True], ids=["it dies", "it is retired, then dies"])


@pytest.mark.parametrize("retry", [0, 1, 3])
@RETIRED_FIRST
def test_a_split_request_kills_no_more_workers_than_retry_allows(retired: bool, retry: int) -> None:
    scene = Scene(retry)
    bad = scene.submit(rows=2 * LARGEST)
    for generation in range(1, 10):
        worker = scene.worker(generation)
        scene.dispatch()
        if retired:
            scene.scheduler.retire(worker)
        scene.die(worker)
        if not scene.scheduler.busy:
            break
    assert scene.deaths == retry + 1
    assert scene.errors() == [Reason.POISONED if retry else Reason.WORKER_DIED]
    assert len(scene.scheduler.quarantined_requests(0.0)) == 1
    with pytest.raises(MultitowerError, match="an equal request crashed a worker"):
        scene.submit(rows=bad.rows)


@pytest.mark.parametrize("retry", [0, 1, 3])
def test_a_split_request_kills_no_more_workers_if_it_starts_again_early(retry: int) -> None:
    scene = Scene(retry)
    scene.submit(rows=2 * LARGEST)
    dying = scene.worker(generation=1)
    scene.dispatch()
    for generation in range(2, 10):
        scene.scheduler.retire(dying)
        following = scene.worker(generation)
        scene.dispatch()
        scene.die(dying)
        dying = following
        if not scene.scheduler.busy:
            break
    # The worker that has it at the end finishes it, unneeded; the request is not run again.
    assert scene.deaths == retry + 1
    assert scene.errors() == [Reason.POISONED if retry else Reason.WORKER_DIED]


@RETIRED_FIRST
def test_a_split_suspect_starts_again_alone_and_others_are_answered(retired: bool) -> None:
    scene = Scene()
    bad = scene.submit(rows=2 * LARGEST)
    first = scene.worker(generation=1, device="cpu:0")
    scene.dispatch()
    good = [scene.submit(rows=1) for _ in range(3)]
    if retired:
        scene.scheduler.retire(first)
    scene.die(first)
    assert (bad.deaths, bad.avoid) == (1, "cpu:0")
    answered: list[Any] = []
    worker = scene.worker(generation=2, device="cpu:1")
    while scene.scheduler.busy:
        (batch,) = scene.dispatch().values()
        if any(request.deaths for request in batch.requests):
            assert [request.parent for request in batch.requests] == [bad], "no other request dies with it"
            scene.die(worker)
            worker = scene.worker(generation=2, device="cpu:1")
        else:
            scene.answer(batch)
        answered += [(reply.request, type(reply.answer)) for reply in scene.scheduler.pop_replies()]
    assert scene.deaths == 2
    assert {request for request, kind in answered if kind is list} >= set(good)
    assert len(answered) == 1 + len(good)


def test_a_part_answered_before_a_death_counts_no_death() -> None:
    scene = Scene()
    whole = scene.submit(rows=3 * LARGEST)
    worker = scene.worker(generation=1)
    scene.answer(scene.dispatch()[worker])
    scene.die(worker)
    assert whole.deaths == 0
    worker = scene.worker(generation=2)
    for _ in range(3):
        scene.answer(scene.dispatch()[worker])
    (reply,) = scene.scheduler.pop_replies()
    request, answer = reply.request, reply.answer
    assert request is whole
    assert isinstance(answer, list)


@pytest.mark.parametrize(
    "frames",
    [
        [b"no JSON", b"y"],
        [b"{}", b"y"],
        [b'{"outputs": [{"name": "y"}]}', b"y"],
        [b"[]"],
        [],
        [b'{"model_name": "m", "model_version": "1", "outputs": [{"name": "y", "datatype": "UINT8", "shape": [2]}]}'],
    ],
    ids=["no JSON", "no outputs", "no datatype", "a list", "nothing", "fewer frames than outputs"],
)
def test_answers_that_cannot_be_joined_cost_their_request_only(
    frames: list[bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("multitower"), "propagate", True)
    scene = Scene()
    whole = scene.submit(rows=2 * LARGEST)
    worker = scene.worker(generation=1)
    for _ in range(2):
        batch = scene.dispatch()[worker]
        scene.scheduler.finish(worker, batch.id, [frames], 0.0)
    (reply,) = scene.scheduler.pop_replies()
    request, answer = reply.request, reply.answer
    assert request is whole
    assert isinstance(answer, MultitowerError)
    assert answer.reason == Reason.INTERNAL_ERROR
    assert "Traceback" in caplog.text
    other = scene.submit(rows=1)
    scene.answer(scene.dispatch()[worker])
    (reply,) = scene.scheduler.pop_replies()
    request, answer = reply.request, reply.answer
    assert request is other
    assert isinstance(answer, list)


def test_answers_that_cannot_be_joined_fail_their_requests_and_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.scheduler = Router({"m": QueueLimits(1000, 1 << 20)}, {"m": 30.0}, 1 << 20).scheduler
    scene.worker(0)
    requests = [scene.submit(2 * LARGEST) for _ in range(3)]
    while batches := scene.dispatch():
        for batch in batches.values():
            answers = [[b"not JSON", bytes(request.rows)] for request in batch.requests]
            scene.scheduler.finish(batch.worker, batch.id, answers, 0.0)
    replies = {reply.request: reply.answer for reply in scene.scheduler.pop_replies()}
    for request in requests:
        answer = replies[request]
        assert isinstance(answer, MultitowerError)
        assert answer.reason == Reason.INTERNAL_ERROR
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["internal error while joining the answers of a split request"]
