"""Deaths and spares, as histories of a fleet without processes; renewals: tests/unit/test_renewal.py."""

from __future__ import annotations

from dataclasses import replace

from fake_workers import Scene, child

from multitower.supervisor.workers.exit_cause import Fault, Verdict
from multitower.supervisor.workers.replacement_queue import RETRY_S
from multitower.supervisor.workers.slot_state_machine import State


def test_a_dead_worker_gets_nothing_while_it_waits_to_be_buried() -> None:
    """Else a request would count a death that it had no part in; with `retry: 0` it would be answered by an error."""
    scene = Scene(retry=0)
    dead = scene.serve(scene.process())
    child(dead).disconnected = False  # a child of it holds its channel open
    scene.exit(dead)
    scene.submit()
    assert scene.running == {}
    scene.tick(1.0)
    assert child(dead).closed
    scene.settle()
    (answer,) = scene.replies()
    assert isinstance(answer, list)


def test_spares_that_died_too_often_come_back_with_an_operators_restart() -> None:
    scene = Scene(spares=1, max_restarts=2)
    serving = scene.serve(scene.process())
    while scene.manager.spares:
        scene.die(scene.manager.spares[0], 73)
        scene.tick(2.0)
    assert scene.alive() == [serving]
    told: list[str | None] = []
    scene.manager.restart_slot(scene.slot(), told.append)
    scene.settle(lambda: told == [None])
    assert scene.state() is State.READY
    scene.tick()
    assert len(scene.manager.spares) == 1


def limited(scene: Scene, max_requests: int | None) -> None:
    """As a reload does whose models are the same."""
    scene.manager.apply_settings(replace(scene.manager.settings, max_requests=max_requests))
    scene.tick()


def used(scene: Scene, slots: int, requests: int) -> None:
    """Every slot's worker has answered so many."""
    for _ in range(requests):
        for _ in range(slots):
            scene.submit()
        for slot in range(slots):
            scene.answer(scene.process(slot))


def test_a_new_limit_of_requests_counts_for_those_that_serve_already() -> None:
    scene = Scene(2)
    veterans = [scene.serve(scene.process(slot)) for slot in (0, 1)]
    used(scene, 2, 20)
    limited(scene, 1000)
    assert not scene.manager.replacing
    limited(scene, 10)
    # One after the other: the second waits until the first is done.
    assert scene.next_process(0) is not None
    assert scene.slot(1).next_process is None
    scene.settle()
    assert [scene.state(slot) for slot in (0, 1)] == [State.READY] * 2
    assert not {scene.process(slot) for slot in (0, 1)} & set(veterans)
    used(scene, 2, 8)
    scene.tick(10.0)
    assert not scene.manager.replacing


def test_workers_reach_their_limits_at_moments_of_their_own() -> None:
    scene = Scene(8)
    assert len({scene.process(slot).replacement_jitter for slot in range(8)}) == 8
    assert all(0 <= scene.process(slot).replacement_jitter <= 1 for slot in range(8))


def test_a_worker_whose_replacement_cannot_load_is_not_replaced_at_every_heartbeat() -> None:
    scene = Scene()
    old = scene.serve(scene.process())
    used(scene, 1, 20)

    def tried() -> int:
        if scene.slot().next_process is None:
            return 0
        scene.report(scene.next_process(), "failed", "the weights are gone")
        scene.end_told()
        scene.tick()
        return 1

    limited(scene, 10)
    assert tried() == 1
    assert sum(scene.tick(1.0) or tried() for _ in range(int(RETRY_S) - 2)) == 0
    assert sum(scene.tick(1.0) or tried() for _ in range(4)) == 1
    assert scene.process() is old
    assert scene.state() is State.READY


def test_a_process_that_is_dead_is_not_served_though_its_ready_is_read_later() -> None:
    scene = Scene(retry=0)
    process = scene.process()
    scene.report(process, "loading")
    child(process).disconnected = False
    scene.exit(process)
    scene.report(process, "ready")
    scene.submit()
    assert not scene.running
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list]


def test_a_process_that_is_to_be_killed_is_not_served() -> None:
    scene = Scene(retry=0)
    process = scene.process()
    scene.report(process, "loading")
    scene.manager._exits.condemn_process(process, Verdict(Fault.HANGS, "missed heartbeats"), scene.now)
    scene.report(process, "ready")
    scene.submit()
    assert not scene.running


def test_a_successor_that_is_to_be_killed_does_not_take_over() -> None:
    scene = Scene()
    old = scene.serve(scene.process())
    scene.order(0)
    scene.tick()
    new = scene.next_process()
    scene.report(new, "loading")
    scene.manager._exits.condemn_process(new, Verdict(Fault.HANGS, "missed heartbeats"), scene.now)
    scene.report(new, "ready")
    assert scene.process() is old
