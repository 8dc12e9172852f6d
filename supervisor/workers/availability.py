"""Which slots serve or will, and which models nothing serves or will serve, so that their requests need not wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multitower.spec import ModelSpec

from ..scheduling.scheduler import Scheduler
from .replacement import Replacements
from .slot import Slot
from .slot_state_machine import LIVE


class Availability:
    """Judges by the state of the slots and by the renewals that are to come.

    Args:
        slots: the fleet's slots, the live list.
        replacements: the fleet's.
        scheduler: is told of models without hope.
    """

    def __init__(self, slots: Sequence[Slot], replacements: Replacements, scheduler: Scheduler) -> None:
        self._places = slots
        self._replacements = replacements
        self._scheduler = scheduler

    def lives(self, slot: Slot) -> bool:
        """The slot serves, or is on its way to serving, perhaps through a renewal that has to end its process first."""
        return slot.state in LIVE or self._replacements.revives(slot)

    @property
    def unavailable(self) -> bool:
        """No slot serves or is on its way to serving, of those that have a model."""
        with_models = [slot for slot in self._places if slot.specs or self._replacements.revives(slot)]
        return bool(with_models) and not any(map(self.lives, with_models))

    def versions(self) -> set[tuple[str, str]]:
        """The models and versions that workers serve, or are to load and have not failed to; nothing is renewed."""
        found = {key for worker in self._scheduler.workers if not worker.retiring for key in worker.versions}
        for slot in filter(self.lives, self._places):
            failed = {model.key for model in slot.models if model.state != "ready"}
            found.update(spec.key for spec in slot.specs if spec.key not in failed)
        return found

    def judge(self, models: Iterable[ModelSpec]) -> None:
        """Finds those of the models that nothing serves or will serve."""
        # What a worker that leaves still serves may be waited for, though its slot is to have other models.
        served = {model for worker in self._scheduler.workers if not worker.retiring for model in worker.serves}
        for name in dict.fromkeys(spec.name for spec in models if spec.name not in served):
            causes: list[tuple[int, str]] = []
            for slot in self._places:
                if name not in {known.name for known in (*slot.specs, *self._replacements.coming(slot))}:
                    continue
                if not self.lives(slot):
                    causes.append((slot.number, slot.last_error or slot.state))
                    continue
                reports = [model for model in slot.models if model.name == name]
                # What a process has said tells nothing of the next one.
                if (
                    self._replacements.revives(slot)
                    or not reports
                    or any(report.state == "ready" for report in reports)
                ):
                    break
                causes.append((slot.number, "; ".join(str(report.cause) for report in reports)))
            else:
                self._scheduler.mark_unavailable(name, by_slots(causes) or "no slot has it")


def by_slots(causes: Iterable[tuple[int, str]]) -> str:
    """Slots and their causes for people, each cause once: `slots 0, 1: no weights; slot 2: out of memory`."""
    numbers: dict[str, list[int]] = {}
    for number, cause in causes:
        numbers.setdefault(cause, []).append(number)
    return "; ".join(
        f"{'slot' if len(slots) == 1 else 'slots'} {', '.join(map(str, slots))}: {cause}"
        for cause, slots in numbers.items()
    )
