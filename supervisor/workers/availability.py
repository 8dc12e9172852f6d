"""Which slots serve or will serve, and which models are available at all: requests for others need not wait."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from multitower.spec import ModelReport, ModelSpec

from ..routing.router import Router
from .planned_replacement_queue import ReplacementQueue
from .slot import Slot
from .slot_state_machine import LIVE
from .slots import Slots


class Availability:
    """Decides from the states of the slots and from the replacements that are planned.

    Args:
        slots: all slots.
        replacements: what is planned.
        router: refuses requests for models and versions that are not available.
    """

    def __init__(self, slots: Slots, replacements: ReplacementQueue, router: Router) -> None:
        self._slots = slots
        self._replacements = replacements
        self._router = router
        self._scheduler = router.scheduler

    def will_serve(self, slot: Slot) -> bool:
        """Whether the slot serves, or will serve, perhaps after a replacement that must end its process first."""
        return slot.state in LIVE or self._replacements.will_start_process(slot)

    @property
    def any_slot(self) -> bool:
        """Whether some slot serves or will serve; also True if no slot has a model to load after its replacements."""
        with_models = [slot for slot in self._slots if self._replacements.planned_specs(slot)]
        return not with_models or any(map(self.will_serve, with_models))

    def update(self, models: Iterable[ModelSpec]) -> None:
        """Lets the router refuse requests for the models and versions that nothing serves or will serve.

        Args:
            models: every model that is configured to be loaded.
        """
        # A worker that drains still serves, although its slot will have other models.
        served = {model for worker in self._scheduler.workers if not worker.retiring for model in worker.serves}
        for name in dict.fromkeys(spec.name for spec in models if spec.name not in served):
            cause = self._why_unavailable(name)
            if cause is not None:
                self._scheduler.mark_unavailable(name, cause)
        if not self._replacements.active:  # it may roll back to the former versions
            self._router.models.retain_versions(self._versions())

    def _why_unavailable(self, name: str) -> str | None:
        """Why no slot serves or will serve the model; None if one will."""
        causes: list[tuple[int, str]] = []
        for slot in self._slots:
            if name not in {spec.name for spec in (*slot.specs, *self._replacements.planned_specs(slot))}:
                continue
            reports = [model for model in slot.models if model.name == name]
            if not self.will_serve(slot):
                # The slot's own cause names all of its models.
                causes.append((slot.number, describe_causes(reports) or slot.last_error or slot.state))
                continue
            # What the present process reported says nothing about the next one.
            if (
                self._replacements.will_start_process(slot)
                or not reports
                or any(report.state in ("ready", "loading") for report in reports)
            ):
                return None
            causes.append((slot.number, describe_causes(reports)))
        return by_slots(causes) or "no slot has it"

    def _versions(self) -> set[tuple[str, str]]:
        """The model versions that workers serve, or will load and have not failed to load."""
        found = {key for worker in self._scheduler.workers if not worker.retiring for key in worker.versions}
        for slot in filter(self.will_serve, self._slots):
            failed = {model.key for model in slot.models if model.state == "failed"}
            found.update(spec.key for spec in slot.specs if spec.key not in failed)
        return found


def describe_causes(reports: Collection[ModelReport]) -> str:
    """Why versions of one model did not load, for people, each cause once; empty if none is known."""
    versions: dict[str, list[str]] = {}
    for report in reports:
        if report.cause is not None:
            versions.setdefault(report.cause, []).append(report.version)
    if len(versions) < 2:
        return next(iter(versions), "")
    return "; ".join(
        f"{'version' if len(those) == 1 else 'versions'} {', '.join(those)}: {cause}"
        for cause, those in versions.items()
    )


def by_slots(causes: Iterable[tuple[int, str]]) -> str:
    """Slots and their causes for people, each cause once: `slots 0, 1: no weights; slot 2: out of memory`."""
    numbers: dict[str, list[int]] = {}
    for number, cause in causes:
        numbers.setdefault(cause, []).append(number)
    return "; ".join(
        f"{'slot' if len(slots) == 1 else 'slots'} {', '.join(map(str, slots))}: {cause}"
        for cause, slots in numbers.items()
    )
