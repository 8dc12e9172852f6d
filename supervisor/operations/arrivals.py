"""Waits for configured models and devices that are not there yet, and has them served once they are.

A model whose folder is empty, missing or cannot be read, and a GPU whose driver is still loading, keep no other model
from being served. They are looked for in the background, with a back-off. What has come is served like a new version:
once its files have not changed for a while, slot by slot. If it cannot be loaded, it is not tried again before its
files change.

A model that a slot could not load for a reason that may pass, such as a file system that did not answer, is tried again
in the same way, once its files can be read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from multitower.errors import MultitowerError
from multitower.model_files import model_files
from multitower.spec import ModelSpec

from ..loop.log import event
from ..machine.core_claims import CoreClaims
from ..model_presence import DEVICES, MODEL, Waiting
from ..settings import Settings, build_settings
from .order_queue import Order, OrderContext
from .reload import Reload

log = logging.getLogger("multitower.daemon")

FIRST_S: Final = 0.5
"""Seconds from the first look to the second; doubled each time."""

MAX_S: Final = 15.0
"""Seconds from one look to the next at most."""

FIRST_AGAIN_S: Final = 2.0
"""Seconds until a model that could not be loaded for a passing reason is tried again; doubled each time."""

MAX_AGAIN_S: Final = 300.0
"""Seconds from one such attempt to the next at most."""


_MESSAGES: Final = {MODEL: "waiting for model", DEVICES: "waiting for devices"}


@dataclass(frozen=True, slots=True)
class Look:
    """What a look has found.

    Attributes:
        settings: the configuration, made concrete as the machine is now; None if nothing was waited for.
        readable: models that could not be loaded, and whose files can be read now.
    """

    settings: Settings | None
    readable: frozenset[str]


def look(settings: Settings, failed: Collection[ModelSpec], claims: CoreClaims | None) -> Look:
    """Looks for what settings wait for; it may block, so call it in a thread.

    Args:
        settings: the settings in force.
        failed: versions of models that could not be loaded for a passing reason.
        claims: what this daemon claims of the cores.

    Raises:
        DeviceError: the devices that have come cannot be used as configured.
    """
    readable = frozenset(spec.name for spec in failed if _is_readable(spec))
    if not settings.waiting:
        return Look(None, readable)
    # Without missing devices the slots stay as they are, and claim nothing.
    waits_for_devices = any(entry.kind == DEVICES for entry in settings.waiting)
    return Look(build_settings(settings.config, claims if waits_for_devices else None), readable)


def _is_readable(spec: ModelSpec) -> bool:
    try:
        files = model_files(spec)
        for file in files:
            with open(file.path, "rb", buffering=0) as opened:
                opened.read(1)
    except OSError:
        return False
    return bool(files)


class Arrivals:
    """Looks for what is waited for, and orders that it is served.

    Args:
        context: the parts of the daemon.

    Attributes:
        due: when `tick` must be called, in monotonic seconds.
    """

    def __init__(self, context: OrderContext) -> None:
        self._context = context
        self._looking = False
        self._interval = FIRST_S
        self._since: dict[str, tuple[str, float]] = {}  # each arrived model's fingerprints, and since when it has them
        self._rejected: dict[str, tuple[str, str]] = {}  # fingerprints of models that could not be loaded, and why
        self._again: dict[str, tuple[float, float]] = {}  # when a model is tried again, and the interval
        self._marked: dict[str, str] = {}
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Begins a look, if it is time to and there is something to look for.

        Args:
            now: monotonic seconds.
        """
        context = self._context
        settings = context.settings.current
        self._mark(settings.waiting)
        failed = self._failed(settings, now)
        if not settings.waiting:
            self._interval = FIRST_S
            self._since.clear()
            self._rejected.clear()
        if now < self.due:
            return
        self.due = now + FIRST_S
        if self._looking or context.queue.busy or not context.lifecycle.running or not (settings.waiting or failed):
            return
        self._looking = True
        context.background.run(partial(look, settings, failed, context.claims), partial(self._looked, settings))

    def _mark(self, waiting: Iterable[Waiting]) -> None:
        """Lets the router refuse requests for models that are waited for, and logs what is new."""
        known = {entry.name: entry.cause for entry in waiting}
        for entry in waiting:
            if self._marked.get(entry.name) != entry.cause:
                event(log, logging.WARNING, _MESSAGES[entry.kind], name=entry.name, cause=entry.cause)
                if entry.kind == MODEL and entry.name in self._context.router.scheduler.models:
                    self._context.router.scheduler.mark_unavailable(entry.name, f"it is waited for: {entry.cause}")
        self._marked = known

    def _failed(self, settings: Settings, now: float) -> list[ModelSpec]:
        """Returns the versions that some slot could not load for a passing reason, and that may be tried again now."""
        follows = bool(settings.config.watch.interval)  # then the version watch sees that files are as before again
        passing = {
            report.key
            for slot in self._context.manager.slots
            for report in slot.models
            if report.state != "ready" and report.passing and not (follows and report.files_changed)
        }
        names = {name for name, _ in passing}
        self._again = {name: entry for name, entry in self._again.items() if name in names}
        for name in names:
            self._again.setdefault(name, (now + FIRST_AGAIN_S, FIRST_AGAIN_S))
        specs = settings.worker_settings.models
        return [spec for spec in specs if spec.key in passing and now >= self._again[spec.name][0]]

    def _looked(self, before: Settings, outcome: Look | Exception) -> None:
        self._looking = False
        now = time.monotonic()
        self.due = now + self._interval
        self._interval = min(2 * self._interval, MAX_S)
        context = self._context
        if isinstance(outcome, Exception):
            event(log, logging.WARNING, "what is waited for cannot be used yet", cause=outcome)
            return
        if context.settings.current is not before or context.queue.busy or not context.lifecycle.running:
            return
        if outcome.settings is not None:
            self._serve_arrived(before, outcome.settings, now)
        for name in outcome.readable:
            _, interval = self._again.get(name, (now, FIRST_AGAIN_S))
            interval = min(2 * interval, MAX_AGAIN_S)
            self._again[name] = (now + interval, interval)
            event(log, logging.INFO, "trying to load model again", model=name)
            context.queue.submit(partial(self._begin_again, name), _ignore)

    def _serve_arrived(self, before: Settings, found: Settings, now: float) -> None:
        """Orders that what has come is served, and notes why the rest is still waited for."""
        still = {entry.name: entry for entry in found.waiting}
        prints = _fingerprints(found)
        waiting: list[Waiting] = []
        settled: list[str] = []
        with_devices: list[str] = []
        for entry in before.waiting:
            current = still.get(entry.name)
            if current is None and entry.for_devices:
                with_devices.append(entry.name)
            elif current is None and entry.kind == MODEL:
                current = self._check_settled(entry.name, prints.get(entry.name, ""), now)
                if current is None:
                    settled.append(entry.name)
            waiting.append(current or entry)
        if tuple(waiting) != before.waiting:
            self._context.settings.current = replace(before, waiting=tuple(waiting))
        waits_for_devices = any(entry.kind == DEVICES for entry in before.waiting)
        if waits_for_devices and (found.placements != before.placements or DEVICES not in still):
            self._submit(found, [DEVICES, *with_devices], prints)
        for name in settled:
            self._submit(found, [name], prints)

    def _submit(self, found: Settings, names: list[str], prints: dict[str, str]) -> None:
        self._context.queue.submit(partial(self._begin_serving, found, names, prints), _ignore)

    def _check_settled(self, name: str, fingerprints: str, now: float) -> Waiting | None:
        """Returns why a model that has come is not to be loaded yet; None if it is."""
        settle_s = self._context.settings.current.config.watch.settle
        known = self._since.get(name)
        if known is None or known[0] != fingerprints:
            known = self._since[name] = (fingerprints, now)
            self._interval = FIRST_S
        rejected = self._rejected.get(name)
        if rejected is not None and rejected[0] == fingerprints:
            return Waiting(MODEL, name, f"it cannot be loaded, and is tried again when its files change: {rejected[1]}")
        if now - known[1] < settle_s:
            self.due = min(self.due, known[1] + settle_s)
            return Waiting(MODEL, name, "its files have come, and must not change for a while (watch.settle)")
        return None

    def _begin_serving(self, found: Settings, names: list[str], prints: dict[str, str], order: Order) -> None:
        context = self._context
        before = context.settings.current
        if before.config is not found.config:  # an order came in between, and has changed what is waited for
            order.end({})
            return
        devices = DEVICES in names
        new = before.with_arrived(found, names, devices=devices)
        model = None if devices else names[0]
        for name in names:
            if name in context.router.scheduler.models:
                context.router.open_model(name)
        event(log, logging.INFO, "serving what has come", names=",".join(names))

        def served(_: dict[str, Any], error: str | None) -> None:
            if error is None:
                context.settings.current = new
                order.end({})
                return
            self._rejected.update((name, (prints.get(name, ""), error)) for name in names)
            self._marked.clear()  # they are refused again
            event(log, logging.ERROR, "what has come cannot be served", names=",".join(names), cause=error)
            why = "back to what is there"
            Reload(context, order, new, before, lambda *_: order.end({}), why, model=model, tolerant=True).start()

        why = "what was waited for has come"
        Reload(context, order, before, new, served, why, model=model, tolerant=True).start()

    def _begin_again(self, name: str, order: Order) -> None:
        context = self._context
        settings = context.settings.current

        def tried(_: dict[str, Any], error: str | None) -> None:
            if error is not None:
                event(log, logging.WARNING, "model still cannot be loaded", model=name, cause=error)
            order.end({})

        Reload(context, order, settings, settings, tried, f"load {name} again", model=name, again=True).start()


def _fingerprints(settings: Settings) -> dict[str, str]:
    found: dict[str, str] = {}
    for spec in settings.worker_settings.models:
        found[spec.name] = f"{found.get(spec.name, '')}{spec.version}={spec.fingerprint};"
    return found


def _ignore(_: dict[str, Any] | MultitowerError) -> None:
    """Nobody waits for the answer; the log has the outcome."""
