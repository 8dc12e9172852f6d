"""Workers with two batches that die: only the requests that were being executed are suspects; none is lost."""

from __future__ import annotations

import pytest
from scheduler_scene import FIXED_S, KEY, LARGEST, ROW_S, UNBATCHED, Scene, add_worker

from multitower.errors import MultitowerError, Reason
from multitower.supervisor.scheduling.pool import LOOP_DELAY_S
from multitower.supervisor.scheduling.pool_worker import Served, Worker
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Phase, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec

# Which batch the dead worker has recorded as the one that it started last.
UNKNOWN, NONE, FIRST, SECOND = "unknown", "neither", "the first", "the second"


def two(scene: Scene, *, first: int = 1) -> tuple[Worker, list[Request], list[Request]]:
    """A worker with two batches: of `first` requests, and of `LARGEST` ones."""
    executed = scene.submit(first)
    assert scene.dispatch() == [(0, first)]
    queued = scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S * first - LOOP_DELAY_S / 2) == [(0, LARGEST)]
    return scene.workers[0], executed, queued


def begun(worker: Worker, recorded: str) -> tuple[int, ...]:
    assert worker.batch is not None
    ids: dict[str, tuple[int, ...]] = {UNKNOWN: (), NONE: (0,), FIRST: (worker.batch.id,)}
    if worker.next_batch is not None:
        ids[SECOND] = (worker.next_batch.id,)
    return ids[recorded]


@pytest.mark.parametrize(
    ("recorded", "suspects"), [(UNKNOWN, "first"), (NONE, "first"), (FIRST, "first"), (SECOND, "second")]
)
def test_of_two_batches_the_executed_one_is_suspect(recorded: str, suspects: str) -> None:
    scene = Scene(1)
    worker, first, second = two(scene, first=2)
    assert not scene.scheduler.remove_process(worker, scene.now, crashed=True, begun=begun(worker, recorded))
    deaths = {"first": [1, 0], "second": [0, 1]}[suspects]
    assert [sum(each.deaths for each in part) / len(part) for part in (first, second)] == deaths
    assert all(each.phase is Phase.WAITING for each in first + second)
    scene.worker(1)
    # Suspects run first, each alone; the others follow in the order of their arrival.
    order: list[Request] = []
    while len(order) < len(first) + len(second):
        scene.dispatch(0.1)
        order += scene.answer(1, 0.1).requests
    assert order == (first + second if suspects == "first" else second + first)


@pytest.mark.parametrize(("recorded", "suspect"), [(UNKNOWN, True), (FIRST, True), (NONE, False)])
def test_the_second_batch_is_suspect_once_it_was_started(recorded: str, suspect: bool) -> None:
    scene = Scene(1)
    worker, _, second = two(scene)
    scene.answer(0)
    scene.scheduler.remove_process(worker, scene.now, begun=begun(worker, recorded))
    assert {request.deaths for request in second} == {int(suspect)}


def test_a_worker_that_dies_between_two_batches_makes_no_suspects() -> None:
    """The first was answered, the second had not been started, and a third had been sent."""
    scene = Scene(1)
    worker, first, _ = two(scene)
    scene.answer(0)
    third = scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S * LARGEST - LOOP_DELAY_S / 2) == [(0, LARGEST)]
    assert worker.batch is not None
    scene.scheduler.remove_process(worker, scene.now, begun=(worker.batch.id - 1,))
    assert not any(request.deaths for request in third)
    waiting = list(scene.scheduler.queues["m"])
    assert len(waiting) == 2 * LARGEST
    assert waiting[LARGEST:] == third
    assert first[0].phase is Phase.DONE


@pytest.mark.parametrize("recorded", [FIRST, SECOND])
def test_only_the_executed_request_is_quarantined(recorded: str) -> None:
    scene = Scene(1, retry=0)
    requests = scene.submit(1, key=UNBATCHED)
    scene.dispatch()
    requests += scene.submit(1, key=UNBATCHED)
    assert scene.dispatch(FIXED_S - LOOP_DELAY_S / 2) == [(0, 1)]
    (worker,) = scene.workers
    scene.scheduler.remove_process(worker, scene.now, crashed=True, begun=begun(worker, recorded))
    (reply,) = scene.scheduler.pop_replies()
    request, answer = reply.request, reply.answer
    assert request is requests[recorded == SECOND]
    assert isinstance(answer, MultitowerError)
    assert answer.reason is Reason.WORKER_DIED
    assert len(scene.scheduler.quarantined_requests(scene.now)) == 1


def test_a_cancelled_request_does_not_return_to_the_queue() -> None:
    scene = Scene(1)
    worker, _, second = two(scene)
    assert scene.scheduler.cancel(second[0].sender, second[0].id) == 1
    scene.scheduler.remove_process(worker, scene.now)
    assert second[0] not in list(scene.scheduler.queues["m"])
    assert not second[0].frames
    assert scene.scheduler.queues["m"].size == LARGEST


def test_a_part_of_a_split_request_runs_on_its_own_generation_only() -> None:
    scene = Scene(1)
    (large,) = scene.submit(1, rows=2 * LARGEST)
    assert scene.dispatch() == [(0, LARGEST)]
    assert scene.dispatch(FIXED_S + ROW_S * LARGEST - LOOP_DELAY_S / 2) == [(0, LARGEST)], "its second part"
    newer = add_worker(scene.scheduler, 7, "cpu:7", {"m": Served(generation=1)}, scene.now)
    same = scene.worker(1)
    (worker,) = scene.workers
    scene.scheduler.remove_process(worker, scene.now, begun=begun(worker, FIRST))
    assert large.split is not None
    given = {batch.worker: batch for batch in scene.scheduler.dispatch(scene.now)}
    assert newer not in given
    assert set(given) == {same}


def test_requests_of_both_batches_are_answered_when_the_model_is_unavailable() -> None:
    scene = Scene(1)
    worker, _, _ = two(scene)
    scene.scheduler.mark_unavailable("m", "it does not load")
    scene.scheduler.remove_process(worker, scene.now)
    answers = [reply.answer for reply in scene.scheduler.pop_replies()]
    assert len(answers) == 1 + LARGEST
    assert {answer.reason for answer in answers if isinstance(answer, MultitowerError)} == {Reason.NO_WORKER}
    assert not scene.scheduler.busy


def test_a_suspect_is_never_one_of_two_batches() -> None:
    scene = Scene(1, 1)
    poison = scene.submit(1)
    assert scene.dispatch() == [(0, 1)]
    scene.submit(LARGEST)
    assert scene.dispatch() == [(1, LARGEST)]
    scene.scheduler.remove_process(scene.workers[0], scene.now)
    assert poison[0].deaths == 1
    scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S * LARGEST - LOOP_DELAY_S / 2) == [], (
        "neither the suspect nor anything before it"
    )
    scene.answer(1, 0.001)
    assert scene.dispatch() == [(1, 1)], "alone"
    scene.submit(3 * LARGEST)
    for _ in range(10):
        assert scene.dispatch(0.0005) == []


def test_a_retiring_worker_finishes_both_batches() -> None:
    scene = Scene(1)
    worker, first, second = two(scene)
    scene.scheduler.retire(worker)
    assert worker.depth == len(first) + len(second)
    scene.answer(0)
    assert worker.batch is not None
    scene.answer(0)
    assert worker.batch is None
    assert not scene.scheduler.busy


def test_without_measured_times_no_worker_gets_two_batches() -> None:
    scheduler = Scheduler({"m": QueueLimits(1000, 1 << 20)})
    worker = add_worker(scheduler, 0, "cpu:0", {"m": Served()}, 0.0)
    assert scheduler.pool.next_prefetch == worker.prefetch_at == float("inf")


# Other requests that wait.

OTHER = BatchKey(KeySpec("other", (("x", "UINT8", ()),), None, True), LARGEST)


def beside(scene: Scene) -> None:
    """Lets each worker serve another model, whose batches take as long."""
    scene.scheduler.set_limits("other", QueueLimits(10_000, 1 << 30))
    for worker in scene.workers:
        worker.serves["other"] = Served()
        known = worker.estimates.find(KEY.id)
        assert known is not None
        for rows in range(1, LARGEST + 1):
            worker.estimates.add(OTHER, rows, known.seconds(rows), scene.now)


@pytest.mark.parametrize("what", ["another model", "a suspect"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_flood_does_not_overtake_what_waits_for_a_free_worker(what: str, workers: int) -> None:
    """Only full batches are sent ahead: a request with fewer rows would never find a worker free."""
    scene = Scene(*(1,) * workers)
    beside(scene)
    scene.submit(100 * LARGEST)
    assert len(scene.dispatch()) == workers
    (waits,) = scene.submit(1, key=KEY if what == "a suspect" else OTHER)
    if what == "a suspect":
        scene.scheduler.queues["m"].remove(waits)
        waits.deaths = 1
        scene.scheduler.queues["m"].push_suspect(waits)
    for _ in range(2):
        scene.dispatch(FIXED_S + ROW_S * LARGEST - LOOP_DELAY_S / 2)
        for slot in range(workers):
            scene.answer(slot, LOOP_DELAY_S / 2)
        scene.dispatch()
        if waits.phase is Phase.RUNNING:
            return
    raise AssertionError("it still waits after two batches")


def test_a_slow_device_works_if_several_models_wait() -> None:
    """Each model by itself would wait for the fast device, which cannot do it all in time."""
    scene = Scene(3, 1)
    beside(scene)
    scene.submit(LARGEST)
    assert scene.dispatch() == [(1, LARGEST)]
    scene.submit(1)
    assert scene.dispatch() == []
    scene.submit(1, key=OTHER)
    assert [slot for slot, _ in scene.dispatch()] == [0]


def test_a_part_that_returns_after_its_deadline_answers_the_whole_request() -> None:
    scene = Scene(1, 1)
    scene.submit(2 * LARGEST)
    assert len(scene.dispatch()) == 2
    plan = Plan(KEY, 2 * LARGEST, (0,), (2 * LARGEST,), (False,), ("x",), 0.05)
    large = Request(("client",), b"large", plan, [bytes(2 * LARGEST)], 2 * LARGEST, scene.now)
    scene.scheduler.submit(large)
    assert len(scene.dispatch(FIXED_S + ROW_S * LARGEST - LOOP_DELAY_S / 2)) == 2
    first, second = scene.workers
    assert first.batch is not None
    scene.scheduler.remove_process(first, scene.now, begun=(first.batch.id,))
    # `expire` has not been called yet.
    scene.now = large.deadline
    scene.answer(second.slot)
    scene.answer(second.slot)
    for _ in range(LARGEST):
        scene.dispatch()  # the suspects, each alone
        scene.answer(second.slot)
    scene.dispatch()
    (answer,) = [reply.answer for reply in scene.scheduler.pop_replies() if reply.request is large]
    assert isinstance(answer, MultitowerError)
    assert answer.reason == Reason.DEADLINE
    assert not scene.scheduler.queues["m"].size


def test_the_loop_does_not_spin_while_a_request_waits_after_its_delay() -> None:
    scene = Scene(1, 20)
    scene.scheduler.set_limits("m", QueueLimits(10_000, 1 << 30, max_delay_s=0.002))
    scene.submit(LARGEST)
    scene.dispatch()
    scene.submit(1)
    scene.dispatch(0.0001)
    assert scene.scheduler.next_wake() == pytest.approx(scene.now + 0.0019, abs=1e-4), "the end of its delay"
    assert scene.dispatch(0.0021) == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert wake > scene.now + 0.0005


def test_a_prefetch_that_no_request_can_use_does_not_hide_the_next() -> None:
    scene = Scene(1, 1)
    beside(scene)
    first, second = scene.workers
    del first.serves["m"], second.serves["other"]
    scene.submit(1, key=OTHER)
    assert scene.dispatch() == [(0, 1)]
    scene.submit(1)
    assert scene.dispatch(0.0005) == [(1, 1)]
    scene.submit(LARGEST)
    assert scene.dispatch(first.prefetch_at - scene.now) == []
    assert scene.scheduler.next_wake() == second.prefetch_at
