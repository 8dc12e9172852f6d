"""What processes say of themselves, and what follows from it: who serves, who takes over, who cannot load.

The fleet (`fleet.py`) hands over every message that a process has sent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any, Protocol

from multitower import worker_wire
from multitower.spec import MemoryReport, ModelReport, UnbatchedReport, WorkerReport

from ..loop.log import event
from ..routing.router import Router
from .slot import Slot, WorkerProcess
from .slot_state_machine import Event, State

log = logging.getLogger("multitower.fleet")

EXHAUSTED_CALLS = 3
"""Calls in a row without enough device memory after which a worker is replaced: it may be in fragments."""


class Crew(Protocol):
    """What the reports need of the fleet."""

    def tell(self, slot: Slot, event: Event, now: float, cause: str | None = None) -> None:
        """An event for the slot, and what follows from it."""

    def end(self, process: WorkerProcess, now: float) -> None:
        """Tells a process to end."""

    def recycle(self, slot: Slot, why: str, now: float) -> None:
        """Replaces a worker that has served its time."""

    def take_over(self, slot: Slot, process: WorkerProcess, serve: Callable[[], None], now: float) -> None:
        """A process takes the place of the one that serves; `serve` lets it."""

    def judge_models(self) -> None:
        """Finds the models that nothing serves or will serve."""


class Reports:
    """Reads the messages of processes.

    Args:
        crew: the fleet.
        router: is told of results, and of workers that serve.
        spare_failed: is told of a spare that can never serve, and why.
    """

    def __init__(self, crew: Crew, router: Router, spare_failed: Callable[[WorkerProcess, str | None], None]) -> None:
        self._crew = crew
        self._router = router
        self._spare_failed = spare_failed

    def read(self, process: WorkerProcess, message: list[Any], now: float) -> None:
        """Handles a message of a process that is not a result."""
        kind = bytes(message[0])[:1]
        if kind == worker_wire.REPORT:
            self._state(process, WorkerReport.from_json(bytes(message[1])), now)
        elif kind == worker_wire.MEMORY:
            self._short_of_memory(process, MemoryReport.from_json(bytes(message[1])), now)
        elif kind == worker_wire.UNBATCHED:
            self._not_joined(process, UnbatchedReport.from_json(bytes(message[1])))

    def _not_joined(self, process: WorkerProcess, report: UnbatchedReport) -> None:
        slot = process.slot
        if slot is not None and slot.process is process:
            slot.models = tuple(
                replace(model, unbatched_because=report.because)
                if model.key == (report.model, report.version)
                else model
                for model in slot.models
            )

    def _short_of_memory(self, process: WorkerProcess, report: MemoryReport, now: float) -> None:
        slot = process.slot
        if slot is None:
            return
        # Each tower finds its own; what fits on all devices is what the slot remembers.
        if 0 < report.safe_rows < slot.safe_rows.get(report.model, math.inf):
            slot.safe_rows[report.model] = report.safe_rows
            if process.route is not None:
                for worker in process.route.workers:
                    worker.safe_rows[report.model] = report.safe_rows
            event(log, logging.WARNING, "device memory is short: smaller batches", **slot.fields, **asdict(report))
        if report.exhausted >= EXHAUSTED_CALLS and slot.process is process:
            self._crew.recycle(slot, f"{report.exhausted} calls in a row without enough device memory", now)

    def _state(self, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        if process.cause is not None or process.verdict is not None:
            return  # it is dead, or will be in a moment: what it says of itself is of interest no more
        process.state = report.state
        slot = process.slot
        if slot is None:
            if report.state == "failed":
                self._spare_failed(process, report.cause)
                self._crew.end(process, now)
            return
        if slot.next_process is process:
            self._next_process_reported(slot, process, report, now)
            return
        if slot.process is not process:
            return  # it has been replaced, and only its end is of interest
        slot.visible_devices = report.visible_devices
        if report.state == "loading":
            self._crew.tell(slot, Event.LOADING, now)
        elif report.state == "ready":
            self._crew.tell(slot, Event.LOADED, now)
            if slot.state is State.READY:
                self._serve(slot, process, report, now)
        elif report.state == "failed":
            slot.models = report.models
            for model in report.models:
                _log_failed_model(slot, model)
            cause = report.cause or _causes(report.models)
            event(log, logging.ERROR, "slot failed", **process.child.fields, cause=cause)
            self._crew.tell(slot, Event.UNLOADABLE, now, cause)
            self._crew.judge_models()

    def _next_process_reported(self, slot: Slot, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        failed = _newly_failed(slot, process, report)
        if report.state == "failed" or failed:
            cause = report.cause or _causes(failed)
            event(log, logging.ERROR, "the new worker cannot load", **process.child.fields, cause=cause)
            slot.last_error = cause
            slot.refused = tuple(failed)
            slot.next_process = None
            self._crew.end(process, now)
        elif report.state == "ready":
            slot.visible_devices = report.visible_devices
            self._crew.take_over(slot, process, lambda: self._serve(slot, process, report, now), now)

    def _serve(self, slot: Slot, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        """The process has loaded, and gets work from now on."""
        slot.models = report.models
        for model in report.models:
            if model.state != "ready":
                _log_failed_model(slot, model)
        serving = [model for model in report.models if model.state == "ready"]
        process.route = self._router.add_worker(
            slot.number, slot.placement.device, process.child.connection, serving, process.generations, now
        )
        for worker in process.route.workers:
            worker.safe_rows.update(slot.safe_rows)
        away = None if slot.away_since is None else round(now - slot.away_since, 3)
        slot.away_since = None
        event(
            log,
            logging.INFO,
            "worker ready",
            **process.child.fields,
            models=",".join(dict.fromkeys(model.name for model in serving)),
            away_s=away,
        )
        self._crew.judge_models()


def _newly_failed(slot: Slot, process: WorkerProcess, report: WorkerReport) -> list[ModelReport]:
    """What a process that is to take over cannot load, save what the one that serves could not load either.

    Where an operator has seen to the cause, that it is not mended is what has to be told.
    """
    old = slot.process.generations if slot.process is not None else {}
    before = set() if slot.operator_restart else {model.key for model in slot.models if model.state != "ready"}
    return [
        model
        for model in report.models
        if model.state != "ready"
        and not (model.key in before and old.get(model.key) == process.generations.get(model.key))
    ]


def _log_failed_model(slot: Slot, model: ModelReport) -> None:
    told = {**slot.fields, "model": model.name, "version": model.version, "cause": model.cause}
    event(log, logging.ERROR, "model cannot load", **told)


def _causes(reports: Iterable[ModelReport]) -> str:
    return "; ".join(f"{model.name}: {model.cause}" for model in reports if model.cause)
