"""The daemon: one process with one event loop, which waits for clients, workers, signals and the clock at once.

`serve` in the command line makes a `Daemon` from a checked configuration and returns what `run` returns.

**Defects.** Whatever an event or a chore of the loop raises is contained: it is logged with its traceback, and only the
request, the order or the worker that it concerns pays (`loop/containment.py`, and the boundaries in routing/, workers/
and operations/). Two things end the daemon, since the requests' own state is in doubt then: a `StateError`, that is, an
error in the scheduler while it adds or removes a worker, removes a model, or answers all requests of a model or of the
daemon; and an error that leaves `Router.flush`, which expires deadlines, forms batches and collects replies. (The
router contains the sending of a single batch or reply.) After either of them a request may be in two places, or in
none.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Final

from multitower import frames
from multitower.exit_codes import Exit

from .config.config import Config
from .lifecycle import LifecycleState, StopRequest
from .loop.containment import Chore
from .loop.garbage_collector import tune_garbage_collector
from .loop.log import event
from .loop.signals import SignalInbox
from .operations.order_queue import ReadConfig
from .parts import Parts, StartError
from .routing.endpoints import KEEP_S
from .routing.front_socket import FrontSocket
from .scheduling.scheduler import StateError

__all__ = ["Daemon", "StartError"]

log = logging.getLogger("multitower.daemon")

MEASURE_S: Final = 0.25
"""Seconds from one update of what is measured, and of regions that can be closed, to the next."""

TRACING_S: Final = 1.0
"""Seconds in which changed settings of tracing apply."""

HASH_S: Final = 5.0
"""Seconds from one look for models whose contents are to be hashed to the next."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Daemon:
    """A daemon, from its bound endpoints to its exit code.

    Construct and run it in the main thread, once a process.

    Args:
        config: a checked configuration.
        read_config: reads the configuration again, for a reload, or the section of one model, whose name it gets; it
            may block.
        strict: whether everything in the configuration must be available at the start; otherwise the daemon waits for
            missing models, devices and endpoints, and serves the others meanwhile.
        ready_lines: lines to log once, when every model is ready and the gateway accepts connections.

    Raises:
        StartError: the configuration uses devices in an impossible way, another process holds an endpoint or the
            runtime folder, these cannot be used, the gateway's program is missing or has another version, or the system
            lacks pidfds; if `strict`, also something that is missing.
    """

    def __init__(
        self, config: Config, read_config: ReadConfig, *, strict: bool = False, ready_lines: Sequence[str] = ()
    ) -> None:
        self._parts = Parts(config, read_config, time.monotonic(), strict=strict, ready_lines=ready_lines)
        self._parts.settings.current.warn_about_missing_versions()

    def run(self) -> int:
        """Serves until a signal ends it.

        Returns:
            The exit code: 0 after a drain, 130 after a second request to stop, 69 when all slots have failed and
            `exit_when_failed` is set.
        """
        parts = self._parts
        with parts, contextlib.closing(SignalInbox(SIGNALS)) as inbox:
            try:
                self._watch_sources(inbox)
                event(
                    log,
                    logging.INFO,
                    "daemon started",
                    pid=os.getpid(),
                    listen=",".join(front.endpoint for front in parts.endpoints.fronts),
                    slots=len(parts.manager.slots),
                    runtime_dir=parts.endpoints.runtime.path,
                )
                if parts.settings.current.config.insecure:
                    message = "insecure is set: addresses that other machines can reach are used without `security`"
                    if parts.access is not None:
                        message = (
                            "insecure is set: addresses of the gateway without gateway.tls carry tokens in the clear"
                        )
                    event(log, logging.WARNING, message, security=parts.access is not None)
                tune_garbage_collector()
                code = self._loop()
            except BaseException:
                # An init system restarts a daemon that ends, but not one that hangs or leaves workers behind.
                log.critical("daemon ends because of an internal error", exc_info=True)
                parts.manager.kill_all()
                parts.manager.reap_all()
                raise
        event(log, logging.INFO, "daemon ended", code=int(code))
        return code

    def _watch_sources(self, inbox: SignalInbox) -> None:
        parts = self._parts
        parts.sources.add("handling signals", inbox.descriptor, functools.partial(self._on_signals, inbox))
        parts.sources.add("handling outcomes of background jobs", parts.background.descriptor, self._on_background_jobs)
        for front in parts.endpoints.fronts:
            self._watch_front(front)
        if parts.endpoints.gateway is not None:
            self._watch_front(parts.endpoints.gateway)
        parts.endpoints.on_bound = self._on_bound
        for connections in (parts.endpoints.connections, parts.endpoints.control_connections):
            parts.sources.add("accepting connections", connections.descriptor, connections.accept)
        zap = parts.endpoints.zap
        if zap is not None:
            zap.recheck = parts.sources.add_source(
                "authenticating clients", frames.descriptor(zap.socket), zap.look, zap.receive
            )
        control = parts.endpoints.control
        control.recheck = parts.sources.add_source("reading orders", control.descriptor, control.look, self._on_orders)

    def _watch_front(self, front: FrontSocket) -> None:
        parts = self._parts
        front.recheck = parts.sources.add_source(
            "reading requests", front.descriptor, front.look, functools.partial(parts.router.receive, front)
        )

    def _on_bound(self, front: FrontSocket) -> None:
        """An endpoint that was waited for is bound."""
        parts = self._parts
        self._watch_front(front)
        parts.router.fronts = parts.endpoints.fronts

    def _loop(self) -> Exit:
        parts = self._parts
        workers = Chore("managing workers", parts.manager.tick, parts.manager.next_wake, parts.errors)
        others = self._make_chores()
        parts.lifecycle.start()
        now = time.monotonic()
        while True:
            workers.run(now)
            parts.router.flush(now)
            for chore in others:
                chore.run(now)
            code = self._exit_code(now)
            if code is not None:
                parts.recorder.end_all()
                parts.manager.kill_all()
                parts.manager.reap_all()
                return code
            if parts.manager.replacing or not parts.lifecycle.running:
                parts.reactor.interrupt()  # both go on when requests have been answered
            wake = min(chore.next_wake(now) for chore in (workers, *others))
            # The hot path: requests, answers and what follows from them are handled in there.
            now = parts.reactor.run(wake, parts.router.flush, parts.router.scheduler.next_wake)
            parts.loop_lag.add(now - wake)

    def _make_chores(self) -> list[Chore]:
        parts = self._parts
        errors = parts.errors
        orders = parts.order_queue
        announcer, watch, service_manager = (
            parts.announcer,
            parts.version_watch,
            parts.service_manager,
        )
        gateway, recorder, access = parts.gateway, parts.recorder, parts.access
        return [
            *(
                [Chore("verifying credentials", access.tick, lambda _: access.due, errors)]
                if access is not None
                else []
            ),
            *([Chore.every(KEEP_S, "managing the gateway", gateway.tick, errors)] if gateway is not None else []),
            Chore("announcing the state", announcer.tick, lambda _: announcer.due, errors),
            Chore.every(
                MEASURE_S,
                "measuring workers",
                lambda _: parts.capacity.measure(parts.manager.slots),
                errors,
            ),
            Chore.every(MEASURE_S, "closing regions", parts.router.tick, errors),
            Chore.every(KEEP_S, "keeping the endpoints", parts.endpoints.keep, errors),
            Chore.every(KEEP_S, "keeping folders", lambda _: parts.launcher.keep_temporary_folders(), errors),
            Chore.every(MEASURE_S, "ending orphans", lambda _: parts.launcher.tick(), errors),
            Chore.every(MEASURE_S, "counting connections", parts.connection_limits.tick, errors),
            Chore.every(TRACING_S, "tracing requests", parts.tracing.tick, errors),
            Chore.every(HASH_S, "hashing model files", parts.content_baseline.tick, errors),
            Chore("watching model versions", watch.tick, lambda _: watch.due, errors),
            Chore("ending orders that cannot read files", orders.tick, lambda _: orders.due, errors),
            Chore(
                "waiting for models and devices",
                parts.presence_watch.tick,
                lambda _: parts.presence_watch.due,
                errors,
            ),
            Chore.every(MEASURE_S, "configuring the request log", parts.request_log.tick, errors),
            Chore("ending recordings", recorder.tick, lambda _: recorder.due, errors),
            Chore("waiting for endpoints", parts.endpoints.retry, lambda _: parts.endpoints.retry_at, errors),
            Chore("feeding the watchdog", service_manager.watchdog, lambda _: service_manager.next_wake(), errors),
            Chore("draining", self._advance_drain, lambda _: parts.lifecycle.drain_by, errors),
            Chore("resuming event sources", parts.sources.resume, parts.sources.next_wake, errors),
        ]

    # Events.

    def _on_signals(self, inbox: SignalInbox) -> None:
        parts = self._parts
        parts.reactor.interrupt()
        for number in inbox.read():
            try:
                if number == signal.SIGHUP:
                    parts.orders.reload(functools.partial(parts.audit.note, "reload", "signal", number.name, {}))
                elif number == signal.SIGUSR1:
                    parts.request_log.reopen()
                else:
                    self._request_stop(number, time.monotonic())
            except Exception as error:  # noqa: BLE001  it is logged
                parts.errors.add("handling signals", error, {"signal": number.name})

    def _request_stop(self, number: signal.Signals, now: float) -> None:
        parts = self._parts
        request = parts.lifecycle.request_stop(now, parts.settings.current.config.drain_timeout)
        if request is StopRequest.DRAIN:
            outstanding = parts.router.scheduler.outstanding
            event(log, logging.INFO, "draining", signal=number.name, outstanding=outstanding)
            # What the gateway has accepted is still served; it accepts nothing new, and ends.
            parts.router.start_draining(parts.endpoints.gateway)
            if parts.gateway is not None:
                parts.gateway.drain(now)
            parts.recorder.end_all()
            parts.announcer.drain_began()
        elif request is StopRequest.REPEATED:
            event(log, logging.INFO, "already draining", signal=number.name)
        else:
            event(log, logging.WARNING, "second signal: ending at once", signal=number.name)

    def _on_background_jobs(self) -> None:
        parts = self._parts
        parts.reactor.interrupt()
        parts.background.run_callbacks()

    def _on_orders(self) -> None:
        parts = self._parts
        parts.reactor.interrupt()
        parts.control.receive()

    # The end.

    def _advance_drain(self, now: float) -> None:
        """Ends the workers once all accepted requests have been answered, or `drain_timeout` is over."""
        parts = self._parts
        if parts.lifecycle.state is not LifecycleState.DRAINING:
            return
        drain_by = parts.lifecycle.drain_by
        late = drain_by is not None and now >= drain_by
        if not late and (parts.router.scheduler.busy or not self._gateway_ended):
            return
        parts.router.start_draining()
        if late:
            outstanding = parts.router.scheduler.outstanding
            event(log, logging.WARNING, "drain_timeout is over", outstanding=outstanding)
            parts.router.scheduler.abandon("drain_timeout was over before the request was answered")
            try:
                parts.router.flush(now)
            except Exception as error:
                raise StateError("the router failed in flush") from error  # the chore must not contain it
        parts.manager.stop(now)
        parts.lifecycle.end_drain()

    @property
    def _gateway_ended(self) -> bool:
        """Whether no gateway process is left that may still send requests or pass on answers."""
        parts = self._parts
        return parts.gateway is None or parts.gateway.ended

    def _exit_code(self, now: float) -> Exit | None:
        """Returns the exit code when the daemon must end now."""
        parts = self._parts
        if parts.lifecycle.forced:
            parts.manager.kill_all()
            parts.router.scheduler.abandon("the daemon was ended before the request was answered")
            parts.router.flush(now)
            return Exit.SECOND_SIGNAL
        try:
            if parts.lifecycle.state is LifecycleState.STOPPING:
                workers_ended = next(parts.manager.processes(), None) is None
                return Exit.OK if workers_ended and self._gateway_ended else None
            if parts.lifecycle.running and parts.settings.current.config.exit_when_failed and parts.manager.unavailable:
                after = "the daemon exits with code 69, because exit_when_failed is set"
                event(log, logging.ERROR, "every slot has failed", next=after)
                return Exit.UNAVAILABLE
        except Exception as error:  # noqa: BLE001  it is logged
            parts.errors.add("deciding whether to end", error)
        return None
