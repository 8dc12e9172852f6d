"""What becomes of requests when workers go: which run again, where, and which have run too often. Pure.

The requests that a dead worker was executing are suspects: each runs again alone and first, on another device where
there is one, until as many workers have died with it as `retry` allows; in a process of several towers nothing else is
executed beside it. One that crashed a worker alone is kept in
quarantine, and so is a model whose requests do so one after the other. A batch that the worker had not begun goes back
as if it had never left. Where the last worker goes that could end a request's other parts, it begins again as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multitower.errors import Reason, make

from .open_requests import OpenRequests, let_go
from .pool import Pool
from .queue import Batch, ModelQueue
from .refusals import Refusals
from .request import Phase, Request
from .worker import Worker


class Recovery:
    """Decides about the requests of workers that go.

    Args:
        queues: of the models, by name.
        pool: the workers.
        open_requests: gives the answers.
        refusals: is told of crashes, and tells which requests need not run again.
    """

    def __init__(
        self, queues: Mapping[str, ModelQueue], pool: Pool, open_requests: OpenRequests, refusals: Refusals
    ) -> None:
        self._queues = queues
        self._pool = pool
        self._open_requests = open_requests
        self._refusals = refusals

    def lost(self, worker: Worker, now: float, *, crashed: bool, begun: Sequence[int]) -> bool:
        """The worker's process is gone, with all its towers, and all its answers have been read.

        Args:
            worker: any of the process's.
            now: monotonic seconds.
            crashed: by what it executed, as far as can be told: not by a signal that anybody may have sent.
            begun: the id of the batch that each tower began last, as it has left it; none where that is not known.

        Returns:
            Whether a single suspect is to blame, which was being executed alone.
        """
        requests: list[Request] = []
        others: list[Batch] = []
        for number, tower in enumerate(worker.towers):
            self._pool.remove(tower)
            executed, rest = _executed(tower, begun[number] if number < len(begun) else None)
            tower.batch = tower.next = None
            requests += executed.requests if executed is not None else []
            others += rest
        for request in reversed([request for other in others for request in other.requests]):
            self._return(request)
        alone = len(requests) == 1
        lone_suspect = alone and requests[0].deaths > 0
        # Pushed to the head one by one, so from the last to the first.
        for request in reversed(requests):
            self._survive(request, worker, now, to_blame=alone and crashed)
        self.begin_again()
        self.refuse_outdated()
        return lone_suspect

    def begin_again(self) -> None:
        """Requests of which parts are to come, while no worker of their edition is left, begin again as a whole."""
        if not self._open_requests.split:
            return
        left = [worker for worker in self._pool.workers if not worker.retiring]
        for whole in list(self._open_requests.split):
            join = whole.join
            assert join is not None  # those that are done have left
            unfinished = join.rows_left or any(part.phase is Phase.WAITING for part in join.parts)
            if not unfinished or any(worker.can_run(whole) for worker in left):
                continue
            queue = self._queues[whole.plan.model]
            self._open_requests.drop_parts(whole)
            if whole.phase is Phase.WAITING:
                queue.remove(whole)
            # What its parts have survived counts: else it would kill one worker after another.
            for part in join.parts:
                if part.deaths > whole.deaths:
                    whole.deaths, whole.avoid = part.deaths, part.avoid
            whole.join = None
            whole.phase = Phase.WAITING
            queue.push(whole, first=True)

    def refuse_outdated(self) -> None:
        """Answers what was checked against a model that no worker serves any more, though some serve its successor."""
        for queue in self._queues.values():
            serving = [worker for worker in self._pool.workers if queue.model in worker.serves]
            for request in list(queue) if serving else ():
                if not any(worker.can_run(request) for worker in serving):
                    message = f"{queue.model!r} was changed while the request waited"
                    # Only what has not run at all may be sent again without a thought.
                    untouched = request.parent is None and request.join is None and not request.deaths
                    error = make(Reason.NO_WORKER, message, retry_after_ms=100 if untouched else None)
                    self._open_requests.settle(request.parent or request, error)

    # How it is done.

    def _return(self, request: Request) -> None:
        """Puts back a request that its worker has not begun, or has answered though the answer is lost with it."""
        whole = request.parent or request
        if Phase.DONE in (whole.phase, request.phase):
            let_go(request)  # nobody waits for it, or its request began again
            return
        queue = self._queues[request.plan.model]
        unavailable = self._refusals.for_accepted_request(queue.model)
        if unavailable is not None:
            self._open_requests.settle(whole, unavailable)
            let_go(request)
        elif request.deaths:
            queue.push_suspect(request)
        else:
            request.phase = Phase.WAITING
            queue.push(request, first=True)

    def _survive(self, request: Request, worker: Worker, now: float, *, to_blame: bool) -> None:
        """Decides about a request whose worker died with it; nobody may wait for it any more."""
        queue = self._queues[request.plan.model]
        whole = request.parent or request
        gone = whole.phase is Phase.DONE
        outdated = request.phase is Phase.DONE and not gone  # a part: its request began again when the worker retired
        request.deaths = max(request.deaths, whole.deaths) + 1
        request.avoid = worker.device
        if outdated:
            whole.deaths, whole.avoid = request.deaths, request.avoid
        spent = request.deaths > queue.limits.retry
        # Who waits no longer may have written something else to its shared memory.
        blamed = to_blame and (gone or spent) and bool(whole.frames) and not (gone and whole.shared)
        if blamed:
            self._refusals.quarantine.add(whole, now, queue.limits.quarantine_s)
        if gone or (outdated and not spent):
            pass  # nobody waits for it
        elif not spent:
            refusal = self._refusals.for_suspect(queue.model)
            if refusal is not None:
                self._open_requests.settle(whole, refusal)
            else:
                queue.push_suspect(request)
        elif queue.limits.retry == 0:
            self._open_requests.settle(whole, make(Reason.WORKER_DIED, "the worker died with this request"))
        else:
            message = f"{request.deaths} workers died while they executed this request; do not send it again"
            self._open_requests.settle(whole, make(Reason.POISONED, message))
        if blamed and self._refusals.crashing.crashed(queue.model, now, queue.limits.quarantine_s):
            self._keep_away(queue)
        let_go(request)

    def _keep_away(self, queue: ModelQueue) -> None:
        """Answers what waits for a model that crashes its workers. Some suspects still run: one may be good."""
        spared = queue.suspects if not self._refusals.crashing.certain(queue.model) else {}
        for request in [request for request in queue if request not in spared]:
            refusal = self._refusals.for_accepted_request(queue.model)
            assert refusal is not None  # it is kept away
            self._open_requests.settle(request.parent or request, refusal)


def _executed(worker: Worker, begun: int | None) -> tuple[Batch | None, list[Batch]]:
    """Of the batches of a dead worker: the one that it was executing, and the others."""
    batches = [batch for batch in (worker.batch, worker.next) if batch is not None]
    if not batches:
        return None, []
    first, *rest = batches
    if rest and rest[0].id == begun:
        return rest[0], [first]  # the answer to the first is lost
    if first.behind and begun not in (None, first.id):
        return None, batches  # the one before it was answered, and there the worker ended
    return first, rest
