"""Which models are ready to serve, and why others are not. Reads the live state; keeps only an index of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from textwrap import shorten
from typing import Any

from multitower.spec import ModelReport, ModelSpec

from ..lifecycle import Lifecycle
from ..routing.endpoints import problem_kind
from ..routing.router import Router
from ..settings import ActiveSettings
from ..workers.availability import by_slots
from ..workers.manager import WorkerManager
from ..workers.slot import Slot
from ..workers.slot_state_machine import State

_COMING = (State.STARTING, State.LOADING, State.BACKOFF)
"""States of slots whose worker may still become ready without anybody's help."""


_MAX_CAUSE = 200
"""Characters of each cause in `Readiness.summary`: the line of a service manager is cut."""


class ModelIndex:
    """Finds what the slots have of a model without a look at all of their models, of which a status asks for each.

    It is made anew where a slot has got other models.
    """

    def __init__(self) -> None:
        self._models: list[tuple[ModelReport, ...]] = []
        self._specs: list[tuple[ModelSpec, ...]] = []
        self._reports: dict[str, list[tuple[int, ModelReport]]] = {}
        self._slots: dict[str, set[int]] = {}

    def reports(self, slots: Sequence[Slot], name: str) -> Sequence[tuple[int, ModelReport]]:
        """Returns what the slots' processes reported of the model's versions, with the numbers of the slots."""
        models = [slot.models for slot in slots]
        if not _same(models, self._models):
            self._models, self._reports = models, {}
            for slot in slots:
                for report in slot.models:
                    self._reports.setdefault(report.name, []).append((slot.number, report))
        return self._reports.get(name, ())

    def configured(self, slots: Sequence[Slot], name: str) -> Collection[int]:
        """Returns the numbers of the slots whose next process loads the model."""
        specs = [slot.specs for slot in slots]
        if not _same(specs, self._specs):
            self._specs, self._slots = specs, {}
            for slot in slots:
                for spec in slot.specs:
                    self._slots.setdefault(spec.name, set()).add(slot.number)
        return self._slots.get(name, ())


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether these are the same objects. They do not change themselves."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


class Readiness:
    """Answers whether the daemon, its models and their versions are ready.

    Args:
        lifecycle: the daemon's.
        manager: the worker processes.
        router: the router, which knows the models that each worker serves.
        settings: the settings in force.
        endpoint_problems: returns `Endpoints.problems`.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        manager: WorkerManager,
        router: Router,
        settings: ActiveSettings,
        endpoint_problems: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._lifecycle = lifecycle
        self._manager = manager
        self._router = router
        self._scheduler = router.scheduler
        self._settings = settings
        self._endpoint_problems = endpoint_problems
        self._index = ModelIndex()

    def report(self) -> dict[str, Any]:
        """Returns `{ready, slots_ready, slots_total}`, the answer to `MT1:server_ready`.

        `ready`: each model that is not unloaded has a ready slot. Slots without a model do not count; those of models
        that are waited for do.
        """
        names = [name for name in self._settings.model_names if not self.is_unloaded(name)]
        ready = self._lifecycle.running and all(self.ready_slots(name) for name in names)
        slots_ready = sum(slot.state is State.READY for slot in self._manager.slots)
        waiting = {entry.name for entry in self._settings.current.waiting}
        slots_total = sum(
            bool(slot.specs) or not waiting.isdisjoint(slot.placement.models) for slot in self._manager.slots
        )
        return {"ready": ready, "slots_ready": slots_ready, "slots_total": slots_total}

    def summary(self) -> str:
        """Returns the state in one line, for a service manager."""
        report = self.report()
        models = ", ".join(
            f"{name} {'unloaded' if self.is_unloaded(name) else self.ready_slots(name)}"
            for name in self._settings.model_names
        )
        slots = f"{report['slots_ready']}/{report['slots_total']} slots ready"
        missing: list[tuple[str, str, str]] = [
            (entry.kind, entry.name, entry.cause) for entry in self._settings.current.waiting
        ]
        missing += [(problem_kind(name), name, cause) for name, cause in self._endpoint_problems().items()]
        waiting = "".join(
            f"; waiting for {kind}{'' if name == kind else f' {name}'}: {cause}" for kind, name, cause in missing
        )
        return f"{self._lifecycle.state}: {slots}{self._why_not()}; workers per model: {models}{waiting}"

    def _why_not(self) -> str:
        """Which models are being loaded, and why others cannot be, for `summary`."""
        steps = [
            f"; slot {slot.number} loads {step.model} version {step.version}"
            for slot in self._manager.slots
            for process in (slot.aside, slot.process if slot.state is State.LOADING else None)
            if process is not None and (step := process.load_timer.step)
        ]
        names = () if self._coming() else self._settings.model_names
        failed = [
            f"; {name} failed: {shorten(cause, _MAX_CAUSE)}"
            for name in names
            if not self.is_unloaded(name) and not self.waits_for(name)
            if not self.ready_slots(name) and (cause := self.cause(name))
        ]
        return "".join([*steps, *failed])

    @property
    def all_failed(self) -> bool:
        """Whether nothing serves or will serve, although some slot has a model to load, and the daemon runs on."""
        failed = self._lifecycle.running and self._manager.unavailable
        return failed and not self._settings.current.config.exit_when_failed

    @property
    def serving(self) -> bool:
        """Clients can connect, and some model has a ready slot, or none shall be loaded."""
        names = [name for name in self._settings.model_names if not self.is_unloaded(name)]
        return bool(self._router.fronts) and (not names or any(map(self.ready_slots, names)))

    def waits_for(self, name: str) -> bool:
        """Whether the model is configured, but its files or devices are not there yet."""
        return any(entry.name == name for entry in self._settings.current.waiting)

    def is_unloaded(self, name: str) -> bool:
        """Whether an operator has unloaded the model, or the configuration does not load it at startup."""
        return name in self._scheduler.unloaded_models

    def ready_slots(self, name: str, version: str | None = None) -> int:
        """Returns how many slots serve the model, or one version of it; 0 while the model is in quarantine."""
        if name in self._scheduler.quarantined_models:
            return 0
        processes = [slot.process for slot in self._manager.slots]
        workers = [each.route.worker for each in processes if each is not None and each.route is not None]
        if version is None:
            return len([worker for worker in workers if name in worker.serves])
        key = name, version
        return len([worker for worker in workers if key in worker.versions])

    def total_slots(self, name: str) -> int:
        """Returns how many slots should serve the model, also while it is waited for."""
        slots = self._manager.slots
        configured = self._index.configured(slots, name)
        if not self.waits_for(name):
            return len(configured)
        return sum(slot.number in configured or name in slot.placement.models for slot in slots)

    def reports(self, name: str, version: str | None = None) -> list[ModelReport]:
        """Returns what the slots' processes reported of the model, or of one version of it."""
        return [report for _, report in self._reports(name, version)]

    def _reports(self, name: str, version: str | None) -> list[tuple[int, ModelReport]]:
        found = self._index.reports(self._manager.slots, name)
        return [each for each in found if version is None or each[1].version == version]

    def cause(self, name: str, version: str | None = None) -> str | None:
        """Returns why requests to the model are refused, or why some slot could not load it; None without a cause.

        Args:
            name: the model.
            version: one of its versions; of several, each has its own cause.
        """
        refusal = self._scheduler.refusal_for_new_request(name)
        own = self._load_errors(name, version)
        if refusal is None or (own and self._has_versions(name) and name not in self._scheduler.quarantined_models):
            return own or None
        return refusal.message

    def load_failure(self, name: str, version: str | None) -> str | None:
        """Returns why no slot could load the version; None while one serves it or may yet load it."""
        errors = self._load_errors(name, version)
        is_coming = self._coming() or self.is_loading(name, version)
        return errors if errors and not is_coming and not self.ready_slots(name, version) else None

    def is_loading(self, name: str, version: str | None) -> bool:
        """Whether a worker loads the version beside one that serves the other models of its slot."""
        return any(report.state == "loading" for report in self.reports(name, version))

    def _coming(self) -> bool:
        return any(slot.state in _COMING for slot in self._manager.slots)

    def _has_versions(self, name: str) -> bool:
        """Whether workers reported several versions of the model."""
        return len({report.version for report in self.reports(name)}) > 1

    def _load_errors(self, name: str, version: str | None) -> str:
        return by_slots(
            (number, report.cause) for number, report in self._reports(name, version) if report.cause is not None
        )
