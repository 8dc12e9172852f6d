"""Whether a worker counts as slow, as unresponsive or as dead, from what is known of it at one moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from daemon_scene import DaemonScene
from fake_workers import child

from multitower.supervisor.scheduling.pool_worker import Worker
from multitower.supervisor.scheduling.request import BatchKey
from multitower.supervisor.workers.condition import (
    IN_USE_S,
    Condition,
    RunningBatch,
    examine_process,
    find_slow_workers,
)
from multitower.supervisor.workers.hang_detector import ProcessStat
from multitower.worker_wire import KeySpec

OK, SLOW, UNRESPONSIVE, DIED = Condition
KEY = BatchKey(KeySpec("m", (("x", "UINT8", ()),), None, True), 32)
OTHER = BatchKey(KeySpec("n", (("x", "UINT8", ()),), None, True), 32)
NOW = 1000.0


# A process, by its heartbeats, its state and its batches.

PROCESSES = {
    # heartbeat's age, interval, state, batches as (seconds running, usual seconds), loading: condition, cause
    "just started a batch": (0.5, 1.0, None, [(0.0, 0.01)], False, OK, None),
    "heartbeat a little late": (1.4, 1.0, "S", [], False, OK, None),
    "heartbeat late, asleep": (1.6, 1.0, "S", [], False, UNRESPONSIVE, "no heartbeat for 1.6 s"),
    "heartbeat late, in a driver": (1.6, 1.0, "D", [], False, UNRESPONSIVE, "no heartbeat for 1.6 s"),
    "heartbeat late, computing": (60.0, 1.0, "R", [], False, OK, None),
    "heartbeat late, the system does not tell its state": (60.0, 1.0, None, [], False, OK, None),
    "heartbeat late, loading": (60.0, 1.0, "S", [], True, OK, None),
    "many heartbeats a second, one late": (0.9, 0.05, "S", [], False, OK, None),
    "many heartbeats a second, none for a second": (1.1, 0.05, "S", [], False, UNRESPONSIVE, "no heartbeat for 1.1 s"),
    "stopped": (1.1, 1.0, "T", [], False, UNRESPONSIVE, "its process is stopped"),
    "stopped, while heartbeats are rare": (1.1, 60.0, "T", [], False, UNRESPONSIVE, "its process is stopped"),
    "stopped while it loads": (1.1, 1.0, "T", [], True, UNRESPONSIVE, "its process is stopped"),
    "stopped by a debugger": (1.1, 1.0, "t", [], False, UNRESPONSIVE, "its process is stopped"),
    "short batch runs on": (0.5, 1.0, None, [(0.7, 0.001)], False, OK, None),
    "short batch runs for too long": (
        *(0.5, 1.0, None, [(1.1, 0.001)], False, UNRESPONSIVE),
        "its batch has run for 1.1 s; such batches take 1 ms",
    ),
    "long batch runs on": (0.5, 1.0, None, [(29.0, 3.0)], False, OK, None),
    "long batch runs for too long": (
        *(0.5, 1.0, None, [(31.0, 3.0)], False, UNRESPONSIVE),
        "its batch has run for 31 s; such batches take 3 s",
    ),
    "batch of an unknown kind": (0.5, 1.0, None, [(3600.0, None)], False, OK, None),
    "second tower runs for too long": (
        *(0.5, 1.0, None, [(0.1, 0.1), (5.0, 0.1)], False, UNRESPONSIVE),
        "its batch has run for 5 s; such batches take 0.1 s",
    ),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_is_judged_by_its_heartbeats_its_state_and_its_batches(name: str) -> None:
    age_s, interval_s, state, batches, loading, condition, cause = PROCESSES[name]
    running = [RunningBatch(*batch) for batch in batches]
    found = examine_process(age_s, interval_s, state, running, loading=loading)
    assert (found.condition, found.cause) == (condition, cause)


# Workers, by what their batches take.


def worker(seconds: float | None, key: BatchKey = KEY, at: float = NOW, rows: int = 8) -> Worker:
    """A worker whose batches take so many seconds; None for one that has not been measured."""
    made = Worker(0, "cpu:0", {}, {}, NOW)
    for _ in range(10 if seconds is not None else 0):
        made.estimates.add(key, rows, seconds or 0.0, at)
    return made


WORKERS = {
    # seconds of each worker's batches: the slow ones, each with a factor
    "one": ([0.01], {}),
    "two alike": ([0.010, 0.012], {}),
    "one of two": ([0.01, 0.21], {1: 21}),
    "one of three": ([0.011, 0.05, 0.01], {1: 5}),
    "a little slower": ([0.01, 0.029], {}),
    "two of four": ([0.01, 0.04, 0.01, 0.04], {1: 4, 3: 4}),
    "slow by less than a millisecond": ([0.0001, 0.001], {}),
    "not measured": ([0.01, None], {}),
}


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_slow_if_its_batches_take_much_longer_than_those_of_the_others(name: str) -> None:
    times, slow = WORKERS[name]
    workers = [worker(seconds) for seconds in times]
    found = find_slow_workers(workers, NOW)
    assert {workers.index(each) for each in found} == set(slow)
    for number, factor in slow.items():
        finding = found[workers[number]]
        assert finding.condition is SLOW
        assert finding.cause is not None
        assert finding.cause.startswith("its batches of m take ")
        assert finding.cause.endswith(f", {factor} times as long as those of the other workers")


def test_a_worker_without_others_is_slow_if_its_batches_take_much_longer_than_before() -> None:
    alone = worker(0.02)
    assert find_slow_workers([alone], NOW) == {}
    for _ in range(4):
        alone.estimates.add(KEY, 8, 0.1, NOW)
    assert find_slow_workers([alone], NOW)[alone].cause == "its batches of m take 0.1 s, 5 times as long as before"
    alone.estimates.add(KEY, 8, 0.1, NOW + 100.0)
    assert find_slow_workers([alone], NOW + 100.0) == {}, "it is usual by now"


def test_the_slowest_of_several_models_is_named() -> None:
    both = worker(0.04)
    for _ in range(10):
        both.estimates.add(OTHER, 8, 0.1, NOW)
    workers = [both, worker(0.01), worker(0.01, OTHER)]
    cause = find_slow_workers(workers, NOW)[both].cause
    assert cause == "its batches of n take 0.1 s, 10 times as long as those of the other workers"


def test_batches_that_nobody_sends_any_more_say_nothing() -> None:
    fast, slow = worker(0.01, at=NOW), worker(0.1, at=NOW - IN_USE_S)
    assert set(find_slow_workers([fast, slow], NOW)) == {slow}, "it gets none, since it is slow"
    assert find_slow_workers([fast, slow], NOW + IN_USE_S + 1.0) == {}


def test_batches_of_different_sizes_are_compared_at_the_same_size() -> None:
    small, large = worker(0.01, rows=1), worker(None)
    for rows in (1, 16, 32) * 10:
        large.estimates.add(KEY, rows, 0.01 * rows, NOW)
    assert find_slow_workers([small, large, worker(0.16, rows=16)], NOW) == {}


# Slots, as the status shows them.


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonScene:
    return DaemonScene(tmp_path, [("m",), ("m",)])


def shown(daemon: DaemonScene, slot: int = 0) -> dict[str, Any]:
    row: dict[str, Any] = daemon.operations.status.report(daemon.scene.now)["slots"][slot]
    return row


def beat(daemon: DaemonScene) -> None:
    for process in daemon.scene.alive():
        process.hang_detector.record_heartbeat(daemon.scene.now, [0])


def test_an_idle_worker_is_ok_and_has_no_batch(daemon: DaemonScene) -> None:
    beat(daemon)
    daemon.scene.now += 0.25
    slot = shown(daemon)
    assert (slot["condition"], slot["condition_cause"]) == ("ok", None)
    assert (slot["heartbeat_age_s"], slot["batch_running_s"]) == (0.25, None)


def test_a_stopped_worker_is_unresponsive_before_it_is_killed(daemon: DaemonScene) -> None:
    beat(daemon)
    child(daemon.scene.process(0)).stat = ProcessStat("T", 1.0)
    daemon.scene.now += 1.1
    assert daemon.scene.process(0).usable, "the hang detector waits for two heartbeats"
    assert [shown(daemon, number)["condition"] for number in (0, 1)] == ["unresponsive", "ok"]
    daemon.scene.tick()
    daemon.scene.tick(1.0)  # as often as in the daemon: otherwise its own loop counts as stalled
    process = daemon.scene.process(0)
    assert not process.usable
    assert shown(daemon)["condition_cause"] == "no heartbeat for 2.1 s: the process is stopped"


def test_a_worker_whose_core_is_being_dumped_is_unresponsive(daemon: DaemonScene) -> None:
    beat(daemon)
    child(daemon.scene.process(0)).stat = ProcessStat("S", 1.0, dumping=True)
    daemon.scene.now += 1.1
    assert "core" in shown(daemon)["condition_cause"]


def test_a_batch_that_runs_for_long_is_told_with_what_such_batches_take(daemon: DaemonScene) -> None:
    scene = daemon.scene
    for _ in range(6):
        scene.submit(rows=2)
        scene.now += 0.02
        for process in scene.alive():
            if process.route is not None and process.route.worker in scene.running:
                scene.answer(process)
    scene.submit(rows=2)
    (worker,) = scene.running
    scene.now += 1.5
    beat(daemon)
    slot = shown(daemon, worker.slot)
    assert slot["condition"] == "unresponsive"
    assert slot["condition_cause"].startswith("its batch has run for 1.5 s")
    assert slot["batch_running_s"] == 1.5
    assert shown(daemon, 1 - worker.slot)["condition"] == "ok"


def test_a_slot_whose_worker_died_is_dead_until_another_one_serves(daemon: DaemonScene) -> None:
    scene = daemon.scene
    assert shown(daemon)["condition"] == "ok"
    scene.exit(scene.process(0), -9)
    assert shown(daemon)["condition"] == "died", "not yet released"
    scene.tick()
    slot = shown(daemon)
    assert slot["condition"] == "died"
    assert "SIGKILL" in slot["condition_cause"]
    scene.tick(2.0)
    assert shown(daemon)["condition"] == "died", "another one loads"
    scene.serve(scene.process(0))
    assert shown(daemon)["condition"] == "ok"


def test_a_slot_that_starts_for_the_first_time_has_not_died(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m",)])
    process = daemon.scene.process(0)
    process.route, process.state = None, "loading"
    assert shown(daemon)["condition"] == "ok"


def test_a_slot_without_a_model_has_no_condition(daemon: DaemonScene) -> None:
    daemon.carry_out("unload", "m")
    assert [shown(daemon, number)["condition"] for number in (0, 1)] == [None, None]
    assert shown(daemon)["heartbeat_age_s"] is None
