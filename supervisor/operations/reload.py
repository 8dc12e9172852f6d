"""Applies new settings to a running daemon, slot by slot.

The settings have been checked as a whole before. A slot keeps its number as long as its devices are configured. First
the slots that stay and whose models change get new workers, one after the other; where one cannot load its models the
reload ends, and the other slots serve what they did. Then new slots are started, and slots whose devices are no longer
configured are removed; the last slot of a model is not removed before a new one has loaded the model. Requests to a
model that is removed are answered as long as a worker has it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from multitower.spec import ModelSpec

from ..config.config import Config
from ..config.security import SecurityConfig
from ..config.units import printable
from ..loop.log import event
from ..machine.placement import Placement
from ..observability.tracing import why_impossible
from ..settings import Settings
from ..workers.planned_replacement_queue import Replacement
from ..workers.slot import Slot
from .order_queue import Order, OrderContext

log = logging.getLogger("multitower.daemon")

RELOAD: Final = "reload"
"""Why the settings change where an operator reloads the whole configuration."""

UNCHANGEABLE: Final = ("listen", "runtime_dir", "max_message_size", "peer_timeout", "spin", "insecure")
"""Configuration keys that a running daemon cannot change."""

UNCHANGEABLE_OF_GATEWAY: Final = ("http", "grpc", "program")
"""Keys of `gateway` that it cannot change either. The others apply to another gateway process, which takes over."""


def unchangeable(old: Settings, new: Settings) -> str | None:
    """Returns why a running daemon cannot take the new settings; None when it can."""
    changed = unchangeable_keys(old.config, new.config)
    if changed:
        return f"{', '.join(changed)} cannot change while the daemon runs: restart it"
    return why_impossible(new.config.tracing)


def unchangeable_keys(old: Config, new: Config) -> list[str]:
    """Returns the keys that differ and that a running daemon cannot change."""
    changed = [key for key in UNCHANGEABLE if getattr(old, key) != getattr(new, key)]
    gateway, new_gateway = old.gateway, new.gateway
    if gateway is None or new_gateway is None:
        changed += ["gateway"] if gateway is not new_gateway else []
    else:
        keys = UNCHANGEABLE_OF_GATEWAY
        changed += [f"gateway.{key}" for key in keys if getattr(gateway, key) != getattr(new_gateway, key)]
    return changed + _changed_locks(old.security, new.security)


def _changed_locks(old: SecurityConfig | None, new: SecurityConfig | None) -> list[str]:
    """Returns the keys of `security` that a running daemon cannot change; principals are none of them."""
    if old is None or new is None:
        return ["security"] if old is not new else []
    if old.curve is None or new.curve is None or old.curve.secret_key != new.curve.secret_key:
        return ["security.curve"] if old.curve != new.curve else []
    if old.curve.public_key == new.curve.public_key:
        return []
    return [f"security.curve ({printable(new.curve.secret_key)} holds another key now)"]


class Reload:
    """One change of the settings, from its begin to its end.

    Args:
        context: the parts of the daemon.
        order: the order that asked for it; a step that raises ends the order, and withdraws what has not begun.
        old: the settings in force.
        new: the settings to apply.
        done: called at the end with the slots that were `renewed`, `added` and `removed`, with the keys that apply
            `at_next_start` of a worker if there are any, and with None, or with why
            the reload ended early.
        why: the reason, for the log.
        model: the name of the only model that differs, where slots must not change otherwise; None for all models.
        again: slots on which `model` should be ready but is not get new workers, too; for all models, slots that do not
            serve a model since its files had changed.
        concerns: of a change of all models: the only model that has changed; slots that have failed get another worker
            only if they have it. None if they all do.
        tolerant: a slot that has not served before may fail to load, as long as another slot has loaded its models.
    """

    def __init__(
        self,
        context: OrderContext,
        order: Order,
        old: Settings,
        new: Settings,
        done: Callable[[dict[str, Any], str | None], None],
        why: str = RELOAD,
        *,
        model: str | None = None,
        again: bool = False,
        concerns: str | None = None,
        tolerant: bool = False,
    ) -> None:
        self._manager = context.manager
        self._router = context.router
        self._settings = context.settings
        self._order = order
        self._old = old
        self._new = new
        self._done = done
        self._why = why
        self._is_reload = why == RELOAD
        self._model = model
        self._again = again
        self._concerns = concerns
        self._replaced: list[int] = []
        self._removed: list[int] = []
        self._replacements: list[Replacement] = []
        kept, self._new_placements, self._unwanted = _match(context.manager.slots, new.placements)
        wanted = [(slot, placement, self._wanted_specs(slot, placement)) for slot, placement in kept]
        changed = [each for each in wanted if self._needs_replacement(*each)]
        # Slots that get models first: they may have to take over from slots that only lose some.
        self._changed = sorted(changed, key=lambda each: _names(each[2]) <= _names(each[0].specs))
        self._may_fail: set[int] = set()
        if tolerant:
            self._changed.sort(key=lambda each: each[0].route is None)
            self._may_fail = {slot.number for slot, _, _ in self._changed if slot.route is None}

    def _wanted_specs(self, slot: Slot, placement: Placement) -> tuple[ModelSpec, ...]:
        """Returns the models that the slot is to load."""
        specs = placement.select_models(self._new.worker_settings.models)
        if self._model is None:
            return specs
        # An earlier reload that ended early may have left the slot with other models than configured: keep those.
        others = [spec for spec in slot.specs if spec.name != self._model]
        own = [spec for spec in specs if spec.name == self._model]
        position_of = _position_of(self._new)
        return tuple(sorted([*others, *own], key=lambda spec: position_of(spec.name)))

    def _needs_replacement(self, slot: Slot, placement: Placement, specs: tuple[ModelSpec, ...]) -> bool:
        """Whether the slot needs a new process, or must lose its process."""
        if slot.specs != specs:
            return True
        if self._model is None:
            waits = self._again and any(model.files_changed for model in slot.models)
            concerned = self._concerns is None or self._concerns in _names(specs)
            return waits or slot.placement != placement or (slot.process is None and bool(specs) and concerned)
        return self._again and self._model in _names(specs) and not slot.serves(self._model)

    def start(self) -> None:
        """Begins; `done` may be called before this returns."""
        for slot, _, _ in self._changed if self._again else ():
            # A change of another model must not fail with one that was given up, and left out of what serves.
            if self._model is not None or slot.process is None:
                slot.load_deaths.forget(self._model)
        self._order.on_defect = self._abandon
        router, new = self._router, self._new
        self._apply_limits(new)
        for name in new.limits:
            # A label that moves stands for its former version until all slots have loaded the new one.
            both = (self._old.labels.get(name, {}), new.labels.get(name, {}))
            labels = {label: [labels[label] for labels in both if label in labels] for label in both[0] | both[1]}
            router.models.set_label_candidates(name, labels)
        for name in _names(new.unloaded):
            router.models.close_model(name)
        for name in router.scheduler.unloaded_models & _names(new.worker_settings.models):
            router.models.open_model(name)
        router.models.to_remove = set(self._old.limits) - set(new.limits)
        # Until slots have the new models, workers that are restarted load the old ones.
        self._manager.apply_settings(
            replace(new.worker_settings, models=self._old.worker_settings.models)
            if self._changed
            else new.worker_settings
        )
        replacements = [self._replacement(*each) for each in self._changed]
        self._replace(replacements, self._replaced, self._change_slots)

    def _replacement(self, slot: Slot, placement: Placement, specs: tuple[ModelSpec, ...]) -> Replacement:
        replacement = Replacement(slot, self._why, specs=specs, placement=placement)
        names = _names(specs)
        if self._model is not None and self._model not in names and not any(slot.serves(name) for name in names):
            # The model is unloaded, also where the others of the slot cannot be loaded: nothing of them is lost.
            replacement.may_fail = True
            replacement.no_overlap_because = f"it serves no model but {self._model}, which is unloaded"
        return replacement

    def _replace(self, replacements: list[Replacement], ended: list[int], then: Callable[[], None]) -> None:
        """Asks for replacements and calls `then` once all have ended; one that fails ends the reload.

        Args:
            replacements: one for each slot.
            ended: gets the number of each slot whose replacement has ended.
            then: called when all have ended.
        """
        if not replacements:
            then()
            return

        def replacement_ended(slot: Slot, error: str | None) -> None:
            tolerated = slot.number in self._may_fail and bool(ended)
            if error is not None and not tolerated:
                self._manager.withdraw_replacements(replacements)
                self._finish(f"slot {slot.number}: {slot.last_error or error}")
                return
            ended.append(slot.number)
            if len(ended) == len(replacements):
                then()

        self._replacements = replacements
        for replacement in replacements:
            replacement.done = self._order.guard(functools.partial(replacement_ended, replacement.slot))
            self._manager.request_replacement(replacement)

    def _change_slots(self) -> None:
        """Adds the new slots, and removes those that are no longer configured."""
        # New ones first: they may have to take over from those that are removed. A new slot that shares a GPU with a
        # removed one, in another group, is started once that one's process has ended.
        self._manager.apply_settings(self._new.worker_settings)
        for placement in self._new_placements:
            self._manager.add_slot(placement)
        replacements = [Replacement(slot, "no longer configured", remove=True) for slot in self._unwanted]
        self._replace(replacements, self._removed, lambda: self._finish(None))

    def _finish(self, error: str | None) -> None:
        old, new = self._old, self._new
        if error is not None:
            self._restore()
        else:
            self._settle_models(new)
            known = old.worker_settings.models
            changed_models = [spec.name for spec in new.worker_settings.models if spec not in known]
            self._router.scheduler.reset_crash_count([*changed_models, *([self._model] if self._model else [])])
            new.warn_about_missing_versions()
        changed: dict[str, Any] = {
            "renewed": self._replaced,
            "added": [placement.slot for placement in self._new_placements] if error is None else [],
            "removed": self._removed,
        }
        if error is None and self._keeps_heartbeat():
            changed["at_next_start"] = ["heartbeat"]
        level = logging.INFO if error is None else logging.ERROR
        message = "reloaded" if self._is_reload else "workers replaced"
        ended = "reload ended early" if self._is_reload else "not all workers replaced"
        # `renewed` is the reply's word.
        fields = {"replaced": changed["renewed"], **{key: each for key, each in changed.items() if key != "renewed"}}
        event(log, level, message if error is None else ended, why=self._why, **fields, cause=error)
        self._done(changed, error)

    def _keeps_heartbeat(self) -> bool:
        """Whether a worker keeps its former interval of heartbeats: only a process that starts learns it."""
        if self._old.config.heartbeat == self._new.config.heartbeat:
            return False
        return any(slot.process is not None and slot.number not in self._replaced for slot in self._manager.slots)

    def _abandon(self, end: Callable[[], None]) -> None:
        """After a defect: withdraws what has not begun, goes back to the settings in force, and calls `end`.

        Slots that have been replaced keep their new models. `end` is not called before a replacement in progress has
        ended, so that the next order does not meet it.
        """
        in_progress = self._manager.withdraw_replacements(self._replacements)
        if in_progress is None:
            self._restore()
            end()
            return

        def replacement_ended(_: str | None) -> None:
            try:
                self._restore()
            finally:
                end()

        in_progress.done = replacement_ended

    def _restore(self) -> None:
        removed = self._removed_models()
        if removed:
            self._settings.current = self._settings.current.without_models(removed)
        settings = self._settings.current
        self._router.models.to_remove = set()
        self._apply_limits(settings)
        self._manager.apply_settings(settings.worker_settings)
        self._settle_models(settings)

    def _removed_models(self) -> set[str]:
        """The models that the new settings do not have, and that the reload has taken from all slots that had them.

        They stay removed where the reload ends early: otherwise the daemon would count as not ready for lack of a model
        that nobody wants any more.
        """
        loaded = _names(self._settings.current.worker_settings.models)
        return loaded - set(self._new.limits) - {spec.name for slot in self._manager.slots for spec in slot.specs}

    def _apply_limits(self, settings: Settings) -> None:
        """Applies what concerns the router: limits of models and of unread replies, and the choice of workers."""
        router = self._router
        for name, limits in settings.limits.items():
            router.models.set_model(name, limits, settings.timeouts[name])
        router.scheduler.set_dispatch(settings.dispatch)
        router.unread.set_limits(settings.config.max_unread_bytes, settings.config.unread_timeout)

    def _settle_models(self, settings: Settings) -> None:
        """Makes the router's models those of the settings and of the slots, and removes all others."""
        manager, router, old, new = self._manager, self._router, self._old, self._new
        specs = [
            *(spec for slot in manager.slots for spec in slot.specs),
            *manager.settings.models,
            *settings.unloaded,
            *settings.waiting_models,
        ]
        # First: whatever raises below, the status must not look for a model that has been removed.
        self._settings.models = [
            spec
            for name in sorted(_names(specs), key=_position_of(new))
            for spec in _specs_of(
                name,
                manager.settings.models,
                new.worker_settings.models,
                new.unloaded,
                new.waiting_models,
                old.unloaded,
                old.waiting_models,
            )
        ]
        router.models.to_remove = set()
        router.models.retain_models(_names(specs))
        self._close_unloaded(settings)
        # Workers may have failed to load models that were not configured yet, and models may have waited for
        # replacements that were withdrawn.
        manager.update_availability()
        router.models.set_labels(settings.labels)

    def _close_unloaded(self, settings: Settings) -> None:
        """Closes each unloaded model that no slot serves any more; opens the others."""
        router, unloaded = self._router, _names(settings.unloaded)
        for name in unloaded | router.scheduler.unloaded_models:
            if name not in unloaded or any(slot.serves(name) for slot in self._manager.slots):
                router.models.open_model(name)
            else:
                router.models.close_model(name)
                router.models.finish_unload(name)


def _names(specs: Iterable[ModelSpec]) -> set[str]:
    return {spec.name for spec in specs}


def _specs_of(name: str, *sources: Iterable[ModelSpec]) -> list[ModelSpec]:
    """Returns the model's versions from the first source that has the model."""
    found = ([spec for spec in source if spec.name == name] for source in sources)
    return next((specs for specs in found if specs), [])


def _position_of(settings: Settings) -> Callable[[str], int]:
    """Returns a key that sorts models by their order in the configuration, others last."""
    positions = {name: position for position, name in enumerate(settings.limits)}
    return lambda name: positions.get(name, len(positions))


def _match(
    slots: Sequence[Slot], placements: tuple[Placement, ...]
) -> tuple[list[tuple[Slot, Placement]], list[Placement], list[Slot]]:
    """Matches the present slots with new placements by their devices.

    Returns:
        The slots that stay, with their new placements; placements for new slots, with free numbers; slots to remove.
    """
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
