"""Models that end workers while they are loaded: what the next worker does differently."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fake_workers import Scene, child

from multitower.load_step import STEP_BYTES, LoadStep, clear_step
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


@pytest.mark.parametrize(
    "step", [LoadStep("m", "1"), LoadStep("m", "1", rows=1), LoadStep("m", "1", rows=8, fewer_rows=4)], ids=str
)
def test_a_model_that_goes_on_to_end_workers_costs_the_others_nothing_more(step: LoadStep) -> None:
    scene = Scene(models=[("m", "n")], max_restarts=5)
    for _ in range(2):
        assert told(die_loading(scene, step))["m"][1] == ""
    why = told(die_loading(scene, step))["m"][1]
    assert why == f"it has ended 3 workers of the slot: killed by SIGKILL (9) while {step}"
    assert told(scene.process())["n"] == (0, "")
    scene.report(scene.process(), "loading")
    scene.report(scene.process(), "ready", failed={"m"})
    assert (scene.state(), scene.slot().serves("n"), scene.slot().serves("m")) == (State.READY, True, False)
    scene.die(scene.process())
    scene.tick(1.0)
    assert told(scene.process())["m"][1] == why, "a later worker does not try either"


def test_with_a_budget_of_one_restart_the_others_are_served_after_one_death() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=1)
    assert told(die_loading(scene, LoadStep("m", "1")))["m"][1].startswith("it has ended a worker of the slot: ")


def test_the_last_model_of_a_slot_is_tried_as_long_as_the_budget_lasts() -> None:
    scene = Scene(models=[("m", "n")], max_restarts=10)
    for _ in range(3):
        die_loading(scene, LoadStep("m", "1"))
    for _ in range(4):
        assert told(die_loading(scene, LoadStep("n", "1")))["n"][1] == ""


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
    child(process).step = WARM_UP
    assert _step(process, scene.now)["step"] == "warming up m version 1 with 1000 rows"
