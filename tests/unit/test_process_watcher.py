"""The watcher of processes: what they send and their ends, and a system without resources to watch one."""

from __future__ import annotations

import errno
import os
import tempfile
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.supervisor.loop.reactor import Callback, ErrorHandler, Reactor
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.worker_connection import WorkerConnection, WorkerProtocolError
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.hang_detector import MAX_CLOSED_S, HangDetector, ProcessStat
from multitower.supervisor.workers.process_watcher import (
    InputFailed,
    MessageReceived,
    ProcessExited,
    ProcessWatcher,
    SocketClosed,
)
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.worker.bound_socket import BoundSocket


class FullReactor(Reactor):
    """A reactor that can watch `room` more descriptors."""

    room = 100

    def add(self, descriptor: int, callback: Callback, on_error: ErrorHandler | None = None) -> None:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        super().add(descriptor, callback, on_error)


class Watched:
    """A watcher and a process: a pipe stands in for its pidfd, readable after `exit`; `peer` is its socket."""

    def __init__(self, stack: ExitStack) -> None:
        self.reactor = FullReactor()
        stack.callback(self.reactor.close)
        self.router = Router({}, {}, 1 << 20)
        self.watcher = ProcessWatcher(self.reactor, self.router)
        pidfd, self._pidfd_in = os.pipe()
        heartbeat, self.heartbeat_in = os.pipe()
        for descriptor in (pidfd, self._pidfd_in, heartbeat, self.heartbeat_in):
            stack.callback(os.close, descriptor)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-"))
        self.peer = stack.enter_context(closing(BoundSocket(f"{folder}/worker")))
        self.connection = stack.enter_context(closing(WorkerConnection(f"{folder}/worker")))
        child: Any = SimpleNamespace(pidfd=pidfd, heartbeat_descriptor=heartbeat, connection=self.connection)
        self.process = WorkerProcess(cast(ChildProcess, child), HangDetector(0.0, 1.0))

    def connect(self) -> None:
        self.connection.connect()
        self.peer.wait_for_peer()

    def exit(self) -> None:
        os.write(self._pidfd_in, b"x")
        self.reactor.wait(5)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(stack)


def test_a_process_that_has_ended_is_not_watched_any_more_when_it_is_removed(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.exit()
    assert [type(event) for event in watched.watcher.events] == [ProcessExited]
    watched.watcher.remove_process(watched.process)
    assert not watched.reactor._watches


@pytest.mark.parametrize("room", [0, 1])
def test_a_process_that_cannot_be_watched_leaves_nothing_in_the_reactor(watched: Watched, room: int) -> None:
    watched.reactor.room = room
    with pytest.raises(OSError, match="No space left"):
        watched.watcher.add_process(watched.process)
    assert not watched.reactor._watches
    assert not watched.watcher._descriptors
    watched.reactor.room = 3
    watched.watcher.add_process(watched.process)
    watched.connect()
    assert len(watched.reactor._watches) == 3
    watched.watcher.remove_process(watched.process)
    assert not watched.reactor._watches


def test_a_process_that_has_not_bound_its_socket_yet_is_reached_later(watched: Watched, tmp_path: Path) -> None:
    path = f"{tmp_path}/late"
    with closing(WorkerConnection(path)) as connection:
        reached: list[bool] = []
        connection.on_connected = lambda: reached.append(True)
        connection.connect()
        assert not connection.connected
        connection.send([b"an assignment"])
        connection.send([b"a second message"])
        with closing(BoundSocket(path)) as worker:
            connection.connect()
            assert connection.connected
            assert reached == [True]
            worker.wait_for_peer()
            assert [worker.receive(wait=True) for _ in range(2)] == [[b"an assignment"], [b"a second message"]]


def test_messages_of_a_process_are_passed_on_and_all_it_sent_before_its_end(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.connect()
    for number in range(3):
        watched.peer.send([b"P", bytes([number])])
    watched.reactor.wait(5)
    watched.peer.send([b"P", b"last"])
    watched.peer.close()
    while watched.connection.fileno() in watched.reactor._watches:
        watched.reactor.wait(5)
    messages = [event.message for event in watched.watcher.events if isinstance(event, MessageReceived)]
    assert messages == [[b"P", b"\0"], [b"P", b"\1"], [b"P", b"\2"], [b"P", b"last"]]
    watched.connection.send([b"B"])  # it is lost, and the end of the process is noticed by other means


def test_a_process_that_ends_while_a_batch_is_written_leaves_nothing_to_write(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.connect()
    watched.connection.send([b"B", bytes(16 << 20)])
    watched.peer.close()
    while watched.connection.read():  # without an attempt to write before, as where the end comes in between
        pass
    assert watched.connection.ended
    # The descriptor is not watched any more, so it cannot be watched for anything else either.
    assert not watched.router.receive_from_worker(watched.connection)
    assert [type(event) for event in watched.watcher.events] == [SocketClosed]


def test_the_handlers_of_a_closed_connection_keep_no_process(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.connect()
    watched.watcher.remove_process(watched.process)
    kept = weakref.ref(watched.connection.on_message), weakref.ref(watched.connection.on_ended)
    watched.connection.close()
    assert [handler() for handler in kept] == [None, None]


def test_what_a_process_does_not_read_at_once_is_written_when_it_does(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.connect()
    large = bytes(4 << 20)
    for number in range(3):
        watched.connection.send([str(number).encode(), large])
    received: list[list[Any]] = []
    with ThreadPoolExecutor(1) as pool:

        def read() -> None:
            while len(received) < 3:
                message = watched.peer.receive(wait=True)
                assert message is not None
                received.append(message)

        done = pool.submit(read)
        while not done.done():
            watched.reactor.wait(0.1)
        done.result()
    assert [(bytes(name), bytes(data) == large) for name, data in received] == [
        (b"0", True),
        (b"1", True),
        (b"2", True),
    ]
    watched.reactor.wait(0)
    assert not watched.watcher.events


def test_a_process_that_stops_reading_and_ends_leaves_nothing_unsent(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.connect()
    watched.connection.send([bytes(4 << 20)])
    watched.peer.close()
    while watched.connection.fileno() in watched.reactor._watches:
        watched.reactor.wait(5)
    assert list(watched.watcher.events) == [SocketClosed(watched.process)]


def test_a_process_that_closes_its_socket_is_reported_once_and_found_to_hang(watched: Watched) -> None:
    watched.watcher.add_process(watched.process)
    watched.connect()
    watched.peer.send([b"P", b"last"])
    watched.peer.close()
    while len(watched.watcher.events) < 2:
        watched.reactor.wait(5)
    assert not watched.connection.read(), "as after the end of the process"
    assert [type(event) for event in watched.watcher.events] == [MessageReceived, SocketClosed]
    until = time.monotonic() + 2 * MAX_CLOSED_S
    stat = ProcessStat("R", 1.0)
    verdict = watched.process.hang_detector.check(until, [None], lambda: stat, loading=False)
    assert verdict is not None
    assert "closed its socket" in verdict.cause


@pytest.mark.parametrize("data", [b"\x80garbage", b"\4\7\5ERROR\0"], ids=["no frame", "an error"])
def test_a_process_that_does_not_speak_zmtp_is_reported(watched: Watched, data: bytes) -> None:
    watched.watcher.add_process(watched.process)
    watched.connect()
    assert watched.peer._stream is not None
    watched.peer._stream.socket.sendall(data)
    watched.reactor.wait(5)
    (failed,) = watched.watcher.events
    assert isinstance(failed, InputFailed)
    assert isinstance(failed.error, WorkerProtocolError)
