"""Handles what processes report: which one serves, takes over, or cannot load, and what device memory holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from multitower import worker_wire
from multitower.spec import BatchingReport, MemoryReport, ModelReport, WorkerReport

from ..loop.history import EventKind
from ..loop.log import event
from ..routing.batching_findings import reasons_in
from ..routing.router import Router
from ..routing.worker_connection import WorkerProtocolError
from .content_check import ContentCheck
from .exit_cause import Fault, Verdict
from .load_failures import current_reports
from .planned_replacement_queue import ReplacementQueue
from .slot import Slot, WorkerProcess, describe_failures
from .slot_events import note_failed
from .slot_state_machine import Event
from .slots import Slots
from .spares import Spares

log = logging.getLogger("multitower.manager")

EXHAUSTED_CALLS = 3
"""Calls in a row without enough device memory after which a worker is replaced: its memory may be fragmented."""


_STATES = ("importing", "idle", "loading", "ready", "failed")


class Reports:
    """Handles the messages of processes that are not results.

    Args:
        slots: change their states.
        spares: are kept as long as none reports a failure.
        replacements: gets workers that must be replaced.
        router: gets workers that serve.
        content_check: decides whether the files that they have loaded may be served.
    """

    def __init__(
        self,
        slots: Slots,
        spares: Spares,
        replacements: ReplacementQueue,
        router: Router,
        content_check: ContentCheck,
    ) -> None:
        self._slots = slots
        self._spares = spares
        self._replacements = replacements
        self._router = router
        self._content_check = content_check

    def handle_message(self, process: WorkerProcess, message: Sequence[Any], now: float) -> None:
        """Handles a message.

        Raises:
            Exception: the message is malformed, or the process must not send it now.
        """
        kind, *frames = (bytes(frame) for frame in message)
        if kind not in (worker_wire.REPORT, worker_wire.MEMORY, worker_wire.BATCHING) or len(frames) != 1:
            raise WorkerProtocolError(f"a message of the kind {kind[:16]!r} with {len(frames)} more frames")
        if kind == worker_wire.REPORT:
            self._handle_state(process, WorkerReport.from_json(frames[0]), now)
        elif kind == worker_wire.MEMORY:
            self._handle_memory_shortage(process, MemoryReport.from_json(frames[0]), now)
        else:
            self._handle_batching(process, BatchingReport.from_json(frames[0]))

    def _handle_batching(self, process: WorkerProcess, report: BatchingReport) -> None:
        key = (report.model, report.version)
        if report.unbatched_because is not None:
            self._mark_unbatched(process, key, report.signature, report.unbatched_because)
            return
        generation = _generation_of(process, key)
        self._router.batching.add_comparison(key, generation, report.signature, report.unverified_because)

    def _mark_unbatched(self, process: WorkerProcess, key: tuple[str, str], signature: str, because: str) -> None:
        """Keeps what a worker has found out about a model, and logs it the first time."""
        if self._router.batching.add_unbatched(key, _generation_of(process, key), signature, because):
            fields: dict[str, object] = {**process.child.fields, "model": key[0], "version": key[1]}
            if signature:
                fields["signature"] = signature
            event(log, logging.WARNING, "model runs unbatched", **fields, cause=because)

    def _handle_memory_shortage(self, process: WorkerProcess, report: MemoryReport, now: float) -> None:
        slot = process.slot
        if slot is None:
            return
        # Each tower reports its own; the slot remembers what fits on every device.
        if 0 < report.safe_rows < slot.safe_rows.get(report.model, math.inf):
            slot.safe_rows[report.model] = report.safe_rows
            if process.route is not None:
                for worker in process.route.workers:
                    worker.safe_rows[report.model] = report.safe_rows
            event(log, logging.WARNING, "device memory is short: smaller batches", **slot.fields, **asdict(report))
        if report.exhausted >= EXHAUSTED_CALLS and slot.process is process:
            why = f"{report.exhausted} calls in a row without enough device memory"
            self._replacements.add_automatic(slot, why, now)

    def _handle_state(self, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        if report.state not in _STATES:
            raise WorkerProtocolError(f"a report of the state {report.state!r}")
        if not process.usable:
            return  # it has ended, or will
        for model in report.models:
            _generation_of(process, model.key)  # whatever else it has loaded must neither be served nor shown
        process.state = report.state
        slot = process.slot
        if slot is None:
            if report.state == "failed":
                self._spares.handle_failure(process, report.cause)
                self._slots.end_process(process, now)
            return
        if process not in (slot.process, slot.next_process):
            return
        if report.state == "ready":
            report = self._content_check.check(slot, process, report)
            process.state = report.state
        if process.aside:
            self._handle_aside(slot, process, report, now)
        elif slot.next_process is process:
            self._handle_next_process(slot, process, report, now)
        else:
            self._handle_current_process(slot, process, report, now)

    def _handle_current_process(self, slot: Slot, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        slot.visible_devices = report.visible_devices
        if report.state == "loading":
            self._slots.handle_event(slot, Event.LOADING, now)
        elif report.state == "ready":
            self._require(slot, Event.LOADED)
            self._serve(slot, process, report, now)
        elif report.state == "failed":
            slot.models = report.models
            for model in report.models:
                self._note_failed_model(slot, model)
            cause = report.cause or describe_failures(report.models)
            if self._content_check.may_retry(slot, report):
                verdict = Verdict(Fault.FILES_CHANGED, f"it could not load its models: {cause}")
                self._slots.condemn_process(process, verdict, now)
                return
            if slot.aside is not None:
                self._slots.end_process(process, now)
                self._slots.resume(slot, now)
                return
            if slot.load_deaths.end_leaving_out(process.left_out):
                what = f"it could load no model, and those that were left out are tried again: {cause}"
                self._slots.condemn_process(process, Verdict(Fault.OTHERS_LEFT, what), now)
                return
            self._slots.handle_event(slot, Event.UNLOADABLE, now, cause)
            note_failed(self._slots.history, slot, process.child.fields, cause)

    def _handle_next_process(self, slot: Slot, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        """Handles a report of a process that is to take over the slot."""
        failed = _newly_failed(slot, process, report)
        if report.state == "failed" or failed:
            slot.refused = tuple(failed)
            self._refuse_next_process(slot, process, report.cause or describe_failures(failed), now)
        elif report.state == "ready":
            self._require(slot, Event.REPLACED)
            self._add_route(slot, process, report, now)
            slot.load_deaths.record_loaded(process.loads)
            slot.visible_devices = report.visible_devices
            old = self._slots.take_over(slot, now)
            self._replacements.record_takeover(slot, old)
            self._log_ready(slot, process, now)

    def _serve(self, slot: Slot, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        """Lets the current process serve, which has loaded."""
        slot.visible_devices = report.visible_devices
        self._add_route(slot, process, report, now)
        slot.load_deaths.record_loaded(process.loads)
        if slot.allows(Event.LOADED):
            self._slots.handle_event(slot, Event.LOADED, now)
        self._log_ready(slot, process, now)

    def _refuse_next_process(self, slot: Slot, process: WorkerProcess, cause: str, now: float) -> None:
        """Ends a process that cannot load what it was to take over with."""
        fields = {**process.child.fields, "cause": cause}
        message = "replacement worker cannot load"
        self._slots.history.note(log, logging.ERROR, EventKind.MODEL_REFUSED, message, **fields)
        slot.record_error(cause, now)
        slot.next_process = None
        if process.aside:
            self._slots.update_reports(slot)
        self._slots.end_process(process, now)

    def _handle_aside(self, slot: Slot, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        """Handles a report of a process in which a model takes long to load: it takes over with all that has loaded."""
        if report.state not in ("ready", "failed"):
            return
        served = {model.key for model in slot.models if model.state == "ready"}
        failed = [model for model in report.models if model.state != "ready"]
        if any(model.out_of_memory for model in failed):
            # Perhaps because the other process needs some, too.
            slot.load_deaths.load_in_only_worker(process.loads)
            self._refuse_next_process(slot, process, describe_failures(failed), now)
        elif report.state == "failed" or any(model.key in served for model in failed):
            slot.refused = tuple(failed)
            self._refuse_next_process(slot, process, report.cause or describe_failures(failed), now)
        else:
            old = self._slots.resume(slot, now)
            self._serve(slot, process, report, now)
            if old is not None:
                self._replacements.add_drain(slot, old, "another worker has loaded the model that took long, too")

    def _require(self, slot: Slot, event: Event) -> None:
        if not slot.allows(event):
            raise WorkerProtocolError(f"a report of being ready while its slot is {slot.state}")

    def _add_route(self, slot: Slot, process: WorkerProcess, report: WorkerReport, now: float) -> None:
        """Gives a process that has loaded to the router: it gets batches from now on."""
        for model in report.models:
            for signature, because in reasons_in(model):
                self._mark_unbatched(process, model.key, signature, because)
        generations = process.generations
        models = [self._router.batching.complete_report(model, generations[model.key]) for model in report.models]
        serving = [model for model in models if model.state == "ready"]
        process.route = self._router.add_worker(
            slot.number, slot.placement.device, process.child.connection, serving, generations, now
        )
        for worker in process.route.workers:
            worker.safe_rows.update(slot.safe_rows)
        slot.models = current_reports(slot, process, models)

    def _log_ready(self, slot: Slot, process: WorkerProcess, now: float) -> None:
        for model in slot.models:
            if model.state == "failed":
                self._note_failed_model(slot, model)
        fields = dict(process.child.fields)
        fields["models"] = ",".join(dict.fromkeys(model.name for model in slot.models if model.state == "ready"))
        if slot.unavailable_since is None:
            event(log, logging.INFO, "worker ready", **fields)
            return
        fields["away_s"] = round(now - slot.unavailable_since, 3)
        slot.unavailable_since = None
        self._slots.history.note(log, logging.INFO, EventKind.RESTART, "worker ready", **fields)

    def _note_failed_model(self, slot: Slot, model: ModelReport) -> None:
        fields = {**slot.fields, "model": model.name, "version": model.version, "cause": model.cause}
        self._slots.history.note(log, logging.ERROR, EventKind.MODEL_REFUSED, "model cannot load", **fields)


def _generation_of(process: WorkerProcess, key: tuple[str, str]) -> int:
    """The generation of a version that a process was to load.

    Raises:
        WorkerProtocolError: it was not assigned to the process.
    """
    generation = process.generations.get(key)
    if generation is None:
        raise WorkerProtocolError(f"a report on {key[0][:128]!r}, version {key[1][:128]!r}, which it was not to load")
    return generation


def _newly_failed(slot: Slot, process: WorkerProcess, report: WorkerReport) -> list[ModelReport]:
    """The models that a replacement worker cannot load, without those that the present one could not load either.

    After an operator's restart every model counts: the operator expects that the cause has been removed.
    """
    old = slot.process.generations if slot.process is not None else {}
    before = set() if slot.operator_restart else {model.key for model in slot.models if model.state != "ready"}
    return [
        model
        for model in report.models
        if model.state != "ready"
        and not (model.key in before and old.get(model.key) == process.generations.get(model.key))
    ]
