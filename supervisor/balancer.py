"""Who gets which batch when, and what becomes of a request whatever dies. Pure: no sockets, processes or clock.

The router (`router.py`) tells what happened (a request came, a worker answered, died or became ready, time
passed) and carries out what comes back: batches to send, and answers to give. The rules are these:

- A request waits here, not behind a busy worker (late binding): a batch is formed when a worker is free, or is about to
  be, so that it has the next batch when it ends the one before. While all are busy the queue grows, and so do the
  batches.
- `pool.py` picks the worker, and may leave a slow one idle while the queue is short.
- Each request gets exactly one answer: `_settle` is the only place that gives one, and it does so once.
- When a worker dies, the requests that it was executing are suspects: each runs again alone and first, on another
  device where there is one, until as many workers have died with it as `retry` allows. In a process of several towers
  nothing else is executed meanwhile. One that crashed a worker
  alone is kept in quarantine; a model whose requests do so one after the other is kept away as a whole. A batch that
  the worker had not begun goes back as if it had never left.
- While a new version of a model takes over, workers of both serve. A request runs on one of the contract that it was
  checked against, and all parts of a split one on one edition.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence, Set
from math import inf
from typing import NamedTuple

from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.batching import Batch, ModelQueue, QueueLimits
from multitower.supervisor.crashing import CrashingModels
from multitower.supervisor.deadlines import Deadlines
from multitower.supervisor.pool import Pool, Rule, Wait
from multitower.supervisor.quarantine import Quarantine
from multitower.supervisor.request import BatchKey, Frame, Phase, Request
from multitower.supervisor.serving import Served, Worker

Answer = Sequence[Frame] | MultitowerError
"""What a request gets: the frames of an `MT1:ok` reply from its header on, or an error."""


class Reply(NamedTuple):
    """An answer to give."""

    request: Request
    answer: Answer


class Balancer:
    """The queues of all models, the workers, and every request that has no answer yet.

    Args:
        limits: of each model's queue, by model name.
        dispatch: the rule by which a worker gets what waits; see `pool.py`.
    """

    def __init__(self, limits: dict[str, QueueLimits], dispatch: Rule = Rule.EARLIEST_FINISH) -> None:
        self.queues = {model: ModelQueue(model, limit) for model, limit in limits.items()}
        self.pool = Pool(dispatch)
        self.quarantine = Quarantine()
        self.crashing = CrashingModels()
        self.late = 0  # results that came after their request had been answered
        self._reserved_for: Request | None = None  # the suspect for which the pool has reserved a process
        self._waits: dict[str, tuple[int, Wait]] = {}  # by model: the pool's changes when it said so, and what
        self._patient = [queue for queue in self.queues.values() if queue.limits.max_delay_s]
        self._look_again = inf  # when `dispatch` may have something to do though nothing happens
        self._turns: OrderedDict[str, None] = OrderedDict.fromkeys(limits)
        self._hopeless: dict[str, str] = {}
        self._split: dict[Request, None] = {}  # those whose parts are on their way
        self._deadlines: Deadlines[Request] = Deadlines()
        self._by_sender: dict[tuple[object, ...], list[Request]] = {}
        self._replies: list[Reply] = []
        self._next_batch = 1

    # What happens, in the order of a request's life.

    def submit(self, request: Request) -> None:
        """Takes a new request; it will get one answer.

        Raises:
            Overloaded: `queue_full`; the request was not taken.
            Unavailable: `no_worker`, when nothing serves or will serve the model, or it crashes its workers.
            Poisoned: an equal request has crashed a worker, and is in quarantine.
        """
        queue = self.queues[request.plan.model]
        hopeless = self.hopeless(queue.model) if self._hopeless or self.crashing.until else None
        if hopeless is not None:
            raise hopeless
        if queue.full(request):
            raise make(
                Reason.QUEUE_FULL,
                f"the queue of {queue.model!r} is full: {queue.size} requests of {queue.bytes} bytes wait",
                queue_depth=queue.size,
                retry_after_ms=_retry_after_ms(queue, request.received),
            )
        entry = self.quarantine.find(request, request.received)
        if entry is not None:
            seconds = entry.until - request.received
            raise make(Reason.POISONED, f"an equal request crashed a worker; it is refused for {seconds:.0f} s more")
        queue.push(request)
        self._deadlines.add(request)
        self._by_sender.setdefault((request.sender, request.id), []).append(request)

    def dispatch(self, now: float) -> list[Batch]:
        """Forms a batch for each worker that can have one. Call it after each burst of events."""
        self._look_again = inf
        if self.pool.reserved and not self._is_suspect(self._reserved_for):
            self.pool.reserve(())  # it has got its answer otherwise
        waiting = [self.queues[model] for model in self._turns if self.queues[model].size]
        if not waiting:
            return []
        batches: list[Batch] = []
        pool = self.pool
        passed_over: set[str] = set()  # models that wait for a worker to be free: nothing more is put before them
        while waiting and (pool.free or pool.next_opening <= now or pool.reserved):
            queue = waiting.pop(0)
            batch = self._suspect_batch(queue, now) if queue.suspects else None
            if batch is None and queue.suspects:
                passed_over.add(queue.model)
            batch = batch or self._next_of(queue, now, passed_over)
            if batch is None:
                if waiting and queue.due(now) is not None:
                    passed_over.add(queue.model)
                continue
            batches.append(batch)
            # The models take turns, so that one with a long queue does not keep the others from the workers.
            self._turns.move_to_end(queue.model)
            if queue.size:
                waiting.append(queue)
        if any(queue.size for queue in self.queues.values()):
            self._look_again = pool.opening_after(now)
            for _, wait in self._waits.values():
                if now < wait.until < self._look_again:
                    self._look_again = wait.until
            for queue in self._patient:
                due = queue.next_due()
                # What is due already has been looked at.
                if due is not None and now < due < self._look_again:
                    self._look_again = due
        return batches

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
        self.crashing.answered(batch.key.spec.model)
        for request, answer in zip(batch.requests, answers, strict=True):
            if request.over:
                self.late += 1
            elif request.parent is not None:
                self._part_done(request.parent, request, answer)
            else:
                self._settle(request, answer)
            _let_go(request)
        return batch

    def cancel(self, sender: tuple[object, ...], request_id: bytes) -> int:
        """Answers all requests of a sender with this id by `cancelled`; returns how many there were."""
        requests = list(self._by_sender.get((sender, request_id), ()))
        for request in requests:
            self._settle(request, make(Reason.CANCELLED, "the request was cancelled by its sender"))
        return len(requests)

    def expire(self, now: float) -> None:
        """Answers all requests whose time is over; models that were kept away for a time are let go."""
        self.crashing.expire(now)
        for request in self._deadlines.expire(now):
            where = "while it was executed" if request.phase is Phase.RUNNING else "before a worker was free"
            self._settle(request, make(Reason.DEADLINE, f"the request's time was over {where}"), expired=True)

    # What happens to workers.

    def add_worker(self, slot: int, device: str, serves: Mapping[str, Served], now: float) -> Worker:
        """A worker has become ready; it gets work from the next `dispatch` on."""
        return self.add_towers(slot, device, [serves], now)[0]

    def add_towers(
        self, slot: int, device: str, serves: Sequence[Mapping[str, Served]], now: float
    ) -> tuple[Worker, ...]:
        """A process has become ready, with a worker for each of its towers; `serves` tells the models of each."""
        workers = tuple(Worker(slot, device, each, now) for each in serves)
        for worker in workers:
            worker.mates = workers
            self.pool.add(worker)
        self._refuse_outdated()
        return workers

    @property
    def workers(self) -> Collection[Worker]:
        """All that have come and are not gone, in that order."""
        return self.pool.workers.keys()

    def hold(self, worker: Worker) -> None:
        """Its process gets nothing new; what it has may still be answered, or is told of by `remove_worker`."""
        for mate in worker.mates:
            self.pool.hold(mate)

    def retire(self, worker: Worker) -> None:
        """Its process gets nothing new, and what only its edition could have ended begins again."""
        self.hold(worker)
        self._begin_again()

    def needed(self, worker: Worker, coming: Collection[str] = ()) -> bool:
        """Something waits that no other process can run, nor one that is to come, which will serve these models."""
        others = [other for other in self.workers if other not in worker.mates and not other.retiring]
        return any(
            worker.can_run(request)
            and not any(other.can_run(request) for other in others)
            and (model not in coming or request.plan.key.version)
            for model in worker.serves
            if model in self.queues
            for request in self.queues[model]
        )

    def remove_worker(self, worker: Worker, now: float, *, crashed: bool = False, begun: Sequence[int] = ()) -> bool:
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
        for number, mate in enumerate(worker.mates):
            self.pool.remove(mate)
            executed, rest = _executed(mate, begun[number] if number < len(begun) else None)
            mate.batch = mate.next = None
            requests += executed.requests if executed is not None else []
            others += rest
        for request in reversed([request for other in others for request in other.requests]):
            self._return(request)
        alone = len(requests) == 1
        lone_suspect = alone and requests[0].deaths > 0
        # Pushed to the head one by one, so from the last to the first.
        for request in reversed(requests):
            self._survive(request, worker, now, to_blame=alone and crashed)
        self._begin_again()
        self._refuse_outdated()
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

    def set_dispatch(self, rule: Rule) -> None:
        """Workers get batches by this rule from now on; what has been measured of them is kept."""
        self.pool.set_rule(rule)

    def set_limits(self, model: str, limits: QueueLimits) -> None:
        """A model is new, or its queue's settings are."""
        queue = self.queues.get(model)
        if queue is None:
            self.queues[model] = ModelQueue(model, limits)
            self._turns[model] = None
        else:
            queue.limits = limits
        self._patient = [queue for queue in self.queues.values() if queue.limits.max_delay_s]

    def remove_model(self, model: str) -> None:
        """The model is no more, and no worker runs anything of it; what waits is answered."""
        for request in list(self.queues[model]):
            self._settle(request.parent or request, make(Reason.MODEL_UNKNOWN, f"there is no model {model!r} any more"))
        del self.queues[model], self._turns[model]
        self._patient = [queue for queue in self._patient if queue.model != model]
        self._hopeless.pop(model, None)
        self.crashing.forget(model)
        self._waits.pop(model, None)

    def hope(self, model: str) -> None:
        """The model may be served again: requests wait from now on."""
        self._hopeless.pop(model, None)

    def forgive(self, models: Collection[str] | None = None) -> None:
        """What made these models crash, or all, has been seen to: they are tried again, and so are their requests."""
        for model in self.crashing.suspected:
            if models is None or model in models:
                if model in self.crashing.until:
                    self.quarantine.forget_model(model)
                self.crashing.forget(model)

    def hopeless(self, model: str) -> MultitowerError | None:
        """Why the model's requests are refused, or None while there is hope."""
        # Made anew each time: an exception that is raised over and over keeps the traceback of every time.
        message = self._hopeless.get(model)
        if message is None and (why := self.crashing.why(model)) is not None:
            message = f"{model!r} is kept away: {why}"
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
        """When to call `expire` and `dispatch` at the latest, in monotonic seconds, as of the last `dispatch`."""
        time = self._look_again
        deadline = self._deadlines.next()
        if deadline is not None and deadline < time:
            time = deadline
        return time if time < inf else None

    # How it is done.

    def _suspect_batch(self, queue: ModelQueue, now: float) -> Batch | None:
        pool = self.pool
        for request in list(queue.suspects):
            able = [worker for worker in self.workers if not worker.retiring and worker.can_run(request)]
            elsewhere = any(worker.device != request.avoid for worker in able)
            fit = {worker for worker in able if not (elsewhere and worker.device == request.avoid)}
            # Whoever is free, the longest idle first. Behind another batch it would not be told from that one, nor
            # beside one in the same process.
            for worker in (*pool.free, *pool.reserved):
                if worker in fit and worker.alone:
                    queue.remove(request)
                    return self._give(worker, request.plan.key, [request], now)
            open_to = not pool.reserved or (request is self._reserved_for and fit.isdisjoint(pool.reserved))
            if open_to and fit and all(len(worker.mates) > 1 for worker in fit):
                # Its towers would never be free all at once while others wait.
                self._reserved_for = request
                pool.reserve(min(fit, key=_depth_of_process).mates)
        return None

    def _is_suspect(self, request: Request | None) -> bool:
        queue = self.queues.get(request.plan.model) if request is not None else None
        return queue is not None and request in queue.suspects

    def _next_of(self, queue: ModelQueue, now: float, passed_over: Set[str]) -> Batch | None:
        pool, waits = self.pool, self._waits.pop(queue.model, None)
        key = queue.due(now)
        if waits is not None and key is not None:
            changes, wait = waits
            if changes == pool.changes and now < wait.until and self._batches() <= wait.batches:
                self._waits[queue.model] = waits
                return None
        workers = pool.open(now) if key is not None else ()
        while key is not None:
            first, rows = queue.first(key)
            if not pool.free and rows < key.max_batch_size:
                return None
            # Behind another one only what would not grow by waiting, and could not be mistaken for what kills.
            behind = rows >= key.max_batch_size and not first.deaths
            able = [
                worker
                for worker in workers
                if (worker.batch is None or (behind and passed_over.isdisjoint(worker.serves)))
                and worker.can_run(first)
            ]
            if not able:
                break
            choice = pool.choose(able, queue, key, first, rows, now, self._batches())
            if isinstance(choice, Wait):
                self._waits[queue.model] = pool.changes, choice
                return None
            batch = self._take(queue, key, choice.worker, choice.sharing, now)
            if batch is not None:
                return batch
            key = queue.due(now)  # all that it would have taken had expired
        else:
            return None
        return self._next_of_others(queue, now)

    def _batches(self) -> int:
        return sum([queue.batches() for queue in self.queues.values()])

    def _next_of_others(self, queue: ModelQueue, now: float) -> Batch | None:
        """For the first request none is open that can run it: while another version of the model takes over."""
        able = [worker for worker in self.pool.free if queue.model in worker.serves]
        for count in range(len(able), 0, -1):
            worker = able[len(able) - count]
            waiting = queue.size
            while (key := queue.due(now, worker.can_run)) is not None:
                batch = self._take(queue, key, worker, count, now)
                if batch is not None:
                    return batch
                if queue.size == waiting:
                    break  # what waits is for workers of another edition
                waiting = queue.size
        return None

    def _take(self, queue: ModelQueue, key: BatchKey, worker: Worker, sharing: int, now: float) -> Batch | None:
        edition, most = worker.serves[queue.model].edition, worker.safe_rows.get(queue.model, 0)
        # Whose neighbours would answer for it where a request may survive no death travels alone.
        singles = self.pool.brief(key) if not key.max_batch_size and queue.limits.retry else 1
        requests = queue.take(key, now, self._settle, sharing, edition, most, max(singles, 1))
        return self._give(worker, key, requests, now) if requests else None

    def _give(self, worker: Worker, key: BatchKey, requests: list[Request], now: float) -> Batch:
        rows = sum(request.rows for request in requests)
        size = self.queues[key.spec.model].limits.padded(rows) if key.max_batch_size else rows
        batch = Batch(self._next_batch, key, requests, rows, worker, now, size)
        self._next_batch += 1
        self.pool.given(batch, now)
        for request in requests:
            request.phase = Phase.RUNNING
            request.sent = now
            if request.parent is not None:
                self._split[request.parent] = None
                if not request.start:
                    request.parent.sent = now
        return batch

    def _return(self, request: Request) -> None:
        """Puts back a request that its worker has not begun, or has answered though the answer is lost with it."""
        whole = request.parent or request
        if Phase.DONE in (whole.phase, request.phase):
            _let_go(request)  # nobody waits for it, or its request began again
            return
        queue = self.queues[request.plan.model]
        hopeless = self.hopeless(queue.model)
        if hopeless is not None:
            self._settle(whole, hopeless)
            _let_go(request)
        elif request.deaths:
            queue.push_suspect(request)
        else:
            request.phase = Phase.WAITING
            queue.push(request, first=True)

    def _survive(self, request: Request, worker: Worker, now: float, *, to_blame: bool) -> None:
        """Decides about a request whose worker died with it; nobody may wait for it any more."""
        queue = self.queues[request.plan.model]
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
            self.quarantine.add(whole, now, queue.limits.quarantine_s)
        if gone or (outdated and not spent):
            pass  # nobody waits for it
        elif not spent:
            lost = queue.model in self._hopeless or self.crashing.certain(queue.model)
            refusal = self.hopeless(queue.model) if lost else None
            if refusal is not None:
                self._settle(whole, refusal)
            else:
                queue.push_suspect(request)
        elif queue.limits.retry == 0:
            self._settle(whole, make(Reason.WORKER_DIED, "the worker died with this request"))
        else:
            message = f"{request.deaths} workers died while they executed this request; do not send it again"
            self._settle(whole, make(Reason.POISONED, message))
        if blamed and self.crashing.crashed(queue.model, now, queue.limits.quarantine_s):
            self._keep_away(queue)
        _let_go(request)

    def _keep_away(self, queue: ModelQueue) -> None:
        """Answers what waits for a model that crashes its workers. Some suspects still run: one may be good."""
        spared = queue.suspects if not self.crashing.certain(queue.model) else {}
        for request in [request for request in queue if request not in spared]:
            refusal = self.hopeless(queue.model)
            assert refusal is not None  # it is kept away
            self._settle(request.parent or request, refusal)

    def _begin_again(self) -> None:
        """Requests of which parts are to come, while no worker of their edition is left, begin again as a whole."""
        if not self._split:
            return
        left = [worker for worker in self.workers if not worker.retiring]
        for whole in list(self._split):
            join = whole.join
            assert join is not None  # those that are done have left
            unfinished = join.rows_left or any(part.phase is Phase.WAITING for part in join.parts)
            if not unfinished or any(worker.can_run(whole) for worker in left):
                continue
            queue = self.queues[whole.plan.model]
            self._drop_parts(whole)
            if whole.phase is Phase.WAITING:
                queue.remove(whole)
            # What its parts have survived counts: else it would kill one worker after another.
            for part in join.parts:
                if part.deaths > whole.deaths:
                    whole.deaths, whole.avoid = part.deaths, part.avoid
            whole.join = None
            whole.phase = Phase.WAITING
            queue.push(whole, first=True)

    def _drop_parts(self, whole: Request) -> None:
        assert whole.join is not None  # it was split
        self._split.pop(whole, None)
        queue = self.queues[whole.plan.model]
        for part in whole.join.parts:
            if part.phase is Phase.WAITING:
                queue.remove(part)
            if part.phase is not Phase.DONE:
                part.phase = Phase.DONE

    def _refuse_outdated(self) -> None:
        """Answers what was checked against a model that no worker serves any more, though some serve its successor."""
        for queue in self.queues.values():
            serving = [worker for worker in self.workers if queue.model in worker.serves]
            for request in list(queue) if serving else ():
                if not any(worker.can_run(request) for worker in serving):
                    message = f"{queue.model!r} was changed while the request waited"
                    # Only what has not run at all may be sent again without a thought.
                    untouched = request.parent is None and request.join is None and not request.deaths
                    error = make(Reason.NO_WORKER, message, retry_after_ms=100 if untouched else None)
                    self._settle(request.parent or request, error)

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
        # Until its batch is back: should it kill its worker yet, it is to be known again.
        if request.phase is not Phase.RUNNING:
            request.frames = ()
        request.phase = Phase.DONE
        if request.join is not None:
            self._drop_parts(request)
            request.join = None
        if not expired:
            self._deadlines.remove(request)
        key = (request.sender, request.id)
        twins = self._by_sender[key]
        twins.remove(request)
        if not twins:
            del self._by_sender[key]
        self._replies.append(Reply(request, answer))


def _depth_of_process(worker: Worker) -> int:
    return sum(mate.depth for mate in worker.mates)


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


def _let_go(request: Request) -> None:
    """The batch of a request or part is back, and nobody needs its tensors any more if it has its answer."""
    for each in (request, request.parent):
        if each is not None and each.phase is Phase.DONE:
            each.frames = ()


def _retry_after_ms(queue: ModelQueue, now: float) -> int:
    """A guess at when there is room again: as long as the oldest waiting request has had to wait."""
    oldest = next(iter(queue), None)
    waited = 0.0 if oldest is None else now - oldest.received
    return max(1, min(int(waited * 1000), 60_000))
