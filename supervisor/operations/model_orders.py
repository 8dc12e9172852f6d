"""Orders that concern one model: load it as the configuration file has it now, unload it, serve other versions of it.

Each is a reload that touches no other model: each slot that has the model gets a new worker, which takes over once it
has loaded, or replaces the old one after its end where two do not fit. A new process is needed to free memory:
TensorFlow returns little of a model's memory while its process runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from multitower.errors import MultitowerError, Reason, make

from ..config.loading import UnknownModelError
from ..loop.history import EventKind
from ..settings import Settings
from .content_hashing import comparing_ends, keep_fingerprints
from .order_queue import READ_S, Done, Order, OrderContext, ReadConfig, Recheck, stopping
from .orders import accepted, config_refused
from .reload import Reload

log = logging.getLogger("multitower.daemon")

Change = Literal["load", "unload"]


class ModelOrders:
    """Loads and unloads models, and changes their versions.

    Args:
        context: the parts of the daemon.
    """

    def __init__(self, context: OrderContext) -> None:
        self._context = context

    def load(self, name: str, done: Done, read_s: float = READ_S, recheck: Recheck | None = None) -> None:
        """Loads a model on its slots, as the configuration file describes it now.

        Args:
            name: the model's name.
            done: called with the answer: `model_name` and the `slots` that got a new worker once all of them serve the
                model, or why they do not.
            read_s: seconds that reading may take; then the order fails.
            recheck: see `Recheck`.
        """
        self._context.queue.submit(lambda order: self._begin_load(order, name, read_s), done, recheck=recheck)

    def _begin_load(self, order: Order, name: str, read_s: float) -> None:
        context = self._context
        old = context.settings.current

        def apply(outcome: Settings | Exception) -> None:
            new = accepted(outcome)
            if not context.lifecycle.running:
                raise stopping()
            self._change(order, name, "load", new)

        contents, until = context.manager.known_contents.snapshot(), comparing_ends(read_s)

        def read() -> Settings:
            new = _load_settings(old, context.read_config, name)
            return keep_fingerprints(new, old, contents, context.hasher, until)

        context.queue.read_files(order, read, apply, read_s)

    def unload(self, name: str, done: Done, recheck: Recheck | None = None) -> None:
        """Unloads a model: requests already accepted are answered, then its memory is freed.

        Args:
            name: the model's name.
            done: called with the answer: `model_name` and the `slots` that got a new worker, or why they did not.
            recheck: see `Recheck`.
        """
        self._context.queue.submit(lambda order: self._begin_unload(order, name), done, recheck=recheck)

    def _begin_unload(self, order: Order, name: str) -> None:
        settings = self._context.settings
        if name not in settings.model_names:
            known = ", ".join(settings.current.limits)
            raise make(Reason.MODEL_UNKNOWN, f"there is no model {name[:128]!r}, only {known}", field="model_name")
        self._change(order, name, "unload", settings.current.with_model_unloaded(name))

    def _order_failed(self, name: str, change: Change, cause: str) -> MultitowerError:
        fields = {"model": name, "cause": cause}
        self._context.history.note(log, logging.ERROR, EventKind.MODEL, f"model not {change}ed", **fields)
        return make(Reason.ORDER_FAILED, f"{name!r} could not be {change}ed: {cause}")

    def _change(self, order: Order, name: str, change: Change, new: Settings) -> None:
        settings = self._context.settings
        old = settings.current

        def changed(slots: dict[str, Any], error: str | None) -> None:
            if error is not None:
                failed(error)
                return
            settings.current = new
            cause = self._load_error(name) if change == "load" else None
            if cause is not None:
                order.end(self._order_failed(name, change, cause))
                return
            fields = {"model": name, "slots": slots["renewed"]}
            self._context.history.note(log, logging.INFO, EventKind.MODEL, f"model {change}ed", **fields)
            order.end({"model_name": name, "slots": slots["renewed"]})

        def failed(error: str) -> None:
            answer = self._order_failed(name, change, error)
            if change == "unload":
                order.end(answer)
                return
            # Slots may have loaded the model already, or have lost their worker in the attempt: undo that.
            why = f"{name} as before"
            Reload(self._context, order, new, old, lambda *_: order.end(answer), why, model=name).start()

        why = f"{change} {name}"
        Reload(self._context, order, old, new, changed, why, model=name, again=change == "load").start()

    def _load_error(self, name: str) -> str | None:
        """Returns why the model is not ready on one of its slots, whose old worker had to end first; or None."""
        return next(
            (
                f"slot {slot.number}: {model.cause}"
                for slot in self._context.manager.slots
                for model in slot.models
                if model.name == name and model.state != "ready"
            ),
            None,
        )

    def serve_versions(self, name: str, versions: Mapping[str, str], ended: Callable[[str | None], None]) -> None:
        """Serves other versions of a model; call it while the order queue is not busy.

        Where they cannot be loaded, the slots that have them already get the former ones back.

        Args:
            name: the model's name.
            versions: the fingerprint of each version to serve, by version.
            ended: called once, with None, or with why the versions are not served.
        """
        reported = False

        def report(error: str | None) -> None:
            nonlocal reported
            reported = True
            ended(error)

        def done(answer: dict[str, Any] | MultitowerError) -> None:
            try:
                if isinstance(answer, MultitowerError) and not reported:
                    ended(answer.message)
            finally:
                self._context.announce_reload_end()

        self._context.queue.submit(lambda order: self._begin_versions(order, name, versions, report), done)

    def _begin_versions(
        self, order: Order, name: str, versions: Mapping[str, str], report: Callable[[str | None], None]
    ) -> None:
        context = self._context
        old = context.settings.current
        new = old.with_versions(name, versions)
        context.announcer.reload_began()

        def changed(_: dict[str, Any], error: str | None) -> None:
            report(error)
            if error is None:
                context.settings.current = new
                order.end({})
            else:
                why = "back to the former versions"
                Reload(context, order, new, old, lambda *_: order.end({}), why, concerns=name, tolerant=True).start()

        why = "other versions or files"
        Reload(context, order, old, new, changed, why, concerns=name, tolerant=True).start()


def _load_settings(settings: Settings, read_config: ReadConfig, name: str) -> Settings:
    """Returns the settings with one model loaded as its section of the configuration file has it; may block.

    Raises:
        NotFound: `model_unknown`: the configuration has no such model.
    """
    try:
        config = read_config(name)
    except UnknownModelError as error:
        raise make(Reason.MODEL_UNKNOWN, str(error), field="model_name") from None
    if name in config.not_yet:
        raise config_refused(str(config.not_yet[name]))
    return settings.with_model_loaded(next(model for model in config.models if model.name == name))
