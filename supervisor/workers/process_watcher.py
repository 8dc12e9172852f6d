"""Watches the descriptors of worker processes in the daemon's loop, and queues what happens for the manager.

Results go from the reactor to the router directly, since every request has one. Everything else that a process sends,
and its end, becomes an event, which the manager takes from here at its next `tick`.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..loop.reactor import Reactor
from ..routing.router import Router
from .slot import WorkerProcess


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A process sent a message that is not a result."""

    process: WorkerProcess
    message: list[Any]


@dataclass(frozen=True, slots=True)
class InputFailed:
    """What a process sent could not be handled: it must be killed."""

    process: WorkerProcess
    error: Exception


@dataclass(frozen=True, slots=True)
class SocketClosed:
    """A process has closed its socket, and everything that it sent has been read: it exits, or should."""

    process: WorkerProcess


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """A process has ended; messages of it may still be in its connection."""

    process: WorkerProcess


ProcessEvent = MessageReceived | InputFailed | SocketClosed | ProcessExited


class ProcessWatcher:
    """Watches processes from their start until they are released.

    Args:
        reactor: the daemon's; `run` returns when there is an event.
        router: handles results.

    Attributes:
        events: what has happened, oldest first; the manager removes what it handles.
    """

    def __init__(self, reactor: Reactor, router: Router) -> None:
        self.events: deque[ProcessEvent] = deque()
        self._reactor = reactor
        self._router = router
        self._descriptors: dict[WorkerProcess, set[int]] = {}

    def add_process(self, process: WorkerProcess) -> None:
        """Watches a process that has just been started; nothing of it is watched if this raises.

        Raises:
            OSError: the system has no resources to watch it.
        """
        child = process.child
        on_error = functools.partial(self._on_error, process)
        with contextlib.ExitStack() as undo:
            self._reactor.add(
                child.heartbeat_descriptor,
                functools.partial(self._on_heartbeat, process),
                functools.partial(self._on_heartbeat_error, process),
            )
            undo.callback(self._reactor.remove, child.heartbeat_descriptor)
            self._reactor.add(child.pidfd, functools.partial(self._on_exit, process), on_error)
            undo.callback(self._reactor.remove, child.pidfd)
            connection = child.connection
            connection.on_message = functools.partial(self._on_message, process)
            connection.on_error = on_error
            connection.on_connected = functools.partial(self._watch_connection, process)
            undo.pop_all()
        self._descriptors[process] = {child.heartbeat_descriptor, child.pidfd}

    def remove_process(self, process: WorkerProcess) -> None:
        """Stops watching a process that has ended, before its descriptors are closed."""
        for descriptor in tuple(self._descriptors.pop(process)):
            self._reactor.remove(descriptor)

    def _remove_descriptor(self, process: WorkerProcess, descriptor: int) -> None:
        if descriptor in self._descriptors[process]:
            self._descriptors[process].remove(descriptor)
            self._reactor.remove(descriptor)

    def _on_heartbeat(self, process: WorkerProcess) -> None:
        read_heartbeat(process, time.monotonic())
        if process.child.heartbeats_closed:
            # Otherwise it stays readable. The process is about to end, or will be found to hang.
            self._remove_descriptor(process, process.child.heartbeat_descriptor)

    def _watch_connection(self, process: WorkerProcess) -> None:
        connection = process.child.connection
        descriptor = connection.fileno()
        receive = functools.partial(self._router.receive_from_worker, connection)
        self._reactor.add(descriptor, receive, functools.partial(self._on_error, process))
        self._descriptors[process].add(descriptor)
        connection.on_unsent = functools.partial(self._reactor.watch_writable, descriptor)
        connection.on_ended = functools.partial(self._on_closed, process, descriptor)

    def _on_closed(self, process: WorkerProcess, descriptor: int) -> None:
        if descriptor in self._descriptors[process]:
            self._remove_descriptor(process, descriptor)  # it stays readable
            process.hang_detector.record_closed_socket(time.monotonic())
            self._add_event(SocketClosed(process))

    def _on_heartbeat_error(self, process: WorkerProcess, error: Exception) -> None:
        self._remove_descriptor(process, process.child.heartbeat_descriptor)
        self._on_error(process, error)

    def _on_exit(self, process: WorkerProcess) -> None:
        # A pidfd stays readable: one event is enough.
        self._remove_descriptor(process, process.child.pidfd)
        self._remove_descriptor(process, process.child.heartbeat_descriptor)
        self._add_event(ProcessExited(process))

    def _on_message(self, process: WorkerProcess, message: list[Any]) -> None:
        self._add_event(MessageReceived(process, message))

    def _on_error(self, process: WorkerProcess, error: Exception) -> None:
        self._add_event(InputFailed(process, error))

    def _add_event(self, event: ProcessEvent) -> None:
        self.events.append(event)
        self._reactor.interrupt()


def read_heartbeat(process: WorkerProcess, now: float) -> None:
    """Reads the heartbeats of a process that have arrived, and records the last one."""
    calls = process.child.read_heartbeat()
    if calls is not None:
        process.hang_detector.record_heartbeat(now, calls)
