"""Made-up daemons whose slots serve, and a process that is found to hang."""

from __future__ import annotations

from typing import Any

from fake_workers import Scene

from multitower.supervisor.workers.exit_cause import Fault, Verdict
from multitower.supervisor.workers.slot import WorkerProcess


def serving(slots: int = 1, **arguments: Any) -> Scene:
    """Every slot serves."""
    scene = Scene(slots, **arguments)
    for slot in range(slots):
        scene.serve(scene.process(slot))
    return scene


def condemn(scene: Scene, process: WorkerProcess) -> None:
    """As health checks do with a process that hangs."""
    scene.manager._exits.condemn_process(process, Verdict(Fault.STOPPED, "it sleeps"), scene.now)
