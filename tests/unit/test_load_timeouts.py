"""Models that take too long to load."""

from __future__ import annotations

from dataclasses import replace

from fake_workers import Scene, child, spec
from loading_scene import ABORT, LOADING, serve_without, served, time_out, told

from multitower.load_step import LoadStep
from multitower.supervisor.workers.hang_detector import ProcessStat
from multitower.supervisor.workers.manager import SPARES_WAIT_S
from multitower.supervisor.workers.slot_state_machine import State


def test_a_model_that_takes_too_long_is_left_out_and_not_tried_again() -> None:
    scene = Scene(models=[("m", "n")])
    time_out(scene, LOADING)
    cause = "killed because it took over 10 s (load_timeout) while loading m version 1"
    why = f"it was not loaded in time: {cause}; its stacks are in the log"
    assert told(scene.process()) == {"m": (0, why), "n": (0, "")}
    assert scene.slot().last_error == cause
    serve_without(scene, "m")
    launched = len(scene.launched)
    for _ in range(100):
        scene.tick(1.0)
    assert (len(scene.launched), *served(scene)) == (launched, False, True)


def test_the_only_model_of_a_slot_fails_with_the_cause_after_one_load_that_takes_too_long() -> None:
    scene = Scene()
    time_out(scene, LoadStep("m", "1", rows=1000, fewer_rows=512))
    slot = scene.slot()
    assert (slot.state, slot.process, slot.safe_rows) == (State.FAILED, None, {})
    ((model, cause),) = [(report.name, report.cause) for report in slot.models]
    assert model == "m"
    assert "killed because it took over 10 s (load_timeout) while warming up m version 1 with 1000 rows" in str(cause)
    refusal = scene.router.scheduler.refusal_for_new_request("m")
    assert refusal is not None
    assert "(load_timeout)" in refusal.message
    outcomes: list[str | None] = []
    scene.manager.restart_slot(slot, outcomes.append)
    scene.tick()
    assert told(scene.process()) == {"m": (0, "")}


def test_a_replacement_that_takes_too_long_leaves_the_old_worker() -> None:
    scene = Scene()
    scene.serve(scene.process())
    old = scene.process()
    scene.order(specs=(spec(2),))
    time_out(scene, LOADING, scene.next_process())
    assert (scene.process(), scene.state(), scene.slot().next_process) == (old, State.READY, None)


def test_the_model_that_was_loaded_at_the_time_limit_is_to_blame_and_not_the_next_one() -> None:
    scene = Scene(models=[("m", "n")])
    process = scene.process()
    scene.manager.apply_settings(replace(scene.manager.settings, load_s={"m": 1.0, "n": 1.0}))
    scene.report(process, "loading")
    child(process).step = LOADING
    for _ in range(3):
        scene.tick(1.0)
    child(process).step = LoadStep("n", "1")  # while it writes its stacks
    scene.die(process)
    assert told(scene.process())["n"] == (0, "")
    assert "loading m version 1" in told(scene.process())["m"][1]


def test_a_longer_time_lets_the_model_be_tried_again() -> None:
    scene = Scene(models=[("m", "n")])
    time_out(scene, LOADING)
    serve_without(scene, "m")
    scene.manager.apply_settings(replace(scene.manager.settings, load_s={"m": 99.0, "n": 10.0}))
    scene.tick(1.0)
    scene.tick(1.0)
    assert told(scene.next_process()) == {"m": (0, ""), "n": (0, "")}


def test_a_model_that_sleeps_while_it_loads_keeps_no_other_slot_without_a_spare() -> None:
    scene = Scene(2, spares=1)
    scene.serve(scene.process(1))
    scene.report(scene.process(0), "loading")
    child(scene.process(0)).step = LOADING
    scene.tick(1.0)
    assert not scene.manager.spares
    for _ in range(int(SPARES_WAIT_S) + 1):
        scene.tick(1.0)
    assert len(scene.manager.spares) == 1


def test_no_spare_is_started_while_an_old_spare_loads_in_a_slot() -> None:
    scene = Scene(2, spares=1)
    for number in range(2):
        scene.serve(scene.process(number))
    scene.tick(1.0)
    (spare,) = scene.manager.spares
    for state in ("importing", "idle"):
        scene.report(spare, state)
        scene.tick(1.0)
    for _ in range(int(SPARES_WAIT_S) + 10):
        scene.tick(1.0)
    launched = len(scene.launched)
    scene.die(scene.process(0), ABORT)
    assert scene.process(0) is spare
    scene.tick()
    assert len(scene.launched) == launched
    scene.serve(spare)
    scene.tick()
    assert len(scene.launched) == launched + 1


def test_a_crash_whose_core_is_dumped_does_not_count_as_a_slow_load() -> None:
    scene = Scene(models=[("m", "n")])
    process = scene.process()
    scene.manager.apply_settings(replace(scene.manager.settings, load_s={"m": 10.0, "n": 10.0}))
    scene.report(process, "loading")
    child(process).step = LOADING
    child(process).stat = ProcessStat("R", scene.now, dumping=True)
    for _ in range(30):
        scene.tick(1.0)
    assert process.verdict is None
    scene.die(process, ABORT)
    scene.tick(1.0)
    assert told(scene.process())["m"][1].endswith("it will be tried again beside the others")
