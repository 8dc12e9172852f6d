"""What an operator can order of a single model: to load it, as the configuration file has it now, and to unload it.

Both are reloads that touch no other model: each slot that is concerned gets a new worker, which takes over when it has
loaded, or follows the old one where two do not fit. TensorFlow gives little of a model's memory back while its process
lives, so that only a new one is rid of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from multitower.errors import MultitowerError, Reason, make

from ..config.config import Config
from ..loop.background import BackgroundJobs
from ..loop.log import event
from ..routing.router import Router
from ..settings import Settings
from ..workers.manager import WorkerManager
from .control import Done
from .orders import Orders, refused, why_refused
from .reload import Reload
from .status import StatusReporter

log = logging.getLogger("multitower.daemon")

Changed = Callable[[dict[str, Any], str | None], None]
"""What a `Reload` tells at its end."""


class ModelOrders:
    """Loads and unloads models, one order after the other, and not while a reload is under way.

    Args:
        orders, manager, router, reporter: the daemon's.
        background: runs what would keep the loop waiting.
        read_config: reads the configuration anew.
    """

    def __init__(
        self,
        orders: Orders,
        manager: WorkerManager,
        router: Router,
        reporter: StatusReporter,
        background: BackgroundJobs,
        read_config: Callable[[], Config],
    ) -> None:
        self._orders = orders
        self._manager = manager
        self._router = router
        self._reporter = reporter
        self._background = background
        self._read_config = read_config

    def load(self, name: str, done: Done) -> None:
        """Has the model's slots load it, as the file has it now; `done` is told when all have, or why not."""

        def begin(end: Done) -> None:
            settings = self._orders.settings
            self._background.run(
                lambda: _with_model(settings, self._read_config(), name),
                lambda outcome: self._apply(name, outcome, end),
            )

        self._in_turn(begin, done)

    def unload(self, name: str, done: Done) -> None:
        """Has the model's slots give it up: what was accepted is answered, and its memory is free in the end."""

        def begin(end: Done) -> None:
            settings = self._orders.settings
            if name in settings.limits or name in self._router.scheduler.models:
                self._change(name, "unload", settings.with_model_unloaded(name), end)
            else:
                known = ", ".join(settings.limits)
                end(make(Reason.MODEL_UNKNOWN, f"there is no model {name[:128]!r}, only {known}", field="model_name"))

        self._in_turn(begin, done)

    def _in_turn(self, begin: Callable[[Done], None], done: Done) -> None:
        """Begins when it is the order's turn, and gives it what is to be called at its end."""

        def end(answer: dict[str, Any] | MultitowerError) -> None:
            done(answer)
            self._orders.turn_over()

        def begin_if_running() -> None:
            if self._reporter.state == "running":
                begin(end)
            else:
                end(make(Reason.DRAINING, "the daemon is stopping"))

        self._orders.in_turn(begin_if_running)

    def _apply(self, name: str, outcome: Settings | Exception, end: Done) -> None:
        if isinstance(outcome, MultitowerError):
            end(outcome)
        elif isinstance(outcome, Exception):
            end(refused(why_refused(outcome)))
        elif self._reporter.state != "running":
            end(make(Reason.DRAINING, "the daemon is stopping"))
        else:
            self._change(name, "load", outcome, end)

    def _change(self, name: str, what: str, new: Settings, end: Done) -> None:
        old = self._orders.settings

        def changed(slots: dict[str, Any], error: str | None) -> None:
            if error is not None:
                failed(error)
                return
            self._orders.settings = new
            cause = self._cause(name) if what == "load" else None
            if cause is not None:
                end(self._failed(name, what, cause))
                return
            event(log, logging.INFO, f"model {what}ed", model=name, slots=slots["renewed"])
            end({"model_name": name, "slots": slots["renewed"]})

        def failed(error: str) -> None:
            if what == "load":
                # Slots that have it already, or have tried it without a worker of before to go on, are to be rid of it.
                self._reload(new, old, lambda *_: end(self._failed(name, what, error)), f"{name} as before", name)
            else:
                end(self._failed(name, what, error))

        self._reload(old, new, changed, f"{what} {name}", name, again=what == "load")

    def _reload(self, old: Settings, new: Settings, done: Changed, why: str, name: str, *, again: bool = False) -> None:
        Reload(self._manager, self._router, self._reporter, old, new, done, why, model=name, again=again).start()

    def _failed(self, name: str, what: str, cause: str) -> MultitowerError:
        event(log, logging.ERROR, f"model not {what}ed", model=name, cause=cause)
        return make(Reason.MODEL_ERROR, f"{name!r} could not be {what}ed: {cause}")

    def _cause(self, name: str) -> str | None:
        """Why the model does not serve where it should; its neighbours do, since their worker had to go first."""
        return next(
            (
                f"slot {slot.number}: {model.cause}"
                for slot in self._manager.slots
                for model in slot.models
                if model.name == name and model.state != "ready"
            ),
            None,
        )


def _with_model(settings: Settings, config: Config, name: str) -> Settings:
    """For a thread; see `Settings.with_model_loaded`.

    Raises:
        NotFound: `model_unknown`: the configuration does not name it.
    """
    model = next((model for model in config.models if model.name == name), None)
    if model is None:
        known = ", ".join(model.name for model in config.models)
        message = f"{config.path} names no model {name[:128]!r}, only {known}"
        raise make(Reason.MODEL_UNKNOWN, message, field="model_name")
    return settings.with_model_loaded(model)
