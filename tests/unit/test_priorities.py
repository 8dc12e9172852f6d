"""The order in which waiting requests get workers: less is more urgent, then first come, first served."""

from __future__ import annotations

from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import NORMAL_PRIORITY, BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Balancer
from multitower.supervisor.scheduling.worker import Served, Worker
from multitower.worker_wire import KeySpec


def key(name: str, largest: int, model: str = "m", version: str = "", contract: int = 0) -> BatchKey:
    return BatchKey(KeySpec(model, ((name, "UINT8", ()),), None, largest > 0), largest, contract, version)


def submit(balancer: Balancer, number: int, key: BatchKey, priority: int = NORMAL_PRIORITY, rows: int = 1) -> Request:
    plan = Plan(key, rows, (0,), (rows,), (False,), ("x",), 30.0, priority)
    request = Request(("sender",), bytes([number]), plan, [bytes(rows)], rows, 0.0)
    balancer.submit(request)
    return request


def make(*models: str) -> Balancer:
    return Balancer({model: QueueLimits(1000, 1 << 20) for model in models or ("m",)})


def order(balancer: Balancer, worker: Worker) -> list[list[int]]:
    """The ids of each batch, as one worker runs them."""
    batches = []
    while given := balancer.dispatch(0.0):
        (batch,) = given
        batches.append([request.id[0] for request in batch.requests])
        balancer.finish(worker, batch.id, [[b"{}"] for _ in batch.requests], 0.0)
    return batches


def test_the_urgent_come_first_and_the_rest_in_order() -> None:
    balancer, singly = make(), key("x", 0)
    for number, priority in enumerate([2, 3, 1, 2, 1, 3]):
        submit(balancer, number, singly, priority)
    worker = balancer.add_worker(0, "cpu:0", {"m": Served()}, 0.0)
    assert order(balancer, worker) == [[2], [4], [0], [3], [1], [5]]


def test_a_batch_is_filled_with_the_less_urgent_of_the_same_key() -> None:
    balancer, x, y = make(), key("x", 3), key("y", 3)
    for number, (each, priority) in enumerate([(x, 2), (y, 2), (x, 2), (y, 1), (x, 3), (y, 2)]):
        submit(balancer, number, each, priority)
    worker = balancer.add_worker(0, "cpu:0", {"m": Served()}, 0.0)
    assert order(balancer, worker) == [[3, 1, 5], [0, 2, 4]]


def test_one_models_flood_does_not_keep_the_other_from_the_workers() -> None:
    balancer = make("flood", "calm")
    for number in range(100):
        submit(balancer, number, key("x", 0, "flood"))
    submit(balancer, 200, key("x", 0, "calm"))
    submit(balancer, 201, key("x", 0, "calm"))
    worker = balancer.add_worker(0, "cpu:0", {"flood": Served(), "calm": Served()}, 0.0)
    served = order(balancer, worker)
    assert served.index([200]) <= 1
    assert served.index([201]) <= 3


def test_a_version_asked_for_waits_for_its_worker_and_holds_up_nobody() -> None:
    balancer = make()
    old = balancer.add_worker(0, "cpu:0", {"m": Served("1")}, 0.0)
    new = balancer.add_worker(1, "cpu:1", {"m": Served("2")}, 0.0)
    submit(balancer, 0, key("x", 4, version="1"))
    (running,) = balancer.dispatch(0.0)
    assert running.worker is old
    submit(balancer, 1, key("x", 4, version="1"))
    submit(balancer, 2, key("x", 4))
    (batch,) = balancer.dispatch(0.0)
    assert batch.worker is new
    assert [request.id for request in batch.requests] == [bytes([2])]
    assert balancer.needed(old)
    assert not balancer.needed(new)
    balancer.finish(old, running.id, [[b"{}"]], 0.0)
    (batch,) = balancer.dispatch(0.0)
    assert (batch.worker, [request.id for request in batch.requests]) == (old, [bytes([1])])
    assert not balancer.needed(old)


def test_what_was_checked_against_a_model_that_is_gone_is_refused() -> None:
    balancer = make()
    submit(balancer, 1, key("x", 4))
    balancer.add_worker(0, "cpu:0", {"m": Served("2", contract=1)}, 0.0)
    (reply,) = balancer.replies()
    assert getattr(reply.answer, "reason", None) == "no_worker"
    assert balancer.outstanding == 0


def test_parts_begin_again_when_the_last_worker_of_their_version_goes() -> None:
    balancer = make()
    old = balancer.add_worker(0, "cpu:0", {"m": Served("1", edition=1)}, 0.0)
    whole = submit(balancer, 1, key("x", 2), rows=4)
    (first,) = balancer.dispatch(0.0)
    new = balancer.add_worker(1, "cpu:1", {"m": Served("1", edition=2)}, 0.0)
    assert balancer.dispatch(0.0) == [], "all parts on one edition"
    balancer.retire(old)
    (again,) = balancer.dispatch(0.0)
    assert again.worker is new
    assert (again.requests[0].parent, again.requests[0].start) == (whole, 0)
    balancer.finish(old, first.id, [[b"{}", b"old"]], 0.0)
    assert balancer.replies() == []
    assert balancer.outstanding == 1
