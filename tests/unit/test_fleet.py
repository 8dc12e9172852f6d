"""Deaths and spares, as histories of a fleet without processes; renewals: tests/unit/test_renewal.py."""

from __future__ import annotations

from made_up_fleet import Scene, process

from multitower.supervisor.slot import State


def test_a_dead_worker_gets_nothing_while_it_waits_to_be_buried() -> None:
    """Else a request would count a death that it had no part in; with `retry: 0` it would be answered by an error."""
    scene = Scene(retry=0)
    dead = scene.serve(scene.member())
    process(dead).disconnected = False  # a child of it holds its channel open
    process(dead).code = -9
    scene.fleet.died(dead, scene.now)
    scene.submit()
    assert scene.running == {}
    scene.tick(1.0)
    assert process(dead).closed
    scene.settle()
    (answer,) = scene.replies()
    assert isinstance(answer, list)


def test_spares_that_died_too_often_come_back_with_an_operators_restart() -> None:
    scene = Scene(spares=1, max_restarts=2)
    serving = scene.serve(scene.member())
    while scene.fleet.spares:
        scene.die(scene.fleet.spares[0], 73)
        scene.tick(2.0)
    assert scene.alive() == [serving]
    told: list[str | None] = []
    scene.fleet.restart(scene.place(), told.append)
    scene.settle(lambda: told == [None])
    assert scene.state() is State.READY
    scene.tick()
    assert len(scene.fleet.spares) == 1
