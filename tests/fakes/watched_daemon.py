"""A daemon that follows model files: real files, real reloads and replacements, processes that are made up."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_operations import Operations
from fake_workers import Scene, child
from version_folders import version

from multitower.load_step import LoadStep
from multitower.spec import ModelReport, ModelSpec
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load, load_model
from multitower.supervisor.settings import build_settings
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.worker.loaded_content import FilesChangedError, LoadedContent


class Daemon:
    """A fleet with the operations of a daemon, step by step.

    Args:
        folder: of the configuration, with the versions in `model`.
        slots: how many.
        more: keys of the model.
        fits: whether two processes of a slot fit.

    Attributes:
        bad: the slots on which a version cannot be loaded, by version.
        killing: versions during whose loading a process is killed.
        crashing: the model and version during whose next load a process crashes; None for none.
        bad_contents: weights with which no version can be loaded.
        while_loading: called while a process loads a version, after it has begun to read the files.
    """

    def __init__(self, folder: Path, slots: int = 1, more: str = "", *, fits: bool = True) -> None:
        self._path = folder / "config.yaml"
        self.write(more, slots)
        self.bad: dict[str, set[int]] = {}
        self.killing: set[str] = set()
        self.crashing: tuple[str, str] | None = None
        self.bad_contents: set[bytes] = set()
        self.while_loading: Callable[[], object] = lambda: None
        self._loaded: dict[tuple[int, tuple[str, str]], bytes] = {}
        self.scene = Scene(slots, fits=fits)
        made = build_settings(self._read())
        self.manager = self.scene.manager
        self.manager.apply_settings(made.worker_settings)
        for slot, placement in zip(self.manager.slots, made.placements, strict=True):
            slot.specs, slot.placement = made.worker_settings.models, placement
        router = self.scene.router
        self.operations = Operations(self.scene, made, self._read)
        self.orders, self.models = self.operations.orders, self.operations.model_orders
        self.watch = self.operations.watch
        for name, limits in made.limits.items():
            router.models.set_model(name, limits, made.timeouts[name])
        router.models.set_labels(made.labels)
        self._first_models = made.worker_settings.models
        self._first_processes = list(self.scene.launched)
        for process in self._first_processes:
            process.specs = self._first_models
            process.generations = {
                spec.key: self.manager._slots._assignments.generation(spec) for spec in self._first_models
            }

    def _specs(self, process: WorkerProcess) -> tuple[ModelSpec, ...]:
        assignment = child(process).assignment
        return self._first_models if process in self._first_processes or assignment is None else assignment.models

    def _read(self, model: str | None = None) -> Config:
        if model is not None:
            return load_model(self._path, model, environment={})
        return load(self._path, environment={})

    def write(self, more: str, slots: int) -> None:
        """Writes the configuration."""
        models = f"models: [{{name: m, path: model{more}}}]\n"
        self._path.write_text(f"devices: {{cpu: {slots}}}\nspares: 0\nwatch: {{settle: 0s}}\n{models}")

    def settle(self) -> None:
        """Processes load what they can and end when asked to, until nothing happens any more."""
        self.scene.load_until_quiet(self._load)

    def _load(self, process: WorkerProcess) -> None:
        assert process.slot is not None
        slot = process.slot.number
        killing = next((spec for spec in self._specs(process) if spec.version in self.killing), None)
        if killing is not None:
            self.scene.report(process, "loading")
            child(process).step = LoadStep(*killing.key)
            self.scene.die(process)
            return
        if self.crashing is not None and self.crashing in {spec.key for spec in self._specs(process)}:
            self.scene.report(process, "loading")
            child(process).step, self.crashing = LoadStep(*self.crashing), None
            self.scene.die(process, -signal.SIGSEGV)
            return
        reports = tuple(self._report(spec, slot, process) for spec in self._specs(process))
        self.scene.report(process, "loading")
        good = any(report.state == "ready" for report in reports)
        self.scene.report(process, "ready" if good else "failed", models=reports)
        self.scene.tick()

    def _report(self, spec: ModelSpec, slot: int, process: WorkerProcess) -> ModelReport:
        """Returns what a worker reports of the files as they are now."""
        name, version = spec.key
        try:
            content = LoadedContent(spec)
            weights = _weights(spec)
            self.while_loading()
            if slot in self.bad.get(version, ()) or weights in self.bad_contents:
                changed = content.has_changed()
                return ModelReport(
                    name=name, version=version, state="failed", cause="no weights", files_changed=changed
                )
            found = content.finish()
        except FilesChangedError as error:
            return ModelReport(
                name=name,
                version=version,
                state="failed",
                cause=str(error),
                files_changed=True,
                fingerprint=error.fingerprint,
            )
        self._loaded[process.child.pid, spec.key] = weights
        return ModelReport(name=name, version=version, fingerprint=found, same_content=content.same_content)

    def scan(self) -> None:
        """The watch scans the folder, and what follows from that is carried out."""
        self.watch.due = 0.0
        self.watch.tick(self.scene.now)
        self.settle()

    def served(self) -> list[list[str]]:
        """Returns the versions that each slot serves."""
        return [
            sorted(version for _, version in slot.route.worker.versions) if slot.route is not None else []
            for slot in self.manager.slots
        ]

    def contents(self) -> list[bytes | None]:
        """Returns the weights that each slot serves of version 1 of the model; None for a slot that does not serve."""
        return [
            self._loaded[slot.process.child.pid, ("m", "1")]
            if slot.process is not None and slot.route is not None and ("m", "1") in slot.route.worker.versions
            else None
            for slot in self.manager.slots
        ]

    def rows(self) -> dict[str, tuple[str, str | None]]:
        """Returns the state and the cause of each version in the status."""
        rows = self.operations.status.report(self.scene.now)["models"]
        return {row["version"]: (row["state"], row["cause"]) for row in rows}


def daemon_of(folder: Path, *versions: str, **arguments: Any) -> Daemon:
    """Returns a daemon that serves these versions."""
    for number in versions:
        version(folder / "model", number)
    daemon = Daemon(folder, **arguments)
    daemon.settle()
    return daemon


def _weights(spec: ModelSpec) -> bytes:
    """Reads the weights of a version; none where they are gone, or it has none."""
    try:
        return (
            b""
            if spec.path is None
            else Path(spec.path, spec.version or "", "variables", "variables.data").read_bytes()
        )
    except OSError:
        return b""
