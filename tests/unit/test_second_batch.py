"""What becomes of two batches when their worker dies: only what it was executing is suspect, and nothing is lost."""

from __future__ import annotations

import pytest
from scheduler_scene import FIXED_S, KEY, LARGEST, ROW_S, UNBATCHED, Scene, add_worker

from multitower.errors import MultitowerError, Reason
from multitower.supervisor.scheduling.pool import LOOP_DELAY_S
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Phase, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.supervisor.scheduling.worker import Served, Worker
from multitower.worker_wire import KeySpec

# What the dead worker has left of which batch it began last.
UNTOLD, NONE, FIRST, SECOND = "nothing was told", "neither", "the first", "the second"


def two(scene: Scene, *, first: int = 1) -> tuple[Worker, list[Request], list[Request]]:
    """A worker with two batches: of `first` requests, and of `LARGEST` ones."""
    executed = scene.submit(first)
    assert scene.dispatch() == [(0, first)]
    behind = scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S * first - LOOP_DELAY_S / 2) == [(0, LARGEST)]
    return scene.workers[0], executed, behind


def begun(worker: Worker, told: str) -> tuple[int, ...]:
    assert worker.batch is not None
    ids: dict[str, tuple[int, ...]] = {UNTOLD: (), NONE: (0,), FIRST: (worker.batch.id,)}
    if worker.next_batch is not None:
        ids[SECOND] = (worker.next_batch.id,)
    return ids[told]


@pytest.mark.parametrize(
    ("told", "suspects"), [(UNTOLD, "first"), (NONE, "first"), (FIRST, "first"), (SECOND, "second")]
)
def test_of_two_batches_the_one_that_was_executed_is_suspect(told: str, suspects: str) -> None:
    scene = Scene(1)
    worker, first, second = two(scene, first=2)
    assert not scene.scheduler.remove_process(worker, scene.now, crashed=True, begun=begun(worker, told))
    deaths = {"first": [1, 0], "second": [0, 1]}[suspects]
    assert [sum(each.deaths for each in part) / len(part) for part in (first, second)] == deaths
    assert all(each.phase is Phase.WAITING for each in first + second)
    scene.worker(1)
    # Suspects come first and alone; the others go on in the order in which they came.
    order: list[Request] = []
    while len(order) < len(first) + len(second):
        scene.dispatch(0.1)
        order += scene.answer(1, 0.1).requests
    assert order == (first + second if suspects == "first" else second + first)


@pytest.mark.parametrize(("told", "suspect"), [(UNTOLD, True), (FIRST, True), (NONE, False)])
def test_the_second_one_is_suspect_once_it_was_begun_though_its_worker_dies_with_nothing_else(
    told: str, suspect: bool
) -> None:
    scene = Scene(1)
    worker, _, second = two(scene)
    scene.answer(0)
    scene.scheduler.remove_process(worker, scene.now, begun=begun(worker, told))
    assert {request.deaths for request in second} == {int(suspect)}


def test_with_three_on_their_way_only_what_was_begun_is_suspect() -> None:
    """The answer of the first was read, but the second had not been begun, and a third lay behind that."""
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


@pytest.mark.parametrize("told", [FIRST, SECOND])
def test_the_one_to_blame_is_kept_in_quarantine_and_its_neighbour_is_not(told: str) -> None:
    scene = Scene(1, retry=0)
    requests = scene.submit(1, key=UNBATCHED)
    scene.dispatch()
    requests += scene.submit(1, key=UNBATCHED)
    assert scene.dispatch(FIXED_S - LOOP_DELAY_S / 2) == [(0, 1)]
    (worker,) = scene.workers
    scene.scheduler.remove_process(worker, scene.now, crashed=True, begun=begun(worker, told))
    ((request, answer),) = scene.scheduler.pop_replies()
    assert request is requests[told == SECOND]
    assert isinstance(answer, MultitowerError)
    assert answer.reason is Reason.WORKER_DIED
    assert len(scene.scheduler.quarantined_requests(scene.now)) == 1


def test_nothing_goes_back_that_nobody_waits_for() -> None:
    scene = Scene(1)
    worker, _, second = two(scene)
    assert scene.scheduler.cancel(second[0].sender, second[0].id) == 1
    scene.scheduler.remove_process(worker, scene.now)
    assert second[0] not in list(scene.scheduler.queues["m"])
    assert not second[0].frames
    assert scene.scheduler.queues["m"].size == LARGEST


def test_a_part_of_a_large_request_goes_back_to_its_own_edition_only() -> None:
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


def test_when_the_model_is_given_up_both_are_answered() -> None:
    scene = Scene(1)
    worker, _, _ = two(scene)
    scene.scheduler.mark_unavailable("m", "it cannot load")
    scene.scheduler.remove_process(worker, scene.now)
    answers = [reply.answer for reply in scene.scheduler.pop_replies()]
    assert len(answers) == 1 + LARGEST
    assert {answer.reason for answer in answers if isinstance(answer, MultitowerError)} == {Reason.NO_WORKER}
    assert not scene.scheduler.busy


def test_a_suspect_is_neither_sent_behind_another_batch_nor_has_one_behind_it() -> None:
    scene = Scene(1, 1)
    poison = scene.submit(1)
    assert scene.dispatch() == [(0, 1)]
    scene.submit(LARGEST)
    assert scene.dispatch() == [(1, LARGEST)]
    scene.scheduler.remove_process(scene.workers[0], scene.now)
    assert poison[0].deaths == 1
    scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S * LARGEST - LOOP_DELAY_S / 2) == [], "not the suspect, nor anything before it"
    scene.answer(1, 0.001)
    assert scene.dispatch() == [(1, 1)], "alone"
    scene.submit(3 * LARGEST)
    for _ in range(10):
        assert scene.dispatch(0.0005) == []


def test_two_batches_are_no_more_than_a_retiring_worker_finishes() -> None:
    scene = Scene(1)
    worker, first, second = two(scene)
    scene.scheduler.retire(worker)
    assert worker.depth == len(first) + len(second)
    scene.answer(0)
    assert worker.batch is not None
    scene.answer(0)
    assert worker.batch is None
    assert not scene.scheduler.busy


def test_without_measured_times_no_worker_has_two() -> None:
    scheduler = Scheduler({"m": QueueLimits(1000, 1 << 20)})
    worker = add_worker(scheduler, 0, "cpu:0", {"m": Served()}, 0.0)
    assert scheduler.pool.next_prefetch == worker.prefetch_at == float("inf")


# What waits beside it.

OTHER = BatchKey(KeySpec("other", (("x", "UINT8", ()),), None, True), LARGEST)


def beside(scene: Scene) -> None:
    """Each worker serves another model as well, whose batches take as long."""
    scene.scheduler.set_limits("other", QueueLimits(10_000, 1 << 30))
    for worker in scene.workers:
        worker.serves["other"] = Served()
        known = worker.estimates.find(KEY.id)
        assert known is not None
        for rows in range(1, LARGEST + 1):
            worker.estimates.add(OTHER.id, rows, known.seconds(rows))


@pytest.mark.parametrize("what", ["another model", "a suspect"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_flood_puts_nothing_before_what_waits_for_a_worker_to_be_free(what: str, workers: int) -> None:
    """Only whole batches are sent ahead: who has fewer rows would never find a worker free."""
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
    raise AssertionError("two batches later it still waits")


def test_what_other_models_wait_for_counts_where_a_slow_device_may_stay_idle() -> None:
    """Each of them alone would wait for the fast one, which cannot do it all."""
    scene = Scene(3, 1)
    beside(scene)
    scene.submit(LARGEST)
    assert scene.dispatch() == [(1, LARGEST)]
    scene.submit(1)
    assert scene.dispatch() == []
    scene.submit(1, key=OTHER)
    assert [slot for slot, _ in scene.dispatch()] == [0]


def test_a_part_that_comes_back_when_its_time_is_over_is_answered_as_a_whole() -> None:
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
    # Before the wheel of deadlines has turned that far.
    scene.now = large.deadline
    scene.answer(second.slot)
    scene.answer(second.slot)
    for _ in range(LARGEST):
        scene.dispatch()  # those that the first was executing, each alone
        scene.answer(second.slot)
    scene.dispatch()
    (answer,) = [reply.answer for reply in scene.scheduler.pop_replies() if reply.request is large]
    assert isinstance(answer, MultitowerError)
    assert answer.reason == Reason.DEADLINE
    assert not scene.scheduler.queues["m"].size


def test_the_loop_does_not_spin_while_a_slow_one_waits_and_a_delay_is_over() -> None:
    scene = Scene(1, 20)
    scene.scheduler.set_limits("m", QueueLimits(10_000, 1 << 30, max_delay_s=0.002))
    scene.submit(LARGEST)
    scene.dispatch()
    scene.submit(1)
    scene.dispatch(0.0001)
    assert scene.scheduler.next_wake() == pytest.approx(scene.now + 0.0019, abs=1e-4), "when its delay is over"
    assert scene.dispatch(0.0021) == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert wake > scene.now + 0.0005


def test_an_opening_that_nobody_can_use_does_not_hide_the_next() -> None:
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
