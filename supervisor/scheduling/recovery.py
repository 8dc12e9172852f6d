"""What happens to the requests of a process that has exited: which run again, where, and which have run too often.

Requests that a worker was executing when it died are suspects. Each runs again alone and before all others, on another
device if there is one, until more workers have died with it than `retry` allows. In a process of several towers
nothing else is executed meanwhile. A request that crashed a worker alone is put into quarantine, and so is a model
whose requests do so one after another. A batch that the worker had not started returns to the queue unchanged. If no
worker is left that could complete a split request, the request starts again as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multitower.errors import Reason, make

from .deaths import Death, death_details, describe_deaths
from .open_requests import OpenRequests
from .pool import Pool
from .pool_worker import Batch, Worker
from .queue import ModelQueue
from .refusals import Refusals
from .request import Phase, Request


class Recovery:
    """Decides about the requests of processes that exit.

    Args:
        queues: the queues, by model.
        pool: the workers.
        open_requests: answers requests.
        refusals: counts crashes, and knows which requests are not to run again.
    """

    def __init__(
        self, queues: Mapping[str, ModelQueue], pool: Pool, open_requests: OpenRequests, refusals: Refusals
    ) -> None:
        self._queues = queues
        self._pool = pool
        self._open_requests = open_requests
        self._refusals = refusals
        self._deaths: dict[Request, list[Death]] = {}  # by whole request: of the workers that executed it

    def remove_process(
        self, worker: Worker, now: float, *, crashed: bool, begun: Sequence[int], death: Death | None = None
    ) -> bool:
        """Removes the workers of a process that has exited; all its answers must have been handled before.

        Args:
            worker: any of the process's.
            now: monotonic seconds.
            crashed: whether what it executed made it exit, rather than a signal that anyone may have sent.
            begun: for each tower the id of the batch that it started last; empty if unknown.
            death: how the process ended; None if unknown.

        Returns:
            Whether a single suspect that ran alone is to blame.
        """
        self._deaths = {whole: deaths for whole, deaths in self._deaths.items() if whole.phase is not Phase.DONE}
        requests: list[Request] = []  # executed when it exited
        others: list[Batch] = []
        for number, tower in enumerate(worker.towers):
            self._pool.remove(tower)
            executed, rest = _executed(tower, begun[number] if number < len(begun) else None)
            tower.batch = tower.next_batch = None
            requests += executed.requests if executed is not None else []
            others += rest
        # Each is pushed to the head of its queue, so the last one goes first.
        for request in reversed([request for other in others for request in other.requests]):
            self._requeue(request)
        alone = len(requests) == 1
        lone_suspect = alone and requests[0].deaths > 0
        for request in reversed(requests):
            if death is not None:
                self._deaths.setdefault(request.whole, []).append(death)
            self._count_death(request, worker, now, death, to_blame=alone and crashed)
        self.restart_split_requests()
        self.refuse_outdated()
        return lone_suspect

    def restart_split_requests(self) -> None:
        """Starts split requests again as a whole if no worker is left that can run their remaining rows."""
        if not self._open_requests.split:
            return
        remaining = [worker for worker in self._pool.workers if not worker.retiring]
        for whole in list(self._open_requests.split):
            split = whole.split
            assert split is not None  # a request that is answered has been removed
            unfinished = split.rows_left or any(part.phase is Phase.WAITING for part in split.parts)
            if not unfinished or any(worker.can_run(whole) for worker in remaining):
                continue
            self._open_requests.join_again(whole)
            whole.phase = Phase.WAITING
            self._queues[whole.plan.model].push(whole, first=True)

    def refuse_outdated(self) -> None:
        """Answers requests that no worker can run, although some serve their model: it has changed meanwhile."""
        for queue in self._queues.values():
            serving = [worker for worker in self._pool.workers if queue.model in worker.serves]
            for request in list(queue) if serving else ():
                if not any(worker.can_run(request) for worker in serving):
                    # Only a request that has not run at all may be sent again safely.
                    untouched = request.parent is None and request.split is None and not request.deaths
                    error = make(
                        Reason.NO_WORKER,
                        f"{queue.model!r} was changed while the request waited",
                        retry_after_ms=100 if untouched else None,
                    )
                    self._open_requests.settle(request.whole, error)

    def _requeue(self, request: Request) -> None:
        """Returns a request to its queue that was not being executed: not started yet, or its answer is lost."""
        whole = request.whole
        if Phase.DONE in (whole.phase, request.phase):
            request.release_frames()  # it was answered otherwise, or its request started again
            return
        queue = self._queues[request.plan.model]
        refusal = self._refusals.for_accepted_request(queue.model)
        if refusal is not None:
            self._open_requests.settle(whole, refusal)
            request.release_frames()
        elif request.deaths:
            queue.push_suspect(request)
        else:
            request.phase = Phase.WAITING
            queue.push(request, first=True)

    def _count_death(
        self, request: Request, worker: Worker, now: float, death: Death | None, *, to_blame: bool
    ) -> None:
        """Decides about a request that its worker died with.

        Args:
            request: the request, or a part; it may have been answered meanwhile.
            worker: that died.
            now: monotonic seconds.
            death: how it died; None if unknown.
            to_blame: it made the worker exit, and ran alone.
        """
        queue = self._queues[request.plan.model]
        whole = request.whole
        answered = whole.phase is Phase.DONE
        outdated = request.phase is Phase.DONE and not answered  # a part whose request has started again
        request.deaths = max(request.deaths, whole.deaths) + 1
        request.avoid = worker.device
        if outdated:
            whole.deaths, whole.avoid = request.deaths, request.avoid
        exhausted = request.deaths > queue.limits.retry
        # A client that has its answer may have written something else to its shared memory.
        blamed = to_blame and (answered or exhausted) and bool(whole.frames) and not (answered and whole.shared)
        if blamed:
            self._refusals.requests.add(whole, now, queue.limits.quarantine_s, death)
        if not answered and exhausted:
            self._settle_exhausted(whole, request.deaths, queue.limits.retry)
        elif not answered and not outdated:
            refusal = self._refusals.for_suspect(queue.model)
            if refusal is not None:
                self._open_requests.settle(whole, refusal)
            else:
                queue.retried += 1
                queue.push_suspect(request)
        if blamed and self._refusals.models.add_crash(queue.model, now, queue.limits.quarantine_s, death):
            self._refuse_waiting(queue)
        request.release_frames()

    def _settle_exhausted(self, whole: Request, deaths: int, retry: int) -> None:
        """Answers a request with which more workers have died than `retry` allows."""
        known = self._deaths.pop(whole, [])
        cause = f" ({describe_deaths(known)})" if known else ""
        limit = f"retry of {whole.plan.model!r} is {retry}"
        details = death_details(known, "retry", retry)
        if retry == 0:
            error = make(Reason.WORKER_DIED, f"the worker died with this request{cause}, and {limit}", **details)
        else:
            message = (
                f"{deaths} workers died while they executed this request{cause}, and {limit}: do not send it again"
            )
            error = make(Reason.POISONED, message, **details)
        self._open_requests.settle(whole, error)

    def _refuse_waiting(self, queue: ModelQueue) -> None:
        """Answers the waiting requests of a model in quarantine. Suspects may still run: one may succeed."""
        spared = queue.suspects if not self._refusals.models.refuses_suspects(queue.model) else {}
        for request in [request for request in queue if request not in spared]:
            refusal = self._refusals.for_accepted_request(queue.model)
            assert refusal is not None  # the model is in quarantine
            self._open_requests.settle(request.whole, refusal)


def _executed(worker: Worker, begun: int | None) -> tuple[Batch | None, list[Batch]]:
    """The batch that a dead worker was executing, if any, and its other batches.

    Args:
        worker: the worker.
        begun: id of the batch that it started last; None if unknown.
    """
    batches = worker.batches
    if not batches:
        return None, []
    first, *rest = batches
    if rest and rest[0].id == begun:
        return rest[0], [first]  # the answer to the first is lost
    if first.queued and begun not in (None, first.id):
        return None, batches  # it answered the batch before, and died between the two
    return first, rest
