"""Defects injected into what the manager does for one worker: that worker pays, and no other; no request is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from fake_workers import Scene, child, placement, spec
from serving_scene import serving

from multitower import batch_results, worker_wire
from multitower.spec import ModelReport, WorkerReport
from multitower.supervisor.scheduling.scheduler import StateError
from multitower.supervisor.workers.exit_cause import Fault, Verdict
from multitower.supervisor.workers.planned_replacement_queue import Replacement
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.supervisor.workers.slot_state_machine import LIVE, Event, State
from multitower.supervisor.workers.spares import RETRY_S


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("an injected defect")


def report(state: str, **fields: Any) -> list[bytes]:
    return [worker_wire.REPORT, WorkerReport(state=state, pid=1, **fields).to_json()]


MESSAGES = {
    "a report that is no JSON": [worker_wire.REPORT, b"\xff{"],
    "a report that is no object": [worker_wire.REPORT, b"[]"],
    "a report without its frame": [worker_wire.REPORT],
    "a report with too many frames": [*report("loading"), b""],
    "a report of an unknown state": report("happy"),
    "a report of models that are none": [worker_wire.REPORT, b'{"state": "ready", "pid": 1, "models": [7]}'],
    "an event that the slot's table does not have": report("loading"),
    "a second report of being ready": report("ready"),
    "a memory report without fields": [worker_wire.MEMORY, b"{}"],
    "a memory report of another type": [worker_wire.MEMORY, b'{"model": "m", "safe_rows": "x", "exhausted": 0}'],
    "a report of a model without a batch dimension that is null": [worker_wire.BATCHING, b"null"],
    "a message of an unknown kind": [b"?", b""],
    "an empty message": [b""],
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_cannot_be_handled_costs_its_worker(name: str) -> None:
    scene = serving(2)
    scene.submit()
    (busy,) = [process for process in scene.launched if process.route and process.route.worker in scene.running]
    assert busy.slot is not None
    scene.send(busy, MESSAGES[name])
    assert busy.verdict is not None
    assert busy.verdict.fault is Fault.DEFECT
    scene.tick()
    assert child(busy).told_to_end
    scene.submit()
    scene.settle()
    assert [type(reply) for reply in scene.replies()] == [list, list]
    assert [scene.state(slot) for slot in (0, 1)] == [State.READY] * 2
    assert [scene.slot(slot).incarnation for slot in (0, 1)] == [1 + (slot == busy.slot.number) for slot in (0, 1)]
    assert "killed because" in str(busy.slot.last_error)


@pytest.mark.parametrize("state", ["ready", "failed"])
@pytest.mark.parametrize("other", [("m", "7"), ("n", "1")])
def test_a_report_on_a_version_that_its_worker_was_not_to_load_costs_it(other: tuple[str, str], state: str) -> None:
    scene = Scene()
    process = scene.process()
    scene.report(process, "loading")
    name, version = other
    models = ModelReport(name="m"), ModelReport(name=name, version=version)
    scene.report(process, state, models=tuple(replace(model, state=state) for model in models))
    assert str(process.verdict) == (
        f"killed because it broke the protocol: a report on {name!r}, version {version!r}, which it was not to load"
    )
    assert process.route is None, "nothing else of what it says is believed, either"
    assert scene.router.models.versions(name) == []
    scene.settle()
    assert scene.state() is State.READY
    assert scene.process() is not process
    assert scene.router.models.versions("m") == ["1"]


def test_a_report_of_a_spare_on_a_version_costs_it() -> None:
    scene = serving(1, spares=1)
    (spare,) = scene.manager.spares
    scene.report(spare, "idle", models=(ModelReport(name="m"),))
    assert "which it was not to load" in str(spare.verdict)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda message: [message[0][:9], *message[1:]],
        lambda message: message[:1],
        lambda message: [message[0][:-1], *message[1:]],
        lambda message: [worker_wire.RESULT + bytes(8) + message[0][9:], *message[1:]],
    ],
    ids=["a cut head", "no frames", "a cut table", "another batch"],
)
def test_a_result_that_cannot_be_handled_costs_its_worker(spoil: Callable[[list[Any]], list[Any]]) -> None:
    scene = serving(2)
    scene.submit()
    ((worker, (batch,)),) = scene.running.items()
    (busy,) = [process for process in scene.launched if process.route and process.route.worker is worker]
    good = batch_results.result(batch.id, [[b"{}", b"x"]], batch_results.Timing(1, 1, 1))
    child(busy).messages.append(spoil(good))
    assert scene.router.receive_from_worker(busy.child.connection)
    scene.tick()
    assert child(busy).told_to_end
    scene.settle()
    assert [type(reply) for reply in scene.replies()] == [list]
    assert {scene.state(slot) for slot in (0, 1)} == {State.READY}


def test_messages_behind_one_that_cannot_be_handled_are_read_to_the_end() -> None:
    scene = serving(2)
    scene.submit()
    ((worker, (batch,)),) = scene.running.items()
    (busy,) = [process for process in scene.launched if process.route and process.route.worker is worker]
    child(busy).messages += [
        [worker_wire.REPORT, b"{"],
        batch_results.result(batch.id, [[b"{}", b"x"]], batch_results.Timing(1, 1, 1)),
    ]
    scene.running.clear()
    scene.die(busy)
    assert [type(reply) for reply in scene.replies()] == [list], "it was answered, and does not run again"
    scene.dispatch()
    assert scene.running == {}


STEPS = {
    "reaping it": lambda scene, process: replace_attribute(process.child, "reap", fail),
    "reading its connection": lambda scene, process: replace_attribute(process.child.connection, "receive", fail),
    "releasing it": lambda scene, process: replace_attribute(process.child, "close", fail),
    "no longer watching it": lambda scene, process: replace_attribute(scene.watcher, "remove_process", fail),
}


def replace_attribute(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


@pytest.mark.parametrize("name", STEPS)
def test_a_dead_worker_is_replaced_though_a_step_of_its_end_fails(name: str) -> None:
    scene = serving(2)
    dead, other = scene.process(0), scene.process(1)
    scene.submit()
    scene.submit()
    STEPS[name](scene, dead)
    for process in (dead, other):
        assert process.route is not None
        scene.running.pop(process.route.worker)
        scene.exit(process, 3)
    scene.tick()
    assert dead not in scene.manager.processes()
    assert child(other).closed, "what fails for one does not keep the others"
    scene.settle()
    assert [scene.state(slot) for slot in (0, 1)] == [State.READY] * 2
    assert len(scene.replies()) == 2


def test_a_worker_whose_end_cannot_be_read_has_an_unknown_exit_code() -> None:
    scene = serving(1)
    replace_attribute(scene.process().child, "reap", fail)
    scene.exit(scene.process(), 3)
    scene.tick()
    assert scene.slot().last_error == "exited with an unknown code"


@pytest.mark.parametrize("how", ["hangs", "defect"])
def test_a_condemned_spare_is_not_assigned_to_a_slot(how: str) -> None:
    scene = serving(1, spares=1)
    (spare,) = scene.manager.spares
    scene.report(spare, "idle")
    if how == "hangs":
        scene.manager._exits.condemn_process(spare, Verdict(Fault.HANGS, "no heartbeat"), scene.now)
    else:
        scene.send(spare, [worker_wire.REPORT, b"{"])
    scene.die(scene.process())
    assert scene.process() is not spare
    assert spare.slot is None


def test_a_start_that_fails_is_tried_again_and_does_not_keep_other_slots() -> None:
    scene = serving(2)
    launcher: Any = scene.manager._launcher
    launch = launcher.launch

    def fail_for_the_first_slot(name: str, *arguments: Any) -> WorkerProcess | None:
        return fail() if name == "mt-worker-0" else launch(name, *arguments)

    launcher.launch = fail_for_the_first_slot
    for slot in (0, 1):
        scene.die(scene.process(slot))
    scene.tick(1.0)
    assert (scene.state(0), scene.state(1)) == (State.BACKOFF, State.STARTING)
    assert scene.slot(0).last_error == "no process could be started"
    launcher.launch = launch
    scene.settle()
    assert {scene.state(slot) for slot in (0, 1)} == {State.READY}


def test_a_spare_that_cannot_be_started_is_tried_again_later() -> None:
    scene = serving(1, spares=1)
    (spare,) = scene.manager.spares
    launcher: Any = scene.manager._launcher
    launch, launcher.launch = launcher.launch, fail
    scene.die(spare)
    scene.tick(2.0)
    wake = scene.manager.next_wake(scene.now)
    assert scene.now < wake <= scene.now + RETRY_S
    launcher.launch = launch
    scene.tick(RETRY_S)
    assert len(scene.manager.spares) == 1


def test_a_worker_whose_state_cannot_be_read_is_killed_and_no_other() -> None:
    scene = serving(2)
    bad, good = scene.process(0), scene.process(1)
    replace_attribute(bad.child, "read_stat", fail)
    replace_attribute(bad.child, "read_heartbeat", lambda: None)
    replace_attribute(good.child, "read_heartbeat", lambda: (0,))
    for _ in range(5):
        scene.tick(1.0)
    assert (child(bad).told_to_end, child(good).told_to_end) == (True, False)
    scene.settle(lambda: scene.slot(0).incarnation == 2 and scene.state(0) is State.READY)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("step", ["withdraw_versions", "is_needed", "retire", "handle_event"])
def test_a_replacement_that_fails_is_reported_and_its_slot_serves_again(
    fits: bool, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = serving(1, fits=fits)
    scene.submit()
    owner: Any = {
        "withdraw_versions": scene.router.models,
        "is_needed": scene.router.scheduler,
        "retire": scene.router.scheduler,
        "handle_event": scene.manager._slots,
    }[step]
    original = getattr(owner, step)

    def fail_once(*arguments: Any) -> Any:
        if step == "handle_event" and arguments[1] not in (Event.DRAIN, Event.DRAINED):
            return original(*arguments)
        monkeypatch.undo()
        return fail()

    monkeypatch.setattr(owner, step, fail_once)
    outcomes = scene.order(specs=(spec(2),))
    scene.settle()
    failed = not (step == "handle_event" and fits)  # where both fit, no such event is needed
    assert len(outcomes) == 1
    assert (outcomes != [None]) is failed
    assert scene.state() is State.READY
    assert len(scene.alive()) == 1, "no process is left that nobody ends"
    assert [type(reply) for reply in scene.replies()] == [list]


def test_a_worker_told_to_end_by_a_failed_replacement_gets_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = serving(1, retry=0)
    old = scene.process()
    scene.order(specs=(spec(2),))
    monkeypatch.setattr(scene.router.models, "withdraw_versions", fail)
    new = scene.serve(scene.next_process())
    assert child(old).told_to_end
    for _ in range(2):
        scene.submit()
    assert new.route is not None
    assert list(scene.running) == [new.route.worker], "a request behind STOP would count as having died with it"
    scene.settle()
    assert [type(reply) for reply in scene.replies()] == [list] * 2


def test_no_worker_is_started_while_the_daemon_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = serving(1)
    monkeypatch.setattr(scene.manager._slots, "handle_event", fail)
    scene.manager.stop(scene.now)
    monkeypatch.undo()
    (process,) = scene.alive()
    scene.die(process)
    for _ in range(5):
        scene.tick(1.0)
    assert scene.alive() == []
    assert scene.state() is State.STOPPED
    assert scene.manager.next_wake(scene.now) > scene.now, "the loop must not spin"


@pytest.mark.parametrize("step", ["make_assignment", "generation", "send"])
def test_a_start_with_a_spare_that_fails_loses_no_process(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = serving(1, spares=1)
    (spare,) = scene.manager.spares
    scene.report(spare, "idle")
    owner: Any = {
        "make_assignment": type(scene.slot().placement),
        "generation": scene.manager._slots._assignments,
        "send": spare.child.connection,
    }[step]
    monkeypatch.setattr(owner, step, fail)
    scene.die(scene.process())
    scene.tick()
    monkeypatch.undo()
    assert scene.slot().process is None
    assert scene.slot().last_error == "no process could be started"
    assert scene.state() is State.BACKOFF, "it tries again later, not at once"
    assert set(scene.alive()) <= set(scene.manager.processes())
    assert child(spare).told_to_end is (step == "send"), "a spare that was not assigned stays one"
    scene.settle()
    assert scene.state() is State.READY
    assert set(scene.alive()) == {scene.process(), *scene.manager.spares}


def test_a_process_that_was_launched_when_its_start_fails_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = serving(1)
    old = scene.process()
    monkeypatch.setattr(scene.manager._slots._rng, "random", fail)
    outcomes = scene.order(specs=(spec(2),))
    monkeypatch.undo()
    assert outcomes == ["no process could be started"]
    new = scene.launched[-1]
    assert new is not old
    scene.tick()
    assert child(new).told_to_end
    scene.die(new)
    assert scene.alive() == [old]
    assert scene.state() is State.READY


@pytest.mark.parametrize("state", ["starting", "ready", "ready, its replacement loads"])
def test_a_slot_whose_released_process_was_kept_in_an_error_gets_another_one(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene()
    dead = scene.process()
    if state != "starting":
        scene.serve(dead)
    if state.endswith("loads"):
        scene.order(specs=(spec(2),))
        assert scene.slot().next_process is not None
    monkeypatch.setattr(scene.manager._restart_after_death, "handle_death", fail)
    scene.die(dead)
    monkeypatch.undo()
    scene.tick()
    assert scene.slot().process is not dead
    scene.settle()
    assert scene.state() is State.READY
    assert scene.alive() == [scene.process()]
    assert dead not in scene.manager.processes()


def test_processes_kept_in_an_error_during_a_replacement_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = serving(1)
    scene.order(specs=(spec(2),))
    monkeypatch.setattr(scene.manager._restart_after_death, "handle_death", fail)
    scene.die(scene.next_process())
    monkeypatch.undo()
    scene.settle()
    outcomes, old = scene.order(specs=(spec(3),)), scene.process()
    scene.serve(scene.next_process())
    monkeypatch.setattr(scene.manager._restart_after_death, "handle_death", fail)
    scene.die(old, 0)
    monkeypatch.undo()
    scene.settle()
    assert outcomes == [None]
    assert list(scene.manager.processes()) == [scene.process()]


def test_an_error_of_who_asked_for_a_replacement_does_not_disturb_others() -> None:
    scene = serving(2)
    scene.manager.request_replacement(Replacement(scene.slot(0), "a test", done=fail))
    outcomes = scene.order(1)
    scene.settle()
    assert outcomes == [None]
    assert {scene.state(slot) for slot in (0, 1)} == {State.READY}


def test_the_check_for_available_models_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = serving(2)
    monkeypatch.setattr(scene.manager._availability, "update", fail)
    scene.die(scene.process(0))
    monkeypatch.undo()
    scene.settle()
    assert {scene.state(slot) for slot in (0, 1)} == {State.READY}


def test_all_workers_end_though_one_cannot_be_told_to() -> None:
    scene = serving(3, spares=1)
    replace_attribute(scene.process(1).child.connection, "send", fail)
    replace_attribute(scene.manager.spares[0].child, "kill", fail)
    scene.manager.stop(scene.now)
    scene.tick(10.0)
    told = [child(process).told_to_end for process in scene.launched]
    assert told == [True, True, True, False]


def test_all_workers_are_killed_though_one_cannot_be() -> None:
    scene = serving(3)
    replace_attribute(scene.process(2).child, "kill", fail)
    scene.manager.kill_all()
    assert [child(scene.process(slot)).told_to_end for slot in range(3)] == [True, True, False]
    for process in scene.launched:
        child(process).code = -9
    replace_attribute(scene.process(2).child, "reap", fail)
    scene.manager.reap_all()
    assert [child(scene.process(slot)).closed for slot in range(3)] == [True, True, False]


def test_a_slot_that_lost_its_process_in_an_error_gets_another_one() -> None:
    scene = serving(1)
    lost = scene.process()
    scene.slot().process = None
    scene.tick()
    assert scene.state() in LIVE
    scene.settle()
    assert scene.state() is State.READY
    assert scene.process() is not lost


def let_a_process_die(scene: Scene) -> None:
    scene.die(scene.process())


def condemn_a_process(scene: Scene) -> None:
    scene.manager._exits.condemn_process(scene.process(), Verdict(Fault.HANGS, "no heartbeat"), scene.now)


def let_a_process_become_ready(scene: Scene) -> None:
    scene.manager.add_slot(placement(1))
    scene.tick()
    scene.serve(scene.process(1))


def answer_a_batch(scene: Scene) -> None:
    scene.submit()
    ((_, (batch,)),) = scene.running.items()
    message = batch_results.result(batch.id, [[b"{}", b"x"]], batch_results.Timing(1, 1, 1))
    child(scene.process()).messages.append(message)
    scene.router.scheduler._open_requests = cast(Any, Broken())
    scene.router.receive_from_worker(scene.process().child.connection)


class Broken:
    """Every method fails."""

    def __getattr__(self, _name: str) -> Any:
        return fail


@pytest.mark.parametrize("happens", [let_a_process_die, condemn_a_process, let_a_process_become_ready, answer_a_batch])
def test_an_error_in_the_scheduler_itself_is_not_contained(happens: Callable[[Scene], None]) -> None:
    """Requests would never be answered: the daemon ends instead."""
    scene = serving(1)
    replace_attribute(scene.router.scheduler, "_recovery", Broken())
    with pytest.raises(StateError):
        happens(scene)
