"""The daemon: one process, one loop, which waits for clients, workers, deaths, signals and the clock at once.

`serve` in the command line makes a `Daemon` from a checked configuration and returns what `run` returns.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import zmq

from multitower.exits import Exit
from multitower.supervisor import devices
from multitower.supervisor.capacity import Capacity
from multitower.supervisor.config import Config
from multitower.supervisor.control import Control
from multitower.supervisor.errands import Errands
from multitower.supervisor.fleet import Fleet
from multitower.supervisor.front import Front
from multitower.supervisor.health import take_heartbeats
from multitower.supervisor.log import event
from multitower.supervisor.member import Member
from multitower.supervisor.notify import Notifier
from multitower.supervisor.orders import Orders
from multitower.supervisor.resources import Sampler
from multitower.supervisor.router import Router
from multitower.supervisor.runtime import HeldError, RuntimeDir
from multitower.supervisor.settings import Settings
from multitower.supervisor.settings import make as make_settings
from multitower.supervisor.status import Reporter

log = logging.getLogger("multitower.daemon")

DRAINED_LINGER_MS = 2000
"""After a drain the last replies get this long to leave; without it some are lost."""

FORCED_LINGER_MS = 200
"""The same after a second signal."""

TELL_S = 0.25
"""Seconds from one account of how things stand to the next."""

EXTENSION_S = 30.0
"""Seconds that a service manager is asked to wait for models that load; asked again while they do."""


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
        self._stop_by: float | None = None
        self._forced = False
        self._ready_once = self._told_ready = False
        self._tell_at = 0.0
        self._errands = Errands()
        self._notifier = Notifier()
        with contextlib.ExitStack() as undo:
            undo.callback(self._notifier.close)
            settings = _guarded(functools.partial(_make, config))
            undo.callback(self._errands.close)
            runtime = _guarded(functools.partial(RuntimeDir, config.runtime_dir))
            undo.callback(runtime.close)
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            undo.callback(self._context.term)
            self.router = Router(
                limits=dict(settings.limits),
                timeouts=dict(settings.timeouts),
                max_message_size=config.max_message_size,
                answer=self._answer,
            )
            undo.callback(self._close_fronts)
            for endpoint in config.listen:
                front = _guarded(functools.partial(Front, self._context, endpoint, config.max_message_size))
                self.router.fronts.append(front)
            endpoint = f"ipc://{runtime.control_socket}"
            front = _guarded(functools.partial(Front, self._context, endpoint, config.max_message_size))
            undo.callback(front.close)
            self._sampler = Sampler()
            undo.callback(self._sampler.close)
            self._capacity = Capacity(self._sampler)
            self._poller = zmq.Poller()
            self._epoll = select.epoll()
            self._members: dict[Any, Member] = {}
            self._beating: dict[int, Member] = {}
            self.fleet = Fleet(
                placements=settings.placements,
                settings=settings.fleet,
                import_path=[str(config.folder)],
                runtime=runtime,
                context=self._context,
                router=self.router,
                watch=self._watch,
                unwatch=self._unwatch,
                fits=self._capacity.fits,
                rss=self._capacity.rss,
                present=self._sampler.present,
            )
            self._runtime = runtime
            self.reporter = Reporter(
                self.router,
                self.fleet,
                settings.fleet.models,
                config.max_message_size,
                started=time.monotonic(),
                sampler=self._sampler,
                control=endpoint,
            )
            self._orders = Orders(
                self.fleet,
                self.router,
                self.reporter,
                self._errands,
                settings,
                read_config,
                begun=self._notifier.reloading,
                ended=self._reload_ended,
            )
            self._control = Control(front, self._answer, self._orders.reload, self._orders.restart)
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
        former = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        signal.set_wakeup_fd(wake_in.fileno(), warn_on_full_buffer=False)
        try:
            self._epoll.register(wake_out.fileno(), select.EPOLLIN)
            self._poller.register(self._epoll.fileno(), zmq.POLLIN)
            for front in self.router.fronts:
                self._poller.register(front.socket, zmq.POLLIN)
            event(
                log,
                logging.INFO,
                "daemon started",
                pid=os.getpid(),
                listen=",".join(front.endpoint for front in self.router.fronts),
                slots=len(self.fleet.places),
                runtime_dir=self._runtime.path,
            )
            self._poller.register(self._control.front.socket, zmq.POLLIN)
            self._poller.register(self._errands.descriptor, zmq.POLLIN)
            self.fleet.tick(time.monotonic())
            code = self._loop(wake_out)
            event(log, logging.INFO, "daemon ended", code=int(code))
            return code
        except BaseException:
            # A defect of ours. An init system restarts what ends; what hangs or leaves workers behind, it does not.
            log.critical("the daemon ends on an error of its own", exc_info=True)
            self.fleet.kill()
            self._reap_all()
            raise
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in former.items():
                signal.signal(number, handler)
            wake_out.close()
            wake_in.close()
            self._close()

    def _loop(self, wake: socket.socket) -> Exit:
        fronts = {front.socket: front for front in self.router.fronts}
        while True:
            for source, _ in self._poller.poll(self._timeout_ms()):
                front = fronts.get(source)
                if front is not None:
                    self.router.receive(front)
                elif source == self._epoll.fileno():
                    self._on_descriptors(wake)
                elif source == self._errands.descriptor:
                    self._errands.bring_home()
                elif source is self._control.front.socket:
                    self._control.receive()
                else:
                    self._on_messages(source)
            now = time.monotonic()
            self.fleet.tick(now)
            self.router.flush(now)
            if now >= self._tell_at:
                self._tell(now)
            self._notifier.watchdog(now)
            self._on_signals(now)
            code = self._over(now)
            if code is not None:
                return code

    def _tell(self, now: float) -> None:
        """Tells the log and the service manager how things stand, and the sampler whom to measure."""
        self._tell_at = now + TELL_S
        places = self.fleet.places
        self._sampler.watch(
            {
                place.slot.number: (
                    place.member.process.pid if place.member is not None else None,
                    place.placement.device,
                )
                for place in places
            }
        )
        if not self._ready_once and self.reporter.readiness()["ready"]:
            self._ready_once = True
            event(log, logging.INFO, "daemon ready", after_s=round(now - self.reporter.started, 3))
        notifier, line = self._notifier, self.reporter.line()
        if not self._told_ready and self.reporter.settled:
            # Also when something failed: what works is served, and the status tells the rest.
            self._told_ready = True
            notifier.ready(line)
        notifier.status(line)
        if not self._told_ready or self._orders.reloading or self.reporter.state != "running":
            notifier.extend(EXTENSION_S)

    def _timeout_ms(self) -> int | None:
        now = time.monotonic()
        times = [
            self.fleet.next_wake(now),
            self.router.balancer.next_wake(),
            self._notifier.next_wake(),
            self._tell_at,
            self._stop_by,
        ]
        due = min((moment for moment in times if moment is not None), default=None)
        return None if due is None else max(0, math.ceil((due - now) * 1000))

    # Events.

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)

    def _on_signals(self, now: float) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                self._orders.reload(lambda _: None)
            elif self.reporter.state == "running":
                event(log, logging.INFO, "draining", signal=name, outstanding=self.router.balancer.outstanding)
                self.reporter.state = "draining"
                self.router.draining = True
                self._notifier.stopping(self.reporter.line())
                self._stop_by = now + self._orders.settings.config.drain_timeout
            else:
                event(log, logging.WARNING, "ending now", signal=name)
                self._forced = True

    def _on_descriptors(self, wake: socket.socket) -> None:
        now = time.monotonic()
        for descriptor, _ in self._epoll.poll(0):
            if descriptor == wake.fileno():
                with contextlib.suppress(BlockingIOError):
                    wake.recv(4096)
                continue
            beating = self._beating.get(descriptor)
            if beating is not None:
                take_heartbeats(beating, now)
                continue
            member = self._members.get(descriptor)
            if member is None:
                continue  # the heartbeats of one whose death was told in the same breath
            # A pidfd stays readable: once is enough.
            self._epoll.unregister(descriptor)
            self._epoll.unregister(member.process.heartbeat_descriptor)
            del self._beating[member.process.heartbeat_descriptor]
            self._poller.register(member.process.monitor, zmq.POLLIN)
            self.fleet.died(member, now)

    def _on_messages(self, source: Any) -> None:
        member = self._members.get(source)
        if member is None:
            return  # the monitor of a dead worker: the fleet's tick buries it
        now = time.monotonic()
        for message in member.process.messages():
            self.fleet.message(member, message, now)

    def _over(self, now: float) -> Exit | None:
        """The exit code when the daemon's life is over; takes a drain one step further before."""
        if self._forced:
            self.fleet.kill()
            self.router.balancer.abandon("the daemon was ended before the request was answered")
            self.router.flush(now)
            self._reap_all()
            return Exit.SECOND_SIGNAL
        if self.fleet.hopeless and self._orders.settings.config.exit_when_failed and self.reporter.state == "running":
            event(log, logging.ERROR, "every slot has failed")
            self.fleet.kill()
            self._reap_all()
            return Exit.UNAVAILABLE
        if self.reporter.state == "draining":
            late = self._stop_by is not None and now >= self._stop_by
            if self.router.balancer.busy and not late:
                return None
            if late:
                outstanding = self.router.balancer.outstanding
                event(log, logging.WARNING, "drain_timeout is over", outstanding=outstanding)
                self.router.balancer.abandon("drain_timeout was over before the request was answered")
                self.router.flush(now)
            self.reporter.state = "stopping"
            self._stop_by = None
            self.fleet.stop(now)
        if self.reporter.state == "stopping" and next(self.fleet.members(), None) is None:
            return Exit.OK
        return None

    # Orders.

    def _answer(self, kind: bytes, header: dict[str, Any]) -> dict[str, Any]:
        return self.reporter.answer(kind, header, time.monotonic())

    def _reload_ended(self) -> None:
        if self._told_ready and self.reporter.state == "running":
            self._notifier.ready(self.reporter.line())

    # Setting up and giving back.

    def _watch(self, member: Member) -> None:
        process = member.process
        self._members[process.pidfd] = self._members[process.socket] = member
        self._beating[process.heartbeat_descriptor] = member
        self._epoll.register(process.heartbeat_descriptor, select.EPOLLIN)
        self._epoll.register(process.pidfd, select.EPOLLIN)
        self._poller.register(process.socket, zmq.POLLIN)

    def _unwatch(self, member: Member) -> None:
        process = member.process
        del self._members[process.pidfd], self._members[process.socket]
        self._poller.unregister(process.socket)
        self._poller.unregister(process.monitor)

    def _reap_all(self) -> None:
        """Waits for killed processes; the kernel does not keep a SIGKILL waiting."""
        for member in list(self.fleet.members()):
            if member.cause is None:
                member.process.reap()
            member.process.close()

    def _close_fronts(self, linger_ms: int = 0) -> None:
        for front in self.router.fronts:
            front.close(linger_ms)

    def _close(self) -> None:
        self.fleet.close()
        self._errands.close()
        self._sampler.close()
        self._notifier.close()
        self._control.front.close(FORCED_LINGER_MS)
        self._close_fronts(FORCED_LINGER_MS if self._forced else DRAINED_LINGER_MS)
        self._epoll.close()
        self._context.term()
        self._runtime.close()


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
        return make_settings(config)
    except devices.DeviceError as error:
        raise StartError(Exit.CONFIG, f"{config.path}: {error}") from None
