"""Waiting rows are divided evenly among the free workers."""

from __future__ import annotations

import pytest
from scheduler_scene import add_worker

from multitower.supervisor.scheduling.pool_worker import Served
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec

KEY = BatchKey(KeySpec("m", (("x", "UINT8", ()),), None, True), max_batch_size=32)


def request(rows: int, number: int) -> Request:
    plan = Plan(KEY, rows, (0,), (rows,), (False,), ("x",), 30.0)
    return Request(("sender",), bytes([number + 1]), plan, [bytes(rows)], rows, 0.0)


@pytest.mark.parametrize(
    ("waiting", "workers", "batches"),
    [
        ([1] * 10, 2, [5, 5]),
        ([1] * 11, 2, [6, 5]),
        ([1] * 10, 3, [4, 3, 3]),
        ([1], 3, [1]),
        ([1, 1], 3, [1, 1]),
        ([1] * 100, 2, [32, 32]),
        ([4, 4, 4], 2, [4, 8]),
        ([20, 1, 1], 2, [20, 2]),
        ([50], 2, [25, 25]),
        ([100], 3, [32, 32, 32]),
        ([3], 8, [3]),
    ],
)
def test_batches_of_free_workers(waiting: list[int], workers: int, batches: list[int]) -> None:
    scheduler = Scheduler({"m": QueueLimits(max_size=1000, max_bytes=1 << 20)})
    for slot in range(workers):
        add_worker(scheduler, slot, f"cpu:{slot}", {"m": Served()}, 0.0)
    for number, rows in enumerate(waiting):
        scheduler.submit(request(rows, number))
    assert [batch.rows for batch in scheduler.dispatch(0.0)] == batches
