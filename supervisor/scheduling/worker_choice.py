"""Which worker gets the next batch: the rules of `dispatch`.

`earliest_finish` gives a batch to the worker that is expected to finish it first, by the batches that it has and by
the time that such batches take on it (`estimate`). If the busy workers would finish all that waits before a slow one
could, the slow one stays idle; if the queue is longer, it works. Workers of about the same speed take turns, unless
batches are short.

`least_depth` ignores times: of the free workers, the one that has been free longest gets the batch. So does the other
rule while no times are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from .pool import MAX_LEAD_SHARE, SHORT_BATCH_S, Pool, Rule, expected_finish
from .pool_worker import Worker
from .queue import ModelQueue
from .request import BatchKey, Request

SIMILAR_SHARE: Final = 0.125
"""Workers whose finishing times differ by less than this share of the batch's time are similar: they take turns."""

PROBE_AFTER_BATCHES: Final = 500
"""An idle worker that got none of this many batches gets one, to find out whether it is still slow."""

PROBE_IDLE_S: Final = 1.0
"""Seconds that it must have been idle before that."""

_MIN_WAIT_S: Final = 0.001


class Choice:
    """The next batch goes to a worker.

    Attributes:
        worker: this one.
        sharing: number of workers among which the waiting rows are divided.
    """

    __slots__ = ("sharing", "worker")

    def __init__(self, worker: Worker, sharing: int) -> None:
        self.worker = worker
        self.sharing = sharing


class Wait:
    """The next batch waits: busy workers are expected to finish it before any candidate would.

    Attributes:
        batches: how many batches these would finish before; choose again when more are waiting.
        until: choose again at this time at the latest, in monotonic seconds.
    """

    __slots__ = ("batches", "until")

    def __init__(self, batches: int, until: float) -> None:
        self.batches = batches
        self.until = until


class _Offer:
    """When a candidate would finish its share of what waits.

    Attributes:
        finish: monotonic seconds.
        seconds: that its batch takes.
        worker: the candidate.
        measured: whether `seconds` comes from its own batches.
    """

    __slots__ = ("finish", "measured", "seconds", "worker")

    def __init__(self, finish: float, seconds: float, worker: Worker, measured: bool) -> None:
        self.finish = finish
        self.seconds = seconds
        self.worker = worker
        self.measured = measured


class Chooser:
    """Chooses workers.

    Args:
        pool: the workers.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def choose(
        self,
        candidates: Sequence[Worker],
        queue: ModelQueue,
        key: BatchKey,
        first: Request,
        rows: int,
        now: float,
        waiting: int,
    ) -> Choice | Wait:
        """Chooses the worker for the next batch of a key.

        Args:
            candidates: workers that may get a batch and can run this one; at least one.
            queue: the model's queue.
            key: the batch key.
            first: the first request of this key.
            rows: of all waiting requests of this key.
            now: monotonic seconds.
            waiting: number of batches that all waiting requests make, of other models too: busy workers execute these
                as well.
        """
        if len(self._pool.workers) == 1:
            return Choice(candidates[0], 1)
        by_estimate = self._pool.rule is Rule.EARLIEST_FINISH
        short_rows = self._pool.short_batch_rows(key) if by_estimate else 0
        offers = self._offers(candidates, queue, key, rows, now) if by_estimate and not short_rows else None
        if offers is None:
            return self._choose_free(candidates, key, rows, now, short_rows)
        for offer in offers:
            worker = offer.worker
            passed_over = self._pool.batches_given - worker.last_given >= PROBE_AFTER_BATCHES
            if passed_over and now - worker.idle_since >= PROBE_IDLE_S and worker.batch is None:
                worker.probed = True
                return Choice(worker, max(rows, 1))  # a single row is enough
        best = offers[0] if len(offers) == 1 else min(offers, key=_finish)
        batch_rows = queue.limits.padded(max(1, min(rows, key.max_batch_size)))
        margin = SIMILAR_SHARE * best.seconds
        before, offering = 0, {offer.worker for offer in offers}
        for worker in self._pool.workers if best.measured else ():
            # The time between this worker's finish and the best candidate's.
            left = best.finish - margin - expected_finish(worker.finish_at, now)
            unavailable = worker.retiring or worker.paused
            if left > 0 and not unavailable and worker not in offering and worker.can_run(first):
                seconds = self._pool.seconds(worker, key, batch_rows)
                if seconds is not None and left > seconds:
                    before += int(left / max(seconds, _MIN_WAIT_S))
                    if before >= waiting:
                        return Wait(before, now + max(best.seconds * MAX_LEAD_SHARE, _MIN_WAIT_S))
        if len(offers) == 1:
            return Choice(best.worker, 1)
        similar = [offer.worker for offer in offers if offer.finish <= best.finish + margin]
        return Choice(min(similar, key=_idle_since), self._sharing(offers, best, key, batch_rows, waiting))

    def _choose_free(
        self, candidates: Sequence[Worker], key: BatchKey, rows: int, now: float, short_rows: int
    ) -> Choice | Wait:
        """Chooses among the free candidates without estimates; `short_rows` is 0 if the key's batches are not short."""
        free = [worker for worker in candidates if worker.batch is None]
        if not free:
            return Wait(0, inf)
        if not short_rows:
            return Choice(min(free, key=_idle_since), len(free))
        until = self._short_batch_until(key) if rows < short_rows else now
        return Wait(1, until) if until > now else Choice(max(free, key=_idle_since), 1)

    def _short_batch_until(self, key: BatchKey) -> float:
        """Until when to wait for workers that are executing a short batch of this key; 0 if none is."""
        return max(
            (
                worker.batch.started + 2 * worker.overhead_s + SHORT_BATCH_S
                for worker in self._pool.workers
                if worker.batch is not None and worker.batch.key is key and not worker.retiring
            ),
            default=0.0,
        )

    def _offers(
        self, candidates: Sequence[Worker], queue: ModelQueue, key: BatchKey, rows: int, now: float
    ) -> list[_Offer] | None:
        """When each candidate would finish an even share; None if no times are known."""
        share = queue.limits.padded(max(1, min(-(-rows // len(candidates)), key.max_batch_size)))
        times = [
            (worker, estimate.seconds(share) if (estimate := worker.estimates.find(key.id)) is not None else None)
            for worker in candidates
        ]
        # A worker that has not been measured counts as the fastest one; otherwise it might never be measured.
        default = min((seconds for _, seconds in times if seconds is not None), default=None)
        if default is None:
            common = self._pool.common_estimates.find(key.id)
            if common is None:
                return None
            default = common.seconds(share)
        offers = []
        for worker, own in times:
            seconds = default if own is None else own
            start = now if worker.batch is None else expected_finish(worker.finish_at, now)
            offers.append(_Offer(start + seconds, seconds, worker, own is not None))
        return offers

    def _sharing(self, offers: list[_Offer], best: _Offer, key: BatchKey, rows: int, waiting: int) -> int:
        """How many candidates are fast enough to get a share of what waits; the best one does the rest sooner."""
        seconds = self._pool.seconds(best.worker, key, rows) or best.seconds
        start = best.finish - best.seconds
        count = 0
        for offer in sorted(offers, key=_finish):
            left = offer.finish - SIMILAR_SHARE * offer.seconds - start
            if count and count * int(left / max(seconds, _MIN_WAIT_S)) >= waiting:
                break
            count += 1
        return count


def _idle_since(worker: Worker) -> float:
    return worker.idle_since if worker.batch is None else inf


def _finish(offer: _Offer) -> float:
    return offer.finish
