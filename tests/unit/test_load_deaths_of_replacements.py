"""Replacement workers that die while they load: what that shows about the models of the slot, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_settings import made, reload
from fake_workers import Scene, child

from multitower.load_step import LoadStep
from multitower.spec import ModelSpec
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State

ABORT, KILL = -6, -9
LOADING = LoadStep("m", "1")
WARM_UP = LoadStep("m", "1", rows=1024, fewer_rows=512)
BOTH = {"m": "", "n": ""}


def serving() -> Scene:
    """A slot whose worker serves m and n."""
    scene = Scene(models=[("m", "n")])
    scene.serve(scene.process())
    return scene


def serving_without(step: LoadStep = LOADING) -> Scene:
    """A slot that has given up the model of the step, and serves the other one."""
    scene = Scene(models=[("m", "n")], max_restarts=1)
    die(scene, scene.process(), step, ABORT)
    scene.tick(1.0)
    scene.report(scene.process(), "loading")
    child(scene.process()).step = None
    scene.report(scene.process(), "ready", failed={step.model})
    scene.tick()
    return scene


def die(scene: Scene, process: WorkerProcess, step: LoadStep, code: int) -> None:
    """A process dies in a step of its load."""
    scene.report(process, "loading")
    child(process).step = step
    scene.die(process, code)


def left_out(process: WorkerProcess) -> dict[str, str]:
    """Why a process must not load each model; empty for those that it loads."""
    assignment = child(process).assignment
    assert assignment is not None
    return {spec.name: spec.not_loaded_because for spec in assignment.models}


def changed(scene: Scene, *names: str) -> tuple[ModelSpec, ...]:
    """The models of the slot, some of them with another configuration."""
    return tuple(replace(spec, max_batch_size=1) if spec.name in names else spec for spec in scene.slot().specs)


# A model that the slot serves.


@pytest.mark.parametrize("code", [ABORT, 3])
def test_a_served_model_is_loaded_by_later_workers_after_a_replacement_died(code: int) -> None:
    scene = serving()
    old = scene.process()
    scene.order()
    die(scene, scene.next_process(), LOADING, code)
    assert (scene.process(), scene.state()) == (old, State.READY)
    scene.order()
    assert left_out(scene.next_process()) == BOTH
    die(scene, scene.next_process(), LOADING, code)
    scene.die(old)
    assert left_out(scene.process()) == BOTH


def test_a_replacement_over_the_time_limit_leaves_a_served_model_loaded() -> None:
    scene = serving()
    scene.manager.apply_settings(replace(scene.manager.settings, load_s={"m": 1.0, "n": 1.0}))
    scene.order()
    process = scene.next_process()
    scene.report(process, "loading")
    child(process).step = LOADING
    for _ in range(3):
        scene.tick(1.0)
    assert process.verdict is not None
    scene.die(process)
    scene.order()
    assert left_out(scene.next_process()) == BOTH


def test_a_replacement_killed_in_a_warm_up_makes_no_batches_smaller() -> None:
    scene = serving()
    scene.order()
    die(scene, scene.next_process(), WARM_UP, KILL)
    scene.tick(1.0)
    assert scene.slot().safe_rows == {}


def test_a_served_model_is_loaded_again_after_a_reload_that_had_to_go_back() -> None:
    scene = Scene(models=[("m", "n")], fits=False)
    scene.serve(scene.process())
    outcomes = scene.order(specs=changed(scene, "n"))
    scene.let_processes_end()
    scene.tick()
    die(scene, scene.process(), LOADING, ABORT)
    scene.tick(1.0)
    assert left_out(scene.process()) == BOTH
    assert scene.slot().specs[1].max_batch_size != 1
    scene.serve(scene.process())
    assert outcomes[0] is not None
    assert "SIGABRT" in outcomes[0]


# A new configuration of a model.


def test_the_death_of_a_new_configuration_announces_no_other_try(caplog: pytest.LogCaptureFixture) -> None:
    scene = serving()
    outcomes = scene.order(specs=changed(scene, "m"))
    die(scene, scene.next_process(), LOADING, ABORT)
    assert outcomes[0] is not None
    assert "SIGABRT" in outcomes[0]
    messages = [record.getMessage() for record in caplog.records]
    assert "replacement worker died" in messages
    assert not {"model is left out for now", "model is not loaded any more"} & set(messages)
    launched = len(scene.launched)
    for _ in range(100):
        scene.tick(1.0)
    assert len(scene.launched) == launched
    scene.order(specs=changed(scene, "m"))
    assert left_out(scene.next_process()) == BOTH, "an operator who tries it again gets another try"


# A model that the slot has given up.


def test_a_change_of_another_model_succeeds_without_a_model_that_was_given_up() -> None:
    scene = serving_without()
    outcomes = scene.order(specs=changed(scene, "n"))
    process = scene.next_process()
    assert left_out(process)["m"].startswith("it has ended a worker of the slot")
    scene.report(process, "loading")
    scene.report(process, "ready", failed={"m"})
    scene.tick()
    scene.let_processes_end()
    scene.tick()
    assert (scene.process(), outcomes) == (process, [None])


@pytest.mark.parametrize("step", [LOADING, LoadStep("n", "1")], ids=str)
def test_a_reload_for_another_model_does_not_try_one_that_was_given_up(step: LoadStep) -> None:
    scene = serving_without(step)
    given_up, other = step.model, "n" if step.model == "m" else "m"
    reload(scene, made([("m", "n")]), made([("m", "n")], {other: 2}), again=True)
    assert {name for name, cause in left_out(scene.next_process()).items() if cause} == {given_up}


def test_a_reload_tries_all_models_of_a_slot_that_has_failed() -> None:
    scene = Scene(max_restarts=1)
    for _ in range(2):
        die(scene, scene.process(), LOADING, ABORT)
        scene.tick(1.0)
    assert scene.state() is State.FAILED
    reload(scene, made([("m",)]), made([("m",)]), again=True)
    assert left_out(scene.process()) == {"m": ""}


def test_a_new_configuration_of_a_model_that_was_given_up_is_loaded() -> None:
    scene = serving_without()
    scene.order(specs=changed(scene, "m"))
    assert left_out(scene.next_process()) == BOTH


def test_an_operator_whose_try_fails_leaves_the_model_out_of_later_workers() -> None:
    scene = serving_without()
    outcomes: list[str | None] = []
    scene.manager.restart_slot(scene.slot(), outcomes.append)
    scene.tick()
    assert left_out(scene.next_process()) == BOTH
    die(scene, scene.next_process(), LOADING, ABORT)
    assert outcomes[0] is not None
    scene.die(scene.process())
    assert left_out(scene.process())["m"].startswith("it has ended a worker of the slot")
