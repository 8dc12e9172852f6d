"""Models that crash a worker with each request are put into quarantine before they cost every slot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scheduler_scene import add_worker

from multitower.errors import MultitowerError, Unavailable
from multitower.supervisor.scheduling.pool_worker import Served, Worker
from multitower.supervisor.scheduling.quarantine import MIN_CRASHES, ModelQuarantine
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec

A, B = "a", "b"
LARGEST = 8
KEYS = {model: BatchKey(KeySpec(model, (("x", "UINT32", ()),), None, True), LARGEST) for model in (A, B)}


@pytest.mark.parametrize(
    ("events", "quarantined"),
    [
        # A letter is a crash by that model, `+` an answer of it, a number the seconds that pass.
        (["a"] * (MIN_CRASHES - 1), ""),
        (["a"] * MIN_CRASHES, "a"),
        (["a", "a", "+a", "a"], ""),
        (["a", "a", "+b", "a"], "a"),
        (["a", "b", "a", "b", "a"], "a"),
        (["a", "a", "a", 59], "a"),
        (["a", "a", "a", 60], ""),
        (["a", "a", "a", 60, "a"], "a"),  # one more starts it again
        (["a", "a", "a", 60, "+a", "a", "a"], ""),
        (["a", "a", "a", "+a"], ""),  # a suspect was answered
        (["a", "a", "a", 50, "a", 50], "a"),  # a suspect that ran meanwhile prolongs it
        (["a", "a", "a", "reset", "a", "a"], ""),
        (["a", "a", "a", "b", "b", "b", "reset", "a", "a"], "b"),
    ],
)
def test_which_models_are_in_quarantine_after_these_events(events: list[str | int], quarantined: str) -> None:
    models, now = ModelQuarantine(), 0.0
    for event in events:
        if isinstance(event, int):
            now += event
            models.remove_expired(now)
        elif event == "reset":
            models.reset(A)
        elif event.startswith("+"):
            models.add_answer(event[1:])
        else:
            assert models.add_crash(event, now, 60.0) == (event in models)
    assert sorted(models.models) == list(quarantined)
    assert [model for model in (A, B) if model in models] == list(quarantined)
    assert bool(models) == bool(quarantined)


def test_a_quarantine_of_no_seconds_is_none() -> None:
    models = ModelQuarantine()
    assert not any(models.add_crash(A, 0.0, 0.0) for _ in range(10))
    assert not models


class Scene:
    """Two models on workers that are added as needed."""

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
        """A worker executes the next batch and dies; returns whether a suspect alone is to blame."""
        worker = self.worker()
        assert worker.batch is not None
        return self.scheduler.remove_process(worker, self.now, crashed=True)

    def reasons(self) -> list[str]:
        answers = [reply.answer for reply in self.scheduler.pop_replies()]
        return [answer.reason if isinstance(answer, MultitowerError) else "ok" for answer in answers]


def test_three_crashing_requests_put_their_model_into_quarantine() -> None:
    scene = Scene()
    lone: list[bool] = []
    for _ in range(MIN_CRASHES):
        scene.submit()
        lone += [scene.crash(), scene.crash()]
    assert lone == [False, True] * MIN_CRASHES
    assert scene.reasons() == ["poisoned"] * MIN_CRASHES
    with pytest.raises(Unavailable, match=r"'a' is in quarantine: 3 requests in a row .* restart SLOT`") as raised:
        scene.submit()
    assert raised.value.reason == "no_worker"
    scene.submit(B)
    scene.scheduler.expire(60.0)
    scene.submit()


def test_a_batch_of_suspects_does_not_kill_a_worker_with_each() -> None:
    scene = Scene()
    for _ in range(LARGEST):
        scene.submit()
    assert not scene.crash()
    deaths = 0
    while scene.scheduler.queues[A]:
        deaths += 1
        assert scene.crash()
    assert deaths == 2 * MIN_CRASHES
    assert sorted(scene.reasons()) == ["no_worker"] * (LARGEST - deaths) + ["poisoned"] * deaths
    scene.now = 60.0
    scene.scheduler.expire(scene.now)
    for _ in range(4):
        scene.submit()
    assert not scene.crash(), "first the whole batch"
    assert scene.crash()
    assert sorted(scene.reasons()) == ["no_worker"] * 3 + ["poisoned"]
    assert not scene.scheduler.queues[A]


def test_a_suspect_that_succeeds_ends_the_quarantine_of_its_model() -> None:
    scene = Scene()
    for _ in range(4):
        scene.submit()
    scene.crash()  # four suspects of one batch, of which three crash again
    waiting = [scene.submit() for _ in range(2)]
    for _ in range(MIN_CRASHES):
        assert scene.crash(), "suspects run alone"
    assert scene.reasons() == ["poisoned"] * 3 + ["no_worker"] * len(waiting)
    assert A in scene.scheduler.quarantined_models
    scene.submit(B)
    worker = scene.worker()
    while (batch := worker.batch) is not None:
        scene.scheduler.finish(worker, batch.id, [[b"fine"] for _ in batch.requests], scene.now)
        scene.scheduler.dispatch(scene.now)
    assert scene.reasons() == ["ok", "ok"], "the fourth suspect, and the other model's request"
    assert A not in scene.scheduler.quarantined_models
    scene.submit()


@pytest.mark.parametrize(("models", "ended"), [(None, True), ([A], True), ([B], False), ([], False)])
def test_a_reset_ends_the_quarantine_of_the_model_and_of_its_requests(models: list[str] | None, ended: bool) -> None:
    scene = Scene()
    for _ in range(MIN_CRASHES):
        scene.submit()
        scene.crash()
        scene.crash()
    assert len(scene.scheduler.quarantined_requests(0.0)) == MIN_CRASHES
    scene.scheduler.reset_crash_count(models)
    assert len(scene.scheduler.quarantined_requests(0.0)) == (0 if ended else MIN_CRASHES)
    assert (scene.scheduler.refusal_for_accepted_request(A) is None) == ended


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (lambda scheduler: scheduler.reset_crash_count(), 1),
        (lambda scheduler: scheduler.reset_crash_count([B]), 1),
        (lambda scheduler: scheduler.reset_crash_count([A]), 0),
        (lambda scheduler: scheduler.remove_model(A), 0),
    ],
    ids=["slot restarted", "other model changed", "model changed", "model removed"],
)
def test_a_request_leaves_quarantine_with_the_model_that_it_crashed(
    end: Callable[[Scheduler], None], left: int
) -> None:
    scene = Scene()
    scene.submit()
    scene.crash()
    scene.crash()
    assert A not in scene.scheduler.quarantined_models
    end(scene.scheduler)
    assert len(scene.scheduler.quarantined_requests(0.0)) == left
