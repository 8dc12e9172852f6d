"""Orders that concern the whole daemon or one process: reload the configuration, restart a slot or the gateway."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from multitower.errors import MultitowerError, Reason, make

from ..config.source import ConfigError
from ..gateway.supervision import Gateway
from ..loop.history import EventKind
from ..loop.log import event
from ..machine.devices import DeviceError
from ..model_presence import MODEL
from ..settings import Settings, build_settings
from .content_hashing import comparing_ends, keep_fingerprints
from .order_queue import READ_S, RETRY_AFTER_MS, Done, Order, OrderContext, Recheck, stopping
from .principals_reload import PrincipalsReload
from .reload import Reload, unchangeable

log = logging.getLogger("multitower.daemon")

_REFUSED: Final = "the configuration is refused, and nothing has changed:"
_ENDED_EARLY: Final = "the reload ended early: "

MAX_RESTARTS: Final = 256
"""Orders to restart a slot or the gateway that wait at most, those under way included."""

Ended = Callable[[str | None], None]
"""Called at the end of a restart: with the cause if it failed, otherwise with None."""

Wanted = Callable[[], bool]
"""Called when the turn of a restart has come: whether it is still to take place."""


@dataclass(slots=True)
class LastReload:
    """The reload that was begun last, or is under way.

    Attributes:
        began_at: when it began, in monotonic seconds.
        ended_at: when it ended, likewise; None while it is under way.
        outcome: `in_progress`, `applied`, `refused` (nothing has changed), or `failed` (it ended early).
        cause: why it was refused or failed.
    """

    began_at: float
    ended_at: float | None = None
    outcome: str = "in_progress"
    cause: str | None = None


class Orders:
    """Carries out reloads and restarts.

    Args:
        context: the parts of the daemon.
        gateway: the daemon's; None where none is configured.

    Attributes:
        last_reload: the reload that was begun last; None before the first.
    """

    def __init__(self, context: OrderContext, gateway: Gateway | None) -> None:
        self.last_reload: LastReload | None = None
        self._context = context
        self._gateway = gateway
        self._principals = PrincipalsReload(context.access, context.settings, context.background, context.read_config)
        self._restarts = 0
        self._reload_submitted = False
        self._reload_again = False

    def reload(self, done: Done, read_s: float = READ_S, recheck: Recheck | None = None) -> None:
        """Reads and checks the configuration in a thread, then applies it.

        Args:
            done: called with the answer: the slots that were `renewed`, `added` and `removed`, with `security` the
                `principals` likewise; or why nothing or not everything was changed. While a reload is under way:
                `reload_in_progress`; another one follows it.
            read_s: seconds that reading may take; then the order fails.
            recheck: see `Recheck`.
        """
        if not self._context.lifecycle.running:
            done(stopping())
            return
        if self._context.queue.busy:
            self._principals.start()
        if self._reload_submitted:
            # The file may have changed after it was read.
            self._reload_again = True
            message = "a reload is under way; another one follows it"
            done(make(Reason.RELOAD_IN_PROGRESS, message, retry_after_ms=RETRY_AFTER_MS))
        else:
            self._submit_reload(done, read_s, recheck)

    def _submit_reload(self, done: Done, read_s: float, recheck: Recheck | None = None) -> None:
        def ended(answer: dict[str, Any] | MultitowerError) -> None:
            self._reload_submitted = False
            self._record_outcome(answer)
            again, self._reload_again = self._reload_again, False
            if again and self._context.lifecycle.running:
                self._submit_reload(lambda _: None, READ_S)
            try:
                done(answer)
            finally:
                self._context.announce_reload_end()

        self._reload_submitted = True
        begin = functools.partial(self._begin_reload, read_s=read_s)
        self._context.queue.submit(begin, ended, bounded=False, recheck=recheck)

    def _record_outcome(self, answer: dict[str, Any] | MultitowerError) -> None:
        reload = self.last_reload
        if reload is None or reload.ended_at is not None:
            return  # it did not begin
        reload.ended_at = time.monotonic()
        if not isinstance(answer, MultitowerError):
            reload.outcome, level, message = "applied", logging.INFO, "reloaded"
        elif answer.reason == Reason.CONFIG_REFUSED:
            reload.outcome, level, message = "refused", logging.ERROR, "reload refused: nothing has changed"
        else:
            reload.outcome, level, message = "failed", logging.ERROR, "reload ended early"
        reload.cause = _cause(answer) if isinstance(answer, MultitowerError) else None
        # The message says already that it ended early.
        cause = reload.cause.removeprefix(_ENDED_EARLY) if reload.cause is not None else None
        self._context.history.keep(level, EventKind.RELOAD, message, cause=cause)

    def _begin_reload(self, order: Order, read_s: float) -> None:
        self.last_reload = LastReload(time.monotonic())
        context = self._context
        context.announcer.reload_began()
        event(log, logging.INFO, "reloading", config=context.settings.current.config.path)
        present, contents = context.settings.current, context.manager.known_contents.snapshot()
        until = comparing_ends(read_s)

        def read() -> Settings:
            return keep_fingerprints(
                build_settings(context.read_config(None), context.claims), present, contents, context.hasher, until
            )

        number = self._principals.began_to_read()
        then = functools.partial(self._apply, order, number)
        context.queue.read_files(order, read, then, read_s)

    def _apply(self, order: Order, number: int, outcome: Settings | Exception) -> None:
        settings = self._context.settings
        try:
            new = accepted(outcome)
            if not self._context.lifecycle.running:
                raise stopping()
            refusal = unchangeable(settings.current, new)
            if refusal is None:
                new = new.keeping_served(settings.current)
                refusal = newly_absent(settings.current, new)
            if refusal is not None:
                raise config_refused(refusal)
        except MultitowerError as error:
            event(log, logging.ERROR, "reload refused: nothing has changed", cause=_cause(error))
            raise
        # At once: a removed principal must lose access before workers load models, and also if one of them cannot.
        self._principals.apply(new.config.principals, number)
        new = new.keeping_loaded({spec.name for spec in settings.current.worker_settings.models})

        def applied(changed: dict[str, Any], error: str | None) -> None:
            principals = self._principals.take_changes()
            if principals is not None:
                changed["principals"] = principals
            if error is None:
                settings.current = new
            if self._gateway is not None:
                self._gateway.resume(time.monotonic())
            if error is None:
                order.end(changed)
            else:
                order.end(make(Reason.ORDER_FAILED, f"{_ENDED_EARLY}{error}", **changed))

        Reload(self._context, order, settings.current, new, applied, again=True).start()

    def restart(self, number: int, done: Done, recheck: Recheck | None = None) -> None:
        """Gives a slot a new worker.

        Args:
            number: the slot's number.
            done: called with the answer: `slot` and `pid` once the new worker serves, or why it does not.
            recheck: see `Recheck`.
        """
        slots = self._context.manager.slots
        slot = next((slot for slot in slots if slot.number == number), None)
        if not self._context.lifecycle.running:
            done(stopping())
        elif slot is None:
            known = ", ".join(str(slot.number) for slot in slots)
            done(make(Reason.SLOT_UNKNOWN, f"there is no slot {number}, only {known}", field="slot"))
        elif not slot.specs:
            done(make(Reason.SLOT_EMPTY, f"slot {number} has no model to load", field="slot"))
        elif self._restarts >= MAX_RESTARTS:
            done(self._too_many())
        else:

            def ended(error: str | None) -> None:
                if error is None:
                    done({"slot": number, "pid": slot.process.child.pid if slot.process is not None else None})
                else:
                    done(make(Reason.NO_WORKER, f"slot {number}: {error}"))

            manager = self._context.manager
            self._restart(lambda *counted: manager.restart_slot(slot, *counted), ended, done, recheck)

    def restart_gateway(self, done: Done, recheck: Recheck | None = None) -> None:
        """Gives the gateway another process, also if it has failed.

        Args:
            done: called with the answer: `pid` once the new process accepts connections, or why there is none.
            recheck: see `Recheck`.
        """
        gateway = self._gateway
        if not self._context.lifecycle.running:
            done(stopping())
        elif gateway is None:
            done(make(Reason.SLOT_UNKNOWN, "the configuration has no gateway", field="gateway"))
        elif self._restarts >= MAX_RESTARTS:
            done(self._too_many())
        else:

            def ended(error: str | None) -> None:
                if error is None:
                    done({"pid": gateway.pid})
                else:
                    done(make(Reason.ORDER_FAILED, f"the gateway could not be restarted: {error}"))

            self._restart(lambda *counted: gateway.restart(time.monotonic(), *counted), ended, done, recheck)

    def _restart(
        self, start: Callable[[Ended, Wanted], None], ended: Ended, done: Done, recheck: Recheck | None
    ) -> None:
        """Starts a restart, which counts towards `MAX_RESTARTS` until it has ended.

        Args:
            start: begins it, or lets it wait for its turn.
            ended: called at its end, if its turn has come and its giver might still give the order.
            done: called with why they might not, otherwise.
            recheck: see `Recheck`.
        """
        refusal: MultitowerError | None = None

        def wanted() -> bool:
            nonlocal refusal
            refusal = recheck() if recheck is not None else None
            return refusal is None

        def counted(error: str | None) -> None:
            self._restarts -= 1
            if refusal is not None:
                done(refusal)
            else:
                ended(error)

        start(counted, wanted)
        self._restarts += 1  # only now: where `start` raises, `counted` is never called

    def _too_many(self) -> MultitowerError:
        message = f"{self._restarts} restarts wait already"
        return make(Reason.TOO_MANY_ORDERS, message, retry_after_ms=RETRY_AFTER_MS)


def accepted(outcome: Settings | Exception) -> Settings:
    """Returns the settings that were built in a thread.

    Raises:
        MultitowerError: what was raised there; `config_refused` for a configuration that is wrong or cannot be read.
    """
    if isinstance(outcome, Settings):
        return outcome
    if isinstance(outcome, MultitowerError):
        raise outcome
    if not isinstance(outcome, ConfigError | DeviceError | OSError):
        log.error("the configuration could not be read", exc_info=outcome)
    raise config_refused(str(outcome))


def newly_absent(old: Settings, new: Settings) -> str | None:
    """Returns what new settings name that is not there; None if it is only what the old ones wait for already.

    An operator who waits for the answer can correct a misspelt path. A daemon that starts alone has to wait.
    """
    known = {(entry.kind, entry.name) for entry in old.waiting}
    causes = [
        str(new.config.not_yet.get(entry.name) or f"{entry.kind} {entry.name}: {entry.cause}")
        if entry.kind == MODEL
        else entry.cause
        for entry in new.waiting
        if (entry.kind, entry.name) not in known
    ]
    return "\n".join(causes) or None


def config_refused(cause: str) -> MultitowerError:
    """Returns the answer to an order whose configuration cannot be applied.

    Args:
        cause: its mistakes, each in a line.
    """
    several = "\n" in cause
    return make(Reason.CONFIG_REFUSED, _REFUSED + ("\n" if several else " ") + cause)


def _cause(error: MultitowerError) -> str:
    return error.message.removeprefix(_REFUSED).strip()
