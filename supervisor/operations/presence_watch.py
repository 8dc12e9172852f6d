"""Waits for configured models and devices that are not there yet, and has them served once they are.

A model whose folder is empty, missing or cannot be read, and a GPU whose driver is still loading, keep no other model
from being served. They are looked for in the background, with a back-off. What has come is served like a new version:
once its files have not changed for a while, slot by slot. If it cannot be loaded, it is not tried again before its
files change, unless the reason may pass, or processes could not be started: then it is tried again with a back-off.
Each model is looked for by a thread of its own, so that one file system that does not answer keeps no other model away.

A model that a slot could not load for a reason that may pass, such as a file system that did not answer, is tried again
in the same way, once its files can be read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Final, TypeVar

from multitower.errors import MultitowerError
from multitower.model_files import model_files
from multitower.spec import ModelSpec

from ..loop.log import event
from ..machine.core_claims import CoreClaims
from ..model_presence import DEVICES, MODEL, Waiting
from ..settings import Settings, build_settings
from .memory_growth import has_grown
from .order_queue import READ_S, Order, OrderContext
from .orders import accepted
from .reload import Reload

log = logging.getLogger("multitower.daemon")

FIRST_S: Final = 0.5
"""Seconds from the first look to the second; doubled each time."""

MAX_S: Final = 15.0
"""Seconds from one look to the next at most."""

FIRST_AGAIN_S: Final = 2.0
"""Seconds until a model that could not be loaded for a temporary reason is tried again; doubled each time."""

MAX_AGAIN_S: Final = 300.0
"""Seconds from one such attempt to the next at most."""


T = TypeVar("T")

_MESSAGES: Final = {MODEL: "waiting for model", DEVICES: "waiting for devices"}


def _is_readable(spec: ModelSpec) -> bool:
    try:
        files = model_files(spec)
        for file in files:
            with open(file.path, "rb", buffering=0) as opened:
                opened.read(1)
    except OSError:
        return False
    return bool(files)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that has come and could not be served.

    Attributes:
        fingerprints: of the model's files, or the devices, when it was tried.
        cause: why it could not be served.
        interval_s: seconds until it is tried again; None for not before its files change.
        retry_at: when that is, in monotonic seconds; infinite for not before its files change.
        available: if its loading was killed, as when memory is short: the bytes that were available before. It is tried
            again once there is clearly more.
    """

    fingerprints: str
    cause: str
    interval_s: float | None
    retry_at: float
    available: int | None = None

    def is_due(self, now: float, available: int) -> bool:
        """Whether it may be tried again although its files have not changed."""
        return now >= self.retry_at or (self.available is not None and has_grown(self.available, available))


class PresenceWatch:
    """Looks for what is waited for, and orders that it is served.

    Args:
        context: the parts of the daemon.

    Attributes:
        due: when `tick` must be called, in monotonic seconds.
    """

    def __init__(self, context: OrderContext) -> None:
        self._context = context
        self._looking: set[tuple[str, str]] = set()  # what threads look for: a name, and its path
        self._interval = FIRST_S
        self._since: dict[str, tuple[str, float]] = {}  # each arrived model's fingerprints, and since when it has them
        self._rejected: dict[str, Rejected] = {}
        self._again: dict[str, tuple[float, float]] = {}  # when a model is tried again, and the interval
        self._marked: dict[str, str] = {}
        self._seen: Settings | None = None  # the settings whose waiting models the router knows
        self._problem = ""
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Begins looks, if it is time to and there is something to look for.

        Args:
            now: monotonic seconds.
        """
        context = self._context
        settings = context.settings.current
        if settings is not self._seen:
            self._settings_changed(settings)
        if now < self.due:
            return
        self.due = now + FIRST_S
        failed = self._failed(settings, now)
        if context.queue.busy or not context.lifecycle.running or not (settings.waiting or failed):
            return
        if settings.waiting:
            self.due = min([now + self._interval, *(at for at, _ in self._again.values() if at > now)])
            self._interval = min(2 * self._interval, MAX_S)
        for entry in settings.waiting:
            if entry.kind == DEVICES:
                self._look((DEVICES, ""), partial(_find_devices, settings), partial(self._devices_looked, settings))
            elif not entry.for_devices:
                job = partial(settings.find_model, entry.name)
                self._look(_key(settings, entry.name), job, partial(self._model_looked, settings, entry.name))
        for spec in failed:
            self._look(
                (spec.name, f"{spec.path}/{spec.version}"), partial(_is_readable, spec), partial(self._tried, spec.name)
            )

    def _look(self, key: tuple[str, str], job: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Runs a job in a thread; no-op while the one before it for the same name and path has not ended."""
        if key in self._looking:
            return

        def ended(outcome: T | Exception) -> None:
            self._looking.discard(key)
            then(outcome)

        self._looking.add(key)
        self._context.background.run(job, ended)

    def _settings_changed(self, settings: Settings) -> None:
        if self._seen is not None and self._seen.config is not settings.config:
            self._interval, self.due = FIRST_S, 0.0
        self._seen = settings
        self._mark(settings.waiting)
        if not settings.waiting:
            self._interval = FIRST_S
            self._since.clear()
            self._rejected.clear()

    def _mark(self, waiting: Iterable[Waiting]) -> None:
        """Lets the router refuse requests for models that are waited for, and logs what is new."""
        known = {entry.name: entry.cause for entry in waiting}
        for entry in waiting:
            if self._marked.get(entry.name) != entry.cause:
                model = entry.name if entry.kind == MODEL else None
                event(log, logging.WARNING, _MESSAGES[entry.kind], name=entry.name, model=model, cause=entry.cause)
                if entry.kind == MODEL and entry.name in self._context.router.scheduler.models:
                    self._context.router.scheduler.mark_unavailable(entry.name, f"it is waited for: {entry.cause}")
        self._marked = known

    def _failed(self, settings: Settings, now: float) -> list[ModelSpec]:
        """Returns the versions that a slot could not load for a temporary reason, and that may be tried again now."""
        follows = bool(settings.config.watch.interval)  # then the version watch sees that files are as before again
        temporary = {
            report.key
            for slot in self._context.manager.slots
            for report in slot.models
            if report.state != "ready" and report.temporary and not (follows and report.files_changed)
        }
        names = {name for name, _ in temporary}
        self._again = {name: entry for name, entry in self._again.items() if name in names}
        for name in names:
            self._again.setdefault(name, (now + FIRST_AGAIN_S, FIRST_AGAIN_S))
        specs = settings.worker_settings.models
        return [spec for spec in specs if spec.key in temporary and now >= self._again[spec.name][0]]

    def _waits_for(self, before: Settings, name: str) -> bool:
        """Whether the outcome of a look still matters."""
        context = self._context
        current = context.settings.current
        if current.config is not before.config or context.queue.busy or not context.lifecycle.running:
            return False
        return any(entry.name == name for entry in current.waiting)

    def _tried(self, name: str, outcome: bool | Exception) -> None:
        """Tries a model again that could not be loaded, if its files can be read now."""
        context = self._context
        if outcome is not True or name not in self._again or context.queue.busy or not context.lifecycle.running:
            return
        interval = min(2 * self._again[name][1], MAX_AGAIN_S)
        self._again[name] = (time.monotonic() + interval, interval)
        event(log, logging.INFO, "trying to load model again", model=name)
        context.queue.submit(partial(self._begin_again, name), _ignore)

    def _model_looked(self, before: Settings, name: str, outcome: tuple[ModelSpec, ...] | Waiting | Exception) -> None:
        """Orders that a model is served that has come, or notes why it is still waited for."""
        if not self._waits_for(before, name):
            return
        if isinstance(outcome, Exception):
            outcome = Waiting(MODEL, name, str(outcome))
        if isinstance(outcome, Waiting):
            self._note(outcome)
            return
        prints = "".join(f"{spec.version}={spec.fingerprint};" for spec in outcome)
        waiting = self._check_settled(name, prints, time.monotonic())
        if waiting is not None:
            self._note(waiting)
            return
        self._context.queue.submit(partial(self._begin_model, outcome, prints), _ignore)

    def _note(self, waiting: Waiting) -> None:
        """Notes why something is waited for now."""
        settings = self._context.settings
        entries = tuple(waiting if entry.name == waiting.name else entry for entry in settings.current.waiting)
        if entries != settings.current.waiting:
            settings.current = replace(settings.current, waiting=entries)

    def _devices_looked(self, before: Settings, outcome: Settings | Exception) -> None:
        """Orders that devices are used that have come, or notes why they are still waited for."""
        if isinstance(outcome, Exception):
            self._log_problem(str(outcome))
            return
        if not self._waits_for(before, DEVICES):
            return
        for entry in outcome.waiting:
            self._note(entry)
        if not _has_other_devices(before, outcome):
            self._problem = ""
            return
        rejected = self._rejected.get(DEVICES)
        tried = rejected is not None and rejected.fingerprints == _devices_of(outcome)
        if rejected is not None and tried and time.monotonic() < rejected.retry_at:
            self.due = min(self.due, rejected.retry_at)
            return
        self._context.queue.submit(self._begin_devices, self._devices_ended)

    def _devices_ended(self, answer: dict[str, Any] | MultitowerError) -> None:
        if isinstance(answer, MultitowerError):
            self._log_problem(answer.message)
        else:
            self._problem = ""

    def _log_problem(self, problem: str) -> None:
        """Logs why devices that have come cannot be used, once until that changes."""
        if problem != self._problem:
            self._problem = problem
            event(log, logging.WARNING, "devices that are available now cannot be used yet", cause=problem)

    def _check_settled(self, name: str, fingerprints: str, now: float) -> Waiting | None:
        """Returns why a model that has come is not to be loaded yet; None if it is."""
        settle_s = self._context.settings.current.config.watch.settle
        known = self._since.get(name)
        if known is None or known[0] != fingerprints:
            known = self._since[name] = (fingerprints, now)
            self._interval = FIRST_S
        rejected = self._rejected.get(name)
        available = self._context.manager.available_bytes
        if rejected is not None and rejected.fingerprints == fingerprints and not rejected.is_due(now, available):
            self.due = min(self.due, rejected.retry_at)
            when = "later" if rejected.interval_s is not None else "when its files change"
            if rejected.available is not None:
                when = "once more memory is available, or its files change"
            return Waiting(MODEL, name, f"it cannot be loaded, and is tried again {when}: {rejected.cause}")
        if now - known[1] < settle_s:
            self.due = min(self.due, known[1] + settle_s)
            return Waiting(MODEL, name, "its files have come, and must not change for a while (watch.settle)")
        return None

    def _begin_model(self, specs: Sequence[ModelSpec], prints: str, order: Order) -> None:
        name, settings = specs[0].name, self._context.settings.current
        # An order may have come in between, and have changed what is waited for.
        if any(entry.name == name for entry in settings.waiting):
            self._serve(order, settings.with_arrived(specs), (name,), prints, model=name)
        else:
            order.end({})

    def _begin_devices(self, order: Order) -> None:
        context = self._context
        before = context.settings.current

        def serve(outcome: Settings | Exception) -> None:
            found = accepted(outcome)
            if not _has_other_devices(before, found):
                order.end({})
                return
            still = {entry.name for entry in found.waiting}
            names = [entry.name for entry in before.waiting if entry.for_devices and entry.name not in still]
            self._serve(order, before.with_devices(found, names), (DEVICES, *names), _devices_of(found))

        context.queue.read_files(order, partial(_find_devices, before, context.claims), serve, READ_S)

    def _serve(
        self, order: Order, new: Settings, names: Sequence[str], prints: str, *, model: str | None = None
    ) -> None:
        """Puts settings in force that have what is available now; returns to the former ones on failure."""
        context = self._context
        before = context.settings.current
        for name in names:
            if name in context.router.scheduler.models:
                context.router.models.open_model(name)
        for slot in context.manager.slots:
            slot.forget_failed_load()
        available = context.manager.available_bytes
        event(log, logging.INFO, "models or devices are available now: serving them", names=",".join(names))

        def ended(*_: object) -> None:
            self._seen, self.due = None, 0.0
            order.end({})

        def served(_: dict[str, Any], error: str | None) -> None:
            if error is None:
                context.settings.current = new
                ended()
                return
            if model is not None and any(slot.killed_while_loading for slot in context.manager.slots):
                self._rejected[model] = Rejected(prints, error, None, inf, available)
            else:
                self._reject(names[0], prints, error, temporary=model is None or self._may_pass(model))
            self._marked.clear()  # they are refused again
            event(
                log,
                logging.ERROR,
                "models or devices that are available now cannot be served",
                names=",".join(names),
                cause=error,
            )
            why = "back to the former models and devices"
            Reload(context, order, new, before, ended, why, model=model, tolerant=True).start()

        why = "missing models or devices are available now"
        Reload(context, order, before, new, served, why, model=model, tolerant=True).start()

    def _may_pass(self, name: str) -> bool:
        """Whether what kept a model from being loaded just now may pass by itself."""
        return any(
            slot.short_of_resources
            or slot.refuses_other_models(name)
            or any(report.name == name and report.temporary for report in (*slot.refused, *slot.models))
            for slot in self._context.manager.slots
        )

    def _reject(self, name: str, prints: str, cause: str, *, temporary: bool) -> None:
        if not temporary:
            self._rejected[name] = Rejected(prints, cause, None, inf)
            return
        known = self._rejected.get(name)
        interval = FIRST_AGAIN_S
        if known is not None and known.fingerprints == prints and known.interval_s is not None:
            interval = min(2 * known.interval_s, MAX_AGAIN_S)
        self._rejected[name] = Rejected(prints, cause, interval, time.monotonic() + interval)

    def _begin_again(self, name: str, order: Order) -> None:
        context = self._context
        settings = context.settings.current

        def tried(_: dict[str, Any], error: str | None) -> None:
            if error is not None:
                event(log, logging.WARNING, "model still cannot be loaded", model=name, cause=error)
            order.end({})

        Reload(context, order, settings, settings, tried, f"load {name} again", model=name, again=True).start()


def _key(settings: Settings, name: str) -> tuple[str, str]:
    """Returns what tells a look for a model from others: after a reload, the model may have another path."""
    return name, next(str(model.path) for model in settings.config.models if model.name == name)


def _find_devices(settings: Settings, claims: CoreClaims | None = None) -> Settings:
    """Returns the settings with the devices that are there now, without the models that do not wait for devices.

    Claims cores only if `claims` is given. It may block, so call it in a thread.

    Raises:
        DeviceError: the devices that have come cannot be used as configured.
    """
    names = {entry.name for entry in settings.waiting if entry.for_devices}
    return build_settings(settings.config, claims, only=names)


def _has_other_devices(before: Settings, found: Settings) -> bool:
    """Whether devices have come or gone; other shares of the host alone are no reason to replace workers."""
    found_all = not any(entry.kind == DEVICES for entry in found.waiting)
    return found_all or _devices_of(before) != _devices_of(found)


def _devices_of(settings: Settings) -> str:
    return ";".join(placement.device for placement in settings.placements)


def _ignore(_: dict[str, Any] | MultitowerError) -> None:
    """Nobody waits for the answer; the log has the outcome."""
