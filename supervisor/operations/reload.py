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
from ..workers.manager import WorkerManager
from ..workers.replacement import Replacement
from ..workers.slot import Slot
from .status import StatusReporter

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
        worker_settings, router, reporter: the daemon's.
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
        manager: WorkerManager,
        router: Router,
        reporter: StatusReporter,
        old: Settings,
        new: Settings,
        done: Callable[[dict[str, Any], str | None], None],
        why: str = "reload",
        *,
        model: str | None = None,
        again: bool = False,
        tolerant: bool = False,
    ) -> None:
        self._manager = manager
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
        kept, self._added, self._removed = _match(manager.slots, new.placements)
        wanted = [(slot, placement, self._wanted(slot, placement)) for slot, placement in kept]
        changed = [each for each in wanted if self._changes(*each)]
        # Those that get models first: they may have to take over from those that only lose some.
        self._changed = sorted(changed, key=lambda each: _names(each[2]) <= _names(each[0].specs))
        self._may_fail: set[int] = set()
        if tolerant:
            self._changed.sort(key=lambda each: each[0].route is None)
            self._may_fail = {slot.number for slot, _, _ in self._changed if slot.route is None}

    def _wanted(self, slot: Slot, placement: Placement) -> tuple[ModelSpec, ...]:
        """What the slot is to load."""
        specs = placement.select_models(self._new.worker_settings.models)
        if self._model is None:
            return specs
        # An earlier reload that ended early may have left it with other models than it should have: not ours to change.
        others = [spec for spec in slot.specs if spec.name != self._model]
        own = [spec for spec in specs if spec.name == self._model]
        position_of = _by_position(self._new)
        return tuple(sorted([*others, *own], key=lambda spec: position_of(spec.name)))

    def _changes(self, slot: Slot, placement: Placement, specs: tuple[ModelSpec, ...]) -> bool:
        """Whether the slot needs a new process, or is to have none any more."""
        if slot.specs != specs:
            return True
        if self._model is None:
            return slot.placement != placement or (slot.process is None and bool(specs))
        return self._again and self._model in _names(specs) and not slot.serves(self._model)

    def start(self) -> None:
        """Begins; `done` may be called before it returns."""
        router, new = self._router, self._new
        for name, limits in new.limits.items():
            router.set_model(name, limits, new.timeouts[name])
            # A label that is moved stands for the former version until all slots have the new one.
            both = (self._old.labels.get(name, {}), new.labels.get(name, {}))
            labels = {label: [labels[label] for labels in both if label in labels] for label in both[0] | both[1]}
            router.set_label_candidates(name, labels)
        for name in _names(new.unloaded):
            router.close_model(name)
        for name in router.scheduler.unloaded_models & _names(new.worker_settings.models):
            router.open_model(name)
        router.scheduler.set_dispatch(new.dispatch)
        router.models_to_remove = set(self._old.limits) - set(new.limits)
        # Until slots have the new models, those that are started anew get the old ones.
        self._manager.apply(
            replace(new.worker_settings, models=self._old.worker_settings.models)
            if self._changed
            else new.worker_settings
        )
        replacements = [
            Replacement(slot, self._why, specs=specs, placement=placement) for slot, placement, specs in self._changed
        ]
        self._renew(replacements, self._renewed, self._give_up_slots)

    def _renew(self, replacements: list[Replacement], ended: list[int], then: Callable[[], None]) -> None:
        """Renews slots one after the other; goes on when all are done, and ends the reload when one fails."""
        if not replacements:
            then()
            return

        def one_done(slot: Slot, error: str | None) -> None:
            tolerated = slot.number in self._may_fail and bool(ended)
            if error is not None and not tolerated:
                self._manager.replacements.withdraw(replacements)
                self._finish(f"slot {slot.number}: {slot.last_error or error}")
                return
            ended.append(slot.number)
            if len(ended) == len(replacements):
                then()

        for replacement in replacements:
            replacement.done = functools.partial(one_done, replacement.slot)
            self._manager.replacements.ask(replacement)

    def _give_up_slots(self) -> None:
        # The new ones first: they may have to take over from those that go. What shares a GPU with one that goes, in
        # another group, is started when that has ended.
        self._manager.apply(self._new.worker_settings)
        for placement in self._added:
            self._manager.add(placement)
        replacements = [Replacement(slot, "no longer configured", remove=True) for slot in self._removed]
        self._renew(replacements, self._given_up, lambda: self._finish(None))

    def _finish(self, error: str | None) -> None:
        manager, old, new = self._manager, self._old, self._new
        settings = new if error is None else old
        specs = [
            *(spec for slot in manager.slots for spec in slot.specs),
            *manager.settings.models,
            *settings.unloaded,
        ]
        self._router.models_to_remove = set()
        self._router.retain_models(_names(specs))
        self._settle_unloaded(settings)
        # Workers may have failed to load what was not yet among the fleet's settings, and there may have been hope in
        # renewals that were withdrawn.
        manager.judge_models()
        self._router.set_labels(settings.labels)
        if error is None:
            # They are others now.
            changed_models = [
                model.name for model in new.worker_settings.models if model not in old.worker_settings.models
            ]
            self._router.scheduler.reset_crash_count([*changed_models, *([self._model] if self._model else [])])
            new.warn_about_missing_versions()
        self._reporter.models = [
            spec
            for name in sorted(_names(specs), key=_by_position(new))
            for spec in _specs_of(name, manager.settings.models, new.worker_settings.models, new.unloaded, old.unloaded)
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
        for name in unloaded | router.scheduler.unloaded_models:
            if name not in unloaded or any(slot.serves(name) for slot in self._manager.slots):
                router.open_model(name)
            else:
                router.close_model(name)
                router.finish_unload(name)


def _names(specs: Iterable[ModelSpec]) -> set[str]:
    return {spec.name for spec in specs}


def _specs_of(name: str, *sources: Iterable[ModelSpec]) -> list[ModelSpec]:
    """The model's versions in the first of the sources that has it."""
    found = ([spec for spec in source if spec.name == name] for source in sources)
    return next((specs for specs in found if specs), [])


def _by_position(settings: Settings) -> Callable[[str], int]:
    """Orders models as they are configured, others last."""
    slots = {name: slot for slot, name in enumerate(settings.limits)}
    return lambda name: slots.get(name, len(slots))


def _match(
    slots: list[Slot], placements: tuple[Placement, ...]
) -> tuple[list[tuple[Slot, Placement]], list[Placement], list[Slot]]:
    """Which slots stay, with their new placements; placements for new slots, numbered; slots that go."""
    left = list(slots)
    kept: list[tuple[Slot, Placement]] = []
    new: list[Placement] = []
    for placement in placements:
        slot = next((slot for slot in left if slot.placement.devices == placement.devices), None)
        if slot is None:
            new.append(placement)
        else:
            left.remove(slot)
            kept.append((slot, replace(placement, slot=slot.number)))
    taken = {slot.number for slot in slots}
    numbers = (number for number in range(len(slots) + len(new) + 1) if number not in taken)
    return kept, [replace(placement, slot=number) for placement, number in zip(new, numbers, strict=False)], left
