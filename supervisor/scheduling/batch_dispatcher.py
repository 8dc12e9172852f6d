"""Forms batches: each worker that may get one gets what the rules of `dispatch` have for it.

The models take turns. In each model's queue suspects come first, then the most urgent requests. `worker_choice` picks
the worker for a batch, or lets the batch wait for one that is busy; that decision holds until something changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Set
from math import inf

from multitower.errors import MultitowerError

from .open_requests import OpenRequests
from .pool import Pool
from .pool_worker import Batch, Worker
from .queue import ModelQueue
from .request import BatchKey, Phase, Request
from .split_requests import late_error
from .worker_choice import Chooser, Wait


class Dispatcher:
    """Forms batches.

    Args:
        queues: the queues, by model; the scheduler adds and removes some.
        pool: the workers.
        open_requests: answers requests that turn out to have expired.

    Attributes:
        next_dispatch: when to call `dispatch` at the latest, in monotonic seconds, if nothing happens before; set by
            the last call.
    """

    def __init__(self, queues: Mapping[str, ModelQueue], pool: Pool, open_requests: OpenRequests) -> None:
        self.next_dispatch = inf
        self._queues = queues
        self._pool = pool
        self._chooser = Chooser(pool)
        self._open_requests = open_requests
        self._turns: OrderedDict[str, None] = OrderedDict.fromkeys(queues)  # models, the next one first
        self._reserved_for: Request | None = None  # the suspect for which the pool has reserved a process
        self._waits: dict[str, tuple[int, Wait]] = {}  # by model: `Pool.changes` at a decision to wait, and that
        self._delayed: list[ModelQueue] = []  # those with `max_delay_s`
        self._next_id = 1
        self.update_models()

    def update_models(self) -> None:
        """Call it when models have been added or removed, or the limits of a queue have changed."""
        for model in [model for model in self._turns if model not in self._queues]:
            del self._turns[model]
            self._waits.pop(model, None)
        for model in self._queues:
            self._turns.setdefault(model)
        self._delayed = [queue for queue in self._queues.values() if queue.limits.max_delay_s]

    def dispatch(self, now: float) -> list[Batch]:
        """Forms a batch for each worker that may get one. Call it after each burst of events."""
        self.next_dispatch = inf
        pool = self._pool
        if pool.reserved and not self._is_suspect(self._reserved_for):
            pool.reserve(())  # that request has been answered meanwhile
        waiting = [self._queues[model] for model in self._turns if self._queues[model].size]
        if not waiting:
            return []
        batches: list[Batch] = []
        # Models that wait for a free worker: no second batch is sent to a worker that serves one of them.
        blocked: set[str] = set()
        while waiting and (pool.free or pool.next_prefetch <= now or pool.reserved):
            queue = waiting.pop(0)
            batch = self._suspect_batch(queue, now) if queue.suspects else None
            if batch is None and queue.suspects:
                blocked.add(queue.model)
            batch = batch or self._next_batch(queue, now, blocked)
            if batch is None:
                if waiting and queue.next_key(now) is not None:
                    blocked.add(queue.model)
                continue
            batches.append(batch)
            self._turns.move_to_end(queue.model)
            if queue.size:
                waiting.append(queue)
        if any(queue.size for queue in self._queues.values()):
            self._set_next_dispatch(now)
        return batches

    def _set_next_dispatch(self, now: float) -> None:
        time = self._pool.next_prefetch_after(now)
        for _, wait in self._waits.values():
            if now < wait.until < time:
                time = wait.until
        for queue in self._delayed:
            due = queue.next_due()
            # Requests that were due earlier have been considered just now.
            if due is not None and now < due < time:
                time = due
        self.next_dispatch = time

    # Suspects.

    def _suspect_batch(self, queue: ModelQueue, now: float) -> Batch | None:
        """A batch of one suspect, for a process that is idle; reserves a process if none ever would be."""
        pool = self._pool
        for request in list(queue.suspects):
            able = [worker for worker in pool.workers if not worker.retiring and worker.can_run(request)]
            elsewhere = any(worker.device != request.avoid for worker in able)
            fit = {worker for worker in able if not (elsewhere and worker.device == request.avoid)}
            # Not behind or beside another batch: if the process died, it would not be clear of which.
            for worker in (*pool.free, *pool.reserved):
                if worker in fit and worker.process_idle:
                    queue.remove(request)
                    batch = self._assign(worker, request.plan.key, [request], now)
                    if request is self._reserved_for:
                        pool.reserve(())  # even if it runs in another process; then that one may get batches again
                    return batch
            may_reserve = not pool.reserved or (request is self._reserved_for and fit.isdisjoint(pool.reserved))
            if may_reserve and fit and all(len(worker.towers) > 1 for worker in fit):
                # The towers of a process are never all idle at once while other requests wait.
                self._reserved_for = request
                pool.reserve(min(fit, key=_process_depth).towers)
        return None

    def _is_suspect(self, request: Request | None) -> bool:
        """Whether the request still waits as a suspect."""
        queue = self._queues.get(request.plan.model) if request is not None else None
        return queue is not None and request in queue.suspects

    # Other requests.

    def _next_batch(self, queue: ModelQueue, now: float, blocked: Set[str]) -> Batch | None:
        """The next batch of a model; None if no worker may get it now.

        Args:
            queue: the model's queue.
            now: monotonic seconds.
            blocked: models with requests that wait for a free worker.
        """
        pool, decision = self._pool, self._waits.pop(queue.model, None)
        key = queue.next_key(now)
        if decision is not None and key is not None:
            changes, wait = decision
            if changes == pool.changes and now < wait.until and self._min_batches() <= wait.batches:
                self._waits[queue.model] = decision
                return None
        candidates = pool.candidates(now) if key is not None else ()
        while key is not None:
            first, rows = queue.first_of(key)
            if not pool.free and rows < key.max_batch_size:
                return None
            # A second batch must be full, since it could have grown by waiting; and no suspect, see `_suspect_batch`.
            prefetch = rows >= key.max_batch_size and not first.deaths
            able = [
                worker
                for worker in candidates
                if (worker.batch is None or (prefetch and blocked.isdisjoint(worker.serves))) and worker.can_run(first)
            ]
            if not able:
                return self._batch_of_other_version(queue, now)
            choice = self._chooser.choose(able, queue, key, first, rows, now, self._min_batches())
            if isinstance(choice, Wait):
                self._waits[queue.model] = pool.changes, choice
                return None
            batch = self._form_batch(queue, key, choice.worker, choice.sharing, now)
            if batch is not None:
                return batch
            key = queue.next_key(now)  # all requests of the former key had expired
        return None

    def _min_batches(self) -> int:
        """How many batches all waiting requests of all models make at least."""
        return sum([queue.min_batches() for queue in self._queues.values()])

    def _batch_of_other_version(self, queue: ModelQueue, now: float) -> Batch | None:
        """A batch of requests behind the first one, which no candidate can run: another version is taking over."""
        able = [worker for worker in self._pool.free if queue.model in worker.serves]
        for sharing in range(len(able), 0, -1):
            worker = able[len(able) - sharing]
            waiting = queue.size
            while (key := queue.next_key(now, worker.can_run)) is not None:
                batch = self._form_batch(queue, key, worker, sharing, now)
                if batch is not None:
                    return batch
                if queue.size == waiting:
                    break  # the requests of this key need workers of another generation
                waiting = queue.size
        return None

    def _form_batch(self, queue: ModelQueue, key: BatchKey, worker: Worker, sharing: int, now: float) -> Batch | None:
        """Forms the next batch of a key for a worker; None if all its requests had expired."""
        served, max_rows = worker.served_for(key), worker.safe_rows.get(queue.model, 0)
        assert served is not None  # it can run a request of this key
        # If a request may survive no death (`retry: 0`), others must not die with it: it travels alone.
        max_unbatched = self._pool.short_batch_rows(key) if not key.max_batch_size and queue.limits.retry else 1
        requests = queue.pop_batch(
            key,
            now,
            self._open_requests.settle,
            sharing,
            served.generation,
            max_rows,
            max(max_unbatched, 1),
            self._late_error,
        )
        return self._assign(worker, key, requests, now) if requests else None

    def _assign(self, worker: Worker, key: BatchKey, requests: list[Request], now: float) -> Batch:
        """Gives requests to a worker as its next batch."""
        rows = sum(request.rows for request in requests)
        size = self._queues[key.spec.model].limits.padded(rows) if key.max_batch_size else rows
        batch = Batch(self._next_id, key, requests, rows, size, worker, now)
        self._next_id += 1
        self._pool.start_batch(batch, now)
        served = worker.served_for(key)
        version = served.version if served is not None else ""
        for request in requests:
            request.phase = Phase.RUNNING
            request.sent = now
            request.version = version
            parent = request.parent
            if parent is not None:
                self._open_requests.split[parent] = None
                if not request.start:
                    parent.sent, parent.version = now, version
        return batch

    def _late_error(self, request: Request, rows: int, now: float) -> MultitowerError | None:
        """The error for a request larger than a batch whose remaining rows cannot run in its time, or None."""
        return late_error(request.plan, rows, self._pool.least_seconds(request.plan.key, rows), request.deadline - now)


def _process_depth(worker: Worker) -> int:
    return sum(tower.depth for tower in worker.towers)
