"""The workers that serve: what each has to do, until when, and when it may get more. Pure.

The balancer tells which batches were given and answered; `choice.py` picks the worker for what waits. Shortly before a
worker is expected to end its batch it opens for a second one, so that its way there costs nothing.

What is done for a request that finds no worker free costs the same however many workers there are; what is done for a
batch grows a little with their number.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Final

from .estimate import MOST_KEYS, Pace
from .queue import Batch
from .request import BatchKey
from .worker import Worker

GRAIN_S: Final = 0.0003
"""The daemon's loop wakes up to this much later than it wants to, and has something else to do first."""

LEAD_SHARE: Final = 0.5
"""Of a batch's time, how much before its end the next one may be sent at the most. Large inputs need it: a worker puts
them together meanwhile."""

COMMON_EVERY: Final = 8
"""Of so many batches one counts for what all workers take together."""

BRIEF_S: Final = 0.0003
"""Where the largest batch takes each worker less, as they say, choosing costs more than it gains. Then of those that
are free the one that was at it last has the next batch, since what it needs is still in the processor's caches. While a
worker is at such a batch, others are woken for whole ones only: its answer comes before they would have begun."""

MOST_SINGLES: Final = 32
"""Requests that run one by one in one message at the most."""

BRIEF_FOR: Final = 256
"""Batches until that is looked at again."""

_LEAST_S: Final = 1e-6
_HOP_STEP: Final = 0.1


class Rule(StrEnum):
    """The values of `dispatch` in a configuration."""

    EARLIEST_FINISH = "earliest_finish"  # whoever is expected to be done with it first
    LEAST_DEPTH = "least_depth"  # whoever has the fewest rows, the longest idle first


class Pool:
    """All workers that serve.

    Args:
        rule: who gets what.

    Attributes:
        rule: as given, or as set last.
        workers: in the order of their coming.
        free: those that execute nothing and may get something, the longest idle one first.
        changes: counts what may change a choice: workers that come, go, get something and answer it.
        reserved: the workers of a process that is to execute a suspect, and gets nothing else until it is free for it.
        count: of batches given.
        common: the pace of all workers together, for those of which too little is known.
    """

    def __init__(self, rule: Rule = Rule.EARLIEST_FINISH) -> None:
        self.rule = rule
        self.workers: dict[Worker, None] = {}
        self.free: dict[Worker, None] = {}
        self.changes = 0
        self.reserved: tuple[Worker, ...] = ()
        self.count = 0
        self.common = Pace()
        self._short_batches: dict[
            int, tuple[int, int]
        ] = {}  # what `brief` says of a key, and until which batch that holds
        self._opens: float | None = None  # the earliest time that a busy one opens; None when it has to be found

    # What happens.

    def set_rule(self, rule: Rule) -> None:
        """Another rule applies from now on."""
        self.rule = rule
        self._changed()

    def add(self, worker: Worker) -> None:
        """A worker has come."""
        self.workers[worker] = None
        self.free[worker] = None
        worker.turn = self.count
        self._short_batches.clear()
        self.changes += 1

    def stop_dispatch(self, worker: Worker) -> None:
        """The worker gets nothing more."""
        worker.retiring = True
        if worker in self.reserved:
            self.reserve(())
        worker.opens = inf
        self.free.pop(worker, None)
        self._changed()

    def reserve(self, towers: tuple[Worker, ...]) -> None:
        """A suspect is to be executed in this process, once nothing else is; none for no process any more."""
        if towers == self.reserved:
            return
        for worker in self.reserved:
            # Another suspect may be executed there meanwhile; whoever has answered that is let in then.
            if not worker.has_suspect:
                self._admit(worker)
        self.reserved = towers
        for worker in towers:
            self._bar(worker)
        self._changed()

    def _bar(self, worker: Worker) -> None:
        worker.barred = True
        worker.opens = inf
        self.free.pop(worker, None)

    def _admit(self, worker: Worker) -> None:
        worker.barred = False
        if worker.batch is None and not worker.retiring and worker in self.workers:
            self.free[worker] = None

    def remove(self, worker: Worker) -> None:
        """The worker is gone."""
        if worker in self.reserved:
            self.reserve(())
        del self.workers[worker]
        self.free.pop(worker, None)
        self._changed()

    def given(self, batch: Batch, now: float) -> None:
        """Its worker gets a batch, as its only one or behind the one that it executes."""
        worker: Worker = batch.worker
        self.count += 1
        worker.turn = self.count
        seconds = None if self.short_batches(batch.key) else self.seconds(worker, batch.key, batch.size)
        if worker.batch is None:
            worker.batch = batch
            batch.begun = now
            worker.ends = inf if seconds is None else now + worker.hop_s + seconds
            self.free.pop(worker, None)
        else:
            batch.behind = True
            worker.next = batch
            worker.ends = inf if seconds is None else expected(worker.ends, now) + seconds
        self._set_opening(worker, seconds)
        if batch.requests[0].deaths and len(worker.towers) > 1:
            # Should the process die now, it is known what of.
            if worker in self.reserved:
                self.reserved = ()
            for tower in worker.towers:
                self._bar(tower)
        self._changed()

    def finished(self, batch: Batch, now: float, busy_s: float | None, *, measures: bool) -> None:
        """Its worker has answered the batch that it was executing, and begins with the next one if it has one.

        Args:
            batch: the one.
            now: monotonic seconds.
            busy_s: seconds that the worker was at it, as it says; None where only the whole time is known.
            measures: it tells how long such batches take; one with errors does not.
        """
        worker: Worker = batch.worker
        took = now - batch.begun
        if busy_s is None:
            busy_s = took
        # Of brief batches some suffice; a worker that has become slow is found by the others' next look.
        if measures and not (
            self.short_batches(batch.key) and self.count - worker.measured < COMMON_EVERY * len(self.workers)
        ):
            worker.measured = self.count
            self._learn(worker, batch, busy_s)
            if not batch.behind:
                hop = max(took - busy_s, 0.0)
                # The loop itself may have been busy elsewhere, which says nothing of the next time.
                hop = min(hop, 4 * worker.hop_s) if worker.hop_s else hop
                worker.hop_s += (_HOP_STEP if worker.hop_s else 1.0) * (hop - worker.hop_s)
        worker.tried = False
        if worker.barred and batch.requests[0].deaths and worker not in self.reserved:
            for tower in worker.towers:
                self._admit(tower)
        worker.batch, worker.next = worker.next, None
        if worker.batch is None:
            worker.idle_since = now
            worker.ends = worker.opens = inf
            if not (worker.retiring or worker.barred):
                self.free[worker] = None
        else:
            seconds = self.seconds(worker, worker.batch.key, worker.batch.size)
            worker.batch.begun = now
            worker.ends = inf if seconds is None else now + seconds
            self._set_opening(worker, seconds)
        self._changed()

    def withdraw(self, batch: Batch, now: float) -> None:
        """Takes back a batch that was given to its worker but could not be sent to it."""
        worker: Worker = batch.worker
        if worker.next is not batch:
            self.finished(batch, now, None, measures=False)
            return
        worker.next = None
        executing = worker.batch
        assert executing is not None  # `next` is only given behind it
        seconds = self.seconds(worker, executing.key, executing.size)
        worker.ends = inf if seconds is None else executing.begun + seconds
        self._set_opening(worker, seconds)
        self._changed()

    # What follows from it.

    def open(self, now: float) -> list[Worker]:
        """Those that may get a batch now: the free ones, and those about to end the only one that they have."""
        found = list(self.free)
        if self.next_opening <= now:
            for worker in self.workers:
                if worker.opens <= now:
                    if now - worker.ends <= worker.ends - worker.opens:
                        found.append(worker)
                    else:
                        worker.opens = inf  # it is late: nothing is to be stuck behind what may take forever
                        self._opens = None
        return found

    @property
    def next_opening(self) -> float:
        """When a busy worker may get a second batch, in monotonic seconds; infinite when none may."""
        if self.rule is Rule.LEAST_DEPTH:
            return inf
        if self._opens is None:
            least = inf
            for worker in self.workers:
                if worker.opens < least:
                    least = worker.opens
            self._opens = least
        return self._opens

    def opening_after(self, now: float) -> float:
        """The first opening that is yet to come; infinite when there is none."""
        if self.next_opening > now:
            return self.next_opening
        return min((worker.opens for worker in self.workers if worker.opens > now), default=inf)

    def short_batches(self, key: BatchKey) -> int:
        """The rows of a brief batch of this key; 0 where its batches are not brief. Looked at now and then.

        Requests that run one by one make a batch, too, as many as are brief together: a message costs more than they.
        """
        most, until = self._short_batches.get(key.id, (0, -1))
        if self.count >= until:
            serving = [worker for worker in self.workers if key.spec.model in worker.serves]
            estimates = [worker.pace.find(key.id) for worker in serving]
            largest = max(key.max_batch_size, 1)
            slowest = max(
                [inf if estimate is None else estimate.seconds(largest) for estimate in estimates], default=inf
            )
            most = 0
            if slowest < BRIEF_S:
                most = key.max_batch_size or min(int(BRIEF_S / max(slowest, _LEAST_S)), MOST_SINGLES)
            if len(self._short_batches) >= MOST_KEYS:
                self._short_batches.clear()
            self._short_batches[key.id] = most, self.count + BRIEF_FOR
        return most

    def seconds(self, worker: Worker, key: BatchKey, rows: int) -> float | None:
        """What a batch of so many rows is expected to take; by what others take, where too little is known of it."""
        estimate = worker.pace.find(key.id) or self.common.find(key.id)
        return estimate.seconds(rows) if estimate is not None else None

    # How it is done.

    def _learn(self, worker: Worker, batch: Batch, seconds: float) -> None:
        estimate = worker.pace.find(batch.key.id)
        if worker.tried and estimate is not None:
            estimate.rescale(batch.size, seconds)
        worker.pace.add(batch.key.id, batch.size, seconds)
        # Of those that are known, some suffice.
        if estimate is None or self.count % COMMON_EVERY == 0:
            self.common.add(batch.key.id, batch.size, seconds)

    def _set_opening(self, worker: Worker, seconds: float | None) -> None:
        """A worker that has one batch, of known length, opens a little before its end; never behind a suspect."""
        batch = worker.batch
        assert batch is not None  # it has just got one
        closed = worker.retiring or worker.barred
        if worker.next is not None or seconds is None or closed or batch.requests[0].deaths:
            worker.opens = inf
        else:
            worker.opens = worker.ends - min(worker.hop_s + GRAIN_S, LEAD_SHARE * seconds)

    def _changed(self) -> None:
        self.changes += 1
        self._opens = None


def expected(ends: float, now: float) -> float:
    """When it will have ended. What is late already may take as long again: nobody waits for it forever."""
    return ends if ends >= now else now + (now - ends)
