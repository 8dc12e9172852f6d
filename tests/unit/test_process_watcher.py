"""The watcher of processes when the system has no resources to watch one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zmq

from multitower.supervisor.loop.reactor import Callback, ErrorHandler, Reactor
from multitower.supervisor.routing.router import Router
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.hang_detector import HangDetector
from multitower.supervisor.workers.process_watcher import InputFailed, ProcessExited, ProcessWatcher
from multitower.supervisor.workers.slot import WorkerProcess


class FullReactor(Reactor):
    """A reactor that can watch `room` more descriptors."""

    room = 100

    def add(self, descriptor: int, callback: Callback, on_error: ErrorHandler | None = None) -> None:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        super().add(descriptor, callback, on_error)


class Watched:
    """A watcher and a process: a pipe stands in for its pidfd, readable after `exit`."""

    def __init__(self, stack: ExitStack) -> None:
        context = stack.enter_context(zmq.Context())
        self.reactor = FullReactor()
        stack.callback(self.reactor.close)
        self.watcher = ProcessWatcher(self.reactor, cast(Router, SimpleNamespace(receive_from_worker=lambda _: False)))
        pidfd, self._pidfd_in = os.pipe()
        heartbeat, heartbeat_in = os.pipe()
        for descriptor in (pidfd, self._pidfd_in, heartbeat, heartbeat_in):
            stack.callback(os.close, descriptor)
        sockets = [stack.enter_context(context.socket(zmq.PAIR)) for _ in range(2)]
        connection = SimpleNamespace(socket=sockets[0], monitor=sockets[1])
        child: Any = SimpleNamespace(pidfd=pidfd, heartbeat_descriptor=heartbeat, connection=connection)
        self.process = WorkerProcess(cast(ChildProcess, child), HangDetector(0.0, 1.0))

    def exit(self) -> None:
        os.write(self._pidfd_in, b"x")
        self.reactor.wait(5)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(stack)


def test_the_end_of_a_process_is_reported_although_its_connection_cannot_be_watched(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.reactor.room = 0
    watched.exit()
    ended, failed = watched.watcher.events
    assert isinstance(ended, ProcessExited), "it comes first: nothing is killed that has ended"
    assert isinstance(failed, InputFailed)
    assert isinstance(failed.error, OSError)
    watched.watcher.remove_process(watched.process)
    assert not watched.reactor._watches


def test_a_process_that_has_ended_is_not_watched_any_more_when_it_is_removed(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.exit()
    assert [type(event) for event in watched.watcher.events] == [ProcessExited]
    watched.watcher.remove_process(watched.process)
    assert not watched.reactor._watches


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_process_that_cannot_be_watched_leaves_nothing_in_the_reactor(watched: Watched, room: int) -> None:
    watched.reactor.room = room
    with pytest.raises(OSError, match="No space left"):
        watched.watcher.add_process(watched.process)
    assert not watched.reactor._watches
    assert not watched.watcher._descriptors
    watched.reactor.room = 3
    watched.watcher.add_process(watched.process)
    assert len(watched.reactor._watches) == 3


def test_a_socket_that_cannot_be_checked_is_reported_to_its_error_handler(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []
    never: Callable[[], None] = lambda: pytest.fail("it is not readable")  # noqa: E731
    watched.reactor.add_socket(watched.process.child.connection.socket, never, errors.append)

    def fail(_: object) -> bool:
        raise zmq.ZMQError(zmq.ENOTSOCK)

    monkeypatch.setattr("multitower.frames.readable", fail)
    watched.reactor.wait(0)
    assert [type(error) for error in errors] == [zmq.ZMQError]
