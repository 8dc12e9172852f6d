"""Models that end workers while they are loaded: what the next worker does differently."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fake_workers import Scene, child, spec

from multitower.load_step import STEP_BYTES, LoadStep, clear_step
from multitower.supervisor.workers.hang_detector import ProcessStat
from multitower.supervisor.workers.manager import SPARES_WAIT_S
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State
from multitower.worker_wire import BEGUN_BYTES

WARM_UP = LoadStep("m", "1", rows=1000, fewer_rows=512)


def die_loading(scene: Scene, step: LoadStep | None, code: int = -9) -> WorkerProcess:
    """The slot's process dies while it loads; returns the next one, which may be started after a back-off."""
    process = scene.process()
    scene.report(process, "loading")
    child(process).step = step
    scene.die(process, code)
    if scene.slot().process is None:
        scene.tick(1.0)
    return scene.process()


def told(process: WorkerProcess) -> dict[str, tuple[int, str]]:
    """What a process was told of each model: the rows that are safe, and why it must not be loaded."""
    assignment = child(process).assignment
    assert assignment is not None
    return {spec.name: (spec.safe_rows, spec.not_loaded_because) for spec in assignment.models}


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


# A slot with two models.

ABORT = -6
LOADING = LoadStep("m", "1")


def serve_without(scene: Scene, *models: str) -> None:
    """The slot's process becomes ready without these models."""
    scene.report(scene.process(), "loading")
    child(scene.process()).step = None
    scene.report(scene.process(), "ready", failed=set(models))
    scene.tick()


def served(scene: Scene) -> tuple[bool, bool]:
    """Whether the slot serves m and n."""
    return scene.slot().serves("m"), scene.slot().serves("n")


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


# A model that takes too long.


def time_out(scene: Scene, step: LoadStep, process: WorkerProcess | None = None) -> WorkerProcess:
    """A process, the slot's current one unless it is given, exceeds `load_timeout`; returns it."""
    process = process or scene.process()
    scene.manager.apply_settings(replace(scene.manager.settings, load_s={"m": 10.0, "n": 10.0}, start_s=20.0))
    scene.report(process, "loading")
    child(process).step = step
    scene.tick(1.0)
    child(process).stat = ProcessStat("R", scene.now)  # it computes: it does not hang
    for _ in range(11):
        scene.tick(1.0)
    assert (process.verdict is not None, child(process).stacks_dumped) == (True, True)
    scene.die(process)
    return process


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


def test_with_a_budget_of_one_restart_the_others_are_served_after_one_death() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=1)
    assert told(die_loading(scene, LoadStep("m", "1")))["m"][1].startswith("it has ended a worker of the slot: ")


def test_the_last_model_of_a_slot_is_tried_as_long_as_the_budget_lasts() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=10)
    for _ in range(3):
        die_loading(scene, LoadStep("m", "1"))
    for _ in range(4):
        assert told(die_loading(scene, LoadStep("n", "1")))["n"][1] == ""


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


# The memory that both share.


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    os.truncate(descriptor, BEGUN_BYTES + STEP_BYTES)
    yield descriptor
    os.close(descriptor)


def test_the_last_step_is_read_until_it_is_cleared(memory: int) -> None:
    assert LoadStep.read(memory) is None
    for step in (LoadStep("m" * 128, "12", "s", 1000, 512), LoadStep("n", "1")):
        step.write(memory)
        assert LoadStep.read(memory) == step
    clear_step(memory)
    assert LoadStep.read(memory) is None


def test_a_long_signature_is_cut(memory: int) -> None:
    LoadStep("m" * 256, "1", "\u20ac" * 10_000, 1, 0).write(memory)
    step = LoadStep.read(memory)
    assert step is not None
    assert step.signature == "\u20ac" * 256


@pytest.mark.parametrize(
    "page", [b"", b"\x01", b"\x02\x00{}", b"\x02\x00[]", b"\x03\x00{\xff", b"\xff\xff" + b"x" * 4000, b'\x04\x00"xx"']
)
def test_memory_that_the_worker_has_spoilt_shows_no_step(memory: int, page: bytes) -> None:
    os.truncate(memory, BEGUN_BYTES)
    os.pwrite(memory, page, BEGUN_BYTES)
    assert LoadStep.read(memory) is None


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (LoadStep("m", "1"), "loading m version 1"),
        (LoadStep("m", "3", rows=1), "warming up m version 3 with 1 row"),
        (LoadStep("m", "3", "train", 8, 4), "warming up m version 3 (train) with 8 rows"),
    ],
)
def test_a_step_is_described_for_people(step: LoadStep, text: str) -> None:
    assert str(step) == text


def test_the_status_shows_what_a_worker_is_about_to_do() -> None:
    from multitower.supervisor.operations.status import _step

    scene = Scene()
    process = scene.process()
    assert _step(process, scene.now) == {"step": None, "step_for_s": None}
    child(process).step = replace(WARM_UP, began_at=scene.now - 5.0)
    shown = {"step": "warming up m version 1 with 1000 rows", "step_for_s": 5.0}
    assert _step(process, scene.now) == shown
