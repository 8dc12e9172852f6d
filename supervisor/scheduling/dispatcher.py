"""Which batches are formed when: each free worker gets what the rules of `dispatch` have for it. Pure.

The models take turns; in each model's queue suspects come first, then what is most urgent. `choice.py` picks the worker
for what waits, or says that it is to wait for one of the busy ones; that is remembered until something changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Set
from math import inf

from .open_requests import OpenRequests
from .pool import Pool
from .queue import Batch, ModelQueue
from .request import BatchKey, Phase, Request
from .worker import Worker
from .worker_choice import Chooser, Wait


class Dispatcher:
    """Forms the batches.

    Args:
        queues: of the models, by name; the balancer's, which adds and removes some.
        pool: the workers.
        open_requests: answers what turns out to have expired.

    Attributes:
        look_again: when `dispatch` may have something to do though nothing happens, in monotonic seconds.
    """

    def __init__(self, queues: Mapping[str, ModelQueue], pool: Pool, open_requests: OpenRequests) -> None:
        self.look_again = inf
        self._queues = queues
        self._pool = pool
        self._chooser = Chooser(pool)
        self._open_requests = open_requests
        self._turns: OrderedDict[str, None] = OrderedDict.fromkeys(queues)
        self._reserved_for: Request | None = None  # the suspect for which the pool has reserved a process
        self._waits: dict[str, tuple[int, Wait]] = {}  # by model: the pool's changes when it said so, and what
        self._patient: list[ModelQueue] = []
        self.models_changed()
        self._next_batch = 1

    def models_changed(self) -> None:
        """Models have come or gone, or the settings of their queues are new."""
        for model in [model for model in self._turns if model not in self._queues]:
            del self._turns[model]
            self._waits.pop(model, None)
        for model in self._queues:
            self._turns.setdefault(model)
        self._patient = [queue for queue in self._queues.values() if queue.limits.max_delay_s]

    def dispatch(self, now: float) -> list[Batch]:
        """Forms a batch for each worker that can have one. Call it after each burst of events."""
        self.look_again = inf
        if self._pool.reserved and not self._is_suspect(self._reserved_for):
            self._pool.reserve(())  # it has got its answer otherwise
        waiting = [self._queues[model] for model in self._turns if self._queues[model].size]
        if not waiting:
            return []
        batches: list[Batch] = []
        pool = self._pool
        passed_over: set[str] = set()  # models that wait for a worker to be free: nothing more is put before them
        while waiting and (pool.free or pool.next_opening <= now or pool.reserved):
            queue = waiting.pop(0)
            batch = self._suspect_batch(queue, now) if queue.suspects else None
            if batch is None and queue.suspects:
                passed_over.add(queue.model)
            batch = batch or self._next_of(queue, now, passed_over)
            if batch is None:
                if waiting and queue.due(now) is not None:
                    passed_over.add(queue.model)
                continue
            batches.append(batch)
            # The models take turns, so that one with a long queue does not keep the others from the workers.
            self._turns.move_to_end(queue.model)
            if queue.size:
                waiting.append(queue)
        if any(queue.size for queue in self._queues.values()):
            self.look_again = pool.opening_after(now)
            for _, wait in self._waits.values():
                if now < wait.until < self.look_again:
                    self.look_again = wait.until
            for queue in self._patient:
                due = queue.next_due()
                # What is due already has been looked at.
                if due is not None and now < due < self.look_again:
                    self.look_again = due
        return batches

    # How it is done.

    def _suspect_batch(self, queue: ModelQueue, now: float) -> Batch | None:
        pool = self._pool
        for request in list(queue.suspects):
            able = [worker for worker in pool.workers if not worker.retiring and worker.can_run(request)]
            elsewhere = any(worker.device != request.avoid for worker in able)
            fit = {worker for worker in able if not (elsewhere and worker.device == request.avoid)}
            # Whoever is free, the longest idle first. Behind another batch it would not be told from that one, nor
            # beside one in the same process.
            for worker in (*pool.free, *pool.reserved):
                if worker in fit and worker.process_idle:
                    queue.remove(request)
                    batch = self._give(worker, request.plan.key, [request], now)
                    if request is self._reserved_for:
                        pool.reserve(())  # also where that is another process: it may have something else to do
                    return batch
            open_to = not pool.reserved or (request is self._reserved_for and fit.isdisjoint(pool.reserved))
            if open_to and fit and all(len(worker.towers) > 1 for worker in fit):
                # Its towers would never be free all at once while others wait.
                self._reserved_for = request
                pool.reserve(min(fit, key=_depth_of_process).towers)
        return None

    def _is_suspect(self, request: Request | None) -> bool:
        queue = self._queues.get(request.plan.model) if request is not None else None
        return queue is not None and request in queue.suspects

    def _next_of(self, queue: ModelQueue, now: float, passed_over: Set[str]) -> Batch | None:
        pool, waits = self._pool, self._waits.pop(queue.model, None)
        key = queue.due(now)
        if waits is not None and key is not None:
            changes, wait = waits
            if changes == pool.changes and now < wait.until and self._batches() <= wait.batches:
                self._waits[queue.model] = waits
                return None
        workers = pool.open(now) if key is not None else ()
        while key is not None:
            first, rows = queue.first(key)
            if not pool.free and rows < key.max_batch_size:
                return None
            # Behind another one only what would not grow by waiting, and could not be mistaken for what kills.
            behind = rows >= key.max_batch_size and not first.deaths
            able = [
                worker
                for worker in workers
                if (worker.batch is None or (behind and passed_over.isdisjoint(worker.serves)))
                and worker.can_run(first)
            ]
            if not able:
                break
            choice = self._chooser.choose(able, queue, key, first, rows, now, self._batches())
            if isinstance(choice, Wait):
                self._waits[queue.model] = pool.changes, choice
                return None
            batch = self._take(queue, key, choice.worker, choice.sharing, now)
            if batch is not None:
                return batch
            key = queue.due(now)  # all that it would have taken had expired
        else:
            return None
        return self._next_of_others(queue, now)

    def _batches(self) -> int:
        return sum([queue.batches() for queue in self._queues.values()])

    def _next_of_others(self, queue: ModelQueue, now: float) -> Batch | None:
        """For the first request none is open that can run it: while another version of the model takes over."""
        able = [worker for worker in self._pool.free if queue.model in worker.serves]
        for count in range(len(able), 0, -1):
            worker = able[len(able) - count]
            waiting = queue.size
            while (key := queue.due(now, worker.can_run)) is not None:
                batch = self._take(queue, key, worker, count, now)
                if batch is not None:
                    return batch
                if queue.size == waiting:
                    break  # what waits is for workers of another edition
                waiting = queue.size
        return None

    def _take(self, queue: ModelQueue, key: BatchKey, worker: Worker, sharing: int, now: float) -> Batch | None:
        served, most = worker.served(key), worker.safe_rows.get(queue.model, 0)
        assert served is not None  # it can run a request of this key
        # Whose neighbours would answer for it where a request may survive no death travels alone.
        singles = self._pool.short_batches(key) if not key.max_batch_size and queue.limits.retry else 1
        requests = queue.take(key, now, self._open_requests.settle, sharing, served.generation, most, max(singles, 1))
        return self._give(worker, key, requests, now) if requests else None

    def _give(self, worker: Worker, key: BatchKey, requests: list[Request], now: float) -> Batch:
        rows = sum(request.rows for request in requests)
        size = self._queues[key.spec.model].limits.padded(rows) if key.max_batch_size else rows
        batch = Batch(self._next_batch, key, requests, rows, worker, now, size)
        self._next_batch += 1
        self._pool.given(batch, now)
        served = worker.served(key)
        version = served.version if served is not None else ""
        for request in requests:
            request.phase = Phase.RUNNING
            request.sent = now
            request.version = version
            if request.parent is not None:
                self._open_requests.split[request.parent] = None
                if not request.start:
                    request.parent.sent, request.parent.version = now, version
        return batch


def _depth_of_process(worker: Worker) -> int:
    return sum(tower.depth for tower in worker.towers)
