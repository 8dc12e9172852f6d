"""Whether the files that a worker has loaded are those that the other workers serve.

Every process reads the files of its models anew, and they may have changed since the other workers read them. Workers
with different contents never serve the same version side by side, except while a reload replaces one after the other:

- While other workers serve the version, a process that finds other contents does not serve it. It waits until a reload
  or `operations/version_watch.py` gives the new contents to all slots.
- If no other worker serves it, the contents that the process has loaded are a new generation, and from then on those
  that all slots load.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from multitower.model_files import compare_fingerprints
from multitower.spec import FILES_CHANGED, ModelReport, ModelSpec, WorkerReport

from ..loop.log import event
from ..scheduling.scheduler import Scheduler
from .assignments import Assignments
from .known_contents import KnownContents
from .planned_replacement_queue import Replacement, ReplacementQueue
from .slot import Slot, WorkerProcess, describe_failures
from .slot_state_machine import LIVE, State
from .slots import Slots

log = logging.getLogger("multitower.manager")

WHY: Final = "files of a model have changed"
"""Why a slot is replaced that waited for contents that it can load now."""


class ContentCheck:
    """Checks what processes report of the files that they have loaded.

    Args:
        slots: get other specifications where contents have changed.
        assignments: know what other slots serve, and number generations.
        replacements: gets slots that can load now what they could not.
        scheduler: knows what the other workers serve.
        known: which fingerprints stand for equal contents.
    """

    def __init__(
        self,
        slots: Slots,
        assignments: Assignments,
        replacements: ReplacementQueue,
        scheduler: Scheduler,
        known: KnownContents,
    ) -> None:
        self._slots = slots
        self._assignments = assignments
        self._replacements = replacements
        self._scheduler = scheduler
        self._known = known

    def check(self, slot: Slot, process: WorkerProcess, report: WorkerReport) -> WorkerReport:
        """Checks a report of a process that has loaded.

        Args:
            slot: the slot of the process.
            process: the process.
            report: its report.

        Returns:
            The report, with the models that the process must not serve as failed ones.
        """
        # A process that was set aside loads what the slot's present one does, which may have adopted other contents.
        takes_over = slot.next_process is process and not process.aside
        specs = {spec.key: spec for spec in (process.specs if takes_over else slot.specs)}
        models = tuple(
            self._check_model(slot, process, model, specs[model.key])
            if model.state == "ready" and model.key in specs
            else model
            for model in report.models
        )
        if any(model.state == "ready" for model in models):
            return replace(report, models=models)
        return replace(report, state="failed", models=models, cause=describe_failures(models))

    def _check_model(self, slot: Slot, process: WorkerProcess, model: ModelReport, spec: ModelSpec) -> ModelReport:
        if self._is_expected(process, model, spec):
            if process.aside:
                process.generations[spec.key] = self._assignments.generation(spec)
            return model
        generation = self._assignments.generation(spec)
        takes_over = slot.next_process is process and (not process.aside or slot.serves_generation(generation))
        if self._assignments.must_match(slot, spec, takes_over=takes_over):
            # Nothing else of the report: what it says of other contents must not be kept for these.
            name, version = spec.key
            return ModelReport(
                name=name,
                version=version,
                state="failed",
                cause=FILES_CHANGED,
                fingerprint=model.fingerprint,
                files_changed=True,
            )
        self._adopt(process, spec, model.fingerprint)
        return model

    def _is_expected(self, process: WorkerProcess, model: ModelReport, spec: ModelSpec) -> bool:
        """Whether the model's contents are those of the specification; records it if the fingerprints differ."""
        assigned = next((each.fingerprint for each in process.specs if each.key == model.key), spec.fingerprint)
        if model.same_content:  # the worker has compared them
            self._known.record_equal(assigned, model.fingerprint)
        elif compare_fingerprints(spec.fingerprint, model.fingerprint):
            self._known.record_equal(spec.fingerprint, model.fingerprint)
        return self._known.first(model.fingerprint) == self._known.first(spec.fingerprint)

    def _adopt(self, process: WorkerProcess, spec: ModelSpec, fingerprint: str) -> None:
        """Makes the contents that a process has loaded those that all slots load from now on."""
        name, version = spec.key
        # The first one of equal contents, as in what scans of the files find.
        new = replace(spec, fingerprint=self._known.first(fingerprint))
        for slot in self._slots:
            slot.specs = tuple(new if each == spec else each for each in slot.specs)
        process.specs = tuple(new if each.key == spec.key else each for each in process.specs)
        process.generations[spec.key] = self._assignments.generation(new)
        self._scheduler.reset_crash_count([name])
        if spec.fingerprint:
            event(log, logging.WARNING, "files of a model have changed", model=name, version=version)

    def may_retry(self, slot: Slot, report: WorkerReport) -> bool:
        """Whether a process that could load no model shall be started again: files changed while it loaded them.

        While other workers serve the versions, the slot waits for the new contents instead.
        """
        return (
            bool(report.models)
            and all(model.files_changed for model in report.models)
            and not any(self._assignments.serves_elsewhere(slot, spec) for spec in slot.specs)
        )

    def retry_waiting_slots(self, now: float) -> None:
        """Replaces slots that do not serve a version since its files have changed, where they can now.

        That is the case if what they found is what they are to load by now, or if no other slot has the version.

        Args:
            now: monotonic seconds.
        """
        for slot in self._slots:
            if slot.state in (State.READY, State.FAILED) and any(
                _waits_for(model, spec) and (self._is_found(model, spec) or not self._has_other_slot(slot, spec))
                for spec in slot.specs
                for model in slot.models
            ):
                self._request_replacement(slot, now)

    def _is_found(self, model: ModelReport, spec: ModelSpec) -> bool:
        return bool(model.fingerprint) and self._known.first(model.fingerprint) == self._known.first(spec.fingerprint)

    def _has_other_slot(self, slot: Slot, spec: ModelSpec) -> bool:
        """Whether another slot serves the version, or will load it without further orders."""
        return self._assignments.serves_elsewhere(slot, spec) or any(
            each.state in LIVE and spec in each.specs and not any(_waits_for(model, spec) for model in each.models)
            for each in self._slots
            if each is not slot
        )

    def _request_replacement(self, slot: Slot, now: float) -> None:
        if self._replacements.includes(slot):
            return
        if slot.process is None:
            self._replacements.add(Replacement(slot, WHY))
        else:
            self._replacements.add_automatic(slot, WHY, now)


def _waits_for(model: ModelReport, spec: ModelSpec) -> bool:
    return model.files_changed and model.key == spec.key
