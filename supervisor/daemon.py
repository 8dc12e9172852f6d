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
import gc
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Final

from multitower import frames
from multitower.exit_codes import Exit

from .config.config import Config
from .config.secret_files import CurveKeys, GuardedFileError, read_curve_keys
from .config.source import may_pass
from .config.values import ANSWER_S
from .gateway.listeners import GatewayListeners
from .gateway.program import ProgramError, check_program
from .gateway.supervision import Gateway
from .lifecycle import Lifecycle, LifecycleState, StopRequest
from .loop.background import BackgroundJobs
from .loop.containment import Chore, ErrorLog, EventSources
from .loop.history import EventHistory
from .loop.log import event
from .loop.reactor import Reactor
from .loop.runtime_dir import HeldError, NotBindableYetError
from .loop.signals import SignalInbox
from .machine.core_claims import CoreClaims
from .machine.devices import DeviceError
from .machine.pidfds import pidfd_error
from .machine.process_limits import ProcessLimits
from .machine.resources import Sampler
from .observability.loop_lag import LoopLag
from .observability.metrics import Metrics
from .observability.recording import Recorder
from .observability.request_log import RequestLog
from .observability.snapshot import SnapshotReader
from .observability.tracing import Tracing, why_impossible
from .operations.connection_limits import ConnectionLimits, accept_within, apply_descriptor_limit
from .operations.content_hashing import ContentBaseline, ContentHasher
from .operations.control import ControlSocket
from .operations.model_orders import ModelOrders
from .operations.order_queue import OrderContext, OrderQueue, ReadConfig
from .operations.orders import Orders
from .operations.presence_watch import PresenceWatch
from .operations.queries import Queries
from .operations.readiness import Readiness
from .operations.service_manager import Announcer, ServiceManager
from .operations.status import StatusReporter
from .operations.version_watch import VersionWatch
from .routing.endpoints import KEEP_S, Endpoints
from .routing.front_socket import FrontSocket
from .routing.router import Router
from .routing.unread import UnreadReplies
from .scheduling.scheduler import StateError
from .security.audit import Audit
from .security.locks import Locks
from .settings import ActiveSettings, build_settings
from .workers.capacity import Capacity
from .workers.launcher import Launcher
from .workers.manager import WorkerManager
from .workers.process_watcher import ProcessWatcher

log = logging.getLogger("multitower.daemon")

DRAINED_LINGER_MS: Final = 2000
"""Milliseconds that the last replies get to leave after a drain; without them some are lost."""

FORCED_LINGER_MS: Final = 200
"""The same after a second request to stop."""

MEASURE_S: Final = 0.25
"""Seconds from one update of what is measured, and of regions that can be closed, to the next."""

TRACING_S: Final = 1.0
"""Seconds in which changed settings of tracing apply."""

FLUSH_SPANS_S: Final = 2.0
"""Seconds that sending the last spans may take at the end."""

HASH_S: Final = 5.0
"""Seconds from one look for models whose contents are to be hashed to the next."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class StartError(Exception):
    """The daemon cannot start; nothing stays open.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Daemon:
    """A daemon, from its bound endpoints to its exit code.

    Construct and run it in the main thread, once a process.

    Args:
        config: a checked configuration.
        read_config: reads the configuration again, for a reload, or the section of one model, whose name it gets; it
            may block.
        strict: whether all that is configured must be there at once; otherwise the daemon serves what is there, and
            waits for the rest.
        ready_lines: lines to log once, when every model is ready and the gateway accepts connections.

    Raises:
        StartError: the configuration uses devices in an impossible way, another process holds an endpoint or the
            runtime folder, these cannot be used, the gateway's program is missing or has another version, or the system
            lacks pidfds; if `strict`, also something that is missing.
    """

    def __init__(
        self, config: Config, read_config: ReadConfig, *, strict: bool = False, ready_lines: Sequence[str] = ()
    ) -> None:
        started = time.monotonic()
        self._lifecycle = Lifecycle()
        with contextlib.ExitStack() as stack:
            self._background = stack.enter_context(contextlib.closing(BackgroundJobs()))
            self._service_manager = stack.enter_context(contextlib.closing(ServiceManager()))
            self._claims = stack.enter_context(contextlib.closing(CoreClaims()))
            unwatchable = pidfd_error()
            if unwatchable is not None:
                raise StartError(
                    Exit.CONFIG,
                    f"this system cannot watch processes ({unwatchable}); multitower needs Linux 5.3 or newer, and a "
                    "sandbox or seccomp profile that allows it",
                )
            untraceable = why_impossible(config.tracing)
            if untraceable is not None:
                raise StartError(Exit.UNAVAILABLE, f"{config.path}: {untraceable}")
            with _start_errors(config, strict=strict):
                settings = build_settings(config, self._claims, strict=strict, answer_s=ANSWER_S)
                plan = apply_descriptor_limit(settings)
                connections = stack.enter_context(contextlib.closing(accept_within(plan)))
                unread = UnreadReplies(config.max_unread_bytes, config.unread_timeout)
                history = EventHistory()
                self._locks = _make_locks(config, self._background)
                self._endpoints = Endpoints(
                    config.listen,
                    config.runtime_dir,
                    config.max_message_size,
                    unread,
                    config.peer_timeout,
                    connections,
                    None if strict else self._background,
                    for_gateway=config.gateway is not None,
                    locks=self._locks,
                    curve=_read_curve_keys(config),
                )
                stack.callback(self._close_endpoints)
                if config.gateway is not None:
                    program = check_program(config.gateway.program)
                    background = None if strict else self._background
                    listeners = GatewayListeners(self._endpoints.context, config.gateway, background)
                    stack.callback(listeners.close)
            sampler = stack.enter_context(contextlib.closing(Sampler(ProcessLimits())))
            self._reactor = stack.enter_context(contextlib.closing(Reactor()))
            self._errors = ErrorLog(log)
            self._sources = EventSources(self._reactor, self._errors)
            self._settings = ActiveSettings(settings)
            self._router = Router(
                limits=dict(settings.limits),
                timeouts=dict(settings.timeouts),
                max_message_size=config.max_message_size,
                dispatch=settings.dispatch,
                unread=unread,
            )
            self._tracing = Tracing(self._settings, self._router.observers)
            stack.callback(self._close_tracing)
            watcher = ProcessWatcher(self._reactor, self._router)
            launcher = Launcher(self._endpoints.runtime, watcher, import_path=[str(config.folder)])
            stack.callback(launcher.close)
            self._launcher = launcher
            self._capacity = Capacity(sampler)
            self._manager = WorkerManager(
                placements=settings.placements,
                settings=settings.worker_settings,
                router=self._router,
                launcher=launcher,
                watcher=watcher,
                capacity=self._capacity,
                history=history,
            )
            self._scheduler = self._router.scheduler
            self._gateway: Gateway | None = None
            if config.gateway is not None:
                self._gateway = Gateway(
                    program,
                    self._settings,
                    listeners,
                    self._endpoints,
                    launcher,
                    self._reactor,
                    self._manager.history,
                    self._errors,
                )
                stack.callback(self._gateway.close)
                gateway = self._gateway
                self._endpoints.gateway_pids = lambda: gateway.pids
            self._connection_limits = ConnectionLimits(self._settings, self._endpoints, self._router, plan)
            self._request_log = RequestLog(self._router, self._settings)
            stack.callback(self._request_log.close)
            self._set_up_operations(sampler, read_config, started, ready_lines)
            self._resources = stack.pop_all()
        self._router.set_labels(settings.labels)
        for spec in settings.unloaded:
            self._router.close_model(spec.name)
        settings.warn_about_missing_versions()

    def _set_up_operations(
        self, sampler: Sampler, read_config: ReadConfig, started: float, ready_lines: Sequence[str]
    ) -> None:
        """Sets up what operators, service managers and queries get from the daemon."""
        max_message_size = self._settings.current.config.max_message_size
        readiness = Readiness(
            self._lifecycle, self._manager, self._router, self._settings, lambda: self._endpoints.problems
        )
        self._announcer = Announcer(
            self._lifecycle, readiness, self._service_manager, started, self._gateway, ready_lines
        )
        hasher = ContentHasher()
        self._content_baseline = ContentBaseline(self._settings, self._manager, self._background, hasher)
        self._order_queue = OrderQueue(self._lifecycle)
        context = OrderContext(
            lifecycle=self._lifecycle,
            queue=self._order_queue,
            settings=self._settings,
            manager=self._manager,
            router=self._router,
            background=self._background,
            announcer=self._announcer,
            read_config=read_config,
            claims=self._claims,
            hasher=hasher,
            locks=self._locks,
        )
        self._orders = Orders(context, self._gateway)
        model_orders = ModelOrders(context)
        self._version_watch = VersionWatch(context, readiness, model_orders)
        self._presence_watch = PresenceWatch(context)
        status = StatusReporter(
            lifecycle=self._lifecycle,
            readiness=readiness,
            router=self._router,
            manager=self._manager,
            settings=self._settings,
            refused_versions=self._version_watch.refused_versions,
            last_reload=lambda: self._orders.last_reload,
            started=started,
            sampler=sampler,
            endpoints=self._endpoints,
            gateway=self._gateway,
            tracing=self._tracing,
            locks=self._locks,
        )
        queries = Queries(readiness, status, self._router, self._settings, max_message_size)
        self._loop_lag = LoopLag()
        snapshots = SnapshotReader(
            router=self._router,
            manager=self._manager,
            settings=self._settings,
            loop_lag=self._loop_lag,
            sampler=sampler,
            endpoints=self._endpoints,
            gateway=self._gateway,
            tracing=self._tracing,
            request_log=self._request_log,
            locks=self._locks,
        )
        metrics = Metrics(snapshots, self._background)
        self._recorder = Recorder(self._router)
        self._audit = Audit(self._manager.history)
        self._control = ControlSocket(
            self._endpoints.control,
            queries,
            self._orders,
            model_orders,
            metrics,
            self._recorder,
            self._audit,
            self._endpoints.gateway_pids,
        )
        self._router.open(self._endpoints.fronts, queries.answer, metrics.answer)

    def run(self) -> int:
        """Serves until a signal ends it.

        Returns:
            The exit code: 0 after a drain, 130 after a second request to stop, 69 when all slots have failed and
            `exit_when_failed` is set.
        """
        with self._resources, contextlib.closing(SignalInbox(SIGNALS)) as inbox:
            try:
                self._watch_sources(inbox)
                event(
                    log,
                    logging.INFO,
                    "daemon started",
                    pid=os.getpid(),
                    listen=",".join(front.endpoint for front in self._endpoints.fronts),
                    slots=len(self._manager.slots),
                    runtime_dir=self._endpoints.runtime.path,
                )
                if self._settings.current.config.insecure:
                    message = "insecure is set: addresses that other machines can reach may be used without locks"
                    event(log, logging.WARNING, message, security=self._locks is not None)
                tune_garbage_collector()
                code = self._loop()
            except BaseException:
                # An init system restarts a daemon that ends, but not one that hangs or leaves workers behind.
                log.critical("daemon ends because of an internal error", exc_info=True)
                self._manager.kill_all()
                self._manager.reap_all()
                raise
        event(log, logging.INFO, "daemon ended", code=int(code))
        return code

    def _watch_sources(self, inbox: SignalInbox) -> None:
        self._sources.add("handling signals", inbox.descriptor, functools.partial(self._on_signals, inbox))
        self._sources.add("handling outcomes of background jobs", self._background.descriptor, self._on_background_jobs)
        for front in self._endpoints.fronts:
            self._watch_front(front)
        if self._endpoints.gateway is not None:
            self._watch_front(self._endpoints.gateway)
        self._endpoints.on_bound = self._on_bound
        for connections in (self._endpoints.connections, self._endpoints.control_connections):
            self._sources.add("accepting connections", connections.descriptor, connections.accept)
        zap = self._endpoints.zap
        if zap is not None:
            zap.recheck = self._sources.add_source(
                "authenticating clients", frames.descriptor(zap.socket), zap.look, zap.receive
            )
        control = self._endpoints.control
        control.recheck = self._sources.add_source("reading orders", control.descriptor, control.look, self._on_orders)

    def _watch_front(self, front: FrontSocket) -> None:
        front.recheck = self._sources.add_source(
            "reading requests", front.descriptor, front.look, functools.partial(self._router.receive, front)
        )

    def _on_bound(self, front: FrontSocket) -> None:
        """An endpoint that was waited for is bound."""
        self._watch_front(front)
        self._router.fronts = self._endpoints.fronts

    def _loop(self) -> Exit:
        workers = Chore("managing workers", self._manager.tick, self._manager.next_wake, self._errors)
        others = self._make_chores()
        self._lifecycle.start()
        now = time.monotonic()
        while True:
            workers.run(now)
            self._router.flush(now)
            for chore in others:
                chore.run(now)
            code = self._exit_code(now)
            if code is not None:
                self._recorder.end_all()
                self._manager.kill_all()
                self._manager.reap_all()
                return code
            if self._manager.replacing or not self._lifecycle.running:
                self._reactor.interrupt()  # both go on when requests have been answered
            wake = min(chore.next_wake(now) for chore in (workers, *others))
            # The hot path: requests, answers and what follows from them are handled in there.
            now = self._reactor.run(wake, self._router.flush, self._scheduler.next_wake)
            self._loop_lag.add(now - wake)

    def _make_chores(self) -> list[Chore]:
        errors = self._errors
        orders = self._order_queue
        announcer, watch, service_manager = self._announcer, self._version_watch, self._service_manager
        gateway, recorder, locks = self._gateway, self._recorder, self._locks
        return [
            *([Chore("verifying credentials", locks.tick, lambda _: locks.due, errors)] if locks is not None else []),
            *([Chore.every(KEEP_S, "managing the gateway", gateway.tick, errors)] if gateway is not None else []),
            Chore("announcing the state", announcer.tick, lambda _: announcer.due, errors),
            Chore.every(MEASURE_S, "measuring workers", lambda _: self._capacity.measure(self._manager.slots), errors),
            Chore.every(MEASURE_S, "closing regions", self._router.tick, errors),
            Chore.every(KEEP_S, "keeping the endpoints", self._endpoints.keep, errors),
            Chore.every(KEEP_S, "keeping folders", lambda _: self._launcher.keep_temporary_folders(), errors),
            Chore.every(MEASURE_S, "ending orphans", lambda _: self._launcher.tick(), errors),
            Chore.every(MEASURE_S, "counting connections", self._connection_limits.tick, errors),
            Chore.every(TRACING_S, "tracing requests", self._tracing.tick, errors),
            Chore.every(HASH_S, "hashing model files", self._content_baseline.tick, errors),
            Chore("watching model versions", watch.tick, lambda _: watch.due, errors),
            Chore("ending orders that cannot read files", orders.tick, lambda _: orders.due, errors),
            Chore(
                "waiting for models and devices", self._presence_watch.tick, lambda _: self._presence_watch.due, errors
            ),
            Chore.every(MEASURE_S, "configuring the request log", self._request_log.tick, errors),
            Chore("ending recordings", recorder.tick, lambda _: recorder.due, errors),
            Chore("waiting for endpoints", self._endpoints.retry, lambda _: self._endpoints.retry_at, errors),
            Chore("feeding the watchdog", service_manager.watchdog, lambda _: service_manager.next_wake(), errors),
            Chore("draining", self._advance_drain, lambda _: self._lifecycle.drain_by, errors),
            Chore("resuming event sources", self._sources.resume, self._sources.next_wake, errors),
        ]

    # Events.

    def _on_signals(self, inbox: SignalInbox) -> None:
        self._reactor.interrupt()
        for number in inbox.read():
            try:
                if number == signal.SIGHUP:
                    self._orders.reload(self._audit.watch("reload", "signal", number.name, {}, lambda _: None))
                elif number == signal.SIGUSR1:
                    self._request_log.reopen()
                else:
                    self._request_stop(number, time.monotonic())
            except Exception as error:  # noqa: BLE001  it is logged
                self._errors.add("handling signals", error, {"signal": number.name})

    def _request_stop(self, number: signal.Signals, now: float) -> None:
        request = self._lifecycle.request_stop(now, self._settings.current.config.drain_timeout)
        if request is StopRequest.DRAIN:
            outstanding = self._scheduler.outstanding
            event(log, logging.INFO, "draining", signal=number.name, outstanding=outstanding)
            # What the gateway has accepted is still served; it accepts nothing new, and ends.
            self._router.start_draining(self._endpoints.gateway)
            if self._gateway is not None:
                self._gateway.drain(now)
            self._recorder.end_all()
            self._announcer.drain_began()
        elif request is StopRequest.REPEATED:
            event(log, logging.INFO, "already draining", signal=number.name)
        else:
            event(log, logging.WARNING, "ending now", signal=number.name)

    def _on_background_jobs(self) -> None:
        self._reactor.interrupt()
        self._background.run_callbacks()

    def _on_orders(self) -> None:
        self._reactor.interrupt()
        self._control.receive()

    # The end.

    def _advance_drain(self, now: float) -> None:
        """Ends the workers once all accepted requests have been answered, or `drain_timeout` is over."""
        if self._lifecycle.state is not LifecycleState.DRAINING:
            return
        drain_by = self._lifecycle.drain_by
        late = drain_by is not None and now >= drain_by
        if not late and (self._scheduler.busy or not self._gateway_ended):
            return
        self._router.start_draining()
        if late:
            outstanding = self._scheduler.outstanding
            event(log, logging.WARNING, "drain_timeout is over", outstanding=outstanding)
            self._scheduler.abandon("drain_timeout was over before the request was answered")
            try:
                self._router.flush(now)
            except Exception as error:
                raise StateError("the router failed in flush") from error  # the chore must not contain it
        self._manager.stop(now)
        self._lifecycle.end_drain()

    @property
    def _gateway_ended(self) -> bool:
        """Whether no gateway process is left that may still send requests or pass on answers."""
        return self._gateway is None or self._gateway.ended

    def _exit_code(self, now: float) -> Exit | None:
        """Returns the exit code when the daemon must end now."""
        if self._lifecycle.forced:
            self._manager.kill_all()
            self._scheduler.abandon("the daemon was ended before the request was answered")
            self._router.flush(now)
            return Exit.SECOND_SIGNAL
        try:
            if self._lifecycle.state is LifecycleState.STOPPING:
                workers_ended = next(self._manager.processes(), None) is None
                return Exit.OK if workers_ended and self._gateway_ended else None
            if self._lifecycle.running and self._settings.current.config.exit_when_failed and self._manager.unavailable:
                after = "the daemon exits with code 69, because exit_when_failed is set"
                event(log, logging.ERROR, "every slot has failed", next=after)
                return Exit.UNAVAILABLE
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("deciding whether to end", error)
        return None

    def _close_tracing(self) -> None:
        self._tracing.close(0.0 if self._lifecycle.forced else FLUSH_SPANS_S)

    def _close_endpoints(self) -> None:
        if self._lifecycle.state is LifecycleState.STARTING:
            self._endpoints.close()
        else:
            self._endpoints.close(FORCED_LINGER_MS if self._lifecycle.forced else DRAINED_LINGER_MS)


GC_THRESHOLDS: Final = (100_000, 20, 20)
"""For gc.set_threshold: far more objects than a full queue of usual size makes at once."""


def tune_garbage_collector() -> None:
    """Keeps Python's cyclic garbage collector from stopping the loop; call it once the daemon has been set up.

    What the loop makes for a request is freed with its last reference. With thousands of requests waiting, a
    collection takes tens of milliseconds and finds none of them. It still runs, seldom, for what does form cycles:
    exceptions with tracebacks, and configurations that have been read.
    """
    gc.collect()
    gc.freeze()  # what exists now stays for good
    gc.set_threshold(*GC_THRESHOLDS)


def _make_locks(config: Config, background: BackgroundJobs) -> Locks | None:
    return Locks(config.principals, background) if config.principals is not None else None


def _read_curve_keys(config: Config) -> CurveKeys | None:
    """Reads the daemon's keys again: the file may have changed since it was checked."""
    if config.security is None or config.security.curve is None:
        return None
    return read_curve_keys(config.security.curve.secret_key)


@contextlib.contextmanager
def _start_errors(config: Config, *, strict: bool) -> Iterator[None]:
    """Translates what a device, an endpoint or a folder can raise into a `StartError`.

    What may pass by itself, such as a full disk below the runtime folder, is temporary: the service manager tries
    again. If `strict`, whatever is missing counts as wrong.
    """
    try:
        yield
    except HeldError as error:
        raise StartError(Exit.TEMPORARY, str(error)) from None
    except (DeviceError, GuardedFileError) as error:
        raise StartError(Exit.CONFIG, f"{config.path}: {error}") from None
    except ProgramError as error:
        raise StartError(Exit.UNAVAILABLE, f"{error}; {error.advice}, or remove `gateway` from {config.path}") from None
    except OSError as error:
        temporary = not strict and (isinstance(error, NotBindableYetError) or may_pass(error))
        raise StartError(Exit.TEMPORARY if temporary else Exit.CONFIG, str(error)) from None
