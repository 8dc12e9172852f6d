"""A front socket and its clients: what is counted as unread, and what becomes of replies that cannot be delivered."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from accepting import Accepting
from curve_front import CurveLocks, encrypt
from watching import add_socket

from multitower import wire
from multitower.supervisor.loop.reactor import Reactor
from multitower.supervisor.routing import router_front
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.front_socket import MAX_FRAMES, MAX_HOP_BYTES, MAX_HOPS, Incoming
from multitower.supervisor.routing.router_front import RouterFront
from multitower.supervisor.routing.stream_front import StreamFront
from multitower.supervisor.routing.tcp_listener import TcpListener
from multitower.supervisor.routing.unread import MANY_MARK_BYTES, MARK_BYTES, UnreadReplies
from multitower.tensors import BULKY_BYTES

MAX_MESSAGE = 1 << 20
LARGE = bytes(4 << 20)
HEADER = b"{}"


class Sockets:
    """A front socket, and clients that read only when the test does."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.unread = UnreadReplies(1 << 30, 30.0)
        self._connections = Connections(1000)
        self._locks = CurveLocks(self._context)
        self.front: RouterFront | StreamFront
        tcp = "tcp://127.0.0.1:*"
        if kind == "ipc":
            self.front = StreamFront(f"ipc://{folder}/front.sock", MAX_MESSAGE, self.unread, self._connections)
        elif kind == "tcp":
            listen = functools.partial(TcpListener, self._context, 0)
            self.front = StreamFront(tcp, MAX_MESSAGE, self.unread, self._connections, listen=listen)
        else:
            self.front = self._locks.open(self._connections, max_message_size=MAX_MESSAGE, unread=self.unread)
        self._accepting = Accepting(self._connections, self._locks.zap)
        self._accepting.__enter__()
        self._clients: list[zmq.Socket[bytes]] = []

    def client(self) -> tuple[zmq.Socket[bytes], tuple[bytes, ...]]:
        """A client, and its address on the front socket."""
        client = self._context.socket(zmq.DEALER)
        self._clients.append(client)
        client.set(zmq.LINGER, 0)
        client.set(zmq.RCVHWM, 1)
        client.set(zmq.RCVTIMEO, 60_000)
        if isinstance(self.front, RouterFront):
            encrypt(client)
        client.connect(self.front.endpoint)
        client.send_multipart([b"", wire.SERVER_LIVE, b"1"])
        return client, self.receive().address

    def read(self, client: zmq.Socket[bytes]) -> list[bytes]:
        """The next reply of a client; meanwhile the front socket writes what the client could not take before."""
        until = time.monotonic() + 60.0
        while not client.poll(1):
            assert time.monotonic() < until
            assert self.front.receive() is None
        return client.recv_multipart()

    def receive(self) -> Incoming:
        """The next message, which has been sent."""
        until = time.monotonic() + 60.0
        while (incoming := self.front.receive()) is None:
            assert time.monotonic() < until
            select.select([self.front.descriptor], [], [], 0.01)
        return incoming

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.02)
            assert self.front.receive() is None  # clients that have left are noticed
            self.unread.tick(time.monotonic())

    def close(self) -> None:
        for client in self._clients:
            client.close()
        # libzmq aborts if a connection ends within a message while its socket is being closed (4.3.5, `clean_pipes`).
        until = time.monotonic() + 60.0
        while isinstance(self.front, RouterFront) and self._connections.open:
            assert time.monotonic() < until
            time.sleep(0.005)
        self._accepting.__exit__()
        self.front.close()
        self._locks.close()
        self._connections.close()
        self._context.term()


@pytest.fixture(params=["curve", "ipc", "tcp"])
def sockets(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sockets]:
    made = Sockets(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Sockets]:
    """Those with CURVE, which are libzmq's."""
    made = Sockets(tmp_path, "curve")
    yield made
    made.close()


def fill(sockets: Sockets, address: tuple[bytes, ...]) -> int:
    """Sends large replies until the front socket holds two of them; how many.

    On a busy machine one of them may still leave.
    """
    for number in range(1, 20):
        assert sockets.front.reply(address, wire.OK, b"1", (HEADER, LARGE))
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert sockets.front.receive() is None
            sockets.unread.tick(time.monotonic())
            if sockets.unread.total < 2 * len(LARGE):
                break
            time.sleep(0.005)
        else:
            return number
    raise AssertionError("a client took 80 MB without reading")


def test_large_replies_count_until_they_are_read(sockets: Sockets) -> None:
    client, address = sockets.client()
    sent = fill(sockets, address)
    assert sockets.unread.total >= len(LARGE)
    for _ in range(sent):
        assert sockets.read(client)[-1] == LARGE
    sockets.wait(lambda: sockets.unread.total == 0)
    assert sockets.front.dropped == 0


def test_small_replies_count_by_marks_until_they_are_read(sockets: Sockets) -> None:
    client, address = sockets.client()
    sent = fill(sockets, address)
    before = sockets.unread.total
    small = bytes(BULKY_BYTES // 8)
    count = 3 * MARK_BYTES // len(small)
    for _ in range(count):
        assert not sockets.front.reply(address, wire.OK, b"1", (HEADER, small))
    assert count * len(small) - MARK_BYTES < sockets.unread.total - before < count * (len(small) + 1000)
    for _ in range(sent + count):
        sockets.read(client)
    sockets.wait(lambda: sockets.unread.total == 0)


def test_small_frames_beside_large_ones_count_too(sockets: Sockets) -> None:
    client, address = sockets.client()
    sent = fill(sockets, address)
    before = sockets.unread.total
    sockets.front.reply(address, wire.OK, b"1", (bytes(1000), LARGE, bytes(2000), LARGE))
    assert sockets.unread.total - before > 2 * len(LARGE) + 3000
    for _ in range(sent):
        sockets.read(client)
    assert [len(frame) for frame in sockets.read(client)[3:]] == [1000, len(LARGE), 2000, len(LARGE)]
    sockets.wait(lambda: sockets.unread.total == 0)


def test_the_addresses_of_proxies_count_as_unread_like_what_follows_them(sockets: Sockets) -> None:
    client, _ = sockets.client()
    proxies = [bytes([1]) * MAX_HOP_BYTES] * (MAX_HOPS - 1)
    client.send_multipart([*proxies, b"", wire.SERVER_LIVE, b"1"])
    address = sockets.receive().address
    assert address[1:] == tuple(proxies)
    count = (40 << 20) // sum(map(len, proxies))
    for _ in range(count):
        sockets.front.answer(address, b"1", {})
    assert sockets.front.receive() is None  # what is collected is written
    assert sockets.unread.total > 10 << 20, "the kernel and the client's libzmq have the rest of 40 MiB"


@pytest.mark.parametrize(
    "address",
    [[b"proxy"] * MAX_HOPS, [bytes([1]) * (MAX_HOP_BYTES + 1)], [b"proxy", bytes([1]) * BULKY_BYTES]],
    ids=["too many frames", "a frame too large", "a bulky frame"],
)
def test_an_address_that_no_proxy_has_is_not_kept(sockets: Sockets, address: list[bytes]) -> None:
    client, own = sockets.client()
    client.send_multipart([*address, b"", wire.SERVER_LIVE, b"1"])
    incoming = sockets.receive()
    assert (incoming.address, incoming.body) == (own, None)


def test_of_a_message_with_too_many_frames_no_more_are_kept(sockets: Sockets) -> None:
    client, _ = sockets.client()
    client.send_multipart([b"", wire.SERVER_LIVE, b"1", *[b""] * (2 * MAX_FRAMES)])
    body = sockets.receive().body
    assert body is not None
    assert MAX_FRAMES - 2 <= len(body) < MAX_FRAMES
    client.send_multipart([b"", wire.SERVER_LIVE, b"2"])
    assert sockets.receive().body == [wire.SERVER_LIVE, b"2"]


def test_what_a_client_left_unread_counts_no_more_once_it_has_left(sockets: Sockets) -> None:
    client, address = sockets.client()
    fill(sockets, address)
    client.close()
    sockets.wait(lambda: sockets.unread.total == 0)
    sockets.wait(lambda: sockets.front.reply(address, wire.OK, b"1", (HEADER,)) or sockets.front.dropped > 0)


def test_requests_that_arrive_while_a_reply_finds_its_client_gone_are_read(routed: Sockets) -> None:
    """The failing send takes libzmq's notification of them: nothing else would make the reactor look."""
    sockets, front = routed, routed.front
    assert isinstance(front, RouterFront)
    gone, address = sockets.client()
    other, _ = sockets.client()
    gone.close()

    def is_known_to_be_gone() -> bool:
        sockets.front.reply(address, wire.OK, b"1", (HEADER,))
        return sockets.front.dropped > 0

    sockets.wait(is_known_to_be_gone)
    received: list[Incoming] = []

    def receive() -> None:
        while (incoming := sockets.front.receive()) is not None:
            received.append(incoming)

    with contextlib.closing(Reactor()) as reactor:
        front.recheck = add_socket(reactor, front.socket, receive)
        reactor.wait(0)
        other.send_multipart([b"", wire.SERVER_LIVE, b"2"])
        assert select.select([front.descriptor], [], [], 10.0)[0]
        time.sleep(0.02)  # sooner after its last look, libzmq would not look in a send
        sockets.front.reply(address, wire.OK, b"1", (HEADER,))
        reactor.wait(5.0)
        assert [incoming.body for incoming in received if incoming.body] == [[wire.SERVER_LIVE, b"2"]]


def test_unread_replies_count_however_many_other_clients_come(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_front, "MAX_RECENT", 2)
    client, address = sockets.client()
    sent = fill(sockets, address)
    for _ in range(7):
        other, other_address = sockets.client()
        sockets.front.reply(other_address, wire.OK, b"1", (HEADER,))
        assert sockets.read(other) == [b"", wire.OK, b"1", HEADER]
    sockets.unread.set_limits(len(LARGE), 30.0)
    assert sockets.front.refusal(address, large=False) is not None
    # libzmq lets go of what has been read in its own time.
    sockets.wait(lambda: sockets.front.refusal(other_address, large=False) is None)
    for _ in range(sent):
        sockets.read(client)
    sockets.wait(lambda: sockets.front.refusal(address, large=False) is None)


@pytest.mark.parametrize("size", [MANY_MARK_BYTES - 1000, 1000])
def test_small_replies_count_however_many_connections_get_them_in_turn(
    size: int, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_front, "MAX_RECENT", 2)
    clients = [sockets.client() for _ in range(4)]
    small = bytes(size)
    # More than what the client's own queue and the kernel hold, which by default keeps 4 MB of a tcp connection.
    turns = (8 << 20) // size
    for _ in range(turns):
        for _, address in clients:
            sockets.front.reply(address, wire.OK, b"1", (HEADER, small))
    sockets.unread.tick(time.monotonic())
    assert sockets.unread.total > len(clients) * (1 << 20)
    for client, _ in clients:
        for _ in range(turns):
            sockets.read(client)
    sockets.wait(lambda: sockets.unread.total == 0)


def test_marks_are_closer_while_there_are_many_connections(routed: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = routed
    client, address = sockets.client()
    sent = fill(sockets, address)
    before = sockets.unread.total
    small = bytes(MANY_MARK_BYTES // 2)
    for _ in range(4):
        sockets.front.reply(address, wire.OK, b"1", (HEADER, small))
    assert sockets.unread.total == before
    monkeypatch.setattr(router_front, "MANY_CONNECTIONS", 1)
    other, other_address = sockets.client()
    sockets.front.reply(other_address, wire.OK, b"1", (HEADER,))
    sockets.front.reply(address, wire.OK, b"1", (HEADER, small))
    assert sockets.unread.total > before + 5 * len(small)
    sockets.read(other)
    for _ in range(sent + 5):
        sockets.read(client)
    sockets.wait(lambda: sockets.unread.total == 0)


@pytest.mark.parametrize("body", [(HEADER, "text"), (HEADER, 7), (HEADER, memoryview(LARGE)[::2])])
def test_a_reply_that_cannot_be_sent_leaves_the_next_one_whole(body: tuple[object, ...], sockets: Sockets) -> None:
    client, address = sockets.client()
    with pytest.raises((TypeError, ValueError, BufferError)):
        sockets.front.reply(address, wire.OK, b"1", body)
    sockets.front.answer(address, b"2", {})
    assert sockets.read(client) == [b"", wire.OK, b"2", b"{}"]


def test_answers_that_cannot_be_built_are_internal_errors_and_logged_once(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    client, address = sockets.client()
    for _ in range(3):
        sockets.front.answer(address, b"1", {"not JSON": float("nan")})
        _, kind, id, header = sockets.read(client)
        assert (kind, id) == (wire.ERROR, b"1")
        assert wire.load_header(header)["error"]["reason"] == "internal_error"
    assert [record.getMessage() for record in caplog.records] == ["internal error while sending a reply"]


def test_a_lock_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("another's file")
    (tmp_path / "front.sock.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        StreamFront(f"ipc://{tmp_path}/front.sock", MAX_MESSAGE, UnreadReplies(), Connections(1))
    assert victim.read_text() == "another's file"


def test_libzmq_does_not_name_connections_alike_in_each_process(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None)
    names = set()
    for _ in range(2):
        libc.srand(1)  # as each process begins
        sockets = Sockets(tmp_path, "curve")
        names.add(sockets.client()[1])
        sockets.close()
    assert len(names) == 2
