"""Which worker gets the next batch: the rules of `dispatch`. Pure.

`earliest_finish` gives a batch to the worker that is expected to finish it first: by what it has to do yet, and by the
time that such batches take on it (`estimate.py`). When the busy ones would have all that waits done before a slow one,
the slow one stays idle; when the queue is too long for that, it works. Workers of about the same speed take turns,
except where batches are brief.

`least_depth` looks at nothing but rows: whoever is free gets a batch, the longest idle one first. So does the other
rule while nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

from .pool import BRIEF_S, LEAD_SHARE, Pool, Rule, expected
from .queue import ModelQueue
from .request import BatchKey, Request
from .worker import Worker

ALIKE: Final = 0.125
"""Share of a batch's time within which workers are as good as each other: then the longest idle one has it."""

TRY_AFTER: Final = 500
"""Batches that others get until an idle worker gets one to see whether it is still slow."""

TRY_IDLE_S: Final = 1.0
"""How long it must have been idle for that."""

_LEAST_WAIT_S: Final = 0.001


class Choice(NamedTuple):
    """Who gets the next batch.

    Attributes:
        worker: the one.
        sharing: workers among whom the rows that wait are to be shared out.
    """

    worker: Worker
    sharing: int


class Wait(NamedTuple):
    """Nobody gets what waits yet: busy workers are expected to be done with it before any that is open.

    Attributes:
        batches: that these would finish before; when more wait, choose again.
        until: monotonic seconds, when to choose again at the latest.
    """

    batches: int
    until: float


class _Offer(NamedTuple):
    """When an open worker would be done with its share, and whether that follows from its own times."""

    finish: float
    seconds: float
    worker: Worker
    known: bool


class Chooser:
    """Picks workers.

    Args:
        pool: the workers.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def choose(
        self,
        able: Sequence[Worker],
        queue: ModelQueue,
        key: BatchKey,
        first: Request,
        rows: int,
        now: float,
        waiting: int,
    ) -> Choice | Wait:
        """Who gets the next batch of a key.

        Args:
            able: open workers that can run it, at least one.
            queue: where it waits.
            key: the batch key.
            first: its first request.
            rows: of all requests of this key that wait.
            now: monotonic seconds.
            waiting: batches that all waits would make, of other models too: they take the busy workers' time as well.
        """
        if len(self._pool.workers) == 1:
            return Choice(able[0], 1)
        by_estimate = self._pool.rule is Rule.EARLIEST_FINISH
        short_batches = self._pool.short_batches(key) if by_estimate else 0
        offers = self._offers(able, queue, key, rows, now) if by_estimate and not short_batches else None
        if offers is None:
            free = [worker for worker in able if worker.batch is None]
            if not free:
                return Wait(0, inf)
            if not short_batches:
                return Choice(min(free, key=_idle_since), len(free))
            until = self._back_soon(key, now) if rows < short_batches else now
            return Wait(1, until) if until > now else Choice(max(free, key=_idle_since), 1)
        for offer in offers:
            worker = offer.worker
            forgotten = self._pool.count - worker.turn >= TRY_AFTER and now - worker.idle_since >= TRY_IDLE_S
            if forgotten and worker.batch is None:
                worker.tried = True
                return Choice(worker, max(rows, 1))  # one row of the whole suffices
        best = offers[0] if len(offers) == 1 else min(offers, key=_finish)
        most = queue.limits.padded(max(1, min(rows, key.max_batch_size)))
        margin = ALIKE * best.seconds
        before, offered = 0, {offer.worker for offer in offers}
        for worker in self._pool.workers if best.known else ():
            left = best.finish - margin - expected(worker.ends, now)  # until the best of the open ones would be done
            closed = worker.retiring or worker.barred
            if left > 0 and not closed and worker not in offered and worker.can_run(first):
                seconds = self._pool.seconds(worker, key, most)
                if seconds is not None and left > seconds:
                    before += int(left / max(seconds, _LEAST_WAIT_S))
                    if before >= waiting:
                        return Wait(before, now + max(best.seconds * LEAD_SHARE, _LEAST_WAIT_S))
        if len(offers) == 1:
            return Choice(best.worker, 1)
        alike = [offer.worker for offer in offers if offer.finish <= best.finish + margin]
        return Choice(min(alike, key=_idle_since), self._sharing(offers, best, key, most, waiting))

    # How it is done.

    def _back_soon(self, key: BatchKey, now: float) -> float:
        """Until when it is worth to wait for a worker that is at a brief batch of this key; 0 when none is."""
        return max(
            (
                worker.batch.begun + 2 * worker.hop_s + BRIEF_S
                for worker in self._pool.workers
                if worker.batch is not None and worker.batch.key is key and not worker.retiring
            ),
            default=0.0,
        )

    def _offers(
        self, able: Sequence[Worker], queue: ModelQueue, key: BatchKey, rows: int, now: float
    ) -> list[_Offer] | None:
        """When each of them would be done with an even share; None while that is not known of each."""
        share = queue.limits.padded(max(1, min(-(-rows // len(able)), key.max_batch_size)))
        offers = []
        times = [
            (worker, estimate.seconds(share) if (estimate := worker.pace.find(key.id)) is not None else None)
            for worker in able
        ]
        # One that is not known is as fast as the fastest, until it is: else it might never be known.
        unknown = min((seconds for _, seconds in times if seconds is not None), default=None)
        if unknown is None:
            common = self._pool.common.find(key.id)
            if common is None:
                return None
            unknown = common.seconds(share)
        for worker, own in times:
            seconds = unknown if own is None else own
            start = now if worker.batch is None else expected(worker.ends, now)
            offers.append(_Offer(start + seconds, seconds, worker, own is not None))
        return offers

    def _sharing(self, offers: list[_Offer], best: _Offer, key: BatchKey, most: int, waiting: int) -> int:
        """How many of them are fast enough to have a share, rather than leave it to the best one."""
        seconds = self._pool.seconds(best.worker, key, most) or best.seconds
        begins = best.finish - best.seconds
        count = 0
        for finish, own, _, _ in sorted(offers, key=_finish):
            left = finish - ALIKE * own - begins
            if count and count * int(left / max(seconds, _LEAST_WAIT_S)) >= waiting:
                break
            count += 1
        return count


def _idle_since(worker: Worker) -> float:
    return worker.idle_since if worker.batch is None else inf


def _finish(offer: _Offer) -> float:
    return offer.finish
