"""Who gets which batch when, and what becomes of a request whatever dies. Pure: no sockets, processes or clock.

The router (`router.py`) tells what happened (a request came, a worker answered, died or became ready, time
passed) and carries out what comes back: batches to send, and answers to give. The rules are these:

- A request waits here, not behind a busy worker (late binding): a worker has one batch at a time, and a batch is
  formed when a worker is free. While all are busy the queue grows, and so do the batches.
- `choose_worker` picks among the free ones.
- Each request gets exactly one answer: `_settle` is the only place that gives one, and it does so once.
- When a worker dies, the requests that it was executing are suspects: each runs again alone and first, on another
  slot where there is one, until as many workers have died with it as `retry` allows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.batching import Batch, ModelQueue, QueueLimits
from multitower.supervisor.deadlines import Deadlines
from multitower.supervisor.request import BatchKey, Frame, Phase, Request

Answer = Sequence[Frame] | MultitowerError
"""What a request gets: the frames of an `MT1:ok` reply from its header on, or an error."""


class Reply(NamedTuple):
    """An answer to give."""

    request: Request
    answer: Answer


class Worker:
    """A worker that serves, as the balancer sees it.

    Attributes:
        slot: its slot's number.
        models: the names of the models it serves.
        batch: what it is executing, or None when it is free.
        idle_since: monotonic seconds since when it has been free.
        completed: rows answered.
    """

    def __init__(self, slot: int, models: frozenset[str], now: float) -> None:
        self.slot = slot
        self.models = models
        self.batch: Batch | None = None
        self.idle_since = now
        self.completed = 0
        self.retiring = False

    @property
    def depth(self) -> int:
        """Rows sent and not yet answered."""
        return self.batch.rows if self.batch is not None else 0


def choose_worker(free: Iterable[Worker]) -> Worker | None:
    """Which of the workers with a free place gets the next batch: the least depth, then the longest idle."""
    return min(free, key=lambda worker: (worker.depth, worker.idle_since), default=None)


class Balancer:
    """The queues of all models, the workers, and every request that has no answer yet.

    Args:
        limits: of each model's queue, by model name.
        choose: picks a worker among the free ones.
    """

    def __init__(
        self,
        limits: dict[str, QueueLimits],
        choose: Callable[[Iterable[Worker]], Worker | None] = choose_worker,
    ) -> None:
        self.queues = {model: ModelQueue(model, limit) for model, limit in limits.items()}
        self.workers: dict[int, Worker] = {}
        self.late = 0  # results that came after their request had been answered
        self._choose = choose
        self._turns: OrderedDict[str, None] = OrderedDict.fromkeys(limits)
        self._hopeless: dict[str, str] = {}
        self._deadlines: Deadlines[Request] = Deadlines()
        self._by_sender: dict[tuple[object, ...], list[Request]] = {}
        self._replies: list[Reply] = []
        self._next_batch = 1

    # What happens, in the order of a request's life.

    def submit(self, request: Request) -> None:
        """Takes a new request; it will get one answer.

        Raises:
            Overloaded: `queue_full`; the request was not taken.
            Unavailable: `no_worker`, when nothing serves or will serve the model.
        """
        queue = self.queues[request.plan.model]
        hopeless = self.hopeless(queue.model)
        if hopeless is not None:
            raise hopeless
        if queue.full(request):
            raise make(
                Reason.QUEUE_FULL,
                f"the queue of {queue.model!r} is full: {queue.size} requests of {queue.bytes} bytes wait",
                queue_depth=queue.size,
                retry_after_ms=_retry_after_ms(queue, request.received),
            )
        queue.push(request)
        self._deadlines.add(request)
        self._by_sender.setdefault((request.sender, request.id), []).append(request)

    def dispatch(self, now: float) -> list[Batch]:
        """Forms a batch for each free worker that can have one. Call it after each burst of events."""
        batches: list[Batch] = []
        free = [worker for worker in self.workers.values() if worker.batch is None and not worker.retiring]
        waiting = [queue for queue in map(self.queues.__getitem__, self._turns) if queue]
        while free and waiting:
            queue = waiting.pop(0)
            batch = self._suspect_batch(queue, free, now) or self._next_of(queue, free, now)
            if batch is None:
                continue
            batches.append(batch)
            free.remove(batch.worker)
            # The models take turns, so that one with a long queue does not keep the others from the workers.
            self._turns.move_to_end(queue.model)
            if queue:
                waiting.append(queue)
        return batches

    def finish(self, worker: Worker, batch_id: int, answers: Sequence[Answer], now: float) -> Batch | None:
        """A worker has answered its batch, with an answer for each entry in order.

        Returns:
            The batch, or None when the worker was not executing it.
        """
        batch = worker.batch
        if batch is None or batch.id != batch_id or len(answers) != len(batch.requests):
            return None
        worker.batch = None
        worker.idle_since = now
        worker.completed += batch.rows
        for request, answer in zip(batch.requests, answers, strict=True):
            if request.over:
                self.late += 1
            elif request.parent is not None:
                self._part_done(request.parent, request, answer)
            else:
                self._settle(request, answer)
        return batch

    def cancel(self, sender: tuple[object, ...], request_id: bytes) -> int:
        """Answers all requests of a sender with this id by `cancelled`; returns how many there were."""
        requests = list(self._by_sender.get((sender, request_id), ()))
        for request in requests:
            self._settle(request, make(Reason.CANCELLED, "the request was cancelled by its sender"))
        return len(requests)

    def expire(self, now: float) -> None:
        """Answers all requests whose time is over."""
        for request in self._deadlines.expire(now):
            where = "while it was executed" if request.phase is Phase.RUNNING else "before a worker was free"
            self._settle(request, make(Reason.DEADLINE, f"the request's time was over {where}"), expired=True)

    # What happens to workers.

    def add_worker(self, slot: int, models: Iterable[str], now: float) -> Worker:
        """A worker has become ready; it gets work from the next `dispatch` on."""
        worker = self.workers[slot] = Worker(slot, frozenset(models), now)
        return worker

    def retire(self, slot: int) -> None:
        """The worker of this slot gets nothing new."""
        self.workers[slot].retiring = True

    def remove_worker(self, slot: int) -> bool:
        """The worker of this slot is gone, and all its answers have been read.

        Returns:
            Whether a single suspect is to blame, which was being executed alone.
        """
        worker = self.workers.pop(slot)
        batch = worker.batch
        if batch is None:
            return False
        lone_suspect = len(batch.requests) == 1 and batch.requests[0].deaths > 0
        # Pushed to the head one by one, so from the last to the first.
        for request in reversed(batch.requests):
            if not request.over:
                self._survive(request, slot)
        return lone_suspect

    def give_up(self, model: str, cause: str) -> None:
        """Nothing serves or will serve this model: what waits is answered, and what comes is refused."""
        self._hopeless[model] = f"no worker serves {model!r}: {cause}"
        for request in list(self.queues[model]):
            self._settle(request.parent or request, make(Reason.NO_WORKER, self._hopeless[model]))

    def abandon(self, message: str) -> None:
        """The daemon ends: all that have no answer yet get this one, also what a worker is executing."""
        error = make(Reason.DRAINING, message)
        for request in [request for twins in self._by_sender.values() for request in twins]:
            self._settle(request, error)

    def hope(self, model: str) -> None:
        """The model may be served again: requests wait from now on."""
        self._hopeless.pop(model, None)

    def hopeless(self, model: str) -> MultitowerError | None:
        """Why the model's requests are refused, or None while there is hope."""
        # Made anew each time: an exception that is raised over and over keeps the traceback of every time.
        message = self._hopeless.get(model)
        return None if message is None else make(Reason.NO_WORKER, message)

    # What is to be done.

    def replies(self) -> list[Reply]:
        """The answers that have come up since the last call; give each of them."""
        replies, self._replies = self._replies, []
        return replies

    @property
    def outstanding(self) -> int:
        """Requests that have no answer yet."""
        return sum(map(len, self._by_sender.values()))

    @property
    def busy(self) -> bool:
        """Some request has no answer yet."""
        return bool(self._by_sender)

    def next_wake(self) -> float | None:
        """When `expire` and `dispatch` must be called at the latest, in monotonic seconds."""
        times = [self._deadlines.next()]
        free = [worker for worker in self.workers.values() if worker.batch is None and not worker.retiring]
        times.extend(
            queue.next_due()
            for queue in self.queues.values()
            if queue.limits.max_delay_s and any(queue.model in worker.models for worker in free)
        )
        return min((time for time in times if time is not None), default=None)

    # How it is done.

    def _suspect_batch(self, queue: ModelQueue, free: list[Worker], now: float) -> Batch | None:
        for request in list(queue.suspects):
            able = [worker for worker in self.workers.values() if queue.model in worker.models]
            elsewhere = any(worker.slot != request.avoid for worker in able)
            worker = self._choose(
                worker
                for worker in free
                if queue.model in worker.models and not (elsewhere and worker.slot == request.avoid)
            )
            if worker is not None:
                queue.remove(request)
                return self._give(worker, request.plan.key, [request], now)
        return None

    def _next_of(self, queue: ModelQueue, free: list[Worker], now: float) -> Batch | None:
        able = [worker for worker in free if queue.model in worker.models]
        worker = self._choose(able)
        if worker is None:
            return None
        while (key := queue.due(now)) is not None:
            requests = queue.take(key, now, self._settle, len(able))
            if requests:
                return self._give(worker, key, requests, now)
        return None

    def _give(self, worker: Worker, key: BatchKey, requests: list[Request], now: float) -> Batch:
        rows = sum(request.rows for request in requests)
        batch = Batch(self._next_batch, key, requests, rows, worker, now)
        self._next_batch += 1
        worker.batch = batch
        for request in requests:
            request.phase = Phase.RUNNING
            request.sent = now
            if request.parent is not None and not request.start:
                request.parent.sent = now
        return batch

    def _survive(self, request: Request, slot: int) -> None:
        """Decides about a request whose worker died with it."""
        queue = self.queues[request.plan.model]
        request.deaths += 1
        request.avoid = slot
        if request.deaths <= queue.limits.retry:
            hopeless = self.hopeless(queue.model)
            if hopeless is not None:
                self._settle(request.parent or request, hopeless)
            else:
                queue.push_suspect(request)
        elif queue.limits.retry == 0:
            self._settle(request.parent or request, make(Reason.WORKER_DIED, "the worker died with this request"))
        else:
            message = f"{request.deaths} workers died while they executed this request; do not send it again"
            self._settle(request.parent or request, make(Reason.POISONED, message))

    def _part_done(self, whole: Request, part: Request, answer: Answer) -> None:
        part.phase = Phase.DONE
        part.frames = ()
        if isinstance(answer, MultitowerError):
            self._settle(whole, answer)
            return
        assert whole.join is not None  # a part is only ever made by its request's join
        if whole.join.add(part, answer):
            try:
                self._settle(whole, whole.join.joined())
            except MultitowerError as error:
                self._settle(whole, error)

    def _settle(self, request: Request, answer: Answer, *, expired: bool = False) -> None:
        """Gives a request its one answer, and forgets it. A request that has one already is let be."""
        if request.phase is Phase.DONE:
            return
        queue = self.queues[request.plan.model]
        if request.phase is Phase.WAITING:
            queue.remove(request)
        request.phase = Phase.DONE
        if request.join is not None:
            request.join = None
            for part in [part for part in queue.suspects if part.parent is request]:
                queue.remove(part)
        request.frames = ()
        if not expired:
            self._deadlines.remove(request)
        key = (request.sender, request.id)
        twins = self._by_sender[key]
        twins.remove(request)
        if not twins:
            del self._by_sender[key]
        self._replies.append(Reply(request, answer))


def _retry_after_ms(queue: ModelQueue, now: float) -> int:
    """A guess at when there is room again: as long as the oldest waiting request has had to wait."""
    oldest = next(iter(queue), None)
    waited = 0.0 if oldest is None else now - oldest.received
    return max(1, min(int(waited * 1000), 60_000))
