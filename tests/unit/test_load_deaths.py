"""Models that end workers while they are loaded: what the next worker does differently."""

from __future__ import annotations

import pytest
from fake_workers import Scene, child
from loading_scene import ABORT, LOADING, WARM_UP, die_loading, serve_without, served, time_out, told

from multitower.load_step import LoadStep
from multitower.supervisor.workers.slot_state_machine import State

# A slot with one model.


def test_after_a_death_in_a_warm_up_the_next_worker_stops_at_fewer_rows() -> None:
    scene = Scene(max_restarts=1)
    assert told(scene.process()) == {"m": (0, "")}
    assert told(die_loading(scene, WARM_UP)) == {"m": (512, "")}
    assert told(die_loading(scene, LoadStep("m", "1", rows=512, fewer_rows=256))) == {"m": (256, "")}
    assert scene.slot().last_error == "killed by SIGKILL (9) while warming up m version 1 with 512 rows"
    scene.serve(scene.process())
    assert (scene.state(), scene.slot().safe_rows) == (State.READY, {"m": 256})
    assert scene.process().route is not None
    assert scene.slot().route.worker.safe_rows == {"m": 256}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "step", [None, LoadStep("m", "1"), LoadStep("m", "1", rows=1), LoadStep("other", "1", rows=8, fewer_rows=4)]
)
def test_deaths_after_which_the_next_worker_does_the_same_spend_the_budget(step: LoadStep | None) -> None:
    scene = Scene(max_restarts=1)
    assert told(die_loading(scene, step)) == {"m": (0, "")}
    scene.report(scene.process(), "loading")
    child(scene.process()).step = step
    scene.die(scene.process())
    assert scene.state() is State.FAILED


def test_smaller_and_smaller_warm_ups_do_not_go_on_without_end() -> None:
    scene = Scene(max_restarts=3)
    for exponent in range(20, 14, -1):
        scene.report(scene.process(), "loading")
        child(scene.process()).step = LoadStep("m", "1", rows=2 << exponent, fewer_rows=1 << exponent)
        scene.die(scene.process())
        scene.tick(1.0)
    assert scene.slot().process is not None, "three deaths are free"
    scene.die(scene.process())
    assert scene.state() is State.FAILED


def test_a_worker_that_was_told_to_end_while_it_loads_shows_nothing() -> None:
    scene = Scene()
    process = scene.process()
    scene.report(process, "loading")
    child(process).step = WARM_UP
    scene.order()
    assert child(process).told_to_end
    scene.die(process)
    assert scene.slot().safe_rows == {}


def test_an_operator_who_restarts_the_slot_gets_a_try_with_all_sizes() -> None:
    scene = Scene()
    scene.serve(die_loading(scene, WARM_UP))
    outcomes: list[str | None] = []
    scene.manager.restart_slot(scene.slot(), outcomes.append)
    scene.tick()
    assert told(scene.next_process()) == {"m": (0, "")}


@pytest.mark.parametrize("step", [LOADING, LoadStep("m", "1", rows=1)], ids=str)
@pytest.mark.parametrize(("code", "end"), [(ABORT, "killed by SIGABRT (6)"), (3, "exited with code 3")])
def test_a_model_that_ends_its_worker_is_left_out_of_the_next_one(step: LoadStep, code: int, end: str) -> None:
    scene = Scene(models=[("m", "n")], max_restarts=5)
    why = told(die_loading(scene, step, code))
    assert why == {
        "m": (0, f"it has ended a worker of the slot: {end} while {step}; it will be tried again beside the others"),
        "n": (0, ""),
    }
    serve_without(scene, "m")
    assert (scene.state(), *served(scene)) == (State.READY, False, True)
    scene.die(scene.process())
    assert told(scene.process()) == why, "a later worker does not load it either"


def test_a_model_that_was_left_out_is_tried_again_beside_the_worker_that_serves() -> None:
    scene = Scene(models=[("m", "n")])
    die_loading(scene, LOADING, ABORT)
    serve_without(scene, "m")
    scene.tick(1.0)  # restart.backoff.max
    scene.tick(1.0)
    assert told(scene.next_process()) == {"m": (0, ""), "n": (0, "")}
    assert served(scene) == (False, True)
    scene.report(scene.next_process(), "loading")
    scene.report(scene.next_process(), "ready")
    scene.tick()
    assert served(scene) == (True, True)
    scene.die(scene.process())
    assert told(scene.process()) == {"m": (0, ""), "n": (0, "")}


def test_a_model_that_goes_on_to_end_workers_is_given_up_and_costs_the_others_nothing() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=5)
    die_loading(scene, LOADING, ABORT)
    serve_without(scene, "m")
    serving = scene.process()
    for _ in range(2):
        scene.tick(61.0)
        process = scene.next_process()
        scene.report(process, "loading")
        child(process).step = LOADING
        scene.die(process, ABORT)
        assert (scene.process(), *served(scene)) == (serving, False, True)
    launched = len(scene.launched)
    scene.tick(61.0)
    assert len(scene.launched) == launched
    scene.die(serving)
    why = "it has ended 3 workers of the slot: killed by SIGABRT (6) while loading m version 1"
    assert told(scene.process())["m"][1] == why


def test_without_room_for_a_second_worker_the_others_are_not_interrupted_for_another_try() -> None:
    scene = Scene(models=[("m", "n")], fits=False)
    die_loading(scene, LOADING, ABORT)
    serve_without(scene, "m")
    launched = len(scene.launched)
    for _ in range(3):
        scene.tick(61.0)
    assert (len(scene.launched), *served(scene)) == (launched, False, True)
    scene.capacity.fits = True
    scene.tick(1.0)
    assert told(scene.next_process())["m"] == (0, "")


def test_another_try_is_given_up_where_the_worker_that_serves_dies() -> None:
    scene = Scene(models=[("m", "n")])
    die_loading(scene, LOADING, ABORT)
    serve_without(scene, "m")
    scene.tick(61.0)
    trying = scene.next_process()
    scene.report(trying, "loading")
    child(trying).step = LOADING
    scene.die(scene.process())
    scene.die(trying, ABORT)
    assert told(scene.process())["m"][1].startswith("it has ended 2 workers of the slot")
    serve_without(scene, "m")
    assert served(scene) == (False, True)


def test_a_single_sigkill_may_have_come_from_anybody_and_leaves_no_model_out() -> None:
    scene = Scene(models=[("m", "n")])
    assert told(die_loading(scene, LOADING)) == {"m": (0, ""), "n": (0, "")}
    assert told(die_loading(scene, LOADING))["m"][1].startswith("it has ended 2 workers of the slot")


def test_a_warm_up_that_goes_on_to_end_workers_is_given_up_after_three() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=5)
    step = LoadStep("m", "1", rows=8, fewer_rows=4)
    for _ in range(2):
        assert told(die_loading(scene, step))["m"] == (4, "")
    why = f"it has ended 3 workers of the slot: killed by SIGKILL (9) while {step}"
    assert told(die_loading(scene, step)) == {"m": (4, why), "n": (0, "")}


def test_a_model_that_has_been_loaded_begins_with_no_deaths() -> None:
    scene = Scene(models=[("m", "n")])
    for _ in range(3):
        assert told(die_loading(scene, LOADING)) == {"m": (0, ""), "n": (0, "")}
        scene.serve(scene.process())
        scene.die(scene.process())
        scene.tick(1.0)


def test_if_nothing_else_is_left_a_model_with_tries_left_is_loaded() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=5)
    die_loading(scene, LOADING, ABORT)
    time_out(scene, LoadStep("n", "1"))
    assert told(scene.process())["m"] == (0, "")
    assert told(scene.process())["n"][1].startswith("it was not loaded in time")


def test_with_a_budget_of_one_restart_the_others_are_served_after_one_death() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=1)
    assert told(die_loading(scene, LoadStep("m", "1")))["m"][1].startswith("it has ended a worker of the slot: ")


def test_the_last_model_of_a_slot_is_tried_as_long_as_the_budget_lasts() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=10)
    for _ in range(3):
        die_loading(scene, LoadStep("m", "1"))
    for _ in range(4):
        assert told(die_loading(scene, LoadStep("n", "1")))["n"][1] == ""


def test_a_model_that_was_left_out_is_loaded_if_the_others_cannot_be() -> None:
    scene = Scene(models=[("m", "n")])
    die_loading(scene, LOADING, ABORT)
    process = scene.process()
    scene.report(process, "loading")
    child(process).step = None
    scene.report(process, "failed", "no weights")
    scene.die(process)
    scene.tick(1.0)
    assert told(scene.process()) == {"m": (0, ""), "n": (0, "")}
    serve_without(scene, "n")
    assert (scene.state(), *served(scene)) == (State.READY, True, False)


def test_a_slot_whose_models_abort_or_fail_in_turns_fails_in_the_end() -> None:
    scene = Scene(models=[("m", "n")])
    for _ in range(3):
        die_loading(scene, LOADING, ABORT)
        process = scene.process()
        scene.report(process, "loading")
        child(process).step = None
        scene.report(process, "failed", "no weights")
        scene.die(process)
        scene.tick(1.0)
    assert scene.state() is State.FAILED


def test_a_try_gives_way_to_a_replacement_that_somebody_waits_for() -> None:
    scene = Scene(models=[("m", "n"), ("n",)])
    die_loading(scene, LOADING, ABORT)
    serve_without(scene, "m")
    scene.serve(scene.process(1))
    scene.tick(61.0)
    trying = scene.next_process()
    scene.report(trying, "loading")
    scene.order(1)
    assert child(trying).told_to_end
    assert scene.slot().next_process is None
    scene.die(trying, 0)
    scene.report(scene.next_process(1), "loading")
    scene.report(scene.next_process(1), "ready")
    scene.tick()
    scene.let_processes_end()
    for _ in range(2):
        scene.tick(61.0)
    assert told(scene.next_process())["m"] == (0, "")
