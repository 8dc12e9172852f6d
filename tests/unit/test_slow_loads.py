"""A model that takes long to load: a second worker serves the others of its slot meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from fake_workers import LARGEST, Scene, child, spec

from multitower.load_step import LoadStep
from multitower.spec import ModelReport
from multitower.supervisor.workers.hang_detector import ProcessStat
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State

KILL, ABORT = -9, -6
SLOW_S, TIMEOUT_S = 5.0, 60.0
M, N = LoadStep("m", "1"), LoadStep("n", "1")


def loading(step: LoadStep = M, models: tuple[str, ...] = ("m", "n"), *, fits: bool = True) -> Scene:
    """A slot whose first worker loads the model of the step."""
    scene = Scene(models=[models], fits=fits)
    limits = dict.fromkeys(models, TIMEOUT_S)
    scene.manager.apply_settings(replace(scene.manager.settings, load_s=limits, slow_load_s=SLOW_S))
    load(scene, scene.process(), step)
    return scene


def load(scene: Scene, process: WorkerProcess, step: LoadStep) -> WorkerProcess:
    """A process loads the model of the step, and does not hang."""
    scene.report(process, "loading")
    child(process).step = step
    child(process).stat = ProcessStat("R", scene.now)
    return process


def wait(scene: Scene, seconds: float = SLOW_S + 3) -> None:
    for _ in range(int(seconds)):
        scene.tick(1.0)


def set_aside(step: LoadStep = M, models: tuple[str, ...] = ("m", "n")) -> tuple[Scene, WorkerProcess, WorkerProcess]:
    """A slot with the worker that loads the slow model, and the one that was started beside it."""
    scene = loading(step, models)
    first = scene.process()
    wait(scene)
    assert scene.next_process() is first
    return scene, first, scene.process()


def serve(scene: Scene, process: WorkerProcess, failed: Collection[str] = ()) -> None:
    """A process becomes ready; it reports the models that it leaves out as failed."""
    child(process).step = None
    scene.report(process, "loading")
    scene.report(process, "ready", failed={*failed, *left_out(process)})
    scene.tick()


def left_out(process: WorkerProcess) -> set[str]:
    assignment = child(process).assignment
    assert assignment is not None
    return {each.name for each in assignment.models if each.not_loaded_because}


def served(scene: Scene) -> set[str]:
    return {name for name in "mno" if scene.slot().serves(name)}


def states(scene: Scene) -> dict[str, str]:
    return {report.name: report.state for report in scene.slot().models}


def test_the_other_models_are_served_while_one_takes_long_to_load() -> None:
    scene, first, second = set_aside()
    assert (left_out(second), child(first).told_to_end) == ({"m"}, False)
    serve(scene, second)
    assert (scene.state(), served(scene), states(scene)) == (State.READY, {"n"}, {"m": "loading", "n": "ready"})
    assert scene.router.scheduler.refusal_for_new_request("m") is None, "it will be served"


def test_the_worker_that_has_loaded_the_slow_model_takes_over_and_nothing_is_lost() -> None:
    scene, first, second = set_aside(N)
    serve(scene, second)
    scene.submit()
    serve(scene, first)
    assert (scene.process(), served(scene), scene.slot().next_process) == (first, {"m", "n"}, None)
    assert not child(second).told_to_end, "it has a batch"
    scene.answer(second)
    assert child(second).told_to_end
    scene.die(second, 0)
    assert (scene.state(), scene.slot().restarts, scene.manager.replacing) == (State.READY, 0, False)
    scene.die(first)
    assert left_out(scene.process()) == set(), "a later worker loads it like any other"


@pytest.mark.parametrize("begun", [False, True])
def test_a_worker_that_has_loaded_all_models_before_the_other_one_serves_alone(*, begun: bool) -> None:
    scene, first, second = set_aside()
    if begun:
        load(scene, second, N)
    serve(scene, first)
    assert (scene.process(), scene.state(), served(scene)) == (first, State.READY, {"m", "n"})
    assert child(second).told_to_end
    scene.die(second)
    assert (scene.state(), scene.slot().process) == (State.READY, first)


def test_a_slow_model_that_raises_fails_and_the_others_are_served() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    serve(scene, first, failed={"m"})
    assert (scene.process(), served(scene), states(scene)["m"]) == (first, {"n"}, "failed")


def test_a_slow_model_that_exceeds_its_time_is_given_up_without_an_interruption() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    wait(scene, TIMEOUT_S)
    scene.die(first)
    ((cause),) = [report.cause for report in scene.slot().models if report.name == "m"]
    assert "it was not loaded in time: killed because it took over 60 s (load_timeout)" in str(cause)
    launched = len(scene.launched)
    wait(scene, 200)
    assert (scene.process(), len(scene.launched), states(scene)["m"]) == (second, launched, "failed")


def test_a_slow_model_that_aborts_is_tried_again_beside_the_others() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    scene.die(first, ABORT)
    assert states(scene)["m"] == "failed"
    wait(scene, 3)
    assert (left_out(scene.next_process()), served(scene)) == (set(), {"n"})
    serve(scene, scene.next_process())
    assert served(scene) == {"m", "n"}


def test_the_cause_is_that_of_the_death_if_the_slow_model_dies_before_the_others_are_ready() -> None:
    scene, first, second = set_aside()
    scene.die(first, ABORT)
    serve(scene, second)
    ((report),) = [report for report in scene.slot().models if report.name == "m"]
    assert (report.state, "killed by SIGABRT (6) while loading m" in str(report.cause)) == ("failed", True)


def test_a_crash_of_the_worker_that_serves_leaves_the_slow_load_alone() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    scene.die(second)
    assert (scene.next_process(), left_out(scene.process())) == (first, {"m"})
    serve(scene, scene.process())
    assert served(scene) == {"n"}
    serve(scene, first)
    assert served(scene) == {"m", "n"}


def test_a_model_that_aborts_beside_a_slow_one_is_left_out_too() -> None:
    scene, first, second = set_aside(models=("m", "n", "o"))
    load(scene, second, N)
    scene.die(second, ABORT)
    scene.tick(1.0)
    assert (scene.next_process(), left_out(scene.process())) == (first, {"m", "n"})
    serve(scene, scene.process())
    assert served(scene) == {"o"}


def test_several_slow_models_keep_the_others_waiting_one_after_the_other_at_the_most() -> None:
    scene, first, second = set_aside(models=("m", "n", "o"))
    load(scene, second, N)
    wait(scene)
    assert (scene.next_process(), child(second).told_to_end) == (first, True)
    scene.die(second)
    third = scene.process()
    assert left_out(third) == {"m", "n"}
    serve(scene, third)
    assert (served(scene), states(scene)["n"]) == ({"o"}, "loading"), "the first one will load it"
    scene.die(first, ABORT)
    wait(scene, 3)
    assert left_out(scene.next_process()) == set(), "each is tried again"


def test_a_slow_model_waits_for_nothing_if_no_other_can_be_loaded() -> None:
    scene, first, second = set_aside()
    scene.report(second, "loading")
    scene.report(second, "failed", "no weights")
    scene.tick()
    assert (scene.process(), scene.state(), child(second).told_to_end) == (first, State.LOADING, True)
    scene.die(second, 0)
    launched = len(scene.launched)
    wait(scene, 20)
    assert len(scene.launched) == launched, "it is not set aside again"
    serve(scene, first, failed={"n"})
    assert served(scene) == {"m"}


def test_if_the_others_have_spent_the_budget_the_slow_model_is_waited_for() -> None:
    scene = loading()
    scene.manager.apply_settings(
        replace(scene.manager.settings, policy=replace(scene.manager.settings.policy, max_restarts=0))
    )
    first = scene.process()
    wait(scene)
    scene.die(scene.process(), ABORT)
    assert (scene.process(), scene.state()) == (first, State.LOADING)


def test_a_model_that_failed_beside_the_slow_one_is_waited_for_as_it_is_loaded_again() -> None:
    scene, first, second = set_aside()
    failed = tuple(ModelReport(name=name, version="1", state="failed", cause="no weights") for name in "mn")
    scene.report(second, "loading")
    scene.report(second, "failed", "no weights", models=failed)
    scene.tick()
    assert (scene.process(), states(scene)) == (first, {}), "the first worker has reported nothing yet"
    assert scene.router.scheduler.refusal_for_new_request("n") is None, "the first worker will load it"


def test_the_slot_reports_no_served_models_once_only_the_slow_load_goes_on() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    scene.manager.apply_settings(
        replace(scene.manager.settings, policy=replace(scene.manager.settings.policy, max_restarts=0))
    )
    scene.die(second, ABORT)
    assert (scene.process(), scene.state(), states(scene)) == (first, State.LOADING, {})


def test_if_no_other_worker_can_be_started_the_slow_model_is_waited_for() -> None:
    scene = loading()
    scene.manager.apply_settings(
        replace(scene.manager.settings, policy=replace(scene.manager.settings.policy, max_restarts=0))
    )
    first, scene.no_room = scene.process(), True
    wait(scene)
    assert (scene.slot().process, scene.state(), scene.manager.unavailable) == (first, State.LOADING, False)
    serve(scene, first)
    assert served(scene) == {"m", "n"}


# Where one worker is all that there is.


def test_without_room_for_two_workers_the_others_wait() -> None:
    scene = loading(fits=False)
    launched = len(scene.launched)
    wait(scene, 30)
    assert len(scene.launched) == launched


def test_the_only_model_of_a_slot_is_waited_for() -> None:
    scene = loading(models=("m",))
    launched = len(scene.launched)
    wait(scene, 30)
    assert len(scene.launched) == launched


def test_a_model_that_does_not_fit_beside_the_others_is_loaded_alone() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    no_memory = ModelReport(name="m", version="1", state="failed", cause="ResourceExhaustedError", out_of_memory=True)
    scene.report(first, "loading")
    scene.report(first, "ready", models=(no_memory, ModelReport(name="n", version="1", max_batch_size=LARGEST)))
    scene.die(first, 0)
    wait(scene, 2)
    scene.let_processes_end()
    third = scene.process()
    assert (third in (first, second), left_out(third), scene.slot().next_process) == (False, set(), None)
    load(scene, third, M)
    launched = len(scene.launched)
    wait(scene, 20)
    assert len(scene.launched) == launched, "memory does not suffice for two"
    serve(scene, third)
    assert served(scene) == {"m", "n"}


def test_after_two_kills_beside_the_others_a_slow_model_is_loaded_alone() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    scene.die(first, KILL)
    wait(scene, 2)
    again = load(scene, scene.next_process(), M)
    assert scene.process() is second
    scene.die(again, KILL)
    wait(scene, 2)
    scene.let_processes_end()
    assert (left_out(scene.process()), scene.slot().next_process) == (set(), None)
    serve(scene, scene.process())
    assert served(scene) == {"m", "n"}


def test_after_two_kills_of_the_worker_beside_it_a_slow_model_is_waited_for() -> None:
    scene, first, second = set_aside()
    for process in (second, None):
        scene.die(load(scene, process or scene.process(), N), KILL)
        scene.tick(1.0)
    assert (scene.process(), scene.state(), scene.slot().next_process) == (first, State.LOADING, None)


def test_what_did_not_fit_beside_a_slow_model_is_loaded_once_that_has_ended() -> None:
    scene, first, second = set_aside(models=("m", "n", "o"))
    scene.report(second, "loading")
    scene.report(
        second,
        "ready",
        models=(
            ModelReport(name="m", version="1", state="failed", cause="it is left out"),
            ModelReport(name="n", version="1", state="failed", cause="MemoryError", out_of_memory=True),
            ModelReport(name="o", version="1", max_batch_size=LARGEST),
        ),
    )
    wait(scene, TIMEOUT_S)
    scene.die(first)
    wait(scene, 2)
    assert left_out(scene.next_process()) == {"m"}
    serve(scene, scene.next_process())
    assert served(scene) == {"n", "o"}


# Orders.


def test_an_order_for_the_slot_ends_the_slow_load_which_is_begun_again_afterwards() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    outcomes = scene.order(specs=(spec(), spec(2, "n")))
    assert child(first).told_to_end
    scene.die(first)
    third = scene.next_process()
    assert left_out(third) == {"m"}, "the order does not wait for the slow model"
    serve(scene, third)
    scene.let_processes_end()
    assert (outcomes, served(scene)) == ([None], {"n"})
    wait(scene, 2)
    assert left_out(scene.next_process()) == set()
    serve(scene, scene.next_process())
    assert served(scene) == {"m", "n"}


@pytest.mark.parametrize("dies", [False, True])
def test_an_order_ends_if_the_slow_load_that_it_waits_for_ends_without_the_model(*, dies: bool) -> None:
    scene = loading()
    outcomes = scene.order(specs=(spec(2), spec(2, "n")))
    scene.let_processes_end()
    scene.tick(1.0)
    first = load(scene, scene.process(), M)
    wait(scene)
    second = scene.process()
    serve(scene, second)
    assert (outcomes, states(scene)) == ([], {"m": "loading", "n": "ready"}), "it waits for the slow model"
    if dies:
        child(first).step = N
        scene.die(first, KILL)
    else:
        serve(scene, first, failed={"n"})
    assert states(scene) == {"m": "failed", "n": "ready"}
    ((outcome),) = outcomes
    assert "loading it was interrupted" in str(outcome)


def test_a_slow_load_that_ends_while_another_slot_is_replaced_takes_over_at_once() -> None:
    scene = Scene(models=[("m", "n"), ("n",)])
    scene.manager.apply_settings(replace(scene.manager.settings, slow_load_s=SLOW_S))
    scene.serve(scene.process(1))
    first = load(scene, scene.process(0), M)
    wait(scene)
    second = scene.process(0)
    serve(scene, second)
    scene.order(1)
    other = scene.next_process(1)
    serve(scene, first)
    assert (scene.process(0), child(second).told_to_end) == (first, False)
    serve(scene, other)
    scene.let_processes_end()
    scene.tick()
    assert child(second).told_to_end


def test_the_daemon_ends_both_workers() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    scene.manager.stop(scene.now)
    assert (child(first).told_to_end, child(second).told_to_end) == (True, True)


def test_a_restart_of_the_slot_loads_all_models_anew() -> None:
    scene, first, second = set_aside()
    serve(scene, second)
    outcomes: list[str | None] = []
    scene.manager.restart_slot(scene.slot(), outcomes.append)
    scene.tick()
    assert (child(first).told_to_end, left_out(scene.next_process())) == (True, set())


def test_a_worker_that_was_slow_to_start_has_three_times_as_long_for_each_model() -> None:
    scene = Scene(models=[("m", "n")])
    scene.manager.apply_settings(replace(scene.manager.settings, slow_load_s=SLOW_S))
    scene.report(scene.process(), "importing")
    child(scene.process()).stat = ProcessStat("R", scene.now)
    wait(scene, 11)
    first = load(scene, scene.process(), M)
    wait(scene, 30)
    assert (scene.process(), scene.slot().next_process) == (first, None), "a second worker would be as slow to start"
    wait(scene, 6)
    assert scene.next_process() is first


@pytest.mark.parametrize("idle", [True, False], ids=["a spare that was ready", "a spare that imports"])
def test_a_spare_that_was_slow_to_start_has_three_times_as_long_too(*, idle: bool) -> None:
    scene = Scene(models=[("m", "n")], spares=1)
    scene.manager.apply_settings(replace(scene.manager.settings, slow_load_s=SLOW_S))
    former = scene.serve(scene.process())
    scene.tick()
    (spare,) = [process for process in scene.alive() if process is not former]
    scene.report(spare, "importing")
    child(spare).stat = ProcessStat("R", scene.now)
    wait(scene, 9)
    if idle:
        wait(scene, 2)
        scene.report(spare, "idle")
    scene.die(former)
    assert scene.process() is spare
    if not idle:
        wait(scene, 2)
    load(scene, spare, M)
    wait(scene, 26)
    assert (scene.process(), scene.slot().next_process) == (spare, None), "a second worker would be as slow to start"
    wait(scene, 12)
    assert scene.next_process() is spare


def test_slow_load_can_be_changed_while_a_model_loads() -> None:
    scene = loading()
    scene.manager.apply_settings(replace(scene.manager.settings, slow_load_s=1000.0))
    wait(scene, 30)
    assert scene.slot().next_process is None
    scene.manager.apply_settings(replace(scene.manager.settings, slow_load_s=1.0))
    wait(scene, 2)
    assert scene.slot().next_process is not None
