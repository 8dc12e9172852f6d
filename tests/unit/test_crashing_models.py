"""Models that crash a worker with each request: kept away before they have cost every slot."""

from __future__ import annotations

import pytest
from scheduler_scene import add_worker

from multitower.errors import MultitowerError, Unavailable
from multitower.supervisor.scheduling.crashing_models import CRASHES, CrashingModels
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.supervisor.scheduling.worker import Served, Worker
from multitower.worker_wire import KeySpec

A, B = "a", "b"
LARGEST = 8
KEYS = {model: BatchKey(KeySpec(model, (("x", "UINT32", ()),), None, True), LARGEST) for model in (A, B)}


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        # a letter is a crash of that model, `+` an answer of it, a number the seconds that pass
        (["a"] * (CRASHES - 1), ""),
        (["a"] * CRASHES, "a"),
        (["a", "a", "+a", "a"], ""),
        (["a", "a", "+b", "a"], "a"),
        (["a", "b", "a", "b", "a"], "a"),
        (["a", "a", "a", 59], "a"),
        (["a", "a", "a", 60], ""),
        (["a", "a", "a", 60, "a"], "a"),  # on probation: one more brings it back
        (["a", "a", "a", 60, "+a", "a", "a"], ""),
        (["a", "a", "a", "+a"], ""),  # a suspect that ran after all
        (["a", "a", "a", 50, "a", 50], "a"),  # suspects that were on their way
        (["a", "a", "a", "forget", "a", "a"], ""),
        (["a", "a", "a", "b", "b", "b", "forget", "a", "a"], "b"),
    ],
)
def test_who_is_kept_away(events: list[str | int], kept: str) -> None:
    crashing, now = CrashingModels(), 0.0
    for event in events:
        if isinstance(event, int):
            now += event
            crashing.expire(now)
        elif event == "forget":
            crashing.forget(A)
        elif event.startswith("+"):
            crashing.answered(event[1:])
        else:
            assert crashing.crashed(event, now, 60.0) == (event in crashing.until)
    assert "".join(sorted(crashing.until)) == kept
    assert [model for model in (A, B) if crashing.why(model) is not None] == list(kept)


def test_no_time_keeps_nothing_away() -> None:
    crashing = CrashingModels()
    assert not any(crashing.crashed(A, 0.0, 0.0) for _ in range(10))
    assert crashing.why(A) is None


class Scene:
    """Two models on workers that come as needed."""

    def __init__(self) -> None:
        limits = QueueLimits(1000, 1 << 20, retry=1, quarantine_s=60.0)
        self.scheduler = Scheduler({A: limits, B: limits})
        self.now = 0.0
        self._ids = 0

    def submit(self, model: str = A) -> bytes:
        self._ids += 1
        frame = self._ids.to_bytes(4, "big")
        plan = Plan(KEYS[model], 1, (0,), (4,), (False,), ("x",), 1e6)
        self.scheduler.submit(Request(("sender",), frame, plan, [frame], 4, self.now))
        return frame

    def worker(self) -> Worker:
        worker = add_worker(self.scheduler, 0, "cpu:0", {A: Served(), B: Served()}, self.now)
        self.scheduler.dispatch(self.now)
        return worker

    def crash(self) -> bool:
        """A worker executes what comes next, and dies; returns whether that cost its slot no budget."""
        worker = self.worker()
        assert worker.batch is not None
        return self.scheduler.remove_process(worker, self.now, crashed=True)

    def reasons(self) -> list[str]:
        told = [reply.answer for reply in self.scheduler.replies()]
        return [answer.reason if isinstance(answer, MultitowerError) else "ok" for answer in told]


def test_one_after_the_other_costs_three_restarts_and_then_none() -> None:
    scene = Scene()
    free: list[bool] = []
    for _ in range(CRASHES):
        scene.submit()
        free += [scene.crash(), scene.crash()]
    assert free == [False, True] * CRASHES
    assert scene.reasons() == ["poisoned"] * CRASHES
    with pytest.raises(Unavailable, match=r"'a' is in quarantine: 3 requests in a row .* restart SLOT`") as told:
        scene.submit()
    assert told.value.reason == "no_worker"
    scene.submit(B)
    scene.scheduler.expire(60.0)
    scene.submit()


def test_a_batch_of_suspects_does_not_kill_one_worker_each() -> None:
    scene = Scene()
    for _ in range(LARGEST):
        scene.submit()
    assert not scene.crash()
    deaths = 0
    while scene.scheduler.queues[A]:
        deaths += 1
        assert scene.crash()
    assert deaths == 2 * CRASHES
    assert sorted(scene.reasons()) == ["no_worker"] * (LARGEST - deaths) + ["poisoned"] * deaths
    scene.now = 60.0
    scene.scheduler.expire(scene.now)
    for _ in range(4):
        scene.submit()
    assert not scene.crash(), "on probation"
    assert scene.crash()
    assert sorted(scene.reasons()) == ["no_worker"] * 3 + ["poisoned"]
    assert not scene.scheduler.queues[A]


def test_what_waits_is_answered_and_a_suspect_that_runs_after_all_ends_it() -> None:
    scene = Scene()
    for _ in range(4):
        scene.submit()
    scene.crash()  # four suspects of one batch, of which three are to blame
    waiting = [scene.submit() for _ in range(2)]
    for _ in range(CRASHES):
        assert scene.crash(), "suspects run alone, and cost no slot's budget"
    assert scene.reasons() == ["poisoned"] * 3 + ["no_worker"] * len(waiting)
    assert A in scene.scheduler.quarantined_models
    scene.submit(B)
    worker = scene.worker()
    while (batch := worker.batch) is not None:
        scene.scheduler.finish(worker, batch.id, [[b"fine"] for _ in batch.requests], scene.now)
        scene.scheduler.dispatch(scene.now)
    assert scene.reasons() == ["ok", "ok"], "the fourth, and that of the other model"
    assert A not in scene.scheduler.quarantined_models
    scene.submit()


@pytest.mark.parametrize(("models", "tried"), [(None, True), ([A], True), ([B], False), ([], False)])
def test_who_has_seen_to_the_cause_gets_an_answer_to_the_same_requests(models: list[str] | None, tried: bool) -> None:
    scene = Scene()
    for _ in range(CRASHES):
        scene.submit()
        scene.crash()
        scene.crash()
    assert len(scene.scheduler.quarantined_requests(0.0)) == CRASHES
    scene.scheduler.reset_crash_count(models)
    assert len(scene.scheduler.quarantined_requests(0.0)) == (0 if tried else CRASHES)
    assert (scene.scheduler.refusal_for_accepted_request(A) is None) == tried


def test_a_request_that_was_to_blame_itself_is_not_forgiven() -> None:
    scene = Scene()
    scene.submit()
    scene.crash()
    scene.crash()
    scene.scheduler.reset_crash_count()
    assert len(scene.scheduler.quarantined_requests(0.0)) == 1
