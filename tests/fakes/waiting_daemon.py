"""A daemon that waits for a model or devices: real folders, processes that are made up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fake_operations import Operations
from fake_workers import Scene, child

from multitower.load_step import LoadStep
from multitower.spec import ModelReport
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load, load_model
from multitower.supervisor.machine.devices import Device
from multitower.supervisor.settings import Settings, build_settings
from multitower.supervisor.workers.slot import WorkerProcess

CONFIG = """
devices: {devices}
spares: 0
watch: {{settle: 0s}}
models:
  - {{name: here, handler: "h:M"{on}}}
  - {{name: later, path: {path}{more}}}
"""


class Daemon:
    """A fleet with the operations of a daemon, one model that is there, and one that is waited for.

    Attributes:
        bad: why a model cannot be loaded, by name, and whether that may pass.
        killing: models during whose loading a process is killed.
    """

    def __init__(self, folder: Path, *, path: str = "later", devices: str = "{cpu: 2}", on: str = "", more: str = ""):
        self._path = folder / "config.yaml"
        self._values = {"path": path, "devices": devices, "on": on, "more": more}
        self.write()
        made = build_settings(self._read())
        self.scene = Scene(len(made.placements), models=[("here",)] * len(made.placements))
        self.manager = self.scene.manager
        self.manager.apply_settings(made.worker_settings)
        for slot, placement in zip(self.manager.slots, made.placements, strict=True):
            slot.specs, slot.placement = placement.select_models(made.worker_settings.models), placement
        for name, limits in made.limits.items():
            self.scene.router.models.set_model(name, limits, made.timeouts[name])
        self.operations = Operations(self.scene, made, self._read)
        self.bad: dict[str, tuple[str, bool]] = {}
        self.killing: set[str] = set()
        self.settle()
        for slot in self.manager.slots:  # the first processes do not know the specifications
            self.scene.die(self.scene.process(slot.number))
        self.settle()

    def write(self, **values: str) -> None:
        self._values |= values
        self._path.write_text(CONFIG.format(**self._values))

    def _read(self, model: str | None = None) -> Config:
        if model is not None:
            return load_model(self._path, model, environment={}, strict=False)
        return load(self._path, environment={}, strict=False)

    @property
    def settings(self) -> Settings:
        return self.operations.settings.current

    def settle(self) -> None:
        """Processes load what they can and end when asked to, until nothing happens any more."""
        self.scene.load_until_quiet(self._load)

    def _load(self, process: WorkerProcess) -> None:
        assert process.slot is not None
        self.scene.report(process, "loading")
        assignment = child(process).assignment
        left_out = {spec.key for spec in assignment.models if spec.not_loaded_because} if assignment is not None else ()
        for key in process.generations:
            if key[0] in self.killing and key not in left_out:
                child(process).step = LoadStep(*key)
                self.scene.die(process)
                return
        prints = {spec.key: spec.fingerprint for spec in assignment.models} if assignment is not None else {}
        reports = tuple(
            ModelReport(name=key[0], version=key[1], state="failed", cause="left out")
            if key in left_out
            else self._report(*key, prints.get(key, ""))
            for key in process.generations
        )
        good = any(report.state == "ready" for report in reports)
        self.scene.report(process, "ready" if good else "failed", models=reports)
        self.scene.tick()

    def _report(self, name: str, version: str, fingerprint: str) -> ModelReport:
        if name not in self.bad:
            return ModelReport(name=name, version=version, fingerprint=fingerprint)
        cause, temporary = self.bad[name]
        return ModelReport(name=name, version=version, state="failed", cause=cause, temporary=temporary)

    def look(self, times: int = 2) -> None:
        """The daemon looks for what it waits for, and what follows from that is carried out."""
        for _ in range(times):
            self.operations.presence_watch.due = 0.0
            self.operations.presence_watch.tick(time.monotonic())
            self.settle()
        self.operations.presence_watch.tick(0.0)  # marks what is waited for

    def serves(self) -> list[str]:
        return sorted({name for slot in self.manager.slots if slot.route for name in slot.route.worker.serves})

    def rows(self) -> dict[str, Any]:
        return {row["name"]: row for row in self.operations.status.report(self.scene.now)["models"]}

    def refusal(self, name: str) -> str:
        refusal = self.scene.router.scheduler.refusal_for_new_request(name)
        assert refusal is not None
        return refusal.message

    def waiting(self) -> list[tuple[str, str]]:
        status = self.operations.status.report(self.scene.now)["daemon"]
        return [(entry["kind"], entry["name"]) for entry in status["waiting"]]

    def cause(self) -> str:
        (entry,) = self.settings.waiting
        return entry.cause

    def carry_out(self, order: str, *arguments: str) -> Any:
        answers: list[Any] = []
        models = self.operations.model_orders
        {"load": models.load, "unload": models.unload, "reload": self.operations.orders.reload}[order](
            *arguments, answers.append
        )
        self.settle()
        return answers[0]


def gpu(index: int) -> Device:
    return Device(
        name=f"GPU-{index}",
        kind="gpu",
        index=index,
        product="P",
        memory_bytes=1 << 34,
        memory_used_bytes=0,
        pci_bus_id=f"0{index}",
    )


class Clock:
    """Stands for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


def attempts(daemon: Daemon, clock: Clock, seconds: int) -> list[int]:
    """Returns after how many seconds processes were started."""
    found = []
    for second in range(seconds):
        launched = len(daemon.scene.launched)
        clock.now += 1.0
        daemon.operations.presence_watch.tick(clock.now)
        daemon.settle()
        if len(daemon.scene.launched) > launched:
            found.append(second)
    return found
