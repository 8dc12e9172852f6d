"""Deaths, limits and spares, with fake processes; replacements: tests/unit/test_replacement.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_workers import Scene, child

from multitower.supervisor.workers.exit_cause import Fault, Verdict
from multitower.supervisor.workers.planned_replacement_queue import RETRY_S
from multitower.supervisor.workers.process_watcher import SocketClosed
from multitower.supervisor.workers.slot_state_machine import State


def test_a_dead_worker_gets_no_batch_before_it_is_released() -> None:
    """Otherwise a request would count a death that it did not cause; with `retry: 0` it would fail."""
    scene = Scene(retry=0)
    dead = scene.serve(scene.process())
    scene.exit(dead)
    scene.submit()
    assert scene.running == {}
    scene.tick(1.0)
    assert child(dead).closed
    scene.settle()
    (answer,) = scene.replies()
    assert isinstance(answer, list)


def test_a_worker_that_has_closed_its_socket_gets_no_batch() -> None:
    scene = Scene(slots=2)
    first, second = (scene.serve(scene.process(slot)) for slot in range(2))
    scene.watcher.events.append(SocketClosed(first))
    scene.tick()
    for _ in range(3):
        scene.submit()
    assert second.route is not None
    assert list(scene.running) == [second.route.worker]
    scene.exit(first)
    scene.watcher.events.append(SocketClosed(first))  # one that is found while it is released
    scene.settle()
    assert len(scene.replies()) == 3


def test_an_operators_restart_brings_back_spares_that_died_too_often() -> None:
    scene = Scene(spares=1, max_restarts=2)
    serving = scene.serve(scene.process())
    while scene.manager.spares:
        scene.die(scene.manager.spares[0], 73)
        scene.tick(2.0)
    assert scene.alive() == [serving]
    outcomes: list[str | None] = []
    scene.manager.restart_slot(scene.slot(), outcomes.append)
    scene.settle(lambda: outcomes == [None])
    assert scene.state() is State.READY
    scene.tick()
    assert len(scene.manager.spares) == 1


def test_a_new_restart_policy_applies_to_spares_too() -> None:
    scene = Scene(spares=1, max_restarts=0)
    scene.serve(scene.process())
    scene.tick()
    policy = replace(scene.manager.settings.policy, max_restarts=100)
    scene.manager.apply_settings(replace(scene.manager.settings, policy=policy))
    scene.die(scene.manager.spares[0], 73)
    scene.tick(2.0)
    assert len(scene.manager.spares) == 1


def set_limit(scene: Scene, max_requests: int | None) -> None:
    """Sets the limit as a reload that changes no model does."""
    scene.manager.apply_settings(replace(scene.manager.settings, max_requests=max_requests))
    scene.tick()


def answer_requests(scene: Scene, slots: int, requests: int) -> None:
    """Lets the worker of each slot answer so many requests."""
    for _ in range(requests):
        for _ in range(slots):
            scene.submit()
        for slot in range(slots):
            scene.answer(scene.process(slot))


def test_a_new_limit_of_requests_applies_to_workers_that_serve_already() -> None:
    scene = Scene(2)
    former = [scene.serve(scene.process(slot)) for slot in (0, 1)]
    answer_requests(scene, 2, 20)
    set_limit(scene, 1000)
    assert not scene.manager.replacing
    set_limit(scene, 10)
    # One after the other: the second waits until the first is done.
    assert scene.next_process(0) is not None
    assert scene.slot(1).next_process is None
    scene.settle()
    assert [scene.state(slot) for slot in (0, 1)] == [State.READY] * 2
    assert not {scene.process(slot) for slot in (0, 1)} & set(former)
    answer_requests(scene, 2, 8)
    scene.tick(10.0)
    assert not scene.manager.replacing


def test_workers_reach_their_limits_at_different_times() -> None:
    scene = Scene(8)
    assert len({scene.process(slot).replacement_jitter for slot in range(8)}) == 8
    assert all(0 <= scene.process(slot).replacement_jitter <= 1 for slot in range(8))


def test_a_worker_whose_replacement_cannot_load_is_not_replaced_at_every_heartbeat() -> None:
    scene = Scene()
    old = scene.serve(scene.process())
    answer_requests(scene, 1, 20)

    def try_replacement() -> int:
        if scene.slot().next_process is None:
            return 0
        scene.report(scene.next_process(), "failed", "the weights are gone")
        scene.let_processes_end()
        scene.tick()
        return 1

    set_limit(scene, 10)
    assert try_replacement() == 1
    assert sum(scene.tick(1.0) or try_replacement() for _ in range(int(RETRY_S) - 2)) == 0
    assert sum(scene.tick(1.0) or try_replacement() for _ in range(4)) == 1
    assert scene.process() is old
    assert scene.state() is State.READY


def test_a_dead_process_does_not_serve_although_its_report_is_read_later() -> None:
    scene = Scene(retry=0)
    process = scene.process()
    scene.report(process, "loading")
    scene.exit(process)
    scene.report(process, "ready")
    scene.submit()
    assert not scene.running
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list]


def test_a_condemned_process_does_not_serve() -> None:
    scene = Scene(retry=0)
    process = scene.process()
    scene.report(process, "loading")
    scene.manager._exits.condemn_process(process, Verdict(Fault.HANGS, "missed heartbeats"), scene.now)
    scene.report(process, "ready")
    scene.submit()
    assert not scene.running


def test_a_condemned_replacement_does_not_take_over() -> None:
    scene = Scene()
    old = scene.serve(scene.process())
    scene.order(0)
    scene.tick()
    new = scene.next_process()
    scene.report(new, "loading")
    scene.manager._exits.condemn_process(new, Verdict(Fault.HANGS, "missed heartbeats"), scene.now)
    scene.report(new, "ready")
    assert scene.process() is old


# A process that dumps its core.


@pytest.mark.parametrize("how", ["told to end", "condemned"])
def test_a_process_that_dumps_its_core_is_not_killed_before_the_limit(how: str) -> None:
    scene = Scene()
    process = scene.serve(scene.process())
    child(process).dumping = True
    if how == "condemned":
        scene.manager._exits.condemn_process(process, Verdict(Fault.DEVICE_LOST, "its device is gone"), scene.now)
    else:
        scene.manager._exits.end_process(process, scene.now)
        child(process).told_to_end = False  # by a message, which it does not read any more
    for _ in range(60):
        scene.tick(10.0)
        assert not child(process).told_to_end
    scene.tick(20.0)
    assert child(process).told_to_end, "the limit is over"


def test_a_process_that_loads_and_dumps_its_core_is_not_killed_when_the_daemon_ends() -> None:
    scene = Scene()
    process = scene.process()
    scene.report(process, "loading")
    child(process).dumping = True
    scene.manager.stop(scene.now)
    scene.tick(5.0)
    assert not child(process).told_to_end
    child(process).dumping = False
    scene.tick(5.0)
    assert child(process).told_to_end
