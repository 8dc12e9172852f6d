"""Which worker gets which batch when, and what becomes of each request whatever dies: the scheduling in one object.

The router reports what happens: a request arrived, a worker answered, a process became ready or exited, time passed.
It carries out what comes back: batches to send and answers to send. Nothing here uses sockets, processes or a clock.
The rules:

- Requests wait here rather than behind a busy worker (late binding). A batch is formed when a worker is free, or is
  about to be, so that it has the next batch when it finishes. While all are busy, the queues grow, and so do batches.
- `batch_dispatcher` forms the batches. `worker_choice` picks the worker, and may leave a slow one idle while the queue
  is short.
- Each request gets exactly one answer: only `OpenRequests.settle` answers, and only once.
- When a process exits, `recovery` decides which of its requests run again. `refusals` refuses what crashes workers.
- While a new version of a model takes over, workers of both versions serve. A request runs on a worker with the
  interface that it was checked against, and all parts of a split request run on one generation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from math import inf
from typing import Any, NamedTuple, TypeVar, cast

from multitower.errors import MultitowerError, Reason, make

from .batch_dispatcher import Dispatcher
from .deaths import Death
from .open_requests import Answer, ErrorLogger, OpenRequests, Reply, log_each_error
from .pool import Pool, Rule
from .pool_worker import Batch, Served, Worker
from .quarantine import QuarantinedRequest
from .queue import ModelQueue, QueueLimits
from .recovery import Recovery
from .refusals import Refusals
from .replanning import replan_requests
from .request import Plan, Request, Sender
from .split_requests import late_error

MAX_RETRY_AFTER_MS = 60_000

F = TypeVar("F", bound=Callable[..., Any])


class StateError(BaseException):
    """The scheduler failed in the middle of a change. Requests may be lost, so the daemon must end.

    Not an `Exception`, so that what contains errors of single events does not contain it.
    """


def _changes_state(method: F) -> F:
    """Turns any exception of a method, other than a refusal, into a `StateError`.

    Callers contain the errors of one worker's events, but not this one. The methods that each request passes are not
    decorated: nobody contains their errors.
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
    """The content of a queue.

    Attributes:
        requests: how many.
        bytes: of these.
        oldest: when the oldest of them was received, in monotonic seconds; None if there are none.
    """

    requests: int
    bytes: int
    oldest: float | None


class Scheduler:
    """The queues of all models, the workers, and every request that has no answer yet.

    Args:
        limits: of each model's queue, by model.
        dispatch: the rule by which a batch gets its worker; see `worker_choice`.
        log_error: logs an error that costs one request; see `OpenRequests`.

    Attributes:
        queues: the queues, by model.
        pool: the workers.
        late_answers: how many answers came after their request had been answered otherwise.
    """

    def __init__(
        self,
        limits: Mapping[str, QueueLimits],
        dispatch: Rule = Rule.EARLIEST_FINISH,
        log_error: ErrorLogger = log_each_error,
    ) -> None:
        self.queues = {model: ModelQueue(model, limit) for model, limit in limits.items()}
        self.pool = Pool(dispatch)
        self.late_answers = 0
        self._refusals = Refusals()
        self._open_requests = OpenRequests(self.queues, log_error)
        self._dispatcher = Dispatcher(self.queues, self.pool, self._open_requests)
        self._recovery = Recovery(self.queues, self.pool, self._open_requests, self._refusals)

    # Requests.

    def submit(self, request: Request) -> None:
        """Accepts a new request, which will get one answer.

        Raises:
            Overloaded: `queue_full`.
            Unavailable: `no_worker`: nothing serves the model or will serve it, or it is unloaded or in quarantine.
            Poisoned: an equal request has crashed a worker and is in quarantine.
            DeadlineExceeded: it has more rows than can run in its time.
        """
        queue = self.queues[request.plan.model]
        refusal = self._refusals.for_new_request(queue.model)
        if refusal is not None:
            raise refusal
        if not queue.has_room_for(request):
            limit, value = queue.limit_reached()
            raise make(
                Reason.QUEUE_FULL,
                f"the queue of {queue.model!r} is full: {queue.size} requests of {queue.bytes} bytes wait, and {limit} "
                f"is {value}",
                queue_depth=queue.size,
                retry_after_ms=_retry_after_ms(queue, request.received),
                limit=limit,
                limit_value=value,
            )
        entry = self._refusals.requests.find(request, request.received)
        if entry is not None:
            raise entry.refusal(request.received)
        if request.rows > request.plan.key.max_batch_size > 0:
            self._check_time(request)
        queue.push(request)
        self._open_requests.add(request)

    def _check_time(self, request: Request) -> None:
        """Refuses a request larger than a batch if it cannot run in its time."""
        least_s = self.pool.least_seconds(request.plan.key, request.rows)
        error = late_error(request.plan, request.rows, least_s, request.deadline - request.received)
        if error is not None:
            raise error

    def dispatch(self, now: float) -> list[Batch]:
        """Forms a batch for each worker that may get one; send them. Call it after each burst of events."""
        return self._dispatcher.dispatch(now)

    def finish(
        self, worker: Worker, batch_id: int, answers: Sequence[Answer], now: float, busy_s: float | None = None
    ) -> Batch | None:
        """Handles the answers of a worker to the batch that it was executing.

        Args:
            worker: the worker.
            batch_id: of the batch.
            answers: one for each entry, in order.
            now: monotonic seconds.
            busy_s: how long the worker executed it, in seconds; None if only the time until the answer is known.

        Returns:
            The batch; None if the worker was not executing it, or answered another number of entries.
        """
        batch = worker.batch
        if batch is None or batch.id != batch_id or len(answers) != len(batch.requests):
            return None
        succeeded = not any(isinstance(answer, MultitowerError) for answer in answers)
        self.pool.finish_batch(batch, now, busy_s, measure=succeeded)
        worker.completed += batch.rows
        worker.requests += len(batch.requests)
        self._refusals.models.add_answer(batch.key.spec.model)
        self._answer_entries(batch, answers)
        return batch

    def fail_batch(self, batch: Batch, error: MultitowerError, now: float) -> None:
        """Answers the requests of a batch that `dispatch` returned and that could not be sent to its worker."""
        self.pool.withdraw_batch(batch, now)
        self._answer_entries(batch, [error] * len(batch.requests))

    def _answer_entries(self, batch: Batch, answers: Sequence[Answer]) -> None:
        for request, answer in zip(batch.requests, answers, strict=True):
            if request.answered:
                self.late_answers += 1
            elif request.parent is not None:
                self._open_requests.settle_part(request.parent, request, answer)
            else:
                self._open_requests.settle(request, answer)
            request.release_frames()

    def cancel(self, sender: Sender, request_id: bytes) -> int:
        """Answers all requests of a sender with this id by `cancelled`; returns how many there were."""
        requests = self._open_requests.find(sender, request_id)
        for request in requests:
            self._open_requests.settle(request, make(Reason.CANCELLED, "the request was cancelled by its sender"))
        return len(requests)

    def refuse_waiting(self, refusal: Callable[[Request], MultitowerError | None]) -> int:
        """Answers each request that waits and has never run with the error that `refusal` returns for it, if any.

        Returns:
            How many were answered.
        """
        refused = 0
        for queue in self.queues.values():
            for request in list(queue):
                if request.parent is None and request.split is None and not request.deaths:
                    error = refusal(request)
                    if error is not None:
                        self._open_requests.settle(request, error)
                        refused += 1
        return refused

    def expire(self, now: float) -> None:
        """Answers all requests whose deadline has passed, and ends each quarantine of a model whose time is over."""
        self._refusals.models.remove_expired(now)
        self._open_requests.expire(now)

    @_changes_state
    def abandon(self, message: str) -> None:
        """Answers all open requests, those that workers are executing too, by `draining` with this message."""
        error = make(Reason.DRAINING, message)
        for request in self._open_requests.all():
            self._open_requests.settle(request, error)

    def pop_replies(self) -> list[Reply]:
        """Removes and returns the answers that are to be sent. Call it after each burst of events."""
        return self._open_requests.pop_replies()

    @property
    def outstanding(self) -> int:
        """The number of requests that have no answer yet."""
        return self._open_requests.outstanding

    @property
    def busy(self) -> bool:
        """Whether some request has no answer yet."""
        return self._open_requests.busy

    def next_wake(self) -> float | None:
        """When to call `expire` and `dispatch` at the latest, in monotonic seconds, as of the last `dispatch`."""
        time = self._dispatcher.next_dispatch
        deadline = self._open_requests.next_deadline()
        if deadline is not None and deadline < time:
            time = deadline
        return time if time < inf else None

    # Workers.

    @property
    def workers(self) -> Collection[Worker]:
        """All workers, in the order in which they were added."""
        return self.pool.workers.keys()

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

    @_changes_state
    def remove_process(
        self,
        worker: Worker,
        now: float,
        *,
        crashed: bool = False,
        begun: Sequence[int] = (),
        death: Death | None = None,
    ) -> bool:
        """Removes a process that has exited, and decides about its requests; see `Recovery.remove_process`."""
        return self._recovery.remove_process(worker, now, crashed=crashed, begun=begun, death=death)

    @_changes_state
    def stop_dispatch(self, worker: Worker) -> None:
        """Sends no more batches to a worker's process; those that it has may still be answered."""
        for tower in worker.towers:
            self.pool.stop_dispatch(tower)

    @_changes_state
    def retire(self, worker: Worker) -> None:
        """Sends no more batches to a worker's process; split requests that only it could complete start again."""
        self.stop_dispatch(worker)
        self._recovery.restart_split_requests()

    def is_needed(self, worker: Worker, coming: Collection[str] = (), since: float = inf) -> bool:
        """Whether a request waits that only this worker's process can run.

        Args:
            worker: any of the process's.
            coming: models that a process which is being started will serve; requests for these can wait for it.
            since: requests that arrived after this time do not count, in monotonic seconds. With enough requests a
                process would be needed for ever.
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

    def set_dispatch(self, rule: Rule) -> None:
        """Chooses workers by this rule from now on; measured times are kept."""
        self.pool.set_rule(rule)

    # Models.

    @property
    def models(self) -> Collection[str]:
        """The names of all models, unloaded ones too."""
        return self.queues.keys()

    def waiting(self, model: str) -> Waiting:
        """What waits in a model's queue."""
        queue = self.queues[model]
        return Waiting(queue.size, queue.bytes, queue.oldest())

    def retried(self, model: str) -> int:
        """How many requests to a model were put back into its queue because the worker that executed them died."""
        return self.queues[model].retried

    def set_limits(self, model: str, limits: QueueLimits) -> None:
        """Adds a model, or changes the limits of its queue."""
        queue = self.queues.get(model)
        if queue is None:
            self.queues[model] = ModelQueue(model, limits)
        else:
            queue.limits = limits
        self._dispatcher.update_models()

    @_changes_state
    def remove_model(self, model: str) -> None:
        """Removes a model that no worker serves; its waiting requests are answered."""
        for request in list(self.queues[model]):
            error = make(Reason.MODEL_UNKNOWN, f"there is no model {model!r} any more")
            self._open_requests.settle(request.whole, error)
        del self.queues[model]
        self._dispatcher.update_models()
        self._refusals.remove_model(model)

    @_changes_state
    def refuse_versions(self, model: str, served: Collection[str]) -> None:
        """Answers waiting requests for versions of a model that are not among those served now or soon."""
        for request in list(self.queues[model]):
            version = request.plan.key.version
            if version and version not in served:
                error = make(Reason.VERSION_UNKNOWN, f"version {version} of {model!r} is not served any more")
                self._open_requests.settle(request.whole, error)

    @_changes_state
    def change_interface(self, model: str, version: str, generation: int, interface: int) -> None:
        """Sets the interface of a version on all workers that serve this generation of it; see `Served`."""
        for worker in self.pool.workers:
            served = worker.versions.get((model, version))
            if served is not None and served.generation == generation:
                self.pool.change_interface(worker, model, version, interface)

    @_changes_state
    def replan(
        self, model: str, interface: int, versions: Collection[str], change_plan: Callable[[Plan], Plan]
    ) -> None:
        """Changes the plans of a model's open requests; see `replan_requests`."""
        replan_requests(self.queues[model], self._open_requests, interface, versions, change_plan)

    def close_model(self, model: str) -> None:
        """Refuses new requests to a model that is being unloaded; requests already accepted are answered."""
        self._refusals.unloaded.add(model)

    def open_model(self, model: str) -> None:
        """Accepts requests to a model that is loaded, or will be."""
        self._refusals.unloaded.discard(model)
        self._refusals.mark_available(model)

    @property
    def unloaded_models(self) -> Set[str]:
        """The models that an operator has unloaded."""
        return self._refusals.unloaded

    @_changes_state
    def mark_unavailable(self, model: str, cause: str) -> None:
        """Refuses new requests to a model that nothing serves or will serve, and answers the waiting ones."""
        self._refusals.mark_unavailable(model, cause)
        for request in list(self.queues[model]):
            refusal = self._refusals.for_accepted_request(model)
            assert refusal is not None  # it has just been marked
            self._open_requests.settle(request.whole, refusal)

    def mark_available(self, model: str) -> None:
        """Ends `mark_unavailable`: a worker serves the model again."""
        self._refusals.mark_available(model)

    def refusal_for_new_request(self, model: str) -> MultitowerError | None:
        """Why new requests to the model are refused; None if they are accepted."""
        return self._refusals.for_new_request(model)

    def refusal_for_accepted_request(self, model: str) -> MultitowerError | None:
        """Why accepted requests to the model are not run; None if a worker serves it, or may serve it later."""
        return self._refusals.for_accepted_request(model)

    # Quarantine.

    def quarantined_requests(self, now: float) -> list[QuarantinedRequest]:
        """The requests in quarantine, oldest first."""
        return self._refusals.requests.entries(now)

    @property
    def quarantined_models(self) -> dict[str, str]:
        """The models in quarantine because their requests crash workers, with the cause of each."""
        models = self._refusals.models
        return {model: models.cause(model) for model in models.models}

    def reset_crash_count(self, models: Collection[str] | None = None) -> None:
        """Ends the quarantine of models and of their requests; see `Refusals.reset_crash_count`."""
        self._refusals.reset_crash_count(models)


def _retry_after_ms(queue: ModelQueue, now: float) -> int:
    """A guess at when the queue has room again: in as long as its oldest request has waited."""
    oldest = next(iter(queue), None)
    waited = 0.0 if oldest is None else now - oldest.received
    return max(1, min(int(waited * 1000), MAX_RETRY_AFTER_MS))
