"""Over ipc the client's own threads read and write the socket: wake-ups, partial sends, peers that are no daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import fake_daemon
import numpy as np
import pytest
import zmq
from descriptors import leaving_no_descriptor
from fake_daemon import FakeDaemon

from multitower import Client, Unavailable, wire, zmtp
from multitower.client.stream_socket import StreamSocket

WAIT_S = 20.0
CALLS = 300

COUNT_WAITS = """
import os, sys
from pathlib import Path
from multitower import Client

def waits():
    found = {}
    for task in Path("/proc/self/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        found[task.name] = int(status["voluntary_ctxt_switches"])
    return found

with Client(sys.argv[1]) as client:
    calls = int(sys.argv[2])
    for _ in range(20):
        client.infer("m", {"x": 1.0})
    before = waits()
    for _ in range(calls):
        client.infer("m", {"x": 1.0})
    after = waits()
    print(sum(after.values()) - sum(before.values()))
"""


def test_a_blocking_call_waits_once_and_wakes_no_other_thread(tmp_socket: str) -> None:
    with FakeDaemon(fake_daemon.echo, tmp_socket) as daemon:
        command = [sys.executable, "-c", COUNT_WAITS, daemon.endpoint, str(CALLS)]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    # With a thread that reads for the caller there would be two or three waits for each call.
    assert int(output) < 1.5 * CALLS


def test_messages_larger_than_the_sockets_buffers_arrive_whole(tmp_socket: str) -> None:
    metadata = {"max_message_size": 1 << 30}
    arrays = [np.arange(size, dtype=np.float32) for size in (1, 100_000, 3_000_000, 20_000)]
    with (
        FakeDaemon(fake_daemon.echo, tmp_socket, metadata) as daemon,
        Client(daemon.endpoint, timeout=WAIT_S, shared_memory=False) as client,
    ):
        for array in arrays:
            assert np.array_equal(client.infer("m", {"x": array})["x"], array)
        futures = [client.submit("m", {"x": array}) for array in arrays for _ in range(5)]
        for future, array in zip(futures, (array for array in arrays for _ in range(5)), strict=True):
            assert np.array_equal(future.result(WAIT_S)["x"], array)


def test_many_threads_send_while_the_daemon_reads_slowly(tmp_socket: str) -> None:
    def answer(request: fake_daemon.Received) -> list[bytes]:
        time.sleep(0.002)
        return fake_daemon.echo(request)

    def work(number: int) -> bool:
        array = np.full(60_000, number, np.uint8)
        return all(np.array_equal(client.infer("m", {"x": array})["x"], array) for _ in range(4))

    with (
        FakeDaemon(answer, tmp_socket) as daemon,
        Client(daemon.endpoint, timeout=WAIT_S, shared_memory=False) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        assert all(pool.map(work, range(16)))


class Listener:
    """A scripted peer: `behave` gets each connection in turn; `accepted` counts them."""

    def __init__(self, path: str, behave: Any) -> None:
        self.accepted = 0
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen(8)
        self._behave = behave
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.accepted += 1
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(WAIT_S)
                    self._behave(connection)

    def close(self) -> None:
        self._server.close()


@contextlib.contextmanager
def listener(endpoint: str, behave: Any) -> Iterator[Listener]:
    made = Listener(endpoint.removeprefix("ipc://"), behave)
    try:
        yield made
    finally:
        made.close()


OPENING = zmtp.GREETING + zmtp.ready("ROUTER")
NOT_A_DAEMON = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "garbage after the greeting": OPENING[:64] + b"\xff\xff\xff",
    "garbage after READY": OPENING + b"\x7f\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("data", NOT_A_DAEMON.values(), ids=NOT_A_DAEMON.keys())
def test_a_peer_that_is_no_daemon_is_tried_again_and_named(tmp_socket: str, data: bytes) -> None:
    with listener(tmp_socket, lambda connection: connection.sendall(data)) as peer:
        with Client(tmp_socket, connect_timeout=0.05) as client:
            with pytest.raises(Unavailable) as error:
                client.infer("m", {"x": 1.0})
            until = time.monotonic() + WAIT_S
            while peer.accepted < 3:
                assert time.monotonic() < until
                time.sleep(0.01)
        assert error.value.reason == "not_listening"


def test_a_heartbeat_of_the_peer_is_answered(tmp_socket: str) -> None:
    received = bytearray()
    answered = threading.Event()

    def behave(connection: socket.socket) -> None:
        connection.sendall(OPENING + b"\x04\x09\x04PING\x00\x0aab")
        while b"\x04\x07\x04PONGab" not in received:
            received.extend(connection.recv(4096))
        answered.set()

    with listener(tmp_socket, behave), Client(tmp_socket):
        assert answered.wait(WAIT_S)


def infer_until_interrupted(client: Client) -> None:
    """Calls `infer` until Ctrl-C: not every call finds the connection's thread asleep."""
    for _ in range(1000):
        client.infer("m", {"x": 1.0})


@pytest.mark.parametrize("method", ["_flush", "_fill"])
def test_ctrl_c_while_bytes_move_costs_the_connection_only(
    tmp_socket: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real = getattr(StreamSocket, method)

    def interrupted(self: StreamSocket, *arguments: Any) -> Any:
        result = real(self, *arguments)
        if threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            raise KeyboardInterrupt
        return result

    with FakeDaemon(fake_daemon.echo, tmp_socket) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        client.infer("m", {"x": 1.0})
        monkeypatch.setattr(StreamSocket, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer_until_interrupted(client)
        for value in (2.0, 3.0):
            assert client.infer("m", {"x": value})["x"] == value


@contextlib.contextmanager
def open_socket(endpoint: str) -> Iterator[tuple[StreamSocket, socket.socket]]:
    """A connection that has opened, and its other end."""
    path = endpoint.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX) as server, contextlib.closing(StreamSocket(path)) as client:
        server.bind(path)
        server.listen(8)
        client.advance(time.monotonic())
        peer, _ = server.accept()
        with peer:
            peer.sendall(OPENING)
            assert client.receive() is None
            client.connection_events()
            yield client, peer


@pytest.mark.parametrize("blocked", [False, True])
def test_replies_that_arrived_before_a_send_fails_are_received(tmp_socket: str, blocked: bool) -> None:
    replies = [[b"", b"%d" % number, bytes(1000)] for number in range(100)]
    with open_socket(tmp_socket) as (client, peer):
        if blocked:
            client.send([bytes(10_000_000)])
            with pytest.raises(zmq.Again):
                client.send([b"request"])
        ping = b"\x04\x09\x04PING\x00\x0aab"
        peer.sendall(b"".join(chunk for reply in replies for chunk in (*zmtp.encode(reply), ping)))
        peer.close()
        if not blocked:
            client.send([b"request"])
        received = [client.receive() for _ in replies]
        assert received == replies
        assert client.receive() is None
        assert zmq.EVENT_DISCONNECTED in client.connection_events()


def test_ctrl_c_anywhere_in_the_loss_of_a_connection_does_not_prevent_the_next(tmp_socket: str) -> None:
    def interrupt_at(number: int) -> Callable[..., Any]:
        """A trace function that raises KeyboardInterrupt before a line of `_lose` or what it calls."""
        seen = 0

        def trace_lines(_: FrameType, event: str, __: object) -> Any:
            nonlocal seen
            seen += event == "line"
            if seen == number:
                sys.settrace(before)
                raise KeyboardInterrupt
            return trace_lines

        return lambda frame, *_: trace_lines if frame.f_code in traced else None

    before = sys.gettrace()
    traced = {method.__code__ for method in (StreamSocket._lose, StreamSocket._close_ended, StreamSocket._retry_later)}
    lines = 0
    interrupted = True
    while interrupted:
        interrupted = False
        lines += 1
        with open_socket(tmp_socket) as (client, peer):
            peer.close()
            sys.settrace(interrupt_at(lines))
            try:
                client.receive()
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(before)
            client.divert(False)  # as a caller that was interrupted does
            # What the connection's thread does whenever it wakes, and at `due`.
            events = []
            for _ in range(3):
                assert client.receive() is None
                client.advance(client.due if client.due < float("inf") else 0.0)
                events += client.connection_events()
        os.unlink(tmp_socket.removeprefix("ipc://"))
        assert zmq.EVENT_DISCONNECTED in events
        assert zmq.EVENT_CONNECTED in events[events.index(zmq.EVENT_DISCONNECTED) :], lines
    assert lines > 15


def test_a_cancellation_is_sent_once_the_daemon_reads_again(tmp_socket: str) -> None:
    arrived, reading, cancelled = threading.Event(), threading.Event(), threading.Event()
    received = bytearray()

    def receive_until(peer: socket.socket, part: bytes) -> None:
        while part not in received:
            data = peer.recv(1 << 20)
            assert data
            received.extend(data)

    def behave(peer: socket.socket) -> None:
        peer.sendall(OPENING)
        receive_until(peer, wire.SERVER_METADATA)
        metadata = fake_daemon.ok(b"greeting", {"max_message_size": 1 << 30})
        peer.sendall(b"".join(zmtp.encode([wire.DELIMITER, *metadata])))
        receive_until(peer, b'"first"')
        arrived.set()
        assert reading.wait(WAIT_S)
        receive_until(peer, wire.CANCEL)
        cancelled.set()

    with listener(tmp_socket, behave), Client(tmp_socket, timeout=60.0, shared_memory=False) as client:
        first = client.submit("m", {"first": 1.0})
        assert arrived.wait(WAIT_S)
        client.submit("m", {"x": np.zeros(8 << 20, np.uint8)})
        connection = client._requests.connection
        until = time.monotonic() + WAIT_S
        while connection._transport.socket.is_ready(to_send=True):
            assert time.monotonic() < until
            time.sleep(0.001)
        assert first.cancel()
        while len(connection._transport.outstanding) > 1:  # it is not handled yet
            assert time.monotonic() < until
            time.sleep(0.001)
        reading.set()
        assert cancelled.wait(WAIT_S)


def test_sending_to_a_daemon_that_has_ended_raises_no_sigpipe(tmp_socket: str) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: signals.append(number))
    try:
        with open_socket(tmp_socket) as (client, peer):
            peer.close()
            client.send([b"a"])
            assert zmq.EVENT_DISCONNECTED in client.connection_events()
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert not signals


def test_a_client_over_ipc_leaves_no_descriptor(tmp_socket: str) -> None:
    with leaving_no_descriptor(), FakeDaemon(fake_daemon.echo, tmp_socket) as daemon:
        with Client(daemon.endpoint, timeout=WAIT_S) as client:
            client.infer("m", {"x": 1.0})
        with Client(f"{daemon.endpoint}.none", connect_timeout=0.05) as client, pytest.raises(Unavailable):
            client.infer("m", {"x": 1.0})


def test_an_abstract_socket_is_reached(tmp_socket: str) -> None:
    name = f"@multitower-{Path(tmp_socket).parent.name}-{os.getpid()}"
    with FakeDaemon(fake_daemon.echo, f"ipc://{name}"), Client(f"ipc://{name}", timeout=WAIT_S) as client:
        assert client.infer("m", {"x": 1.0})["x"] == 1.0
