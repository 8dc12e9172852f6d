"""Which slots serve or will, and which models nothing serves or will serve, so that their requests need not wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multitower.spec import ModelSpec
from multitower.supervisor.balancer import Balancer
from multitower.supervisor.member import Place
from multitower.supervisor.renewal import Renewals
from multitower.supervisor.slot import LIVE


class Outlook:
    """Judges by the state of the slots and by the renewals that are to come.

    Args:
        places: the fleet's slots, the live list.
        renewals: the fleet's.
        balancer: is told of models without hope.
    """

    def __init__(self, places: Sequence[Place], renewals: Renewals, balancer: Balancer) -> None:
        self._places = places
        self._renewals = renewals
        self._balancer = balancer

    def lives(self, place: Place) -> bool:
        """The slot serves, or is on its way to serving, perhaps through a renewal that has to end its process first."""
        return place.slot.state in LIVE or self._renewals.revives(place)

    @property
    def hopeless(self) -> bool:
        """No slot serves or is on its way to serving."""
        return not any(map(self.lives, self._places))

    def judge(self, models: Iterable[ModelSpec]) -> None:
        """Finds those of the models that nothing serves or will serve."""
        # What a worker that leaves still serves may be waited for, though its slot is to have other models.
        served = {model for worker in self._balancer.workers if not worker.retiring for model in worker.serves}
        for spec in models:
            if spec.name in served:
                continue
            causes: list[str] = []
            for place in self._places:
                if spec.name not in {known.name for known in (*place.specs, *self._renewals.coming(place))}:
                    continue
                if not self.lives(place):
                    causes.append(f"slot {place.slot.number}: {place.slot.last_error or place.slot.state}")
                    continue
                report = next((model for model in place.models if model.name == spec.name), None)
                if report is None or report.state == "ready":
                    break
                causes.append(f"slot {place.slot.number}: {report.cause}")
            else:
                self._balancer.give_up(spec.name, "; ".join(causes) or "no slot has it")
