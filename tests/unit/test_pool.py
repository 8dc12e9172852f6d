"""Who gets the next batch, and when: tables of devices, of what they have to do yet, and of what waits."""

from __future__ import annotations

from math import inf

import pytest
from scheduler_scene import FIXED_S, KEY, LARGEST, ROW_S, UNBATCHED, Scene, add_worker

from multitower.errors import Reason, make
from multitower.supervisor.scheduling.estimate import MIN_MEASURED, OUTLIER_STREAK
from multitower.supervisor.scheduling.pool import LOOP_DELAY_S, MAX_LEAD_SHARE, SHORT_BATCH_VALID_FOR, Rule
from multitower.supervisor.scheduling.request import Request
from multitower.supervisor.scheduling.worker import Served, Worker
from multitower.supervisor.scheduling.worker_choice import PROBE_AFTER_BATCHES, PROBE_IDLE_S

IDLE = [
    # Times of the devices, one-row requests that wait, batches.
    ("one alone gets it", (1,), 1, [(0, 1)]),
    ("alike: shared out", (1, 1), 10, [(0, 5), (1, 5)]),
    ("about alike: shared out", (1.05, 1), 10, [(0, 5), (1, 5)]),
    ("the fast one gets it", (4, 1), 1, [(1, 1)]),
    ("the slow one stays idle", (4, 1), 32, [(1, 32)]),
    ("the slow one stays idle while the others are done sooner", (4, 1, 1, 1), 96, [(1, 32), (2, 32), (3, 32)]),
    ("and while they are done sooner with the next ones", (4, 1, 1), 100, [(1, 32), (2, 32)]),
    ("it works when the queue is long", (4, 1), 200, [(1, 32), (0, 32)]),
    ("a bit slower, and the queue is short", (1.5, 1), 2, [(1, 2)]),
    ("a bit slower, and more waits than one batch", (1.5, 1), 40, [(1, 20), (0, 20)]),
    ("much slower, and the queue is very long", (100, 1), 4000, [(1, 32), (0, 32)]),
    ("much slower, and the queue is long", (100, 1), 1000, [(1, 32)]),
]


@pytest.mark.parametrize(("factors", "waiting", "batches"), [row[1:] for row in IDLE], ids=[row[0] for row in IDLE])
def test_who_gets_what_while_all_are_idle(
    factors: tuple[float, ...], waiting: int, batches: list[tuple[int, int]]
) -> None:
    scene = Scene(*factors)
    scene.submit(waiting)
    assert scene.dispatch() == batches


def test_a_slow_idle_one_waits_for_what_the_busy_ones_do_not_manage_and_gets_it_when_the_queue_grows() -> None:
    scene = Scene(4, 1)
    scene.submit(1)
    assert scene.dispatch() == [(1, 1)]
    scene.submit(5)
    assert scene.dispatch(0.001) == []
    # The slow one would take 16 ms; the fast one is done with this one in 3, and then with one every 5.
    scene.submit(40)
    assert scene.dispatch() == []
    scene.submit(60)
    assert scene.dispatch() == [(0, 32)]


def test_that_is_looked_at_again_though_nothing_happens() -> None:
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
    # The busy one is late, and may be for long: it hangs, perhaps.
    assert given == [(0, 1)]
    assert 0.01 < scene.now - 100.0 < 0.1


def test_a_slow_one_is_tried_now_and_then_and_believed_when_it_is_fast_again() -> None:
    scene = Scene(4, 1)
    tries = 0
    for _ in range(2 * PROBE_AFTER_BATCHES + 10):
        scene.submit(1)
        ((slot, rows),) = scene.dispatch(PROBE_IDLE_S / PROBE_AFTER_BATCHES)
        tries += slot == 0
        assert rows == 1
        scene.answer(slot, 4 * FIXED_S if slot == 0 else FIXED_S + ROW_S)
    assert tries == 2
    shares = [0, 0]
    for _ in range(2 * PROBE_AFTER_BATCHES):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(PROBE_IDLE_S / PROBE_AFTER_BATCHES)
        shares[slot] += 1
        scene.answer(slot, FIXED_S + ROW_S)
    assert shares[0] > 0.4 * PROBE_AFTER_BATCHES, "one try was enough, and since then they take turns"


def test_one_that_becomes_slow_is_left_alone_after_a_few_batches() -> None:
    scene = Scene(1, 1)
    given = []
    for _ in range(40):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        given.append(slot)
        scene.answer(slot, (8 if slot == 0 else 1) * (FIXED_S + ROW_S))
    assert given.count(0) <= OUTLIER_STREAK + 2
    assert given[-20:] == [1] * 20


@pytest.mark.parametrize(
    ("factors", "turns"),
    [
        pytest.param((0.05, 0.01), [0, 0, 0, 0], id="choosing gains less than it costs"),
        pytest.param((0.1, 0.01), [1, 1, 1, 1], id="it gains more"),
    ],
)
def test_brief_batches_go_to_whom_of_the_free_was_at_it_last(factors: tuple[float, ...], turns: list[int]) -> None:
    scene = Scene(*factors)
    given = []
    for _ in turns:
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        given.append(slot)
        scene.answer(slot, factors[slot] * FIXED_S, factors[slot] * FIXED_S)
    assert given == turns


def test_workers_of_other_models_do_not_keep_batches_from_being_brief() -> None:
    scene = Scene(0.05, 0.01)
    add_worker(scene.scheduler, 2, "cpu:1", {"n": Served()}, scene.now)
    for _ in range(4):
        scene.submit(1)
        assert scene.dispatch(0.001) == [(0, 1)], "the slower one was at it last, and choosing costs more than it gains"
        scene.answer(0, 0.05 * FIXED_S, 0.05 * FIXED_S)


def test_others_are_woken_for_brief_batches_when_they_are_whole_or_the_first_is_not_back() -> None:
    scene = Scene(0.05, 0.05, 0.05)
    scene.submit(30)
    assert scene.dispatch() == [(0, 30)]
    scene.submit(LARGEST - 1)
    assert scene.dispatch(0.0001) == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert scene.now < wake < scene.now + 0.001
    scene.submit(2)
    assert scene.dispatch() == [(1, LARGEST)]
    scene.answer(0, 0.0001, 0.0001)
    scene.answer(1, 0.0001, 0.0001)
    assert scene.dispatch() == [(1, 1)], "who was at it last"
    scene.submit(5)
    assert scene.dispatch() == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert scene.dispatch(wake - scene.now) == [(0, 5)], "it is not back"


def test_brief_requests_that_run_one_by_one_travel_together() -> None:
    scene = Scene(0.005, 0.005)  # 20 us a request
    scene.submit(20, key=UNBATCHED)
    assert scene.dispatch() == [(0, 14)]
    scene.submit(5, key=UNBATCHED)
    assert scene.dispatch(0.0001) == []
    scene.answer(0, 0.0001, 0.0003)
    assert scene.dispatch() == [(0, 11)]


@pytest.mark.parametrize(
    ("factor", "retry"),
    [pytest.param(0.1, 1, id="not brief"), pytest.param(0.005, 0, id="a neighbour's crash would be theirs")],
)
def test_other_requests_that_run_one_by_one_travel_alone(factor: float, retry: int) -> None:
    scene = Scene(factor, retry=retry)
    scene.submit(20, key=UNBATCHED)
    assert scene.dispatch() == [(0, 1)]


def test_of_those_that_travelled_together_each_runs_alone_after_a_death() -> None:
    scene = Scene(0.005, 0.005)
    scene.submit(3, key=UNBATCHED)
    assert scene.dispatch() == [(0, 3)]
    scene.scheduler.remove_process(scene.workers[0], scene.now, crashed=True)
    for _ in range(3):
        assert scene.dispatch() == [(1, 1)]
        scene.answer(1, 0.0001)
    assert not scene.scheduler.busy


def test_one_whose_batches_are_brief_no_more_is_found_out() -> None:
    scene = Scene(0.05, 0.05)
    given = []
    for _ in range(3 * SHORT_BATCH_VALID_FOR):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.0001)
        given.append(slot)
        scene.answer(slot, took := (1 if slot == 0 else 0.05) * (FIXED_S + ROW_S), took)
    assert given[:4] == [0, 0, 0, 0]
    assert given[-SHORT_BATCH_VALID_FOR // 2 :].count(0) <= 1, "but for a try"


@pytest.mark.parametrize("rule", Rule)
def test_those_that_are_alike_take_turns(rule: Rule) -> None:
    scene = Scene(1, 1.02, 0.98, 1.05, rule=rule)
    given = []
    for number in range(40):
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        given.append(slot)
        scene.answer(slot, FIXED_S * (1 + 0.05 * (number % 3)))
    assert given == [0, 1, 2, 3] * 10


def test_a_new_worker_is_as_fast_as_the_others_until_it_is_known() -> None:
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


def test_a_new_worker_is_tried_at_once_though_most_of_the_others_are_slow() -> None:
    scene = Scene()
    for _ in range(3):
        scene.worker(None)
    times = [4 * FIXED_S, 4 * FIXED_S, FIXED_S, FIXED_S]
    given = []
    for number in range(120):
        if number == 100:
            scene.worker(None)
        scene.submit(1)
        ((slot, _),) = scene.dispatch(0.001)
        given.append(slot)
        scene.answer(slot, times[slot])
    assert given[20:100] == [2] * 80, "as soon as the slow ones are known"
    assert given[100:].count(3) in (9, 10, 11), "it takes turns with the fast one"


def test_while_nothing_is_known_whoever_is_free_gets_it_and_nothing_is_sent_behind_another() -> None:
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
    # What was given before anything was known is measured, and the next one is given by that.
    scene.answer(0, 0.004)
    assert scene.dispatch() == [(0, 32)]


def test_least_depth_asks_for_no_times() -> None:
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
    assert scene.dispatch(FIXED_S + ROW_S * LARGEST) == [], "it is busy with the second one"
    scene.answer(0)
    (batch,) = scene.dispatch()
    assert batch[0] == 0
    scene.scheduler.set_dispatch(Rule.EARLIEST_FINISH)
    scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S + ROW_S * batch[1] - LOOP_DELAY_S / 2) == [(0, LARGEST)], (
        "what was measured before counts"
    )


# A second batch just in time.


def busy(scene: Scene) -> float:
    """Gives the only worker a batch of one row; when it is expected to end it."""
    scene.submit(1)
    assert scene.dispatch() == [(0, 1)]
    return scene.now + FIXED_S + ROW_S


def test_a_whole_batch_is_sent_shortly_before_the_end_of_the_one_before() -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(LARGEST)
    assert scene.dispatch() == []
    wake = scene.scheduler.next_wake()
    assert wake == pytest.approx(end - LOOP_DELAY_S, abs=0.0002)
    assert scene.dispatch(wake - scene.now - 0.0001) == []
    assert scene.dispatch(0.0002) == [(0, LARGEST)]
    (worker,) = scene.workers
    assert worker.depth == 1 + LARGEST
    scene.submit(3 * LARGEST)
    assert scene.dispatch() == []
    assert scene.dispatch(end - scene.now) == [], "two are the most"
    first = scene.answer(0)
    assert (worker.depth, first.queued) == (LARGEST, False)
    assert worker.batch is not None
    assert (worker.batch.queued, worker.batch.started) == (True, scene.now)


def test_what_is_no_whole_batch_yet_waits_and_may_grow() -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(LARGEST - 1)
    assert scene.dispatch(end - scene.now) == []
    scene.answer(0)
    assert scene.dispatch() == [(0, LARGEST - 1)]


def test_requests_that_run_singly_are_whole_batches() -> None:
    scene = Scene(1)
    scene.submit(2, key=UNBATCHED)
    assert scene.dispatch() == [(0, 1)]
    assert scene.dispatch(FIXED_S - LOOP_DELAY_S / 2) == [(0, 1)]


@pytest.mark.parametrize("late", [0.002, 0.05, 10.0])
def test_nothing_is_sent_behind_what_is_late(late: float) -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(LARGEST)
    assert scene.dispatch(end + late - scene.now) == []
    wake = scene.scheduler.next_wake()
    assert wake is not None
    assert wake > scene.now + 1000, "and the loop does not spin"


@pytest.mark.parametrize("hop_s", [0.0, 0.0003, 0.002])
def test_the_way_there_and_back_counts(hop_s: float) -> None:
    """It is sent earlier by that, but never earlier than a share of the time of the one before."""
    scene = Scene(1)
    for _ in range(50):
        scene.submit(1)
        scene.dispatch()
        scene.answer(0, FIXED_S + ROW_S + hop_s, FIXED_S + ROW_S)
    busy(scene)
    scene.submit(LARGEST)
    scene.dispatch()
    wake = scene.scheduler.next_wake()
    assert wake is not None
    lead = min(hop_s + LOOP_DELAY_S, MAX_LEAD_SHARE * (FIXED_S + ROW_S))
    assert wake - scene.now == pytest.approx(FIXED_S + ROW_S + hop_s - lead, abs=0.0002)


def test_one_that_is_about_to_be_done_may_be_better_than_a_slow_one_that_is_idle() -> None:
    scene = Scene(4, 1)
    scene.submit(1)
    assert scene.dispatch() == [(1, 1)]
    scene.submit(LARGEST)
    assert scene.dispatch(FIXED_S - LOOP_DELAY_S / 2) == [(1, LARGEST)]


# What is executed.


def test_padded_batches_are_expected_to_take_as_long_as_they_do() -> None:
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


def test_a_worker_that_is_held_gets_nothing_though_it_is_about_to_be_done() -> None:
    scene = Scene(1)
    end = busy(scene)
    scene.submit(2 * LARGEST)
    scene.scheduler.stop_dispatch(scene.workers[0])
    assert scene.dispatch(end - scene.now) == []
    scene.answer(0)
    assert scene.dispatch() == []


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that workers are asked for from now on, whether they can run them."""
    asked: list[Request] = []
    original = Worker.can_run

    def can_run(worker: Worker, request: Request) -> bool:
        asked.append(request)
        return original(worker, request)

    monkeypatch.setattr(Worker, "can_run", can_run)
    return asked


def test_a_request_costs_the_same_however_many_workers_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that find no worker free look at none."""
    scene = Scene(*[1.0] * 16)
    scene.submit(16)
    assert len(scene.dispatch()) == 16
    asked = asked_for(monkeypatch)
    for _ in range(100):
        scene.submit(1)
        assert scene.dispatch(1e-6) == []
    assert asked == []


def test_a_request_costs_the_same_while_a_slow_worker_is_left_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(4, *[1.0] * 15)
    scene.submit(16)
    assert len(scene.dispatch()) == 15
    asked = asked_for(monkeypatch)
    for _ in range(100):
        scene.submit(1)
        assert scene.dispatch(1e-6) == []
    assert len(asked) <= 3 * 16, "looked at when it was first found to be better to wait, not for each request"
