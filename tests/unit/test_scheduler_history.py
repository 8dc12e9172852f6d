"""No history of arrivals, answers, deaths, deadlines and cancels loses a request or answers it twice."""

from __future__ import annotations

import json
from math import inf
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from multitower import wire
from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.scheduling.estimate import MIN_MEASURED
from multitower.supervisor.scheduling.pool import Rule
from multitower.supervisor.scheduling.pool_worker import Batch, Served, Worker
from multitower.supervisor.scheduling.quarantine import MIN_CRASHES
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Phase, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec

MODELS = ("a", "b")
LARGEST = 4
KEYS = [
    BatchKey(
        KeySpec(model, (("x", "UINT8", dims),), None, batched),
        max_batch_size=LARGEST if batched else 0,
        version=version,
    )
    for model in MODELS
    for dims, batched, version in (((), True, ""), ((2,), True, ""), ((3,), False, ""), ((), True, "1"))
]
VERSIONS = (("1",), ("2",), ("1", "2"))
FINAL = {
    Reason.DEADLINE,
    Reason.CANCELLED,
    Reason.POISONED,
    Reason.WORKER_DIED,
    Reason.NO_WORKER,
    Reason.MODEL_ERROR,
    Reason.INTERNAL_ERROR,
}


class History(RuleBasedStateMachine):
    """A scheduler whose clients, workers and clock are simulated; each answer is checked against its request."""

    @initialize(
        retry=st.integers(0, 2), size=st.integers(1, 12), dispatch=st.sampled_from(Rule), measured=st.booleans()
    )
    def start(self, retry: int, size: int, dispatch: Rule, measured: bool) -> None:
        limits = QueueLimits(max_size=size, max_bytes=64, max_delay_s=0.0, retry=retry, quarantine_s=2.0)
        self.retry = retry
        self.now = 0.0
        self.scheduler = Scheduler(dict.fromkeys(MODELS, limits), dispatch)
        self.busy: dict[Worker, list[Batch]] = {}  # the batches of each, in order
        self.accepted: dict[int, Request] = {}
        self.suspects: set[Request] = set()
        self.answers: dict[int, Any] = {}
        self.deaths: dict[int, int] = {}
        self.slots = 0
        self.unavailable: set[str] = set()
        self.lone_crashes = dict.fromkeys(MODELS, 0)  # since the last answer
        if measured:
            self.add_process(set(MODELS), ("1",), 0.5)
            self.arrive(KEYS[0], LARGEST, 0, 5.0, 2)
            self.dispatch()

    # Events.

    @rule(
        key=st.sampled_from(KEYS),
        rows=st.integers(1, 11),
        sender=st.integers(0, 2),
        time=st.floats(0.1, 5),
        priority=st.integers(1, 3),
    )
    def arrive(self, key: BatchKey, rows: int, sender: int, time: float, priority: int) -> None:
        number = len(self.accepted)
        rows = rows if key.max_batch_size else 1
        width = 1
        for size in key.spec.inputs[0][2]:
            width *= size
        # Each byte identifies the request.
        frame = bytes([number % 256]) * (rows * width)
        plan = Plan(key, rows, (0,), (len(frame),), (False,), ("x",), time, priority)
        request = Request(("sender", sender), number.to_bytes(4, "big"), plan, [frame], len(frame), self.now)
        queue = self.scheduler.queues[key.spec.model]
        full = not queue.has_room_for(request)
        refused: MultitowerError | None = None
        try:
            self.scheduler.submit(request)
        except MultitowerError as error:
            refused = error
        if self.refused(key.spec.model):
            assert refused is not None
            assert refused.reason == Reason.NO_WORKER
        elif full:
            assert refused is not None
            assert refused.reason == Reason.QUEUE_FULL
            assert refused.details["queue_depth"] == queue.size
        elif refused is not None and refused.reason == Reason.DEADLINE:
            assert rows > key.max_batch_size > 0
            assert refused.details["estimated_ms"] > time * 1000
        elif refused is not None:
            assert refused.reason == Reason.POISONED
            assert self.scheduler.quarantined_requests(self.now)
        else:
            assert refused is None
            self.accepted[number] = request
        self.collect()

    @rule(
        models=st.sets(st.sampled_from(MODELS), min_size=1),
        versions=st.sampled_from(VERSIONS),
        seconds=st.sampled_from([0.0, 0.5, 0.5, 2.0]),
        towers=st.sampled_from([1, 1, 2, 3]),
    )
    def add_process(
        self, models: set[str], versions: tuple[str, ...] = ("1",), seconds: float = 0.0, towers: int = 1
    ) -> None:
        for model in models:
            self.scheduler.mark_available(model)
            self.unavailable.discard(model)
        served = {
            (model, version): Served(version, generation=int(version)) for model in models for version in versions
        }
        newest = {model: served[model, versions[-1]] for model in models}
        # One of the models is on the first tower only.
        fewer_newest = {model: each for model, each in newest.items() if model == min(models)}
        fewer_versions = {key: each for key, each in served.items() if key[0] in fewer_newest}
        of_each = [(newest, served), *[(fewer_newest, fewer_versions)] * (towers - 1)]
        for worker in self.scheduler.add_process(self.slots, f"cpu:{self.slots % 2}", of_each, self.now):
            # Histories are short: some workers are measured from the start, as if they had answered before.
            for key in KEYS * MIN_MEASURED if seconds else ():
                worker.estimates.add(key, 1, seconds, self.now)
        self.slots += 1
        self.collect()

    @rule(unsendable=st.sampled_from([None, None, 0, 1]))
    def dispatch(self, unsendable: int | None = None) -> None:
        """Sends batches; the one with this index cannot be sent."""
        self.suspects |= {request for queue in self.scheduler.queues.values() for request in queue.suspects}
        batches = self.scheduler.dispatch(self.now)
        for batch in batches:
            worker = batch.worker
            has = self.busy.get(worker, [])
            assert not worker.retiring
            assert len(has) <= (self.scheduler.pool.rule is Rule.EARLIEST_FINISH), "no more than one behind another"
            assert not any(request.deaths for other in has for request in other.requests), "behind a suspect"
            assert not has or batch.requests[0].deaths == 0, "a suspect behind another batch"
            served = worker.served_for(batch.key)
            assert served is not None
            assert batch.key.version in ("", served.version)
            for request in batch.requests:
                assert request.version == served.version
                if request.parent is not None:
                    assert request.parent.split is not None
                    assert request.parent.split.generation == served.generation, "all parts run on one generation"
            assert all(request.plan.key is batch.key for request in batch.requests)
            assert batch.rows == sum(request.rows for request in batch.requests)
            assert worker.depth == batch.rows + sum(other.rows for other in has)
            assert len(batch.requests) == 1 or batch.rows <= LARGEST
            assert batch.rows <= max(batch.key.max_batch_size, 1)
            assert not any(request.answered for request in batch.requests), "answered already"
            suspects = [request for request in batch.requests if request.deaths]
            assert not suspects or len(batch.requests) == 1, "a suspect runs alone"
            beside = [other for tower in worker.towers if tower is not worker for other in self.busy.get(tower, [])]
            if len(batch.requests) == 1 and batch.requests[0] in self.suspects:
                assert not beside, "a suspect beside another batch of its process"
            for other in beside:
                assert other.requests[0] not in self.suspects, "beside a suspect"
            self.busy[worker] = [*has, batch]
        if unsendable is not None and unsendable < len(batches):
            batch = batches[unsendable]
            self.scheduler.fail_batch(batch, make(Reason.INTERNAL_ERROR, "it cannot be sent"), self.now)
            self.busy[batch.worker].remove(batch)
            if not self.busy[batch.worker]:
                del self.busy[batch.worker]
        self.collect()

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), fail=st.booleans())
    def answer(self, data: st.DataObject, fail: bool) -> None:
        worker = data.draw(st.sampled_from(list(self.busy)))
        batch = self.busy[worker].pop(0)
        self.lone_crashes[batch.key.spec.model] = 0
        if not self.busy[worker]:
            del self.busy[worker]
        answers: list[Any] = []
        for index, request in enumerate(batch.requests):
            if fail and index == 0:
                answers.append(make(Reason.MODEL_ERROR, "it raised"))
                continue
            shape = (request.rows, *batch.key.spec.inputs[0][2]) if batch.key.max_batch_size else (3,)
            header = wire.reply_header(batch.key.spec.model, request.version, [wire.Tensor("y", "UINT8", shape)])
            # An echo; a request that is answered has no frames.
            answers.append([header, bytes(request.frames[0]) if request.frames else b""])
        assert self.scheduler.finish(worker, batch.id, answers, self.now) is batch
        self.collect()

    @precondition(lambda self: self.scheduler.workers)
    @rule(data=st.data(), crashed=st.booleans(), recorded=st.booleans(), position=st.integers(0, 1))
    def worker_dies(self, data: st.DataObject, crashed: bool, recorded: bool, position: int) -> None:
        self.kill(
            data.draw(st.sampled_from(list(self.scheduler.workers))), crashed, recorded=recorded, position=position
        )

    def kill(self, worker: Worker, crashed: bool = False, *, recorded: bool = False, position: int = 0) -> None:
        """Kills a process while each tower executes its first batch or, if it has recorded that, its second.

        The answer to the first is lost then.
        """
        having = [self.busy.pop(tower, []) for tower in worker.towers]
        executed = [has[min(position, len(has) - 1) if recorded else 0] if has else None for has in having]
        marks = {request: request.deaths for has in having for batch in has for request in batch.requests}
        victims = [request for batch in executed if batch is not None for request in batch.requests]
        for request in victims:
            number = int.from_bytes(request.id, "big")
            self.deaths[number] = self.deaths.get(number, 0) + 1
        if crashed and len(victims) == 1:
            self.lone_crashes[victims[0].plan.model] += 1
        begun = [batch.id if batch is not None else 0 for batch in executed] if recorded else []
        self.scheduler.remove_process(worker, self.now, crashed=crashed, begun=begun)
        for request, mark in marks.items():
            if request not in victims and request.parent is None and request.split is None:
                assert request.phase is not Phase.WAITING or request.deaths == mark, "not started, so no suspect"
        self.collect()

    @precondition(lambda self: self.scheduler.workers)
    @rule(data=st.data())
    def worker_retires(self, data: st.DataObject) -> None:
        self.scheduler.retire(data.draw(st.sampled_from(list(self.scheduler.workers))))
        self.collect()

    @rule(model=st.sampled_from(MODELS))
    def mark_unavailable(self, model: str) -> None:
        if not any(model in worker.serves for worker in self.scheduler.workers):
            self.scheduler.mark_unavailable(model, "nothing serves it")
            self.unavailable.add(model)
        self.collect()

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.accepted)))
        request = self.accepted[number]
        cancelled = self.scheduler.cancel(request.sender, request.id)
        assert cancelled == (0 if number in self.answers else 1)
        self.collect()
        assert number in self.answers

    @rule(seconds=st.floats(0.0, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.scheduler.expire(self.now)
        self.collect()
        for number, request in self.accepted.items():
            # The timer wheel is coarser than a float.
            assert number in self.answers or request.deadline > self.now - 0.1

    def refused(self, model: str) -> bool:
        return model in self.unavailable or model in self.scheduler.quarantined_models

    @precondition(lambda self: any(worker.prefetch_at < inf for worker in self.scheduler.workers))
    @rule(key=st.sampled_from(KEYS[:3]), count=st.integers(1, 3))
    def full_batches_arrive_shortly_before_a_batch_ends(self, key: BatchKey, count: int) -> None:
        self.now = max(self.now, min(worker.prefetch_at for worker in self.scheduler.workers))
        self.scheduler.expire(self.now)
        for _ in range(count):
            self.arrive(key, LARGEST, 0, 5.0, 2)
        self.dispatch()

    # Invariants.

    def collect(self) -> None:
        for reply in self.scheduler.pop_replies():
            request, answer = reply.request, reply.answer
            number = int.from_bytes(request.id, "big")
            assert self.accepted[number] is request, "only whole requests are answered"
            assert number not in self.answers, "answered twice"
            self.answers[number] = answer
            if isinstance(answer, MultitowerError):
                assert answer.reason in FINAL
                if answer.reason in (Reason.POISONED, Reason.WORKER_DIED):
                    assert self.deaths[number] > self.retry
                elif answer.reason == Reason.NO_WORKER and not self.refused(request.plan.model):
                    assert request.plan.key.version == "1", "only a version can go away"
            else:
                output = json.loads(answer[0])["outputs"][0]
                if request.plan.key.max_batch_size:
                    assert output["shape"][0] == request.plan.rows
                assert set(answer[1]) == {number % 256}, "another's rows"
                assert len(answer[1]) == request.plan.sizes[0]

    @invariant()
    def depths_add_up(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for worker in self.scheduler.workers:
            has = [batch for batch in (worker.batch, worker.next_batch) if batch is not None]
            assert has == self.busy.get(worker, [])
        assert self.scheduler.outstanding == len(self.accepted) - len(self.answers)
        for model in self.scheduler.quarantined_models:
            assert self.lone_crashes[model] >= MIN_CRASHES, "only models that crash repeatedly"
        for queue in self.scheduler.queues.values():
            waiting = list(queue)
            assert queue.size == len(waiting)
            assert queue.bytes == sum(request.size for request in waiting)
            assert queue.rows == sum(
                request.rows if request.split is None else request.split.rows_left
                for request in waiting
                if request not in queue.suspects
            )

    def teardown(self) -> None:
        """In the end everything has an answer: new workers serve all requests that are left."""
        if not hasattr(self, "scheduler"):
            return
        for number, worker in enumerate(list(self.scheduler.workers)):
            if worker in self.scheduler.workers:  # not removed with another tower
                self.kill(worker, recorded=number % 2 == 0, position=1)
        towers = 1 + self.slots % 2
        for _ in range(2):
            self.add_process(set(MODELS), towers=towers)
        for _ in range(1000):
            if not self.scheduler.busy:
                break
            for batch in self.scheduler.dispatch(self.now):
                answers: list[Any] = [make(Reason.MODEL_ERROR, "the end") for _ in batch.requests]
                self.scheduler.finish(batch.worker, batch.id, answers, self.now)
            self.scheduler.expire(self.now)
            for reply in self.scheduler.pop_replies():
                request, answer = reply.request, reply.answer
                number = int.from_bytes(request.id, "big")
                assert number not in self.answers
                self.answers[number] = answer
        assert set(self.answers) == set(self.accepted), "lost"
        assert all(queue.size == 0 and queue.bytes == 0 for queue in self.scheduler.queues.values())
        assert self.scheduler.outstanding == 0


History.TestCase.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistory = History.TestCase
