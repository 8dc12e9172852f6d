"""Applying a new configuration to a running daemon, slot by slot.

The configuration has been checked whole before it comes here. Slots keep their numbers as long as their device is
configured. First those that stay are renewed one after the other, where what they load has changed; when one of them
cannot load it, the reload ends there, and the rest serve what they did. Then new slots are started, and slots of
devices that are no longer configured are given up, the last with a model not before a new one has loaded it. What is
asked of a model that goes is answered as long as a worker has it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from multitower.spec import ModelSpec

from ..loop.log import event
from ..machine.placement import Placement
from ..routing.router import Router
from ..settings import Settings
from ..workers.manager import Fleet
from ..workers.replacement import Renewal
from ..workers.worker_process import Place
from .status import Reporter

log = logging.getLogger("multitower.daemon")

FIXED: Final = ("listen", "runtime_dir", "max_message_size", "insecure")
"""Keys that a running daemon cannot change."""


def why_not(old: Settings, new: Settings) -> str | None:
    """Why a running daemon cannot take the new configuration, or None."""
    changed = [key for key in FIXED if getattr(old.config, key) != getattr(new.config, key)]
    if changed:
        return f"{', '.join(changed)} cannot change while the daemon runs: restart it"
    return None


class Reload:
    """One reload under way.

    Args:
        fleet, router, reporter: the daemon's.
        old: what it was told last.
        new: what it is to be.
        done: is told of the end, with what was changed, or with why it was not.
        why: for the log.
        model: the only one that differs, where no other is to be touched.
        again: slots on which that one does not serve, though it should, get new processes, too.
        tolerant: a slot that has not served before may fail to come up, as long as one that has takes what is new.
    """

    def __init__(
        self,
        fleet: Fleet,
        router: Router,
        reporter: Reporter,
        old: Settings,
        new: Settings,
        done: Callable[[dict[str, Any], str | None], None],
        why: str = "reload",
        *,
        model: str | None = None,
        again: bool = False,
        tolerant: bool = False,
    ) -> None:
        self._fleet = fleet
        self._router = router
        self._reporter = reporter
        self._old = old
        self._new = new
        self._done = done
        self._why = why
        self._model = model
        self._again = again
        self._renewed: list[int] = []
        self._given_up: list[int] = []
        kept, self._added, self._removed = _match(fleet.places, new.placements)
        wanted = [(place, placement, self._wanted(place, placement)) for place, placement in kept]
        changed = [each for each in wanted if self._changes(*each)]
        # Those that get models first: they may have to take over from those that only lose some.
        self._changed = sorted(changed, key=lambda each: _names(each[2]) <= _names(each[0].specs))
        self._may_fail: set[int] = set()
        if tolerant:
            self._changed.sort(key=lambda each: each[0].channel is None)
            self._may_fail = {place.slot.number for place, _, _ in self._changed if place.channel is None}

    def _wanted(self, place: Place, placement: Placement) -> tuple[ModelSpec, ...]:
        """What the slot is to load."""
        specs = placement.specs(self._new.fleet.models)
        if self._model is None:
            return specs
        # An earlier reload that ended early may have left it with other models than it should have: not ours to change.
        others = [spec for spec in place.specs if spec.name != self._model]
        own = [spec for spec in specs if spec.name == self._model]
        place_of = _by_place(self._new)
        return tuple(sorted([*others, *own], key=lambda spec: place_of(spec.name)))

    def _changes(self, place: Place, placement: Placement, specs: tuple[ModelSpec, ...]) -> bool:
        """Whether the slot needs a new process, or is to have none any more."""
        if place.specs != specs:
            return True
        if self._model is None:
            return place.placement != placement or (place.member is None and bool(specs))
        return self._again and self._model in _names(specs) and not place.serves(self._model)

    def start(self) -> None:
        """Begins; `done` may be called before it returns."""
        router, new = self._router, self._new
        for name, limits in new.limits.items():
            router.add_model(name, limits, new.timeouts[name])
            # A label that is moved stands for the former version until all slots have the new one.
            both = (self._old.labels.get(name, {}), new.labels.get(name, {}))
            labels = {label: [labels[label] for labels in both if label in labels] for label in both[0] | both[1]}
            router.admission.set_labels(name, labels)
        for name in _names(new.unloaded):
            router.close(name)
        for name in router.balancer.refusals.unloaded & _names(new.fleet.models):
            router.open(name)
        router.balancer.set_dispatch(new.dispatch)
        router.leaving = set(self._old.limits) - set(new.limits)
        # Until slots have the new models, those that are started anew get the old ones.
        self._fleet.apply(replace(new.fleet, models=self._old.fleet.models) if self._changed else new.fleet)
        renewals = [
            Renewal(place, self._why, specs=specs, placement=placement) for place, placement, specs in self._changed
        ]
        self._renew(renewals, self._renewed, self._give_up_slots)

    def _renew(self, renewals: list[Renewal], ended: list[int], then: Callable[[], None]) -> None:
        """Renews slots one after the other; goes on when all are done, and ends the reload when one fails."""
        if not renewals:
            then()
            return

        def one_done(place: Place, error: str | None) -> None:
            tolerated = place.slot.number in self._may_fail and bool(ended)
            if error is not None and not tolerated:
                self._fleet.renewals.withdraw(renewals)
                self._finish(f"slot {place.slot.number}: {place.slot.last_error or error}")
                return
            ended.append(place.slot.number)
            if len(ended) == len(renewals):
                then()

        for renewal in renewals:
            renewal.done = functools.partial(one_done, renewal.place)
            self._fleet.renewals.ask(renewal)

    def _give_up_slots(self) -> None:
        # The new ones first: they may have to take over from those that go. What shares a GPU with one that goes, in
        # another group, is started when that has ended.
        self._fleet.apply(self._new.fleet)
        for placement in self._added:
            self._fleet.add(placement)
        renewals = [Renewal(place, "no longer configured", remove=True) for place in self._removed]
        self._renew(renewals, self._given_up, lambda: self._finish(None))

    def _finish(self, error: str | None) -> None:
        fleet, old, new = self._fleet, self._old, self._new
        settings = new if error is None else old
        specs = [*(spec for place in fleet.places for spec in place.specs), *fleet.settings.models, *settings.unloaded]
        self._router.leaving = set()
        self._router.forget_models(_names(specs))
        self._settle_unloaded(settings)
        # Workers may have failed to load what was not yet among the fleet's settings, and there may have been hope in
        # renewals that were withdrawn.
        fleet.judge_models()
        self._router.set_labels(settings.labels)
        if error is None:
            # They are others now.
            changed_models = [model.name for model in new.fleet.models if model not in old.fleet.models]
            self._router.balancer.refusals.forgive([*changed_models, *([self._model] if self._model else [])])
            new.warn_of_versions()
        self._reporter.models = [
            spec
            for name in sorted(_names(specs), key=_by_place(new))
            for spec in _specs_of(name, fleet.settings.models, new.fleet.models, new.unloaded, old.unloaded)
        ]
        changed = {
            "renewed": self._renewed,
            "added": [placement.slot for placement in self._added] if error is None else [],
            "removed": self._given_up,
        }
        level = logging.INFO if error is None else logging.ERROR
        event(log, level, "reloaded" if error is None else "not reloaded", **changed, cause=error)
        self._done(changed, error)

    def _settle_unloaded(self, settings: Settings) -> None:
        """Models that are not to be loaded, as it has come out, are gone; those of which a slot is left are open."""
        router, unloaded = self._router, _names(settings.unloaded)
        for name in unloaded | router.balancer.refusals.unloaded:
            if name not in unloaded or any(place.serves(name) for place in self._fleet.places):
                router.open(name)
            else:
                router.close(name)
                router.unloaded(name)


def _names(specs: Iterable[ModelSpec]) -> set[str]:
    return {spec.name for spec in specs}


def _specs_of(name: str, *sources: Iterable[ModelSpec]) -> list[ModelSpec]:
    """The model's versions in the first of the sources that has it."""
    found = ([spec for spec in source if spec.name == name] for source in sources)
    return next((specs for specs in found if specs), [])


def _by_place(settings: Settings) -> Callable[[str], int]:
    """Orders models as they are configured, others last."""
    places = {name: place for place, name in enumerate(settings.limits)}
    return lambda name: places.get(name, len(places))


def _match(
    places: list[Place], placements: tuple[Placement, ...]
) -> tuple[list[tuple[Place, Placement]], list[Placement], list[Place]]:
    """Which slots stay, with their new placements; placements for new slots, numbered; slots that go."""
    left = list(places)
    kept: list[tuple[Place, Placement]] = []
    new: list[Placement] = []
    for placement in placements:
        place = next((place for place in left if place.placement.devices == placement.devices), None)
        if place is None:
            new.append(placement)
        else:
            left.remove(place)
            kept.append((place, replace(placement, slot=place.slot.number)))
    taken = {place.slot.number for place in places}
    numbers = (number for number in range(len(places) + len(new) + 1) if number not in taken)
    return kept, [replace(placement, slot=number) for placement, number in zip(new, numbers, strict=False)], left
