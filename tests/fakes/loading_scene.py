"""Processes of a made-up daemon that die, or take too long, while they load models."""

from __future__ import annotations

from dataclasses import replace

from fake_workers import Scene, child

from multitower.load_step import LoadStep
from multitower.supervisor.workers.hang_detector import ProcessStat
from multitower.supervisor.workers.slot import WorkerProcess

WARM_UP = LoadStep("m", "1", rows=1000, fewer_rows=512)
ABORT = -6
LOADING = LoadStep("m", "1")


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


def serve_without(scene: Scene, *models: str) -> None:
    """The slot's process becomes ready without these models."""
    scene.report(scene.process(), "loading")
    child(scene.process()).step = None
    scene.report(scene.process(), "ready", failed=set(models))
    scene.tick()


def served(scene: Scene) -> tuple[bool, bool]:
    """Whether the slot serves m and n."""
    return scene.slot().serves("m"), scene.slot().serves("n")


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
