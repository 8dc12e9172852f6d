"""The daemon: one process, one loop, which waits for clients, workers, deaths, signals and the clock at once.

`serve` in the command line makes a `Daemon` from a checked configuration and returns what `run` returns.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import zmq

from multitower.exits import Exit

from .config.config import Config
from .lifecycle import Lifecycle, LifecycleState, StopRequest
from .loop.background import BackgroundJobs
from .loop.log import event
from .loop.reactor import Reactor
from .loop.runtime_dir import HeldError, RuntimeDir
from .machine import devices
from .machine.resources import Sampler
from .operations.control import ControlSocket
from .operations.model_orders import ModelOrders
from .operations.order_queue import OrderContext, OrderQueue
from .operations.orders import Orders
from .operations.queries import Queries
from .operations.readiness import Readiness
from .operations.service_manager import Announcer, ServiceManager
from .operations.status import StatusReporter
from .operations.version_watch import VersionWatch
from .routing.front_socket import FrontSocket
from .routing.router import Router
from .settings import ActiveSettings, Settings, build_settings
from .workers.capacity import Capacity
from .workers.launcher import Launcher
from .workers.manager import WorkerManager
from .workers.process_watcher import ProcessWatcher

log = logging.getLogger("multitower.daemon")

DRAINED_LINGER_MS = 2000
"""After a drain the last replies get this long to leave; without it some are lost."""

FORCED_LINGER_MS = 200
"""The same after a second signal."""


class StartError(Exception):
    """The daemon cannot start; nothing has been started.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Daemon:
    """A running daemon, from its bound endpoints to its exit code.

    Construct and run it in the main thread, once a process.

    Args:
        config: checked.
        read_config: reads the configuration anew, for a reload.

    Raises:
        StartError: a device, an endpoint or the runtime folder is not to be had; everything taken was given back.
    """

    def __init__(self, config: Config, read_config: Callable[[], Config]) -> None:
        self._signals: list[int] = []
        self._lifecycle = Lifecycle()
        self._chores_at = 0.0
        with contextlib.ExitStack() as undo:
            self._background = BackgroundJobs()
            undo.callback(self._background.close)
            self._service_manager = ServiceManager()
            undo.callback(self._service_manager.close)
            settings = _guarded(functools.partial(_make, config))
            runtime = _guarded(functools.partial(RuntimeDir, config.runtime_dir))
            undo.callback(runtime.close)
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            undo.callback(self._context.term)
            self.router = Router(
                limits=dict(settings.limits),
                timeouts=dict(settings.timeouts),
                max_message_size=config.max_message_size,
                answer=self._answer,
                dispatch=settings.dispatch,
            )
            undo.callback(self._close_fronts)
            for endpoint in config.listen:
                front = _guarded(functools.partial(FrontSocket, self._context, endpoint, config.max_message_size))
                self.router.fronts.append(front)
            endpoint = f"ipc://{runtime.control_socket}"
            front = _guarded(functools.partial(FrontSocket, self._context, endpoint, config.max_message_size))
            undo.callback(front.close)
            self._sampler = Sampler()
            undo.callback(self._sampler.close)
            self._reactor = Reactor()
            undo.callback(self._reactor.close)
            watcher = ProcessWatcher(self._reactor, self.router)
            launcher = Launcher(self._context, runtime, watcher, import_path=[str(config.folder)])
            undo.callback(launcher.close)
            self.manager = WorkerManager(
                placements=settings.placements,
                settings=settings.worker_settings,
                router=self.router,
                launcher=launcher,
                watcher=watcher,
                capacity=Capacity(self._sampler),
            )
            self._runtime = runtime
            started = time.monotonic()
            self._settings = ActiveSettings(settings)
            readiness = Readiness(self._lifecycle, self.manager, self.router, self._settings)
            self._announcer = Announcer(self._lifecycle, readiness, self._service_manager, started)
            context = OrderContext(
                lifecycle=self._lifecycle,
                queue=OrderQueue(self._lifecycle),
                settings=self._settings,
                manager=self.manager,
                router=self.router,
                background=self._background,
                announcer=self._announcer,
                read_config=read_config,
            )
            self._orders = Orders(context)
            model_orders = ModelOrders(context)
            self._version_watch = VersionWatch(context, readiness, model_orders)
            status = StatusReporter(
                lifecycle=self._lifecycle,
                readiness=readiness,
                router=self.router,
                manager=self.manager,
                settings=self._settings,
                refused_versions=self._version_watch.refused_versions,
                started=started,
                sampler=self._sampler,
                control=endpoint,
            )
            self._queries = Queries(readiness, status, self.router, self._settings, config.max_message_size)
            self.router.set_labels(settings.labels)
            for spec in settings.unloaded:
                self.router.close_model(spec.name)
            settings.warn_about_missing_versions()
            self._control = ControlSocket(front, self._queries, self._orders, model_orders)
            undo.pop_all()

    def run(self) -> int:
        """Serves until a signal ends it.

        Returns:
            The exit code: 0 after a drain, 130 after a second signal, 69 when all slots have failed and
            `exit_when_failed` is set.
        """
        wake_out, wake_in = socket.socketpair()
        for end in (wake_out, wake_in):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_in.fileno(), warn_on_full_buffer=False)
        former = {number: signal.signal(number, _noted) for number in _SIGNALS}
        try:
            self._reactor.add(wake_out.fileno(), functools.partial(self._on_wake, wake_out))
            self._reactor.add(self._background.descriptor, self._on_background_jobs)
            for front in self.router.fronts:
                front.recheck = self._reactor.add_socket(front.socket, functools.partial(self.router.receive, front))
            control = self._control.front
            control.recheck = self._reactor.add_socket(control.socket, self._on_orders)
            event(
                log,
                logging.INFO,
                "daemon started",
                pid=os.getpid(),
                listen=",".join(front.endpoint for front in self.router.fronts),
                slots=len(self.manager.slots),
                runtime_dir=self._runtime.path,
            )
            tune_garbage_collector()
            code = self._loop()
            event(log, logging.INFO, "daemon ended", code=int(code))
            return code
        except BaseException:
            # A defect of ours. An init system restarts what ends; what hangs or leaves workers behind, it does not.
            log.critical("the daemon ends on an error of its own", exc_info=True)
            self.manager.kill_all()
            self.manager.reap_all()
            raise
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in former.items():
                signal.signal(number, handler)
            wake_out.close()
            wake_in.close()
            self._close()

    def _loop(self) -> Exit:
        self._lifecycle.start()
        code = self._chores(time.monotonic())
        while code is None:
            # The hot path: requests, answers and what follows from them are handled in there.
            code = self._chores(self._reactor.run(self._chores_at, self.router.flush, self.router.scheduler.next_wake))
        return code

    def _chores(self, now: float) -> Exit | None:
        """Does all that is due, requests among it; returns the exit code when the daemon's life is over."""
        self.manager.tick(now)
        self.router.flush(now)
        if now >= self._announcer.due:
            self._announcer.tick(now)
            self._sampler.watch(
                {
                    slot.number: (slot.process.child.pid if slot.process is not None else None, slot.placement.devices)
                    for slot in self.manager.slots
                }
            )
            self.router.tick(now)
        self._version_watch.tick(now)
        self._service_manager.watchdog(now)
        self._on_signals(now)
        code = self._over(now)
        # What waits for answers to come in looks after each burst of them.
        if self.manager.replacing or not self._lifecycle.running:
            self._reactor.interrupt()
        times = [
            self.manager.next_wake(now),
            self._service_manager.next_wake(),
            self._announcer.due,
            self._version_watch.due,
            self._lifecycle.drain_by,
        ]
        self._chores_at = min(moment for moment in times if moment is not None)
        return code

    # Events.

    def _on_signals(self, now: float) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                self._orders.reload(lambda _: None)
                continue
            request = self._lifecycle.request_stop(now, self._settings.current.config.drain_timeout)
            if request is StopRequest.DRAIN:
                event(log, logging.INFO, "draining", signal=name, outstanding=self.router.scheduler.outstanding)
                self.router.start_draining()
                self._announcer.drain_began()
            elif request is StopRequest.REPEATED:
                event(log, logging.INFO, "already draining", signal=name)
            else:
                event(log, logging.WARNING, "ending now", signal=name)

    def _on_wake(self, wake: socket.socket) -> None:
        self._reactor.interrupt()
        with contextlib.suppress(BlockingIOError):
            # The numbers of the signals. Their handlers are called when the interpreter gets to it, which compiled code
            # may put off for long.
            self._signals += [number for number in wake.recv(4096) if number in _SIGNALS]

    def _on_background_jobs(self) -> None:
        self._reactor.interrupt()
        self._background.run_callbacks()

    def _on_orders(self) -> None:
        self._reactor.interrupt()
        self._control.receive()

    def _over(self, now: float) -> Exit | None:
        """The exit code when the daemon's life is over; takes a drain one step further before."""
        if self._lifecycle.forced:
            self.manager.kill_all()
            self.router.scheduler.abandon("the daemon was ended before the request was answered")
            self.router.flush(now)
            self.manager.reap_all()
            return Exit.SECOND_SIGNAL
        if self.manager.unavailable and self._settings.current.config.exit_when_failed and self._lifecycle.running:
            event(log, logging.ERROR, "every slot has failed")
            self.manager.kill_all()
            self.manager.reap_all()
            return Exit.UNAVAILABLE
        if self._lifecycle.state is LifecycleState.DRAINING:
            drain_by = self._lifecycle.drain_by
            late = drain_by is not None and now >= drain_by
            if self.router.scheduler.busy and not late:
                return None
            if late:
                outstanding = self.router.scheduler.outstanding
                event(log, logging.WARNING, "drain_timeout is over", outstanding=outstanding)
                self.router.scheduler.abandon("drain_timeout was over before the request was answered")
                self.router.flush(now)
            self._lifecycle.end_drain()
            self.manager.stop(now)
        if self._lifecycle.state is LifecycleState.STOPPING and next(self.manager.processes(), None) is None:
            return Exit.OK
        return None

    # Orders.

    def _answer(self, kind: bytes, header: dict[str, Any]) -> dict[str, Any]:
        return self._queries.answer(kind, header, time.monotonic())

    # Setting up and giving back.

    def _close_fronts(self, linger_ms: int = 0) -> None:
        for front in self.router.fronts:
            front.close(linger_ms)

    def _close(self) -> None:
        self.manager.close()
        self._background.close()
        self._sampler.close()
        self._service_manager.close()
        self._control.front.close(FORCED_LINGER_MS)
        self._close_fronts(FORCED_LINGER_MS if self._lifecycle.forced else DRAINED_LINGER_MS)
        self._reactor.close()
        self._context.term()
        self._runtime.close()


GC_THRESHOLDS = (100_000, 20, 20)
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


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _noted(_number: int, _frame: object) -> None:
    """A signal's handler: the signal has woken the loop, and is in what it reads then."""


def _guarded(make: Callable[[], Any]) -> Any:
    """Turns what an endpoint or a folder can raise into a `StartError`."""
    try:
        return make()
    except HeldError as error:
        raise StartError(Exit.TEMPORARY, str(error)) from None
    except OSError as error:
        raise StartError(Exit.CONFIG, str(error)) from None


def _make(config: Config) -> Settings:
    try:
        return build_settings(config)
    except devices.DeviceError as error:
        raise StartError(Exit.CONFIG, f"{config.path}: {error}") from None
