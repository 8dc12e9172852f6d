"""The parts of a daemon, and how they are put together: what must be open before its loop can run.

`Parts` opens what can fail first: the runtime folder, the endpoints, the gateway's addresses. Then it makes the data
path, the workers, the gateway, and what operators get. `daemon.py` runs the loop over these parts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from multitower.exit_codes import Exit

from .config.config import Config
from .config.secret_files import CurveKeys, GuardedFileError, read_curve_keys
from .config.source import may_pass
from .config.units import printable
from .config.value_syntax import ANSWER_S
from .gateway.listeners import GatewayListeners
from .gateway.program import ProgramError, check_program
from .gateway.supervision import Gateway
from .lifecycle import Lifecycle, LifecycleState
from .loop.background import BackgroundJobs
from .loop.containment import ErrorLog, EventSources
from .loop.history import EventHistory
from .loop.log import event
from .loop.reactor import Reactor
from .loop.runtime_dir import HeldError, NotBindableYetError
from .machine.core_claims import CoreClaims
from .machine.devices import DeviceError
from .machine.pidfds import pidfd_error
from .machine.process_limits import ProcessLimits
from .machine.resources import Sampler
from .observability.loop_lag import LoopLag
from .observability.metrics_reply import Metrics
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
from .routing.endpoints import Endpoints
from .routing.router import Router
from .routing.unread import UnreadReplies
from .security.access_control import AccessControl
from .security.audit import Audit
from .settings import ActiveSettings, Settings, build_settings
from .workers.capacity import Capacity
from .workers.launcher import Launcher
from .workers.manager import WorkerManager
from .workers.process_watcher import ProcessWatcher

log = logging.getLogger("multitower.daemon")

DRAINED_LINGER_MS: Final = 2000
"""Milliseconds that the last replies get to leave after a drain; without them some are lost."""

FORCED_LINGER_MS: Final = 200
"""The same after a second request to stop."""

FLUSH_SPANS_S: Final = 2.0
"""Seconds that sending the last spans may take at the end."""


class StartError(Exception):
    """The daemon cannot start; nothing stays open.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Parts:
    """The parts of one daemon. Use it as a context manager: it closes what it has opened.

    Args:
        config: a checked configuration.
        read_config: reads the configuration again; see `Daemon`.
        started: when the daemon was started, monotonic seconds.
        strict: whether all that is configured must be there at once.
        ready_lines: lines to log once, when every model is ready and the gateway accepts connections.

    Raises:
        StartError: see `Daemon`.
    """

    def __init__(
        self, config: Config, read_config: ReadConfig, started: float, *, strict: bool, ready_lines: Sequence[str]
    ) -> None:
        self.lifecycle = Lifecycle()
        self.history = EventHistory()
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self.background = stack.enter_context(contextlib.closing(BackgroundJobs()))
            self.service_manager = stack.enter_context(contextlib.closing(ServiceManager()))
            self._claims = stack.enter_context(contextlib.closing(CoreClaims()))
            _check_possible(config)
            with _start_errors(config, strict=strict):
                settings = build_settings(config, self._claims, strict=strict, answer_s=ANSWER_S)
                self._plan = apply_descriptor_limit(settings)
                self.access = (
                    AccessControl(config.principals, self.background) if config.principals is not None else None
                )
                self._unread = UnreadReplies(config.max_unread_bytes, config.unread_timeout)
                self.endpoints = self._open_endpoints(config, strict=strict)
                opened = self._open_gateway(config, strict=strict)
            self._sampler = stack.enter_context(contextlib.closing(Sampler(ProcessLimits())))
            self.reactor = stack.enter_context(contextlib.closing(Reactor(_spin_s(settings))))
            self.errors = ErrorLog(log)
            self.sources = EventSources(self.reactor, self.errors)
            self.settings = ActiveSettings(settings)
            self._make_data_path(settings)
            self._make_workers(settings)
            self.gateway = self._make_gateway(*opened) if opened is not None else None
            self._make_operations(read_config, started, ready_lines)
            self._stack = stack.pop_all()

    def _open_endpoints(self, config: Config, *, strict: bool) -> Endpoints:
        connections = self._stack.enter_context(contextlib.closing(accept_within(self._plan)))
        endpoints = Endpoints(
            config.listen,
            config.runtime_dir,
            config.max_message_size,
            self._unread,
            config.peer_timeout,
            connections,
            None if strict else self.background,
            for_gateway=config.gateway is not None,
            access=self.access,
            curve=_read_curve_keys(config),
        )
        self._stack.callback(self._close_endpoints, endpoints)
        return endpoints

    def _open_gateway(self, config: Config, *, strict: bool) -> tuple[Path, GatewayListeners] | None:
        """Finds the gateway's program and binds its addresses; None without a gateway."""
        if config.gateway is None:
            return None
        program = check_program(config.gateway.program)
        background = None if strict else self.background
        listeners = GatewayListeners(self.endpoints.context, config.gateway, background)
        self._stack.callback(listeners.close)
        return program, listeners

    def _make_data_path(self, settings: Settings) -> None:
        """Makes the router, and what observes its requests."""
        config = settings.config
        self.router = Router(
            limits=dict(settings.limits),
            timeouts=dict(settings.timeouts),
            max_message_size=config.max_message_size,
            dispatch=settings.dispatch,
            unread=self._unread,
        )
        self.router.models.set_labels(settings.labels)
        for spec in settings.unloaded:
            self.router.models.close_model(spec.name)
        self.tracing = Tracing(self.settings, self.router.observers)
        self._stack.callback(self._close_tracing)
        self.request_log = RequestLog(self.router, self.settings)
        self._stack.callback(self.request_log.close)
        self.recorder = Recorder(self.router)

    def _make_workers(self, settings: Settings) -> None:
        """Makes what starts, watches and ends workers; it starts none."""
        watcher = ProcessWatcher(self.reactor, self.router)
        import_path = [str(settings.config.folder)]
        self.launcher = Launcher(self.endpoints.runtime, watcher, import_path=import_path)
        self._stack.callback(self.launcher.close)
        self.capacity = Capacity(self._sampler)
        self.manager = WorkerManager(
            placements=settings.placements,
            settings=settings.worker_settings,
            router=self.router,
            launcher=self.launcher,
            watcher=watcher,
            capacity=self.capacity,
            history=self.history,
        )

    def _make_gateway(self, program: Path, listeners: GatewayListeners) -> Gateway:
        gateway = Gateway(
            program,
            self.settings,
            listeners,
            self.endpoints,
            self.launcher,
            self.reactor,
            self.history,
            self.errors,
        )
        self._stack.callback(gateway.close)
        self.endpoints.gateway_pids = lambda: gateway.pids
        return gateway

    def _make_operations(self, read_config: ReadConfig, started: float, ready_lines: Sequence[str]) -> None:
        """Makes what operators, service managers and queries get from the daemon."""
        self.connection_limits = ConnectionLimits(self.settings, self.endpoints, self.router, self._plan)
        max_message_size = self.settings.current.config.max_message_size
        readiness = Readiness(self.lifecycle, self.manager, self.router, self.settings, lambda: self.endpoints.problems)
        self.announcer = Announcer(self.lifecycle, readiness, self.service_manager, started, self.gateway, ready_lines)
        hasher = ContentHasher()
        self.content_baseline = ContentBaseline(self.settings, self.manager, self.background, hasher)
        self.order_queue = OrderQueue(self.lifecycle, self.background)
        context = OrderContext(
            lifecycle=self.lifecycle,
            queue=self.order_queue,
            settings=self.settings,
            manager=self.manager,
            router=self.router,
            background=self.background,
            announcer=self.announcer,
            read_config=read_config,
            claims=self._claims,
            hasher=hasher,
            access=self.access,
        )
        self.orders = Orders(context, self.gateway)
        model_orders = ModelOrders(context)
        self.version_watch = VersionWatch(context, readiness, model_orders)
        self.presence_watch = PresenceWatch(context)
        status = StatusReporter(
            lifecycle=self.lifecycle,
            readiness=readiness,
            router=self.router,
            manager=self.manager,
            settings=self.settings,
            refused_versions=self.version_watch.refused_versions,
            last_reload=lambda: self.orders.last_reload,
            started=started,
            sampler=self._sampler,
            endpoints=self.endpoints,
            gateway=self.gateway,
            tracing=self.tracing,
            access=self.access,
        )
        queries = Queries(readiness, status, self.router, self.settings, max_message_size)
        self.loop_lag = LoopLag()
        snapshots = SnapshotReader(
            router=self.router,
            manager=self.manager,
            settings=self.settings,
            loop_lag=self.loop_lag,
            sampler=self._sampler,
            endpoints=self.endpoints,
            gateway=self.gateway,
            tracing=self.tracing,
            request_log=self.request_log,
            access=self.access,
        )
        metrics = Metrics(snapshots, self.background)
        self.audit = Audit(self.history)
        self.control = ControlSocket(
            self.endpoints.control,
            queries,
            self.orders,
            model_orders,
            metrics,
            self.recorder,
            self.audit,
            self.endpoints.gateway_pids,
        )
        self.router.open(self.endpoints.fronts, queries.answer, metrics.answer, self.control.take)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close_tracing(self) -> None:
        self.tracing.close(0.0 if self.lifecycle.forced else FLUSH_SPANS_S)

    def _close_endpoints(self, endpoints: Endpoints) -> None:
        if self.lifecycle.state is LifecycleState.STARTING:
            endpoints.close()
        else:
            endpoints.close(FORCED_LINGER_MS if self.lifecycle.forced else DRAINED_LINGER_MS)


def _check_possible(config: Config) -> None:
    """Refuses a system without pidfds, and tracing without its libraries."""
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


def _spin_s(settings: Settings) -> float:
    """For how long the loop looks for events before it sleeps; see `machine.placement.has_idle_cores`."""
    spin_s = max((placement.spin_s for placement in settings.placements), default=0.0)
    if settings.config.spin and not spin_s:
        event(log, logging.WARNING, "spin is off: there are fewer cores than busy threads")
    return spin_s


def _read_curve_keys(config: Config) -> CurveKeys | None:
    """Reads the daemon's keys. A reload compares the file with what was read before: both must be the same."""
    if config.security is None or config.security.curve is None:
        return None
    curve = config.security.curve
    keys = read_curve_keys(curve.secret_key)
    if keys.public != curve.public_key:
        raise StartError(Exit.TEMPORARY, f"{printable(curve.secret_key)} got another key while the daemon started")
    return keys


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
        cause = str(error)
        if error.filename is not None and error.strerror:  # the system's, which begins with a number
            cause = f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}"
        raise StartError(Exit.TEMPORARY if temporary else Exit.CONFIG, cause) from None
