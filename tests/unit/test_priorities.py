"""The order in which waiting requests run: by priority, lower first; equal ones in the order of their arrival."""

from __future__ import annotations

from scheduler_scene import add_worker

from multitower.supervisor.scheduling.pool_worker import Served, Worker
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import NORMAL_PRIORITY, BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec


def key(name: str, largest: int, model: str = "m", version: str = "", interface: int = 0) -> BatchKey:
    return BatchKey(KeySpec(model, ((name, "UINT8", ()),), None, largest > 0), largest, interface, version)


def submit(scheduler: Scheduler, number: int, key: BatchKey, priority: int = NORMAL_PRIORITY, rows: int = 1) -> Request:
    plan = Plan(key, rows, (0,), (rows,), (False,), ("x",), 30.0, priority)
    request = Request(("sender",), bytes([number]), plan, [bytes(rows)], rows, 0.0)
    scheduler.submit(request)
    return request


def make(*models: str) -> Scheduler:
    return Scheduler({model: QueueLimits(1000, 1 << 20) for model in models or ("m",)})


def order(scheduler: Scheduler, worker: Worker) -> list[list[int]]:
    """The ids of each batch, as one worker runs them."""
    batches = []
    while given := scheduler.dispatch(0.0):
        (batch,) = given
        batches.append([request.id[0] for request in batch.requests])
        scheduler.finish(worker, batch.id, [[b"{}"] for _ in batch.requests], 0.0)
    return batches


def test_urgent_requests_run_first_and_equal_ones_in_order() -> None:
    scheduler, unbatched = make(), key("x", 0)
    for number, priority in enumerate([2, 3, 1, 2, 1, 3]):
        submit(scheduler, number, unbatched, priority)
    worker = add_worker(scheduler, 0, "cpu:0", {"m": Served()}, 0.0)
    assert order(scheduler, worker) == [[2], [4], [0], [3], [1], [5]]


def test_a_batch_is_filled_with_less_urgent_requests_of_its_key() -> None:
    scheduler, x, y = make(), key("x", 3), key("y", 3)
    for number, (each, priority) in enumerate([(x, 2), (y, 2), (x, 2), (y, 1), (x, 3), (y, 2)]):
        submit(scheduler, number, each, priority)
    worker = add_worker(scheduler, 0, "cpu:0", {"m": Served()}, 0.0)
    assert order(scheduler, worker) == [[3, 1, 5], [0, 2, 4]]


def test_a_flood_of_one_model_does_not_starve_another() -> None:
    scheduler = make("flood", "calm")
    for number in range(100):
        submit(scheduler, number, key("x", 0, "flood"))
    submit(scheduler, 200, key("x", 0, "calm"))
    submit(scheduler, 201, key("x", 0, "calm"))
    worker = add_worker(scheduler, 0, "cpu:0", {"flood": Served(), "calm": Served()}, 0.0)
    served = order(scheduler, worker)
    assert served.index([200]) <= 1
    assert served.index([201]) <= 3


def test_a_request_for_a_version_waits_for_its_worker_and_blocks_no_other() -> None:
    scheduler = make()
    old = add_worker(scheduler, 0, "cpu:0", {"m": Served("1")}, 0.0)
    new = add_worker(scheduler, 1, "cpu:1", {"m": Served("2")}, 0.0)
    submit(scheduler, 0, key("x", 4, version="1"))
    (running,) = scheduler.dispatch(0.0)
    assert running.worker is old
    submit(scheduler, 1, key("x", 4, version="1"))
    submit(scheduler, 2, key("x", 4))
    (batch,) = scheduler.dispatch(0.0)
    assert batch.worker is new
    assert [request.id for request in batch.requests] == [bytes([2])]
    assert scheduler.is_needed(old)
    assert not scheduler.is_needed(new)
    scheduler.finish(old, running.id, [[b"{}"]], 0.0)
    (batch,) = scheduler.dispatch(0.0)
    assert (batch.worker, [request.id for request in batch.requests]) == (old, [bytes([1])])
    assert not scheduler.is_needed(old)


def test_a_request_that_was_checked_against_a_replaced_model_is_refused() -> None:
    scheduler = make()
    submit(scheduler, 1, key("x", 4))
    add_worker(scheduler, 0, "cpu:0", {"m": Served("2", interface=1)}, 0.0)
    (reply,) = scheduler.pop_replies()
    assert getattr(reply.answer, "reason", None) == "no_worker"
    assert scheduler.outstanding == 0


def test_a_split_request_starts_again_when_its_last_worker_retires() -> None:
    scheduler = make()
    old = add_worker(scheduler, 0, "cpu:0", {"m": Served("1", generation=1)}, 0.0)
    whole = submit(scheduler, 1, key("x", 2), rows=4)
    (first,) = scheduler.dispatch(0.0)
    new = add_worker(scheduler, 1, "cpu:1", {"m": Served("1", generation=2)}, 0.0)
    assert scheduler.dispatch(0.0) == [], "all parts run on one generation"
    scheduler.retire(old)
    (again,) = scheduler.dispatch(0.0)
    assert again.worker is new
    assert (again.requests[0].parent, again.requests[0].start) == (whole, 0)
    scheduler.finish(old, first.id, [[b"{}", b"old"]], 0.0)
    assert scheduler.pop_replies() == []
    assert scheduler.outstanding == 1
