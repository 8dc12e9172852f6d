"""A scheduler whose workers' times are known, driven by hand in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multitower.supervisor.scheduling.pool import Rule
from multitower.supervisor.scheduling.pool_worker import Batch, Served, Worker
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec

FIXED_S, ROW_S, LARGEST = 0.004, 0.00003, 32
KEY = BatchKey(KeySpec("m", (("x", "UINT8", ()),), None, True), LARGEST)
UNBATCHED = BatchKey(KeySpec("m", (("x", "UINT8", (3,)),), None, False), 0)


def add_worker(
    scheduler: Scheduler,
    slot: int,
    device: str,
    newest: Mapping[str, Served],
    now: float,
    versions: Mapping[tuple[str, str], Served] | None = None,
) -> Worker:
    """Adds a process with one tower, which serves no other versions than the newest unless `versions` says so."""
    if versions is None:
        versions = {(model, served.version): served for model, served in newest.items()}
    (worker,) = scheduler.add_process(slot, device, [(newest, versions)], now)
    return worker


class Scene:
    """A scheduler whose workers' times are known from the start, as if each had answered a hundred batches.

    Args:
        factors: for each worker, by which its times are multiplied; None for a worker whose times are unknown.
        rule: of dispatch.
        sizes: that batches are padded to.
        retry: see `QueueLimits`.
    """

    def __init__(
        self, *factors: float | None, rule: Rule = Rule.EARLIEST_FINISH, sizes: tuple[int, ...] = (), retry: int = 1
    ) -> None:
        self.now = 100.0
        self.scheduler = Scheduler(
            {"m": QueueLimits(10_000, 1 << 30, retry=retry, quarantine_s=60.0, sizes=sizes)}, rule
        )
        self._slots = 0
        self.workers = [self.worker(factor) for factor in factors]
        self._requests = 0

    def worker(self, factor: float | None) -> Worker:
        """Adds a worker; its times are unknown if `factor` is None."""
        worker = add_worker(self.scheduler, self._slots, "cpu:0", {"m": Served()}, self.now)
        self._slots += 1
        for rows in range(1, LARGEST + 1) if factor is not None else ():
            worker.estimates.add(KEY, rows, (factor or 0) * (FIXED_S + ROW_S * rows), self.now)
            worker.estimates.add(UNBATCHED, 1, (factor or 0) * FIXED_S, self.now)
        return worker

    def submit(self, count: int, rows: int = 1, key: BatchKey = KEY) -> list[Request]:
        """Submits `count` requests of `rows` rows each."""
        requests = []
        for _ in range(count):
            self._requests += 1
            plan = Plan(key, rows, (0,), (rows,), (False,), ("x",), 1e6)
            id = self._requests.to_bytes(4, "big")
            requests.append(Request(("sender",), id, plan, [bytes(rows)], rows, self.now))
            self.scheduler.submit(requests[-1])
        return requests

    def dispatch(self, after: float = 0.0) -> list[tuple[int, int]]:
        """Dispatches `after` seconds later; returns slot and rows of each batch."""
        self.now += after
        return [(batch.worker.slot, batch.rows) for batch in self.scheduler.dispatch(self.now)]

    def answer(self, slot: int, after: float = 0.0, busy_s: float | None = None) -> Batch:
        """Answers the batch of a worker `after` seconds later; returns it."""
        self.now += after
        worker = next(worker for worker in self.scheduler.workers if worker.slot == slot)
        batch = worker.batch
        assert batch is not None
        answers: list[Any] = [[b"", b"x"]] * len(batch.requests)
        assert self.scheduler.finish(worker, batch.id, answers, self.now, busy_s) is batch
        return batch
