"""Starts that fail because the system lacks something at present: they cost no restart budget, and are tried again."""

from __future__ import annotations

import errno

import pytest
from fake_workers import Scene, child, spec

from multitower.supervisor.workers.planned_replacement import START_S
from multitower.supervisor.workers.shortage import MAX_RETRY_S, SpawnError, calling, failure_of
from multitower.supervisor.workers.slot_state_machine import State


def serving(max_restarts: int = 100) -> Scene:
    """A slot that serves."""
    scene = Scene(1, max_restarts=max_restarts)
    scene.serve(scene.process())
    return scene


def wait(scene: Scene, seconds: float) -> None:
    for _ in range(round(seconds * 2)):
        scene.tick(0.5)


def test_a_slot_that_cannot_start_for_want_of_a_resource_waits_without_end_and_keeps_its_budget() -> None:
    scene = serving(max_restarts=1)
    scene.shortage = True
    scene.die(scene.process())
    wait(scene, 600.0)
    assert scene.state() is State.STARTING
    assert scene.slot().last_error == "no process could be started: fork: Resource temporarily unavailable"
    assert scene.now < scene.manager.next_wake(scene.now) + 1.0
    scene.shortage = False
    wait(scene, MAX_RETRY_S + 0.5)
    scene.serve(scene.process())
    assert scene.state() is State.READY
    assert scene.slot().restarts == 1
    # The tries have spent nothing, and the next shortage begins with short waits.
    wait(scene, 61.0)
    scene.shortage = True
    scene.die(scene.process())
    scene.shortage = False
    wait(scene, 1.5)
    scene.serve(scene.process())
    assert scene.state() is State.READY


def test_tries_become_rarer_and_the_loop_does_not_spin() -> None:
    scene = serving()
    scene.shortage = True
    scene.die(scene.process())
    waits = []
    for _ in range(8):
        due = scene.slot().start_at
        assert due is not None
        waits.append(due - scene.now)
        scene.tick(due - scene.now)
    assert waits == pytest.approx([0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0])


def test_requests_wait_meanwhile() -> None:
    scene = serving()
    scene.shortage = True
    scene.die(scene.process())
    scene.submit()
    wait(scene, 30.0)
    assert scene.replies() == []
    scene.shortage = False
    wait(scene, MAX_RETRY_S + 0.5)
    scene.settle()
    assert [type(reply) for reply in scene.replies()] == [list]


def test_the_first_start_of_all_waits_too() -> None:
    scene = Scene(2)
    for process in tuple(scene.alive()):
        scene.die(process)
    scene.shortage = True
    wait(scene, 120.0)
    assert {scene.state(0), scene.state(1)} == {State.STARTING}
    scene.shortage = False
    wait(scene, MAX_RETRY_S + 0.5)
    scene.settle()
    assert {scene.state(0), scene.state(1)} == {State.READY}


def test_a_slot_that_waits_for_resources_can_be_stopped() -> None:
    scene = serving()
    scene.shortage = True
    scene.die(scene.process())
    scene.manager.stop(scene.now)
    scene.tick(1.0)
    assert scene.state() is State.STOPPED
    assert scene.manager.next_wake(scene.now) > scene.now


def test_a_replacement_waits_for_resources_while_the_old_worker_serves() -> None:
    scene = serving()
    old = scene.process()
    scene.shortage = True
    outcomes = scene.order(specs=(spec(2),))
    wait(scene, START_S / 2)
    assert (outcomes, scene.process(), scene.state()) == ([], old, State.READY)
    scene.shortage = False
    wait(scene, 1.0)
    scene.serve(scene.next_process())
    scene.settle()
    assert outcomes == [None]
    assert scene.slot().specs == (spec(2),)


def test_a_replacement_that_gets_no_resources_is_given_up_with_the_cause() -> None:
    scene = serving()
    old = scene.process()
    scene.shortage = True
    outcomes = scene.order(specs=(spec(2),))
    wait(scene, START_S + 1.0)
    assert outcomes == ["no process could be started: fork: Resource temporarily unavailable"]
    assert (scene.process(), scene.state(), child(old).told_to_end) == (old, State.READY, False)


@pytest.mark.parametrize(
    ("error", "temporary"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENFILE, "Too many open files in system"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), True),
        (MemoryError(), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (PermissionError(errno.EPERM, "Operation not permitted"), False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error: Exception, temporary: bool) -> None:
    assert failure_of(error).temporary is temporary


def test_the_cause_names_the_call() -> None:
    with pytest.raises(SpawnError) as raised, calling("memfd_create"):
        raise OSError(errno.EMFILE, "Too many open files")
    failure = failure_of(raised.value)
    assert failure.cause == "no process could be started: memfd_create: Too many open files"
    assert failure.temporary
    assert failure.check is not None
    assert "LimitNOFILE" in failure.check
