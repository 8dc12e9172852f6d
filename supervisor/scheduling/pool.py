"""The workers that serve: what each is executing, when it will finish, and when it may get another batch.

`Dispatcher` reports each batch that a worker gets, `Scheduler` each one that is answered; `worker_choice` picks the
worker for the next batch. Shortly before a worker is expected to finish its batch it may get a second one (prefetch),
so that it does not idle while the next message travels.

A request that finds no worker free costs the same however many workers there are. A batch costs a little more with
each worker.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Final

from .estimate import MAX_KEYS, Estimates
from .pool_worker import Batch, Worker
from .request import BatchKey

LOOP_DELAY_S: Final = 0.0003
"""How late the daemon's event loop may wake up, and be done with what else is due, before it sends a batch."""

MAX_LEAD_SHARE: Final = 0.5
"""How early a second batch may be sent, as a share of the first one's time. Workers use it to assemble large inputs."""

COMMON_EVERY: Final = 8
"""One of this many batches counts for the estimates of all workers together."""

SHORT_BATCH_S: Final = 0.0003
"""If the largest batch takes each worker less, choosing a worker costs more than it gains. The batch then goes to the
free worker that was busy last, whose data is still in the processor's caches. While a worker is executing such a batch,
only a full batch goes to another one: the first will have answered before the second could have started."""

SHORT_BATCH_WAYS: Final = 1.5
MAX_SHORT_BATCH_S: Final = 0.001
"""On a slow or busy machine batches are short that take less than so many times their way to any worker and back, up to
so many seconds."""

MAX_UNBATCHED: Final = 32
"""Unbatched requests per message, if they are short."""

SHORT_BATCH_VALID_FOR: Final = 256
"""Batches after which it is checked again whether those of a key are short."""

_MIN_S: Final = 1e-6
_OVERHEAD_STEP: Final = 0.1


class Rule(StrEnum):
    """The values of `dispatch` in a configuration: which worker gets the next batch."""

    EARLIEST_FINISH = "earliest_finish"  # the one that is expected to finish it first
    LEAST_DEPTH = "least_depth"  # ignores times: of the free ones, the one that has been free longest


class Pool:
    """All workers that serve.

    Args:
        rule: which worker gets the next batch.

    Attributes:
        rule: the rule in force.
        workers: in the order in which they were added.
        free: those that execute nothing and may get a batch, the longest free one first.
        reserved: the workers of a process that is to execute a suspect, and gets nothing else until it is idle.
        batches_given: how many batches workers have got.
        changes: changes whenever a worker is added, removed, paused or resumed, or gets or answers a batch: whenever
            another choice may be right.
        common_estimates: of all workers together, for workers that have been measured too little.
    """

    def __init__(self, rule: Rule = Rule.EARLIEST_FINISH) -> None:
        self.rule = rule
        self.workers: dict[Worker, None] = {}
        self.free: dict[Worker, None] = {}
        self.reserved: tuple[Worker, ...] = ()
        self.batches_given = 0
        self.changes = 0
        self.common_estimates = Estimates()
        self._most = 0  # workers that there have been at once
        # By key: what `short_batch_rows` returns, and until which number of batches that is valid.
        self._short_batches: dict[int, tuple[int, int]] = {}
        self._next_prefetch: float | None = None  # the earliest of the workers' `prefetch_at`; None if not known

    # Workers.

    def add(self, worker: Worker) -> None:
        """Adds a worker, which is free."""
        self.workers[worker] = None
        self.free[worker] = None
        self._most = max(self._most, len(self.workers))
        worker.last_given = self.batches_given
        self._short_batches.clear()
        self.changes += 1

    def remove(self, worker: Worker) -> None:
        """Removes a worker whose process has exited."""
        if worker in self.reserved:
            self.reserve(())
        del self.workers[worker]
        self.free.pop(worker, None)
        self._set_changed()

    def stop_dispatch(self, worker: Worker) -> None:
        """Lets the worker finish its batches, and gives it no more."""
        worker.retiring = True
        if worker in self.reserved:
            self.reserve(())
        worker.prefetch_at = inf
        self.free.pop(worker, None)
        self._set_changed()

    def change_interface(self, worker: Worker, model: str, version: str, interface: int) -> None:
        """The worker serves a version with another interface from now on; see `Served`."""
        served = worker.versions[model, version]._replace(interface=interface)
        worker.versions[model, version] = served
        if worker.serves[model].version == version:
            worker.serves[model] = served
        self._set_changed()

    def reserve(self, towers: tuple[Worker, ...]) -> None:
        """Reserves a process, given by its workers, for a suspect; an empty tuple ends a reservation."""
        if towers == self.reserved:
            return
        for worker in self.reserved:
            # Another suspect may be running there by now; `finish_batch` resumes the process after that.
            if not worker.process_runs_suspect:
                self._resume(worker)
        self.reserved = towers
        for worker in towers:
            self._pause(worker)
        self._set_changed()

    def _pause(self, worker: Worker) -> None:
        worker.paused = True
        worker.prefetch_at = inf
        self.free.pop(worker, None)

    def _resume(self, worker: Worker) -> None:
        worker.paused = False
        if worker.batch is None and not worker.retiring and worker in self.workers:
            self.free[worker] = None

    def set_rule(self, rule: Rule) -> None:
        """Chooses workers by another rule from now on."""
        self.rule = rule
        self._set_changed()

    # Batches.

    def least_seconds(self, key: BatchKey, rows: int) -> float:
        """The least time that rows of a request larger than a batch take, in seconds, if all workers run nothing else.

        Workers that are missing now, since they are being replaced, are counted as if they were there.

        Args:
            key: its batch key.
            rows: of it, that have not run.

        Returns:
            The time; 0.0 if it is not known of one of the workers that can run requests of this key.
        """
        rate, counted = 0.0, 0
        for worker in self.workers:
            # Not `can_run`: a part that runs on one generation must not make the time of the rest seem longer.
            if not worker.retiring and worker.served_for(key) is not None:
                estimate = worker.estimates.find(key.id)
                largest = min(key.max_batch_size, worker.safe_rows.get(key.spec.model, key.max_batch_size))
                seconds = 0.0 if estimate is None else estimate.least_seconds(largest)
                if seconds <= 0.0:
                    return 0.0
                rate += largest / seconds
                counted += 1
        return rows / (rate * max(self._most, counted) / counted) if counted else 0.0

    def start_batch(self, batch: Batch, now: float) -> None:
        """A batch is sent to its worker, which executes it now, or after the one that it is executing."""
        worker = batch.worker
        self.batches_given += 1
        worker.last_given = self.batches_given
        seconds = None if self.short_batch_rows(batch.key) else self.seconds(worker, batch.key, batch.size)
        if worker.batch is None:
            worker.batch = batch
            batch.started = now
            worker.finish_at = inf if seconds is None else now + worker.overhead_s + seconds
            self.free.pop(worker, None)
        else:
            batch.queued = True
            worker.next_batch = batch
            worker.finish_at = inf if seconds is None else expected_finish(worker.finish_at, now) + seconds
        self._set_prefetch(worker, seconds)
        if batch.requests[0].deaths and len(worker.towers) > 1:
            # A suspect. Nothing else may run in its process, so that it is clear what a crash comes from.
            if worker in self.reserved:
                self.reserved = ()
            for tower in worker.towers:
                self._pause(tower)
        self._set_changed()

    def finish_batch(self, batch: Batch, now: float, busy_s: float | None, *, measure: bool) -> None:
        """A worker has answered the batch that it was executing, and starts the next one if it has one.

        Args:
            batch: the batch.
            now: monotonic seconds.
            busy_s: how long the worker executed it, in seconds; None if only the time until the answer is known.
            measure: whether its time says how long such batches take; that of a batch with errors does not.
        """
        worker = batch.worker
        took = now - batch.started
        if busy_s is None:
            busy_s = took
        # Of short batches some are enough. A worker that has become slow is noticed at the next measurement.
        if measure and not (
            self.short_batch_rows(batch.key)
            and self.batches_given - worker.last_measured < COMMON_EVERY * len(self.workers)
        ):
            worker.last_measured = self.batches_given
            self._measure(worker, batch, busy_s, now)
            if not batch.queued:
                overhead = max(took - busy_s, 0.0)
                # The loop may have been busy with something else, which says nothing about the next batch.
                overhead = min(overhead, 4 * worker.overhead_s) if worker.overhead_s else overhead
                worker.overhead_s += (_OVERHEAD_STEP if worker.overhead_s else 1.0) * (overhead - worker.overhead_s)
        worker.probed = False
        if worker.paused and batch.requests[0].deaths and worker not in self.reserved:
            for tower in worker.towers:
                self._resume(tower)
        worker.batch, worker.next_batch = worker.next_batch, None
        if worker.batch is None:
            worker.idle_since = now
            worker.finish_at = worker.prefetch_at = inf
            if not (worker.retiring or worker.paused):
                self.free[worker] = None
        else:
            seconds = self.seconds(worker, worker.batch.key, worker.batch.size)
            worker.batch.started = now
            worker.finish_at = inf if seconds is None else now + seconds
            self._set_prefetch(worker, seconds)
        self._set_changed()

    def withdraw_batch(self, batch: Batch, now: float) -> None:
        """Removes a batch that its worker was to get, but that could not be sent."""
        worker = batch.worker
        if worker.next_batch is not batch:
            self.finish_batch(batch, now, None, measure=False)
            return
        worker.next_batch = None
        executing = worker.batch
        assert executing is not None  # `next_batch` is only set behind one
        seconds = self.seconds(worker, executing.key, executing.size)
        worker.finish_at = inf if seconds is None else executing.started + seconds
        self._set_prefetch(worker, seconds)
        self._set_changed()

    def _measure(self, worker: Worker, batch: Batch, seconds: float, now: float) -> None:
        estimate = worker.estimates.find(batch.key.id)
        if worker.probed and estimate is not None:
            estimate.rescale(batch.size, seconds, now)
        worker.estimates.add(batch.key, batch.size, seconds, now)
        # Of workers with an estimate of their own, some batches are enough.
        if estimate is None or self.batches_given % COMMON_EVERY == 0:
            self.common_estimates.add(batch.key, batch.size, seconds, now)

    def _set_prefetch(self, worker: Worker, seconds: float | None) -> None:
        """Sets when a worker may get its second batch; not if it has one, nor behind a suspect or an unknown time.

        Args:
            worker: the worker, which is executing a batch.
            seconds: the expected time of its last batch; None if unknown.
        """
        batch = worker.batch
        assert batch is not None
        unavailable = worker.retiring or worker.paused
        if worker.next_batch is not None or seconds is None or unavailable or batch.requests[0].deaths:
            worker.prefetch_at = inf
        else:
            worker.prefetch_at = worker.finish_at - min(worker.overhead_s + LOOP_DELAY_S, MAX_LEAD_SHARE * seconds)

    def _set_changed(self) -> None:
        self.changes += 1
        self._next_prefetch = None

    # Questions.

    def candidates(self, now: float) -> list[Worker]:
        """The workers that may get a batch now: those that are free, and those about to finish their only batch."""
        found = list(self.free)
        if self.next_prefetch <= now:
            for worker in self.workers:
                if worker.prefetch_at <= now:
                    if now - worker.finish_at <= worker.finish_at - worker.prefetch_at:
                        found.append(worker)
                    else:
                        # It is late, and may never finish. Nothing is to be stuck behind that batch.
                        worker.prefetch_at = inf
                        self._next_prefetch = None
        return found

    @property
    def next_prefetch(self) -> float:
        """When a busy worker may get a second batch, in monotonic seconds; infinite if none may."""
        if self.rule is Rule.LEAST_DEPTH:
            return inf
        if self._next_prefetch is None:
            earliest = inf
            for worker in self.workers:
                if worker.prefetch_at < earliest:
                    earliest = worker.prefetch_at
            self._next_prefetch = earliest
        return self._next_prefetch

    def next_prefetch_after(self, now: float) -> float:
        """The first time after `now` at which a busy worker may get a second batch; infinite if there is none."""
        if self.next_prefetch > now:
            return self.next_prefetch
        return min((worker.prefetch_at for worker in self.workers if worker.prefetch_at > now), default=inf)

    def short_batch_rows(self, key: BatchKey) -> int:
        """The rows of a full batch of this key if its batches are short; else 0. See `SHORT_BATCH_S`.

        For unbatched requests: how many of them together are short, since a message costs more than they do.
        """
        rows, valid_until = self._short_batches.get(key.id, (0, -1))
        if self.batches_given >= valid_until:
            serving = [worker for worker in self.workers if key.spec.model in worker.serves]
            estimates = [worker.estimates.find(key.id) for worker in serving]
            largest = max(key.max_batch_size, 1)
            slowest = max(
                [inf if estimate is None else estimate.seconds(largest) for estimate in estimates], default=inf
            )
            way = min([worker.overhead_s for worker in serving], default=0.0)
            rows = 0
            if slowest < max(SHORT_BATCH_S, min(SHORT_BATCH_WAYS * way, MAX_SHORT_BATCH_S)):
                rows = key.max_batch_size or min(int(SHORT_BATCH_S / max(slowest, _MIN_S)), MAX_UNBATCHED)
            if len(self._short_batches) >= MAX_KEYS:
                self._short_batches.clear()
            self._short_batches[key.id] = rows, self.batches_given + SHORT_BATCH_VALID_FOR
        return rows

    def seconds(self, worker: Worker, key: BatchKey, rows: int) -> float | None:
        """The estimated time of a batch, in seconds; of all workers if this one's is unknown. None if unknown."""
        estimate = worker.estimates.find(key.id) or self.common_estimates.find(key.id)
        return estimate.seconds(rows) if estimate is not None else None


def expected_finish(finish_at: float, now: float) -> float:
    """When a worker is expected to finish: one that is late by some time is expected to need as long again."""
    return finish_at if finish_at >= now else now + (now - finish_at)
