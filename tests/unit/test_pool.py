"""Which worker gets the next batch, and when: tables of the devices' speeds, their batches and the queue."""

from __future__ import annotations

from math import inf

import pytest
from scheduler_scene import FIXED_S, KEY, LARGEST, ROW_S, Scene

from multitower.errors import Reason, make
from multitower.supervisor.scheduling.estimate import MIN_MEASURED, OUTLIER_STREAK
from multitower.supervisor.scheduling.pool import LOOP_DELAY_S, Rule
from multitower.supervisor.scheduling.pool_worker import Worker
from multitower.supervisor.scheduling.request import Request
from multitower.supervisor.scheduling.worker_choice import PROBE_AFTER_BATCHES, PROBE_IDLE_S

IDLE = [
    # Times of the devices as a factor, waiting requests of one row, batches as (slot, rows).
    ("a single worker", (1,), 1, [(0, 1)]),
    ("equally fast: divided", (1, 1), 10, [(0, 5), (1, 5)]),
    ("about equally fast: divided", (1.05, 1), 10, [(0, 5), (1, 5)]),
    ("the fast one gets the request", (4, 1), 1, [(1, 1)]),
    ("the slow one stays idle", (4, 1), 32, [(1, 32)]),
    ("the slow one stays idle while the others finish sooner", (4, 1, 1, 1), 96, [(1, 32), (2, 32), (3, 32)]),
    ("also if they finish the next batches sooner", (4, 1, 1), 100, [(1, 32), (2, 32)]),
    ("the slow one works if the queue is long", (4, 1), 200, [(1, 32), (0, 32)]),
    ("slightly slower, short queue", (1.5, 1), 2, [(1, 2)]),
    ("slightly slower, more than one batch waits", (1.5, 1), 40, [(1, 20), (0, 20)]),
    ("much slower, very long queue", (100, 1), 4000, [(1, 32), (0, 32)]),
    ("much slower, long queue", (100, 1), 1000, [(1, 32)]),
]


@pytest.mark.parametrize(("factors", "waiting", "batches"), [row[1:] for row in IDLE], ids=[row[0] for row in IDLE])
def test_batches_of_idle_workers(factors: tuple[float, ...], waiting: int, batches: list[tuple[int, int]]) -> None:
    scene = Scene(*factors)
    scene.submit(waiting)
    assert scene.dispatch() == batches


def test_a_slow_idle_worker_gets_a_batch_when_the_queue_grows() -> None:
    scene = Scene(4, 1)
    scene.submit(1)
    assert scene.dispatch() == [(1, 1)]
    scene.submit(5)
    assert scene.dispatch(0.001) == []
    # The slow one would take 16 ms. The fast one finishes this batch in 3 ms, and then one every 5 ms.
    scene.submit(40)
    assert scene.dispatch() == []
    scene.submit(60)
    assert scene.dispatch() == [(0, 32)]


def test_a_decision_to_wait_is_made_again_after_a_time() -> None:
    scene = Scene(4, 1)
    scene.submit(1)
    assert scene.dispatch() == [(1, 1)]
    scene.submit(1)
    assert scene.dispatch() == []
    given: list[tuple[int, int]] = []
    while not given:
        wake = scene.scheduler.next_wake()
        assert wake is not None
        assert scene.now < wake < scene.now + 0.02
        given = scene.dispatch(wake - scene.now)
    # The busy one is late. It may hang.
    assert given == [(0, 1)]
    assert 0.01 < scene.now - 100.0 < 0.1


def test_a_slow_worker_is_probed_and_used_again_once_it_is_fast() -> None:
    scene = Scene(4, 1)
    probes = 0
    for _ in range(2 * PROBE_AFTER_BATCHES + 10):
        scene.submit(1)
        ((slot, rows),) = scene.dispatch(PROBE_IDLE_S / PROBE_AFTER_BATCHES)
        probes += slot == 0
        assert rows == 1
        scene.answer(slot, 4 * FIXED_S if slot == 0 else FIXED_S + ROW_S)
    assert probes == 2
    shares = [0, 0]
    for _ in range(2 * PROBE_AFTER_BATCHES):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(PROBE_IDLE_S / PROBE_AFTER_BATCHES)
        shares[slot] += 1
        scene.answer(slot, FIXED_S + ROW_S)
    assert shares[0] > 0.4 * PROBE_AFTER_BATCHES, "one probe was enough, and then they take turns"


def test_a_worker_that_becomes_slow_gets_nothing_after_a_few_batches() -> None:
    scene = Scene(1, 1)
    slots = []
    for _ in range(40):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        slots.append(slot)
        scene.answer(slot, (8 if slot == 0 else 1) * (FIXED_S + ROW_S))
    assert slots.count(0) <= OUTLIER_STREAK + 2
    assert slots[-20:] == [1] * 20


@pytest.mark.parametrize("rule", Rule)
def test_similar_workers_take_turns(rule: Rule) -> None:
    scene = Scene(1, 1.02, 0.98, 1.05, rule=rule)
    slots = []
    for number in range(40):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        slots.append(slot)
        scene.answer(slot, FIXED_S * (1 + 0.05 * (number % 3)))
    assert slots == [0, 1, 2, 3] * 10


def test_a_new_worker_counts_as_the_fastest_until_it_is_measured() -> None:
    scene = Scene()
    one = scene.worker(None)
    for _ in range(MIN_MEASURED):
        scene.submit(1)
        scene.dispatch()
        scene.answer(one.slot, 0.004)
    other = scene.worker(None)
    scene.submit(1)
    assert scene.dispatch(1.0) == [(one.slot, 1)]
    scene.submit(1)
    assert scene.dispatch() == [(other.slot, 1)]


def test_a_new_worker_gets_a_batch_at_once_although_most_others_are_slow() -> None:
    scene = Scene()
    for _ in range(3):
        scene.worker(None)
    times = [4 * FIXED_S, 4 * FIXED_S, FIXED_S, FIXED_S]
    slots = []
    for number in range(120):
        if number == 100:
            scene.worker(None)
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        slots.append(slot)
        scene.answer(slot, times[slot])
    assert slots[20:100] == [2] * 80, "once the slow ones are measured"
    assert slots[100:].count(3) in (9, 10, 11), "it takes turns with the fast one"


def test_without_measured_times_free_workers_get_batches_and_none_gets_two() -> None:
    scene = Scene()
    for _ in range(2):
        scene.worker(None)
    scene.submit(10)
    assert scene.dispatch() == [(0, 5), (1, 5)]
    scene.submit(100)
    assert scene.dispatch(10.0) == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert wake > scene.now + 1000, "only its deadline"
    # The first batches are measured, and the next one is given by these times.
    scene.answer(0, 0.004)
    assert scene.dispatch() == [(0, 32)]


def test_least_depth_uses_no_times() -> None:
    scene = Scene(100, 1, rule=Rule.LEAST_DEPTH)
    scene.submit(2)
    assert scene.dispatch() == [(0, 1), (1, 1)]
    scene.submit(100)
    assert scene.dispatch(0.003) == []
    assert scene.scheduler.pool.next_prefetch == inf
    scene.answer(1)
    assert scene.dispatch() == [(1, 32)]


def test_a_reload_may_change_the_rule_while_workers_have_two_batches() -> None:
    scene = Scene(1)
    scene.submit(1 + LARGEST)
    scene.dispatch()
    scene.submit(LARGEST)
    behind = scene.dispatch(FIXED_S + ROW_S * LARGEST - LOOP_DELAY_S / 2)
    assert behind == [(0, LARGEST)]
    scene.scheduler.set_dispatch(Rule.LEAST_DEPTH)
    scene.submit(10)
    scene.answer(0)
    assert scene.dispatch(FIXED_S + ROW_S * LARGEST) == [], "it is executing the second batch"
    scene.answer(0)
    (batch,) = scene.dispatch()
    assert batch[0] == 0
    scene.scheduler.set_dispatch(Rule.EARLIEST_FINISH)
    scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S * batch[1] - LOOP_DELAY_S / 2) == [(0, LARGEST)], "measured times are kept"


# Measured times.


def test_estimates_use_the_padded_size() -> None:
    scene = Scene(sizes=(8, 32))
    worker = scene.worker(None)
    for count in (3, 8, 20, 32) * 20:
        scene.submit(count)
        scene.dispatch()
        scene.answer(0, FIXED_S + 0.001 * (8 if count <= 8 else 32))
    estimate = worker.estimates.find(KEY.id)
    assert estimate is not None
    assert estimate.seconds(8) == pytest.approx(FIXED_S + 0.008, rel=0.05)
    assert estimate.seconds(32) == pytest.approx(FIXED_S + 0.032, rel=0.05)
    scene.submit(1)
    scene.dispatch()
    assert worker.finish_at - scene.now == pytest.approx(FIXED_S + 0.008, rel=0.05)


def test_batches_with_errors_measure_nothing() -> None:
    scene = Scene()
    worker = scene.worker(None)
    for _ in range(2 * MIN_MEASURED):
        scene.submit(1)
        scene.dispatch()
        assert worker.batch is not None
        scene.now += 1e-5
        scene.scheduler.finish(worker, worker.batch.id, [make(Reason.MODEL_ERROR, "at once")], scene.now)
    assert worker.estimates.find(KEY.id) is None


# What a request costs.


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests for which workers are asked from now on whether they can run them."""
    asked: list[Request] = []
    original = Worker.can_run

    def can_run(worker: Worker, request: Request) -> bool:
        asked.append(request)
        return original(worker, request)

    monkeypatch.setattr(Worker, "can_run", can_run)
    return asked


def test_a_request_costs_the_same_however_many_workers_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that finds no worker free asks none."""
    scene = Scene(*[1.0] * 16)
    scene.submit(16)
    assert len(scene.dispatch()) == 16
    asked = asked_for(monkeypatch)
    for _ in range(100):
        scene.submit(1)
        assert scene.dispatch(1e-6) == []
    assert asked == []


def test_a_request_costs_the_same_while_a_slow_worker_stays_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(4, *[1.0] * 15)
    scene.submit(16)
    assert len(scene.dispatch()) == 15
    asked = asked_for(monkeypatch)
    for _ in range(100):
        scene.submit(1)
        assert scene.dispatch(1e-6) == []
    assert len(asked) <= 3 * 16, "asked when the decision to wait was made, not for each request"
