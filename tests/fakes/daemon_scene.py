"""A fleet without processes with the operations of a daemon: a test gives orders and reads the answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fake_operations import Answer, Operations
from fake_workers import Scene

from multitower.errors import MultitowerError, Reason, Unavailable
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load, load_model
from multitower.supervisor.machine.resources import Sampler
from multitower.supervisor.settings import build_settings

MODEL = (
    "- {{name: {name}, handler: 'h:M', parameters: {{version: {version}}}, batching: {{max_batch_size: 2}}, "
    "devices: {on}, load_at_startup: {at_startup}}}"
)


class DaemonScene:
    """A fleet with the operations of a daemon.

    Args:
        folder: for its configuration.
        models: the names of each slot's models.
        fits: whether two processes of a slot fit.
        sampler: what measures the processes.

    Attributes:
        answers: the answers to orders.
    """

    def __init__(
        self, folder: Path, models: list[tuple[str, ...]], *, fits: bool = True, sampler: Sampler | None = None
    ) -> None:
        self._path = folder / "config.yaml"
        self._slots = models
        self.configure()
        self.scene = Scene(models=models, fits=fits)
        for slot in range(len(models)):
            self.scene.serve(self.scene.process(slot))
        settings = build_settings(self._read())
        for slot, placement in zip(self.scene.manager.slots, settings.placements, strict=True):
            slot.placement = placement
            slot.specs = tuple(replace(spec, module_folder=str(folder)) for spec in slot.specs)
        self.operations = Operations(self.scene, settings, self._read, sampler)
        self.answers: list[Answer] = []

    def configure(self, *, more: str = "", at_startup: str = "true", **versions: int) -> None:
        """Writes the file: versions of models, whether they are loaded at the start, and a text at its end."""
        names = sorted({name for slot in self._slots for name in slot} | set(versions))
        lines = [f"devices: {{cpu: {len(self._slots)}}}", "spares: 0", "models:"]
        for name in names:
            on = [f"cpu:{number}" for number, slot in enumerate(self._slots) if name in slot] or "all"
            lines.append(MODEL.format(name=name, version=versions.get(name, 1), on=on, at_startup=at_startup))
        self._path.write_text("\n".join([*lines, more]))

    def remove_model(self, name: str, **versions: int) -> None:
        """Writes the file without a model; see `configure`."""
        self._slots = [tuple(model for model in slot if model != name) for slot in self._slots]
        self.configure(**versions)

    def _read(self, model: str | None = None) -> Config:
        if model is not None:
            return load_model(self._path, model, environment={})
        return load(self._path, environment={})

    def give(self, order: str, *arguments: str) -> None:
        """Gives an order; its answer is appended to `answers`."""
        orders, model_orders = self.operations.orders, self.operations.model_orders
        {"load": model_orders.load, "unload": model_orders.unload, "reload": orders.reload}[order](
            *arguments, self.answers.append
        )
        self.scene.tick()

    def carry_out(self, order: str, *arguments: str) -> Answer:
        """Gives an order and returns its answer, while everything goes well."""
        before = len(self.answers)
        self.give(order, *arguments)
        self.scene.settle(lambda: len(self.answers) > before)
        self.scene.settle()
        return self.answers[before]

    def restart(self, slot: int) -> None:
        """Gives the order to restart a slot."""
        self.operations.orders.restart(slot, self.answers.append)

    def specs(self, slot: int) -> list[tuple[str, int]]:
        """Returns the models of a slot, and the version of each in the configuration."""
        return [(spec.name, spec.parameters["version"]) for spec in self.scene.slot(slot).specs]

    def status(self) -> list[dict[str, Any]]:
        """Returns the models of the status."""
        return cast(list[dict[str, Any]], self.operations.status.report(self.scene.now)["models"])

    def state(self, name: str) -> str:
        """Returns the state of a model in the status."""
        return {model["name"]: str(model["state"]) for model in self.status()}[name]

    def refused(self, name: str) -> str:
        """Returns why a request to the model is refused."""
        with pytest.raises(Unavailable) as caught:
            self.scene.submit(model=name)
        assert caught.value.reason == Reason.NO_WORKER
        return caught.value.message

    def loads(self) -> list[str]:
        """Returns the models of each slot's process."""
        processes = [slot.process for slot in self.scene.manager.slots]
        return [
            "".join(name for name, _ in process.generations) if process is not None else "" for process in processes
        ]


def slots_of(answer: Answer) -> list[int]:
    """Returns the slots that got a new worker."""
    assert isinstance(answer, dict), answer
    return cast(list[int], answer["slots"])


def error_of(answer: Answer) -> tuple[str, str]:
    """Returns the reason and the message of an error."""
    assert isinstance(answer, MultitowerError), answer
    return answer.reason, answer.message
