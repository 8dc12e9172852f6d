"""Who gets which batch when, and what becomes of a request whatever dies. Pure: no sockets, processes or clock.

The router (`router.py`) tells what happened (a request came, a worker answered, died or became ready, time
passed) and carries out what comes back: batches to send, and answers to give. The rules are these:

- A request waits here, not behind a busy worker (late binding): a batch is formed when a worker is free, or is about to
  be, so that it has the next batch when it ends the one before. While all are busy the queue grows, and so do the
  batches.
- `dispatcher.py` forms the batches; `choice.py` picks the worker, and may leave a slow one idle while the queue is
  short.
- Each request gets exactly one answer: `Ledger.settle` is the only place that gives one, and it does so once.
- When a worker dies, `recovery.py` decides which of its requests run again; `refusals.py` keeps away what has crashed
  a worker.
- While a new version of a model takes over, workers of both serve. A request runs on one of the contract that it was
  checked against, and all parts of a split one on one edition.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from math import inf
from typing import Any, NamedTuple, TypeVar, cast

from multitower.errors import MultitowerError, Reason, make

from .dispatcher import Dispatcher
from .open_requests import Answer, OpenRequests, Reply, let_go
from .pool import Pool, Rule
from .quarantine import QuarantinedRequest
from .queue import Batch, ModelQueue, QueueLimits
from .recovery import Recovery
from .refusals import Refusals
from .request import Request
from .worker import Served, Worker

F = TypeVar("F", bound=Callable[..., Any])


class StateError(BaseException):
    """The scheduler failed in the middle of a change: requests may be lost, and the daemon must end.

    Not an `Exception`, so that what contains errors of single events does not contain it.
    """


def _changes_state(method: F) -> F:
    """Raises a `StateError` for any exception of the method that is no refusal.

    Callers contain the errors of one worker's events, but must not contain these. The methods that each request passes
    do without: their callers contain nothing.
    """

    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except MultitowerError:
            raise
        except Exception as error:
            raise StateError(f"the scheduler failed in {method.__name__}") from error

    return cast(F, guarded)


class Waiting(NamedTuple):
    """What waits in a queue: how many requests, and their bytes."""

    requests: int
    bytes: int


class Scheduler:
    """The queues of all models, the workers, and every request that has no answer yet.

    Args:
        limits: of each model's queue, by model name.
        dispatch: the rule by which a worker gets what waits; see `choice.py`.
    """

    def __init__(self, limits: dict[str, QueueLimits], dispatch: Rule = Rule.EARLIEST_FINISH) -> None:
        self.queues = {model: ModelQueue(model, limit) for model, limit in limits.items()}
        self.pool = Pool(dispatch)
        self._refusals = Refusals()
        self.late_answers = 0  # results that came after their request had been answered
        self._open_requests = OpenRequests(self.queues)
        self._dispatcher = Dispatcher(self.queues, self.pool, self._open_requests)
        self._recovery = Recovery(self.queues, self.pool, self._open_requests, self._refusals)

    # What happens, in the order of a request's life.

    def submit(self, request: Request) -> None:
        """Takes a new request; it will get one answer.

        Raises:
            Overloaded: `queue_full`; the request was not taken.
            Unavailable: `no_worker`, when nothing serves or will serve the model, or it crashes its workers.
            Poisoned: an equal request has crashed a worker, and is in quarantine.
        """
        queue = self.queues[request.plan.model]
        refusal = self._refusals.for_new_request(queue.model)
        if refusal is not None:
            raise refusal
        if queue.full(request):
            raise make(
                Reason.QUEUE_FULL,
                f"the queue of {queue.model!r} is full: {queue.size} requests of {queue.bytes} bytes wait",
                queue_depth=queue.size,
                retry_after_ms=_retry_after_ms(queue, request.received),
            )
        entry = self._refusals.quarantine.find(request, request.received)
        if entry is not None:
            seconds = entry.until - request.received
            raise make(Reason.POISONED, f"an equal request crashed a worker; it is refused for {seconds:.0f} s more")
        queue.push(request)
        self._open_requests.add(request)

    def dispatch(self, now: float) -> list[Batch]:
        """Forms a batch for each worker that can have one. Call it after each burst of events."""
        return self._dispatcher.dispatch(now)

    def finish(
        self, worker: Worker, batch_id: int, answers: Sequence[Answer], now: float, busy_s: float | None = None
    ) -> Batch | None:
        """A worker has answered its batch, with an answer for each entry in order.

        Args:
            worker: which.
            batch_id: the one that it was executing.
            answers: for each entry.
            now: monotonic seconds.
            busy_s: seconds that the worker was at it, as it says; None where only the whole time is known.

        Returns:
            The batch, or None when the worker was not executing it.
        """
        batch = worker.batch
        if batch is None or batch.id != batch_id or len(answers) != len(batch.requests):
            return None
        good = not any(isinstance(answer, MultitowerError) for answer in answers)
        self.pool.finished(batch, now, busy_s, measures=good)
        worker.completed += batch.rows
        worker.requests += len(batch.requests)
        self._refusals.crashing.answered(batch.key.spec.model)
        self._answer_entries(batch, answers)
        return batch

    def fail_batch(self, batch: Batch, error: MultitowerError, now: float) -> None:
        """Answers the requests of a batch that `dispatch` returned and that could not be sent to its worker."""
        self.pool.withdraw(batch, now)
        self._answer_entries(batch, [error] * len(batch.requests))

    def _answer_entries(self, batch: Batch, answers: Sequence[Answer]) -> None:
        for request, answer in zip(batch.requests, answers, strict=True):
            if request.over:
                self.late_answers += 1
            elif request.parent is not None:
                self._open_requests.part_done(request.parent, request, answer)
            else:
                self._open_requests.settle(request, answer)
            let_go(request)

    def cancel(self, sender: tuple[object, ...], request_id: bytes) -> int:
        """Answers all requests of a sender with this id by `cancelled`; returns how many there were."""
        requests = self._open_requests.of(sender, request_id)
        for request in requests:
            self._open_requests.settle(request, make(Reason.CANCELLED, "the request was cancelled by its sender"))
        return len(requests)

    def expire(self, now: float) -> None:
        """Answers all requests whose time is over; models that were kept away for a time are let go."""
        self._refusals.crashing.expire(now)
        self._open_requests.expire(now)

    # What happens to workers.

    @_changes_state
    def add_process(
        self,
        slot: int,
        device: str,
        towers: Sequence[tuple[Mapping[str, Served], Mapping[tuple[str, str], Served]]],
        now: float,
    ) -> tuple[Worker, ...]:
        """Adds a process that is ready; it gets batches from the next `dispatch` on.

        Args:
            slot: number of its slot.
            device: name of its device.
            towers: for each tower `serves` and `versions` of its `Worker`.
            now: monotonic seconds.

        Returns:
            One worker for each tower, in order.
        """
        workers = tuple(Worker(slot, device, serves, versions, now) for serves, versions in towers)
        for worker in workers:
            worker.towers = workers
            self.pool.add(worker)
        self._recovery.refuse_outdated()
        return workers

    @property
    def workers(self) -> Collection[Worker]:
        """All that have come and are not gone, in that order."""
        return self.pool.workers.keys()

    @_changes_state
    def stop_dispatch(self, worker: Worker) -> None:
        """Sends no more batches to a worker's process; those it has may still be answered."""
        for tower in worker.towers:
            self.pool.stop_dispatch(tower)

    @_changes_state
    def retire(self, worker: Worker) -> None:
        """Sends no more batches to a worker's process; split requests that only it could complete start again."""
        self.stop_dispatch(worker)
        self._recovery.begin_again()

    def is_needed(self, worker: Worker, coming: Collection[str] = (), since: float = inf) -> bool:
        """Something waits that no other process can run, nor one that is to come.

        Args:
            worker: any of the process's.
            coming: the models that the one to come will serve.
            since: what came later does not count: else a process that has enough to do would be needed for ever.
        """
        others = [other for other in self.workers if other not in worker.towers and not other.retiring]
        return any(
            request.received <= since
            and worker.can_run(request)
            and not any(other.can_run(request) for other in others)
            and (model not in coming or request.plan.key.version)
            for model in worker.serves
            if model in self.queues
            for request in self.queues[model]
        )

    @_changes_state
    def remove_process(self, worker: Worker, now: float, *, crashed: bool = False, begun: Sequence[int] = ()) -> bool:
        """Removes a worker's process that has exited and whose answers have all been read; see `Recovery.lost`."""
        return self._recovery.lost(worker, now, crashed=crashed, begun=begun)

    # Models.

    @property
    def models(self) -> Collection[str]:
        """The names of all models, loaded or not."""
        return self.queues.keys()

    def waiting(self, model: str) -> Waiting:
        """What waits in a model's queue."""
        queue = self.queues[model]
        return Waiting(queue.size, queue.bytes)

    def refusal_for_new_request(self, model: str) -> MultitowerError | None:
        """Why new requests to the model are refused; None when they are accepted."""
        return self._refusals.for_new_request(model)

    def refusal_for_accepted_request(self, model: str) -> MultitowerError | None:
        """Why requests that wait for the model cannot run; None when they can, or may be able to later."""
        return self._refusals.for_accepted_request(model)

    def quarantined_requests(self, now: float) -> list[QuarantinedRequest]:
        """The requests in quarantine, oldest first."""
        return self._refusals.quarantine.entries(now)

    @property
    def quarantined_models(self) -> dict[str, str]:
        """The models in quarantine because their requests crash workers, with the cause of each."""
        return self._refusals.crashing.quarantined()

    def reset_crash_count(self, models: Collection[str] | None = None) -> None:
        """Ends the quarantine of these models, or of all, and counts their crashes from 0 again."""
        self._refusals.reset_crash_count(models)

    @property
    def unloaded_models(self) -> Set[str]:
        """The models that an operator has unloaded."""
        return self._refusals.unloaded

    def close_model(self, model: str) -> None:
        """Refuses new requests to a model that is being unloaded; requests already accepted are answered."""
        self._refusals.unloaded.add(model)

    def open_model(self, model: str) -> None:
        """Accepts requests to a model that is loaded, or will be."""
        self._refusals.unloaded.discard(model)
        self._refusals.mark_available(model)

    def mark_available(self, model: str) -> None:
        """Ends `mark_unavailable`: a worker serves this model again."""
        self._refusals.mark_available(model)

    @_changes_state
    def mark_unavailable(self, model: str, cause: str) -> None:
        """Nothing serves or will serve this model: what waits is answered, and what comes is refused."""
        self._refusals.mark_unavailable(model, cause)
        for request in list(self.queues[model]):
            refusal = self._refusals.for_accepted_request(model)
            assert refusal is not None  # it was just given up
            self._open_requests.settle(request.parent or request, refusal)

    @_changes_state
    def refuse_versions(self, model: str, served: Collection[str]) -> None:
        """Only these versions of a model are served, or will be: what waits for another one is answered."""
        for request in list(self.queues[model]):
            version = request.plan.key.version
            if version and version not in served:
                error = make(Reason.VERSION_UNKNOWN, f"version {version} of {model!r} is not served any more")
                self._open_requests.settle(request.parent or request, error)

    def abandon(self, message: str) -> None:
        """The daemon ends: all that have no answer yet get this one, also what a worker is executing."""
        error = make(Reason.DRAINING, message)
        for request in self._open_requests.all():
            self._open_requests.settle(request, error)

    def set_dispatch(self, rule: Rule) -> None:
        """Workers get batches by this rule from now on; what has been measured of them is kept."""
        self.pool.set_rule(rule)

    def set_limits(self, model: str, limits: QueueLimits) -> None:
        """A model is new, or its queue's settings are."""
        queue = self.queues.get(model)
        if queue is None:
            self.queues[model] = ModelQueue(model, limits)
        else:
            queue.limits = limits
        self._dispatcher.models_changed()

    def remove_model(self, model: str) -> None:
        """The model is no more, and no worker runs anything of it; what waits is answered."""
        for request in list(self.queues[model]):
            error = make(Reason.MODEL_UNKNOWN, f"there is no model {model!r} any more")
            self._open_requests.settle(request.parent or request, error)
        del self.queues[model]
        self._dispatcher.models_changed()
        self._refusals.remove(model)

    # What is to be done.

    def replies(self) -> list[Reply]:
        """The answers that have come up since the last call; give each of them."""
        return self._open_requests.replies()

    @property
    def outstanding(self) -> int:
        """Requests that have no answer yet."""
        return self._open_requests.outstanding

    @property
    def busy(self) -> bool:
        """Some request has no answer yet."""
        return self._open_requests.busy

    def next_wake(self) -> float | None:
        """When to call `expire` and `dispatch` at the latest, in monotonic seconds, as of the last `dispatch`."""
        time = self._dispatcher.look_again
        deadline = self._open_requests.next_deadline()
        if deadline is not None and deadline < time:
            time = deadline
        return time if time < inf else None


def _retry_after_ms(queue: ModelQueue, now: float) -> int:
    """A guess at when there is room again: as long as the oldest waiting request has had to wait."""
    oldest = next(iter(queue), None)
    waited = 0.0 if oldest is None else now - oldest.received
    return max(1, min(int(waited * 1000), 60_000))
