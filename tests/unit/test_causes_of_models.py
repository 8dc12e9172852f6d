"""When all models of a slot fail, the cause of each is its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from daemon_scene import DaemonScene
from fake_workers import Scene

from multitower.spec import ModelReport
from multitower.supervisor.workers.slot_state_machine import State


def failed(name: str, cause: str, version: str = "1") -> ModelReport:
    return ModelReport(name=name, version=version, state="failed", cause=cause)


def fail(scene: Scene, slot: int, *reports: ModelReport) -> None:
    """The process of a slot reports that it can load nothing, as a worker does."""
    process = scene.process(slot)
    scene.report(process, "loading")
    scene.report(process, "failed", "; ".join(f"{each.name}: {each.cause}" for each in reports), reports)
    scene.settle()
    assert scene.state(slot) is State.FAILED


def restarted(daemon: DaemonScene, slot: int) -> Scene:
    """Restarts a slot, up to its new process."""
    scene = daemon.scene
    scene.die(scene.process(slot))
    scene.tick(2.0)
    return scene


def causes(daemon: DaemonScene) -> dict[str, str]:
    return {model["name"]: model["cause"] for model in daemon.status()}


def test_each_model_of_a_failed_slot_has_its_own_cause(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n")])
    scene = restarted(daemon, 0)
    fail(scene, 0, failed("m", "no weights"), failed("n", "no signature"))
    assert daemon.refused("m").endswith("slot 0: no weights")
    assert daemon.refused("n").endswith("slot 0: no signature")
    assert "no signature" not in causes(daemon)["m"]
    assert "no weights" not in causes(daemon)["n"]
    assert scene.slot().last_error == "m: no weights; n: no signature", "the slot's cause names all of its models"


def test_slots_that_failed_for_different_reasons_are_told_apart(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n"), ("m",)])
    scene = restarted(daemon, 0)
    fail(scene, 0, failed("m", "no weights"), failed("n", "no signature"))
    assert daemon.state("m") == "ready", "on the other slot"
    restarted(daemon, 1)
    fail(scene, 1, failed("m", "no memory"))
    assert daemon.refused("m").endswith("slot 0: no weights; slot 1: no memory")
    assert daemon.refused("n").endswith("slot 0: no signature")


def test_a_model_that_did_load_in_a_slot_that_died_too_often_has_the_slots_cause(tmp_path: Path) -> None:
    scene = Scene(models=[("m", "n")], max_restarts=1)
    while scene.state() is not State.FAILED:
        process = scene.process()
        scene.report(process, "loading")
        scene.report(process, "ready", failed=["n"])
        scene.tick()
        scene.die(process)
        scene.tick(2.0)
    refusals = {name: scene.router.scheduler.refusal_for_new_request(name) for name in ("m", "n")}
    assert str(refusals["m"]).endswith(
        "slot 0: killed by SIGKILL (9); too many restarts (restart.max_restarts is 1 within 60 s)"
    )
    assert str(refusals["n"]).endswith("slot 0: no weights")


def test_each_version_of_a_model_has_its_own_cause(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m",)])
    slot = daemon.scene.slot()
    slot.specs = tuple(replace(slot.specs[0], version=version) for version in ("1", "2"))
    scene = restarted(daemon, 0)
    fail(scene, 0, failed("m", "no weights", "1"), failed("m", "no signature", "2"))
    assert daemon.refused("m").endswith("slot 0: version 1: no weights; version 2: no signature")
    readiness = daemon.operations.readiness
    assert readiness.cause("m", "1") == "slot 0: no weights"
    assert readiness.cause("m", "2") == "slot 0: no signature"
