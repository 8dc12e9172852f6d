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
from multitower.spec import MemoryReport, ModelReport, SinglyReport, WorkerReport

from ..loop.log import event
from ..routing.router import Router
from .slot import Event, State
from .worker_process import Member, Place

log = logging.getLogger("multitower.fleet")

EXHAUSTED_CALLS = 3
"""Calls in a row without enough device memory after which a worker is replaced: it may be in fragments."""


class Crew(Protocol):
    """What the reports need of the fleet."""

    def tell(self, place: Place, event: Event, now: float, cause: str | None = None) -> None:
        """An event for the slot, and what follows from it."""

    def end(self, member: Member, now: float) -> None:
        """Tells a process to end."""

    def recycle(self, place: Place, why: str, now: float) -> None:
        """Replaces a worker that has served its time."""

    def take_over(self, place: Place, member: Member, serve: Callable[[], None], now: float) -> None:
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

    def __init__(self, crew: Crew, router: Router, spare_failed: Callable[[Member, str | None], None]) -> None:
        self._crew = crew
        self._router = router
        self._spare_failed = spare_failed

    def read(self, member: Member, message: list[Any], now: float) -> bool:
        """A process has sent something; True when the fleet's `tick` is to be called for it."""
        kind = bytes(message[0])[:1]
        if kind == worker_wire.RESULT:
            if member.channel is not None:
                self._router.result(member.channel, message)
            return False
        if kind == worker_wire.REPORT:
            self._state(member, WorkerReport.from_json(bytes(message[1])), now)
        elif kind == worker_wire.MEMORY:
            self._short_of_memory(member, MemoryReport.from_json(bytes(message[1])), now)
        elif kind == worker_wire.SINGLY:
            self._not_joined(member, SinglyReport.from_json(bytes(message[1])))
        return True

    def _not_joined(self, member: Member, report: SinglyReport) -> None:
        place = member.place
        if place is not None and place.member is member:
            place.models = tuple(
                replace(model, unbatched_because=report.because)
                if model.key == (report.model, report.version)
                else model
                for model in place.models
            )

    def _short_of_memory(self, member: Member, report: MemoryReport, now: float) -> None:
        place = member.place
        if place is None:
            return
        # Each tower finds its own; what fits on all devices is what the slot remembers.
        if 0 < report.safe_rows < place.safe_rows.get(report.model, math.inf):
            place.safe_rows[report.model] = report.safe_rows
            if member.channel is not None:
                for worker in member.channel.workers:
                    worker.safe_rows[report.model] = report.safe_rows
            event(log, logging.WARNING, "device memory is short: smaller batches", **place.fields, **asdict(report))
        if report.exhausted >= EXHAUSTED_CALLS and place.member is member:
            self._crew.recycle(place, f"{report.exhausted} calls in a row without enough device memory", now)

    def _state(self, member: Member, report: WorkerReport, now: float) -> None:
        if member.cause is not None or member.verdict is not None:
            return  # it is dead, or will be in a moment: what it says of itself is of interest no more
        member.state = report.state
        place = member.place
        if place is None:
            if report.state == "failed":
                self._spare_failed(member, report.cause)
                self._crew.end(member, now)
            return
        if place.successor is member:
            self._of_successor(place, member, report, now)
            return
        if place.member is not member:
            return  # it has been replaced, and only its end is of interest
        place.visible_devices = report.visible_devices
        if report.state == "loading":
            self._crew.tell(place, Event.LOADING, now)
        elif report.state == "ready":
            self._crew.tell(place, Event.LOADED, now)
            if place.slot.state is State.READY:
                self._serve(place, member, report, now)
        elif report.state == "failed":
            place.models = report.models
            for model in report.models:
                _log_failed_model(place, model)
            cause = report.cause or _causes(report.models)
            event(log, logging.ERROR, "slot failed", **member.process.fields, cause=cause)
            self._crew.tell(place, Event.UNLOADABLE, now, cause)
            self._crew.judge_models()

    def _of_successor(self, place: Place, member: Member, report: WorkerReport, now: float) -> None:
        failed = _newly_failed(place, member, report)
        if report.state == "failed" or failed:
            cause = report.cause or _causes(failed)
            event(log, logging.ERROR, "the new worker cannot load", **member.process.fields, cause=cause)
            place.slot.last_error = cause
            place.refused = tuple(failed)
            place.successor = None
            self._crew.end(member, now)
        elif report.state == "ready":
            place.visible_devices = report.visible_devices
            self._crew.take_over(place, member, lambda: self._serve(place, member, report, now), now)

    def _serve(self, place: Place, member: Member, report: WorkerReport, now: float) -> None:
        """The process has loaded, and gets work from now on."""
        place.models = report.models
        for model in report.models:
            if model.state != "ready":
                _log_failed_model(place, model)
        serving = [model for model in report.models if model.state == "ready"]
        member.channel = self._router.worker_ready(
            place.slot.number, place.placement.device, member.process, serving, member.editions, now
        )
        for worker in member.channel.workers:
            worker.safe_rows.update(place.safe_rows)
        away = None if place.away_since is None else round(now - place.away_since, 3)
        place.away_since = None
        event(
            log,
            logging.INFO,
            "worker ready",
            **member.process.fields,
            models=",".join(dict.fromkeys(model.name for model in serving)),
            away_s=away,
        )
        self._crew.judge_models()


def _newly_failed(place: Place, member: Member, report: WorkerReport) -> list[ModelReport]:
    """What a process that is to take over cannot load, save what the one that serves could not load either.

    Where an operator has seen to the cause, that it is not mended is what has to be told.
    """
    old = place.member.editions if place.member is not None else {}
    before = set() if place.mended else {model.key for model in place.models if model.state != "ready"}
    return [
        model
        for model in report.models
        if model.state != "ready" and not (model.key in before and old.get(model.key) == member.editions.get(model.key))
    ]


def _log_failed_model(place: Place, model: ModelReport) -> None:
    told = {**place.fields, "model": model.name, "version": model.version, "cause": model.cause}
    event(log, logging.ERROR, "model cannot load", **told)


def _causes(reports: Iterable[ModelReport]) -> str:
    return "; ".join(f"{model.name}: {model.cause}" for model in reports if model.cause)
