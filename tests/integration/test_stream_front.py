"""The front socket without libzmq: every ZeroMQ peer is served, and what is no peer costs its connection only."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from descriptors import leaving_no_descriptor

from multitower import wire, zmtp
from multitower.supervisor.config.principals import Principals, Role
from multitower.supervisor.routing import stream_front
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.front_socket import MAX_FRAMES, Incoming
from multitower.supervisor.routing.handshake_watch import CROWDED_HANDSHAKE_S
from multitower.supervisor.routing.peer_watch import HANDSHAKE_S
from multitower.supervisor.routing.stream_front import MAX_LOOKS, StreamFront
from multitower.supervisor.routing.tcp_listener import TcpListener
from multitower.supervisor.routing.unread import UnreadReplies
from multitower.supervisor.security.peers import Peers
from multitower.tensors import BULKY_BYTES

MAX_MESSAGE = 4 * BULKY_BYTES
WAIT_S = 60.0
PEER_TIMEOUT_S = 40.0
QUARTER_S = PEER_TIMEOUT_S / 4

HELLO = zmtp.GREETING + zmtp.ready("DEALER")
OLD_HELLO = zmtp.GREETING[:11] + b"\0" + zmtp.GREETING[12:] + zmtp.ready("DEALER")
"""As a socket of ZMTP 3.0 sends it."""

ANSWERED = b"".join(zmtp.encode([b"", wire.OK, b"1", b"{}"]))


SENDING = ("send", "sendmsg")
"""Methods of a socket with which streams write."""


def request(id: bytes = b"1", *frames: bytes) -> bytes:
    """A request as a DEALER sends it."""
    return b"".join(bytes(part) for part in zmtp.encode([b"", b"kind", id, *frames]))


class Scene:
    """A front socket without a loop, and clients."""

    def __init__(self, folder: Path, transport: str = "ipc", maximum: int = 1000) -> None:
        self.connections = Connections(maximum)
        self.unread = UnreadReplies(1 << 30, 30.0)
        self._stack = contextlib.ExitStack()
        self.context: zmq.Context[zmq.Socket[bytes]] = self._stack.enter_context(zmq.Context())
        if transport == "ipc":
            self.front = StreamFront(f"ipc://{folder}/front.sock", MAX_MESSAGE, self.unread, self.connections)
        else:
            listen = functools.partial(TcpListener, self.context, PEER_TIMEOUT_S)
            endpoint = "tcp://127.0.0.1:*"
            self.front = StreamFront(endpoint, MAX_MESSAGE, self.unread, self.connections, listen=listen)

    def raw(self, *sent: bytes) -> socket.socket:
        """A client without a library, which has sent this."""
        client = self._connect()
        self.connections.accept()
        for data in sent:
            client.sendall(data)
        return client

    def _connect(self) -> socket.socket:
        family = socket.AF_UNIX if self.front.local else socket.AF_INET
        client = self._stack.enter_context(socket.socket(family))
        client.settimeout(WAIT_S)
        if self.front.local:
            client.connect(self.front.endpoint.removeprefix("ipc://"))
        else:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.connect(("127.0.0.1", int(self.front.endpoint.rpartition(":")[2])))
        return client

    def peer(self, kind: int) -> zmq.Socket[bytes]:
        made = self._stack.enter_context(self.context.socket(kind))
        made.set(zmq.LINGER, 0)
        made.set(zmq.RCVTIMEO, int(WAIT_S * 1000))
        return made

    def receive(self) -> Incoming:
        """The next message, which has been sent, or will be soon."""
        found: list[Incoming] = []

        def receive() -> bool:
            incoming = self.front.receive()
            found.extend([incoming] if incoming is not None else [])
            return bool(found)

        self.until(receive)
        return found[0]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end
            self.connections.accept()
            select.select([self.front.descriptor, self.connections.descriptor], [], [], 0.01)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Answers every request by the number of its address frames, in a thread."""
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                self.connections.accept()
                select.select([self.front.descriptor], [], [], 0.01)
                while (incoming := self.front.receive()) is not None:
                    assert incoming.body is not None
                    header = {"hops": len(incoming.address), "frames": len(incoming.body)}
                    self.front.answer(incoming.address, incoming.body[1], header)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        self._stack.close()
        self.front.close()
        self.connections.close()


@pytest.fixture(params=["ipc", "tcp"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Scene]:
    """Over tcp; a client that is silent for `PEER_TIMEOUT_S` counts as gone."""
    made = Scene(tmp_path, "tcp")
    yield made
    made.close()


def greeted(client: socket.socket) -> socket.socket:
    """The client, once it has read what the front socket sends first."""
    left = len(zmtp.GREETING + zmtp.ready("ROUTER"))
    while left:
        left -= len(client.recv(left))
    return client


def has_ended(client: socket.socket) -> bool:
    """Whether the connection has been closed; waits for it."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(1 << 16):
            continue
    return True


# Every ZeroMQ peer.


def ask(peer: zmq.Socket[bytes], *before: bytes) -> dict[str, int]:
    peer.send_multipart([*before, b"kind", b"7", b"header"])
    *_, kind, id, header = peer.recv_multipart()
    assert (kind, id) == (wire.OK, b"7")
    return wire.load_header(header)


def test_a_dealer_is_served(scene: Scene) -> None:
    with scene.answering():
        peer = scene.peer(zmq.DEALER)
        peer.connect(scene.front.endpoint)
        assert ask(peer, b"") == {"hops": 1, "frames": 3}
        assert ask(peer, b"proxy's", b"client's", b"") == {"hops": 3, "frames": 3}


def test_a_req_is_served(scene: Scene) -> None:
    with scene.answering():
        peer = scene.peer(zmq.REQ)
        peer.connect(scene.front.endpoint)
        for _ in range(3):
            assert ask(peer) == {"hops": 1, "frames": 3}


def test_a_req_that_correlates_is_served_and_may_send_again_without_an_answer(scene: Scene) -> None:
    peer = scene.peer(zmq.REQ)
    peer.set(zmq.REQ_CORRELATE, 1)
    peer.set(zmq.REQ_RELAXED, 1)
    peer.connect(scene.front.endpoint)
    peer.send_multipart([b"kind", b"6"])
    assert len(scene.receive().address) == 2
    with scene.answering():
        assert ask(peer) == {"hops": 2, "frames": 3}


def test_a_router_is_served(scene: Scene) -> None:
    with scene.answering():
        peer = scene.peer(zmq.ROUTER)
        peer.set(zmq.ROUTER_MANDATORY, 1)
        peer.set(zmq.CONNECT_ROUTING_ID, b"daemon")
        peer.connect(scene.front.endpoint)
        assert ask(peer, b"daemon", b"") == {"hops": 1, "frames": 3}


def test_clients_behind_two_proxies_are_served(scene: Scene) -> None:
    """Each ROUTER on the way adds its name of the connection to the address, and removes it from the reply."""
    front, scene_context = scene.front.endpoint, scene.context

    def run(listen: str, connect: str) -> None:
        with scene_context.socket(zmq.ROUTER) as ours, scene_context.socket(zmq.DEALER) as theirs:
            for each in (ours, theirs):
                each.set(zmq.LINGER, 0)
            ours.bind(listen)
            theirs.connect(connect)
            control = scene_context.socket(zmq.PAIR)
            control.connect("inproc://end" + listen[-1])
            with control:
                zmq.proxy_steerable(ours, theirs, None, control)

    controls = [scene.peer(zmq.PAIR) for _ in range(2)]
    for number, control in enumerate(controls):
        control.bind(f"inproc://end{number}")
    hops = [("inproc://hop0", front), ("inproc://hop1", "inproc://hop0")]
    threads = [threading.Thread(target=run, args=hop) for hop in hops]
    for thread in threads:
        thread.start()
    try:
        with scene.answering():
            peers = [scene.peer(kind) for kind in (zmq.REQ, zmq.DEALER)]
            for peer in peers:
                peer.connect("inproc://hop1")
            assert ask(peers[0]) == {"hops": 3, "frames": 3}
            assert ask(peers[1], b"") == {"hops": 3, "frames": 3}
    finally:
        for control in controls:
            control.send(b"TERMINATE")
        for thread in threads:
            thread.join()


def test_peers_with_the_same_identity_are_both_heard(scene: Scene) -> None:
    with scene.answering():
        peers = [scene.peer(zmq.DEALER) for _ in range(2)]
        for peer in peers:
            peer.set(zmq.ROUTING_ID, b"same")
            peer.connect(scene.front.endpoint)
            peer.send_multipart([b"", b"kind", b"1"])
        for peer in peers:
            assert peer.recv_multipart()[1] == wire.OK


def test_a_peer_of_zmtp_3_0_is_served(scene: Scene) -> None:
    client = greeted(scene.raw(OLD_HELLO, request()))
    scene.front.answer(scene.receive().address, b"1", {})
    assert client.recv(100) == ANSWERED


def test_pings_are_answered(scene: Scene) -> None:
    client = greeted(scene.raw(HELLO, zmtp.command(b"PING", b"\0\0context"), request()))
    scene.receive()
    assert client.recv(100) == zmtp.command(b"PONG", b"context")


def test_pings_of_a_peer_that_reads_nothing_are_not_kept(scene: Scene) -> None:
    client = scene.raw(HELLO)
    pings = zmtp.command(b"PING", b"\0\0" + b"context of 16 b.") * 2000
    for _ in range(100):
        client.sendall(pings)
        assert scene.front.receive() is None
    (peer,) = scene.front._peers.values()
    assert peer.stream.unsent
    assert peer.stream.kept < 10


# What is no peer.


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HELLO[:64] + zmtp.ready("PUB"),
        HELLO + b"\xfd\0",
        HELLO + b"\2" + (2 * MAX_MESSAGE + 1).to_bytes(8, "big"),
    ],
)
def test_what_does_not_follow_the_protocol_costs_its_connection_only(
    data: bytes, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    other = greeted(scene.raw(HELLO, request()))
    address = scene.receive().address
    for _ in range(3):
        client = scene.raw(data)
        scene.until(lambda: scene.front.receive() is None and scene.connections.open == 1)
        assert has_ended(client)
    scene.front.answer(address, b"1", {})
    assert other.recv(100) == ANSWERED
    scene.front.tick(time.monotonic() + 60)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "a client's connection is closed",
        "connections are closed that do not follow the protocol",
    ]


def test_a_client_without_a_greeting_is_closed_after_a_while(scene: Scene) -> None:
    silent, idle = scene.raw(HELLO[:40]), scene.raw(HELLO)
    assert scene.front.receive() is None
    scene.front.tick(time.monotonic() + HANDSHAKE_S - 5)
    assert scene.connections.open == 2
    scene.front.tick(time.monotonic() + HANDSHAKE_S + 1)
    assert scene.connections.open == 1
    assert has_ended(greeted(silent))
    idle.sendall(request())
    assert scene.receive().body == [b"kind", b"1"]


def test_half_open_connections_make_room_soon_for_clients_that_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path, maximum=3)
    try:
        served = greeted(scene.raw(HELLO, request()))
        address = scene.receive().address
        silent = [scene.raw(HELLO[:40]), scene.raw()]
        scene.connections.tick()
        assert scene.connections.paused
        other = scene.raw(HELLO, request(b"other's"))
        scene.front.tick(time.monotonic() + CROWDED_HANDSHAKE_S / 2)
        assert scene.connections.open == 3
        scene.front.tick(time.monotonic() + CROWDED_HANDSHAKE_S)
        assert all(map(has_ended, silent))
        scene.connections.tick()
        assert scene.receive().body == [b"kind", b"other's"]
        scene.front.answer(address, b"1", {})
        assert served.recv(100) == ANSWERED
        greeted(other)
    finally:
        scene.close()


PING = zmtp.command(b"PING", b"\0\0")


def test_a_client_over_tcp_that_does_not_answer_heartbeats_is_closed(remote: Scene) -> None:
    silent, answers = (greeted(remote.raw(HELLO, request())) for _ in range(2))
    for _ in range(2):
        remote.receive()
    now = time.monotonic()
    for quarter in range(1, 6):
        remote.front.tick(now + quarter * QUARTER_S + 1)
        assert answers.recv(100) == PING
        answers.sendall(zmtp.command(b"PONG", b""))
        select.select([remote.front.descriptor], [], [], WAIT_S)
        assert remote.front.receive() is None
        assert remote.connections.open == (2 if quarter < 4 else 1)
    assert has_ended(silent)
    answers.sendall(request(b"2"))
    assert remote.receive().body == [b"kind", b"2"]


def test_a_client_over_tcp_without_a_handshake_gets_no_heartbeat(remote: Scene) -> None:
    client = greeted(remote.raw(HELLO[:40]))
    now = time.monotonic()
    for quarter in range(1, 3):
        remote.front.tick(now + quarter * QUARTER_S + 1)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)


def test_a_peer_of_zmtp_3_0_gets_no_heartbeat(remote: Scene) -> None:
    client = greeted(remote.raw(OLD_HELLO, request()))
    address = remote.receive().address
    now = time.monotonic()
    for quarter in range(1, 10):
        remote.front.tick(now + quarter * QUARTER_S + 1)
    remote.front.answer(address, b"1", {})
    assert client.recv(100) == ANSWERED


def test_a_client_over_tcp_that_reads_slowly_is_not_taken_for_gone(remote: Scene) -> None:
    client = greeted(remote.raw(HELLO, request()))
    address = remote.receive().address
    large = bytes(16 << 20)
    remote.front.reply(address, wire.OK, b"1", (b"{}", large))
    now = time.monotonic()
    for quarter in range(1, 10):
        remote.front.tick(now + quarter * QUARTER_S + 1)
    assert remote.connections.open == 1
    left = len(large)
    while left > 0:
        assert remote.front.receive() is None
        left -= len(client.recv(1 << 20))


def test_the_kernel_watches_connections_over_tcp(remote: Scene) -> None:
    remote.raw(HELLO, request())
    remote.receive()
    (peer,) = remote.front._peers.values()
    get = peer.stream.socket.getsockopt
    assert get(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == QUARTER_S
    assert get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * PEER_TIMEOUT_S


def test_a_client_that_ends_is_forgotten_and_its_replies_are_dropped(scene: Scene) -> None:
    client = scene.raw(HELLO, request(), request(b"2")[:-1])
    address = scene.receive().address
    client.close()
    scene.until(lambda: scene.front.receive() is None and scene.connections.open == 0)
    scene.front.answer(address, b"1", {})
    assert scene.front.dropped == 1


# Memory and fairness.


def test_a_message_with_too_many_frames_is_cut_and_the_next_one_is_whole(scene: Scene) -> None:
    frames = [b"x"] * (MAX_FRAMES + 1000)
    scene.raw(HELLO, request(b"1", *frames), request(b"2", b"header"))
    cut = scene.receive().body
    assert cut is not None
    assert wire.MAX_INPUTS + 3 < len(cut) < MAX_FRAMES
    assert scene.receive().body == [b"kind", b"2", b"header"]


@pytest.mark.parametrize("size", [1000, BULKY_BYTES - 1, BULKY_BYTES, 2 * MAX_MESSAGE])
def test_of_a_message_that_is_too_large_only_so_much_is_kept_that_it_gets_its_error(size: int, scene: Scene) -> None:
    frames = [bytes(size)] * (10 * MAX_MESSAGE // size)
    client = scene.raw(HELLO)
    sender = threading.Thread(target=client.sendall, args=(request(b"1", *frames) + request(b"2", b"header"),))
    sender.start()
    try:
        kept = scene.receive().body
        assert kept is not None
        assert MAX_MESSAGE < sum(map(len, kept)) <= MAX_MESSAGE + size + 100
        assert scene.receive().body == [b"kind", b"2", b"header"]
    finally:
        sender.join()


def test_a_client_with_many_requests_does_not_keep_another_waiting(scene: Scene) -> None:
    scene.raw(HELLO, b"".join(request(b"%d" % number) for number in range(2000)))
    scene.raw(HELLO, request(b"other's"))
    order = [scene.receive().body for _ in range(2001)]
    assert [b"kind", b"other's"] in order[:3]
    others = [body for body in order if body != [b"kind", b"other's"]]
    assert others == [[b"kind", b"%d" % number] for number in range(2000)]


def test_a_read_with_thousands_of_messages_does_not_keep_another_client_waiting(scene: Scene) -> None:
    honest = scene.raw(HELLO, request())
    scene.receive()
    flood = scene.raw(HELLO, b"\0\0" * 30_000)  # the shortest message of all
    scene.receive()
    honest.sendall(request(b"honest"))
    for count in range(1000):
        if count % 256 == 0:
            scene.front.look()  # as the loop does after each burst
        incoming = scene.front.receive()
        assert incoming is not None
        if incoming.body is not None and incoming.body[1:2] == [b"honest"]:
            break
    else:
        pytest.fail("1000 messages of the other client came first")
    flood.close()


def test_a_connection_ends_whose_frame_could_be_written_only_in_part(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = greeted(scene.raw(HELLO, request()))
    incoming = scene.receive()

    def fail(*_: object) -> int:
        raise OSError(errno.ENOBUFS, "no buffer space")

    with monkeypatch.context() as patched:
        for name in SENDING:
            patched.setattr(socket.socket, name, fail)
        scene.front.answer(incoming.address, b"1", {})
        scene.front.flush()
    assert has_ended(client)


def test_a_defect_in_one_write_costs_no_other_client_its_reply(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (greeted(scene.raw(HELLO, request())) for _ in range(2))
    incoming = [scene.receive() for _ in range(2)]
    scene.front.recheck = lambda: None  # so replies are collected, as in a loop
    for each in incoming:
        scene.front.answer(each.address, b"1", {})
    failing = [True]

    def failing_once(name: str) -> Callable[..., int]:
        send = getattr(socket.socket, name)

        def fail(*arguments: object) -> int:
            if failing:
                failing.clear()
                raise RuntimeError("injected")
            return int(send(*arguments))

        return fail

    with monkeypatch.context() as patched:
        for name in SENDING:
            patched.setattr(socket.socket, name, failing_once(name))
        scene.front.flush()
    assert not failing
    assert has_ended(first)
    assert second.recv(len(ANSWERED)) == ANSWERED


def test_where_the_system_has_no_room_a_client_waits_until_the_next_tick(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: socket.socket) -> None:
        raise OSError(errno.ENFILE, "too many open files in system")

    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "accept", fail)
        client = scene.raw(HELLO)
        scene.connections.accept()
        assert scene.connections.paused
        assert not select.select([scene.connections.descriptor], [], [], 0)[0], "the loop would be woken for ever"
    scene.connections.tick()
    assert not scene.connections.paused
    scene.until(lambda: scene.connections.open == 1)
    greeted(client)


def test_replies_are_collected_until_the_loop_waits(scene: Scene) -> None:
    asked: list[None] = []
    scene.front.recheck = lambda: asked.append(None)
    client = greeted(scene.raw(HELLO, request()))
    address = scene.receive().address
    for _ in range(3):
        scene.front.reply(address, wire.OK, b"1", (b"{}",))
    assert len(asked) == 1
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    assert not scene.front.look()
    assert client.recv(1000) == 3 * ANSWERED
    scene.front.reply(address, wire.OK, b"1", (b"{}",))
    assert len(asked) == 2


# The connection itself.


def test_the_kernel_tells_who_has_connected(local: Scene) -> None:
    local.raw(HELLO, request())
    found = Peers(Principals(()), os.getuid()).local(local.receive().connection)
    assert (found.name, found.pid) == (f"local:{os.getuid()}", os.getpid())
    assert found.roles == set(Role)


def test_what_was_sent_before_the_end_arrives(scene: Scene) -> None:
    client = greeted(scene.raw(HELLO, request()))
    address = scene.receive().address
    large = bytes(4 << 20)
    for _ in range(3):
        assert scene.front.reply(address, wire.OK, b"1", (b"{}", large))
    received: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                received.append(data)
        client.close()  # over tcp the front socket waits for it

    reader = threading.Thread(target=read)
    reader.start()
    scene.front.close(int(WAIT_S * 1000))
    reader.join()
    assert sum(map(len, received)) > 3 * len(large)


def test_the_end_waits_for_a_client_that_reads_nothing_no_longer_than_it_may(scene: Scene) -> None:
    scene.raw(HELLO, request())
    scene.front.reply(scene.receive().address, wire.OK, b"1", (b"{}", bytes(4 << 20)))
    begun = time.monotonic()
    scene.front.close(200)
    assert 0.2 <= time.monotonic() - begun < WAIT_S / 2
    assert scene.unread.total == 0


def test_connections_survive_when_the_path_is_bound_again(local: Scene) -> None:
    client = greeted(local.raw(HELLO, request()))
    address = local.receive().address
    Path(local.front.endpoint.removeprefix("ipc://")).unlink()
    assert local.front.restore(local.front.endpoint)
    local.raw(HELLO, request(b"2"))
    assert local.receive().body == [b"kind", b"2"]
    local.front.answer(address, b"1", {})
    assert client.recv(100) == ANSWERED


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_nothing_stays_open(transport: str, tmp_path: Path) -> None:
    with leaving_no_descriptor():
        for _ in range(3):
            scene = Scene(tmp_path, transport)
            scene.raw(HELLO, request())
            scene.receive()
            scene.close()
    assert list(tmp_path.iterdir()) == []


# Reviewed limits and ends.


def test_a_connection_that_is_closed_gives_back_the_memory_of_its_message(remote: Scene) -> None:
    size = 2 * MAX_MESSAGE
    head = b"".join(bytes(part) for part in zmtp.encode([b"", b"kind", bytes(size)]))[:-size]
    client = remote.raw(HELLO + head + bytes(size - 1))
    remote.until(lambda: remote.front.receive() is None and remote.connections.open == 1)
    before = stream_front._buffers.free_bytes
    remote.until(lambda: remote.front.receive() is None and stream_front._buffers.free_bytes == before)
    client.close()
    remote.until(lambda: remote.front.receive() is None and not remote.connections.open)
    remote.front.tick(time.monotonic())
    assert stream_front._buffers.free_bytes >= before + size


def test_what_was_answered_arrives_although_a_request_is_unread_at_the_end(remote: Scene) -> None:
    large = bytes(400_000)
    client = greeted(remote.raw(HELLO + request()))
    asked = remote.receive()
    remote.front.reply(asked.address, wire.OK, b"1", (b"{}", large))
    remote.front.flush()
    client.sendall(request(b"2"))
    closing = threading.Thread(target=remote.front.close, args=(int(WAIT_S * 1000),))
    closing.start()
    read = 0
    while data := client.recv(1 << 16):
        read += len(data)
    client.close()
    closing.join(WAIT_S)
    assert read > len(large)
    assert not closing.is_alive(), "it does not wait for clients that have left"


def test_connections_without_a_message_keep_others_waiting_for_some_of_them(scene: Scene) -> None:
    for _ in range(MAX_LOOKS + 8):
        scene.raw(HELLO)
    asked: list[bool] = []
    scene.front.recheck = lambda: asked.append(True)
    assert scene.front.receive() is None
    assert scene.front.readable, "the loop comes back for the rest"
    assert asked
    assert scene.front.receive() is None
    assert not scene.front.readable
