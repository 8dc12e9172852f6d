"""Slots with different models: deaths and reloads, with fake processes."""

from __future__ import annotations

import pytest
from fake_settings import Slots, made, reload
from fake_workers import Scene, child

from multitower.errors import Reason, Unavailable
from multitower.supervisor.workers.planned_replacement_queue import Replacement


def serving(models: Slots, *, fits: bool = True, retry: int = 1, max_restarts: int = 100) -> Scene:
    """Every slot serves its models."""
    scene = Scene(models=models, fits=fits, retry=retry, max_restarts=max_restarts)
    for slot in range(len(models)):
        scene.serve(scene.process(slot))
    return scene


def loads(scene: Scene) -> list[str]:
    """The models of each slot's process."""
    return ["".join(name for name, _ in scene.process(slot.number).generations) for slot in scene.manager.slots]


def test_requests_go_to_workers_that_have_their_model() -> None:
    scene = serving([("m",), ("n",), ("n",)])
    for model in ("n", "n", "m"):
        scene.submit(model=model)
    slots = {worker.slot: [batch.key.spec.model for batch in given] for worker, given in scene.running.items()}
    assert slots == {0: ["m"], 1: ["n"], 2: ["n"]}


def test_a_large_request_is_split_over_the_workers_that_have_its_model() -> None:
    scene = serving([("m",), ("n",), ("n",)])
    scene.submit(rows=4, model="n")
    assert sorted(worker.slot for worker in scene.running) == [1, 2]
    for slot in (1, 2):
        scene.answer(scene.process(slot))
    assert [type(answer) for answer in scene.replies()] == [list]


def test_a_suspect_runs_again_on_another_device_that_has_its_model() -> None:
    scene = serving([("m",), ("n",), ("n",)])
    scene.submit(model="n")
    (first,) = [worker.slot for worker in scene.running]
    scene.die(scene.process(first))
    scene.dispatch()
    assert [worker.slot for worker in scene.running] == [3 - first]


def test_a_cause_common_to_several_slots_is_reported_once() -> None:
    scene = serving([("m", "n"), ("m", "n"), ("m", "n")], max_restarts=0)
    for slot, code in enumerate((3, 4, 3)):
        scene.die(scene.process(slot), code)
    with pytest.raises(Unavailable, match=r"'n': slots 0, 2: exited with code 3; .*; slot 1: exited with code 4"):
        scene.submit(model="n")


def test_a_model_whose_only_slot_failed_is_refused_and_others_are_served() -> None:
    scene = serving([("m",), ("n",)], max_restarts=0)
    scene.die(scene.process(1))
    with pytest.raises(Unavailable, match="no worker serves 'n': slot 1: killed"):
        scene.submit(model="n")
    scene.submit(model="m")
    assert len(scene.running) == 1
    assert not scene.manager.unavailable


RELOADS = [
    # Slots before, slots after, changed versions, slots that get new processes.
    ("nothing", [("m",), ("n",)], [("m",), ("n",)], {}, []),
    ("one model's version", [("m",), ("m", "n"), ("n",)], [("m",), ("m", "n"), ("n",)], {"n": 2}, [1, 2]),
    ("a model more on one", [("m",), ("m",)], [("m", "n"), ("m",)], {}, [0]),
    ("a model less on one", [("m", "n"), ("m", "n")], [("m", "n"), ("m",)], {}, [1]),
    ("one moves", [("m", "n"), ("m",)], [("m",), ("m", "n")], {}, [0, 1]),
    ("two change places", [("m",), ("n",)], [("n",), ("m",)], {}, [0, 1]),
]


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize(
    ("before", "after", "versions", "changed"), [row[1:] for row in RELOADS], ids=[row[0] for row in RELOADS]
)
def test_a_reload_replaces_the_slots_whose_models_change(
    fits: bool, before: Slots, after: Slots, versions: dict[str, int], changed: list[int]
) -> None:
    scene = serving(before, fits=fits)
    processes = [scene.process(slot) for slot in range(len(before))]
    outcomes = reload(scene, made(before), made(after, versions))
    requests = [scene.submit(model=model) for model in ("m", "n") if any(model in slot for slot in before)]
    scene.settle(lambda: outcomes != [])
    scene.settle()
    assert outcomes == [None]
    assert loads(scene) == ["".join(slot) for slot in after]
    assert [slot for slot, process in enumerate(processes) if scene.process(slot) is not process] == changed
    answers = scene.replies()
    assert [type(answer) for answer in answers] == [list] * len(requests)


def test_a_model_that_moves_is_loaded_on_the_new_slot_first() -> None:
    scene = serving([("m", "n"), ("m",)])
    outcomes = reload(scene, made([("m", "n"), ("m",)]), made([("m",), ("m", "n")]))
    assert scene.slot(0).next_process is None
    scene.serve(scene.next_process(1))
    scene.let_processes_end()
    scene.tick()
    scene.serve(scene.next_process(0))
    scene.submit(model="n")
    assert [worker.slot for worker in scene.running] == [1]
    scene.settle(lambda: outcomes != [])
    assert outcomes == [None]


def test_a_draining_worker_answers_requests_for_a_model_no_other_will_have() -> None:
    """Also when something happens meanwhile that makes the models' chances be judged again."""
    scene = serving([("m", "n"), ("m",)])
    outcomes = reload(scene, made([("m", "n"), ("m",)]), made([("m",), ("m",)]))
    old = scene.process(0)
    requests = [scene.submit(model="n") for _ in range(5)]
    scene.serve(scene.next_process(0))
    scene.manager.update_availability()
    for _ in requests[::2]:
        scene.answer(old)
    assert child(old).told_to_end
    assert [type(answer) for answer in scene.replies()] == [list] * 5
    scene.settle(lambda: outcomes != [])
    assert outcomes == [None]


def test_a_failed_reload_leaves_no_request_waiting_for_a_model_without_a_slot() -> None:
    scene = serving([("m",), ("n",)])
    outcomes = reload(scene, made([("m",), ("n",)]), made([("n",), ("m",)]))
    scene.serve(scene.next_process(0))
    scene.let_processes_end()
    scene.tick()
    scene.submit(model="m")
    scene.report(scene.next_process(1), "failed", "no weights")
    scene.tick()
    assert outcomes == ["slot 1: no weights"]
    (error,) = scene.replies()
    assert (error.reason, error.message) == (Reason.NO_WORKER, "no worker serves 'm': no slot has it")


def test_only_an_operators_restart_fails_if_a_model_is_still_broken() -> None:
    scene = Scene(models=[("m", "n")], retry=1, max_restarts=100)
    serving = scene.process(0)
    scene.report(serving, "loading")
    scene.report(serving, "ready", failed=["n"])
    outcomes: list[str | None] = []
    scene.manager.restart_slot(scene.slot(), outcomes.append)
    scene.tick()
    scene.report(scene.next_process(), "ready", failed=["n"])
    scene.tick()
    (cause,) = outcomes
    assert "no weights" in str(cause)
    assert scene.process(0) is serving, "what serves is kept"
    # Likewise each of two that wait for each other.
    del outcomes[:]
    for _ in range(2):
        scene.manager.restart_slot(scene.slot(), outcomes.append)
    for _ in range(2):
        scene.tick()
        scene.report(scene.next_process(), "ready", failed=["n"])
        scene.let_processes_end()
        scene.tick()
    assert ["no weights" in str(outcome) for outcome in outcomes] == [True, True]
    # Nobody has seen to it: what serves is all that a new one has to serve.
    scene.manager.request_replacement(Replacement(scene.slot(), "it has served its time"))
    scene.tick()
    replacement = scene.next_process()
    scene.report(replacement, "ready", failed=["n"])
    scene.tick()
    assert scene.process(0) is replacement
