"""Connections of clients: how many are accepted, by libzmq or the daemon itself, and when."""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from curve_front import CurveLocks, encrypt
from descriptors import leaving_no_descriptor
from running import Running

from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.front_socket import Incoming
from multitower.supervisor.routing.handshake_watch import CROWDED_HANDSHAKE_S
from multitower.supervisor.routing.listener import HANDSHAKE_S
from multitower.supervisor.routing.router_front import RouterFront
from multitower.supervisor.routing.stream_front import StreamFront
from multitower.supervisor.routing.tcp_listener import TcpListener
from multitower.supervisor.routing.unread import UnreadReplies

WAIT_S = 60.0

TCP = "tcp://127.0.0.1:*"
CURVE = "tcp://127.0.0.2:*"
"""The endpoint of a front socket over tcp, and of one with CURVE, for which libzmq accepts."""

ON_ITS_WAY = 1
"""Clients that may be accepted although no more are allowed: when the daemon closed the valve, libzmq's thread may have
been about to call accept(), and it calls it later, on a busy machine."""


def make_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, connections: Connections, locks: CurveLocks
) -> RouterFront | StreamFront:
    if endpoint.startswith("ipc://"):
        return StreamFront(endpoint, 1 << 20, UnreadReplies(), connections)
    if endpoint == TCP:
        listen = functools.partial(TcpListener, context, 0)
        return StreamFront(endpoint, 1 << 20, UnreadReplies(), connections, listen=listen)
    return locks.open(connections, endpoint=endpoint)


class Front:
    """A front socket, whose clients are accepted when a test asks for it."""

    def __init__(self, endpoint: str, maximum: int) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.connections = Connections(maximum)
        self.locks = CurveLocks(self.context)
        self.socket = make_socket(self.context, endpoint, self.connections, self.locks)
        self.incoming: Incoming | None = None
        self._clients: list[socket.socket] = []

    @property
    def endpoint(self) -> str:
        return self.socket.endpoint

    def connect(self) -> socket.socket:
        """A new client without a library, which does not wait to be accepted."""
        if self.endpoint.startswith("ipc://"):
            client = socket.socket(socket.AF_UNIX)
            address: str | tuple[str, int] = self.endpoint.removeprefix("ipc://")
        else:
            client = socket.socket()
            host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
            address = (host, int(port))
        self._clients.append(client)
        client.connect(address)
        return client

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Accepts, as the daemon's loop does, until the condition holds."""
        until = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < until, (self.connections.open, self.connections.paused)
            self.connections.accept()
            self.connections.tick()
            self.locks.zap.receive()
            if self.incoming is None:
                self.incoming = self.socket.receive()
            time.sleep(0.005)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.socket.close()
        self.locks.close()
        self.connections.close()
        self.context.term()


@pytest.fixture(params=["ipc", TCP, CURVE])
def endpoint(request: pytest.FixtureRequest, tmp_socket: str) -> str:
    return tmp_socket if request.param == "ipc" else str(request.param)


@contextlib.contextmanager
def opened(endpoint: str, maximum: int) -> Iterator[Front]:
    front = Front(endpoint, maximum)
    try:
        yield front
    finally:
        front.close()


def greeted(client: socket.socket) -> bool:
    """Whether the client has been accepted: the greeting is sent at once."""
    client.setblocking(False)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_clients_above_the_maximum_wait_and_are_accepted_when_others_leave(endpoint: str) -> None:
    with opened(endpoint, 3) as front:
        accepted = [front.connect() for _ in range(3)]
        front.wait_until(lambda: all(map(greeted, accepted)))
        front.wait_until(lambda: front.connections.paused)
        waiting = [front.connect() for _ in range(5)]
        for _ in range(20):
            front.connections.accept()
            front.connections.tick()
            time.sleep(0.01)
        early = sum(map(greeted, waiting))
        assert early <= ON_ITS_WAY
        assert front.connections.open == 3 + early
        for client in accepted:
            client.close()
        front.wait_until(lambda: greeted(waiting[0]))


def test_who_is_connected_is_served_while_others_wait(endpoint: str) -> None:
    with opened(endpoint, 1) as front, front.context.socket(zmq.DEALER) as peer:
        peer.set(zmq.LINGER, 0)
        if isinstance(front.socket, RouterFront):
            encrypt(peer)
        peer.connect(front.endpoint)
        front.wait_until(lambda: front.connections.open == 1)
        assert front.connections.paused
        for _ in range(5):
            front.connect()
        for number in range(3):
            peer.send_multipart([b"", b"kind", b"%d" % number])
            front.wait_until(lambda: front.incoming is not None)
            incoming, front.incoming = front.incoming, None
            assert incoming is not None
            front.socket.answer(incoming.address, b"%d" % number, {})
            assert peer.poll(WAIT_S * 1000)
            assert peer.recv_multipart()[2] == b"%d" % number
        assert front.connections.open <= 1 + ON_ITS_WAY


def shake_hands_until_welcomed(front: Front, relay: socket.socket) -> None:
    """Has a client of libzmq shake hands through a relay up to the daemon's WELCOME, which it does not get."""
    passed = 0

    def welcomed() -> bool:
        nonlocal passed
        with contextlib.suppress(BlockingIOError):
            relay.sendall(between.recv(1000, socket.MSG_DONTWAIT))
        with contextlib.suppress(BlockingIOError):
            data = relay.recv(64 - passed, socket.MSG_DONTWAIT) if passed < 64 else b""
            passed += len(data)
            between.sendall(data)
        return passed == 64 and peeked(relay) >= 170

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as client,
    ):
        client.set(zmq.LINGER, 0)
        encrypt(client)
        client.connect("tcp://{}:{}".format(*server.getsockname()))
        between, _ = server.accept()
        with between:
            front.wait_until(welcomed)


def peeked(client: socket.socket) -> int:
    """How many bytes have arrived at a client."""
    try:
        return len(client.recv(1000, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return 0


def has_ended(client: socket.socket) -> bool:
    """Whether the daemon has ended a connection; it reads what had arrived before."""
    try:
        while client.recv(1000, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_half_open_connections_make_room_for_an_honest_client(endpoint: str) -> None:
    """Of the connections that have places, only those that have shaken hands keep them."""
    with (
        opened(endpoint, 6) as front,
        front.context.socket(zmq.DEALER) as idle,
        front.context.socket(zmq.DEALER) as new,
    ):
        for peer in (idle, new):
            peer.set(zmq.LINGER, 0)
            if endpoint == CURVE:
                encrypt(peer)
        with idle.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            idle.connect(front.endpoint)
            front.wait_until(lambda: monitor.poll(0) != 0)
            idle.disable_monitor()
        began = time.monotonic()
        mechanism = b"CURVE" if endpoint == CURVE else b"NULL"
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)
        late = [front.connect() for _ in range(5)]
        for client, data in zip(late, (b"", greeting[:1], greeting[:11], greeting[:40]), strict=False):
            client.sendall(data)
        if endpoint == CURVE:
            shake_hands_until_welcomed(front, late[-1])
        front.wait_until(lambda: front.connections.paused)
        new.connect(front.endpoint)
        new.send_multipart([b"", b"kind", b"1"])
        front.socket.tick(began + 0.9 * CROWDED_HANDSHAKE_S)
        assert not any(map(has_ended, late))
        front.socket.tick(time.monotonic() + CROWDED_HANDSHAKE_S)
        front.wait_until(lambda: front.incoming is not None)
        assert front.incoming is not None
        assert front.incoming.body == [b"kind", b"1"]
        assert all(map(has_ended, late))
        assert time.monotonic() - began < HANDSHAKE_S, "libzmq has ended them, or this machine is very slow"
        idle.send_multipart([b"", b"kind", b"2"])
        front.incoming = None
        front.wait_until(lambda: front.incoming is not None)
        front.socket.tick(time.monotonic() + 60.0)
        new.send_multipart([b"", b"kind", b"3"])
        front.incoming = None
        front.wait_until(lambda: front.incoming is not None)


def test_nobody_is_accepted_before_the_loop_does(endpoint: str) -> None:
    with opened(endpoint, 100) as front:
        client = front.connect()
        time.sleep(0.2)
        assert not greeted(client)
        front.wait_until(lambda: greeted(client))


def test_the_path_stays_while_nobody_is_accepted(short_folder: Path) -> None:
    with opened(f"ipc://{short_folder}/front.sock", 1) as front:
        before = (short_folder / "front.sock").stat()
        front.connect()
        front.wait_until(lambda: front.connections.paused)
        assert (short_folder / "front.sock").stat().st_ino == before.st_ino
        assert (short_folder / "front.sock").stat().st_mode & 0o777 == 0o660
    assert list(short_folder.iterdir()) == []


def test_connections_that_have_been_closed_are_noticed(endpoint: str) -> None:
    with opened(endpoint, 1000) as front:
        clients = [front.connect() for _ in range(30)]
        front.wait_until(lambda: front.connections.open == 30)
        for client in clients[:20]:
            client.close()
        front.wait_until(lambda: front.connections.open == 10)


def test_a_greater_maximum_lets_those_that_wait_in(endpoint: str) -> None:
    with opened(endpoint, 1) as front:
        clients = [front.connect() for _ in range(20)]
        front.wait_until(lambda: front.connections.paused)
        front.connections.set_limits(100, 100)
        assert not front.connections.paused
        front.wait_until(lambda: all(map(greeted, clients)))


def test_opening_and_closing_leaves_no_descriptors(endpoint: str) -> None:
    with opened(endpoint, 10):
        pass
    with leaving_no_descriptor():
        for _ in range(5):
            with opened(endpoint, 10) as front:
                front.connect()
                front.wait_until(lambda: front.connections.open == 1)


CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
max_connections: MAXIMUM
models: [{name: m, handler: "handlers:Reckoner"}]
"""


def test_a_daemon_at_max_connections_tells_an_operator_and_a_reload_lets_clients_in(tmp_path: Path) -> None:
    text = CONFIG.replace("MAXIMUM", "2")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as first:
        control = first.status()["daemon"]["control"]
        waiting = [daemon.client(connect_timeout=WAIT_S, timeout=2 * WAIT_S) for _ in range(4)]
        try:
            daemon.wait_line("no more connections are accepted until others are closed", max_connections=2)
            asked = [client.submit("m", {"x": np.array([[3]])}) for client in waiting]
            command = [sys.executable, "-m", "multitower", "status", "--endpoint", control]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
            assert "no more connections are accepted: " in shown
            assert "and the maximum is 2" in shown
            assert first.infer("m", {"x": np.array([[1]])})["y"].tolist() == [[4]]
            daemon.config.write_text(daemon.config.read_text().replace("max_connections: 2", "max_connections: 50"))
            daemon.process.send_signal(signal.SIGHUP)
            for answer in asked:
                assert answer.result(WAIT_S)["y"].tolist() == [[10]]
            daemon.wait(lambda: first.status()["daemon"]["connections"]["max"] == 50)  # it is true within a second
            daemon.wait_line("connections are accepted again")
        finally:
            for client in waiting:
                client.close()
        assert daemon.end() == 0


def test_a_listener_that_cannot_be_watched_is_closed(endpoint: str) -> None:
    closed = Connections(10)
    closed.close()
    with opened(endpoint, 10) as front, leaving_no_descriptor():  # libzmq closes its own in a thread
        other = endpoint if endpoint.startswith("tcp") else f"{front.endpoint}2"
        with pytest.raises(ValueError, match="closed epoll"):
            make_socket(front.context, other, closed, front.locks)
