"""The socket of a worker, with libzmq's own sockets as peers."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import zmq

from multitower.buffers import Buffers
from multitower.message_stream import MessageStream
from multitower.tensors import BULKY_BYTES
from multitower.worker.bound_socket import BoundSocket

STEP_MS = 30_000
MESSAGES = [[b"a", b"", b"c" * 255, b"d" * 256], [b"x" * BULKY_BYTES, b"y" * (3 << 20)], [b"end"]]


class Peers:
    """Makes libzmq's sockets, connected with the socket of a worker."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def connect(self, kind: int, heartbeat_ms: int = 0) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        self._made.append(made)
        made.set(zmq.LINGER, 0)
        made.set(zmq.RCVTIMEO, STEP_MS)
        if heartbeat_ms:
            made.set(zmq.HEARTBEAT_IVL, heartbeat_ms)
        if kind == zmq.ROUTER:
            made.set(zmq.CONNECT_ROUTING_ID, b"worker")
        made.connect(f"ipc://{self.path}")
        return made

    def close(self) -> None:
        for made in self._made:
            made.close(0)
        self._context.term()


@contextmanager
def echoing(bound: BoundSocket) -> Iterator[None]:
    """Sends each message back, until one is `end`."""

    def echo() -> None:
        bound.wait_for_peer()
        while (message := bound.receive(wait=True)) != [b"end"]:
            if message is not None:
                bound.send(message)
        bound.send([b"end"])

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(echo)
        yield
        ended.result(STEP_MS / 1000)


@pytest.fixture
def path(short_folder: Path) -> str:
    return f"{short_folder}/worker"


@pytest.fixture
def bound(path: str) -> Iterator[BoundSocket]:
    with closing(BoundSocket(path)) as made:
        yield made


@pytest.fixture
def peers(path: str) -> Iterator[Peers]:
    with closing(Peers(path)) as made:
        yield made


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.ROUTER, zmq.REQ], ids=["DEALER", "ROUTER", "REQ"])
def test_libzmq_sockets_can_be_the_peer(bound: BoundSocket, peers: Peers, kind: int) -> None:
    address = [b"worker"] if kind == zmq.ROUTER else []
    with echoing(bound):
        peer = peers.connect(kind, heartbeat_ms=20)
        if address:
            while True:  # the handshake is not over yet
                try:
                    peer.send_multipart([*address, *MESSAGES[0]], zmq.NOBLOCK)
                    break
                except zmq.ZMQError:
                    threading.Event().wait(0.01)
            assert peer.recv_multipart() == [*address, *MESSAGES[0]]
        for message in MESSAGES:
            peer.send_multipart([*address, *message])
            assert peer.recv_multipart() == [*address, *message]


def test_the_next_peer_gets_its_turn_when_the_first_has_gone(bound: BoundSocket, peers: Peers) -> None:
    with echoing(bound):
        first, second = peers.connect(zmq.DEALER), peers.connect(zmq.DEALER)
        first.send(b"one")
        assert first.recv() == b"one"
        second.send(b"two")
        assert second.poll(50) == 0
        first.close()
        assert second.recv() == b"two"
        second.send(b"end")
        assert second.recv() == b"end"


@pytest.mark.parametrize(
    "stray", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff\0"], ids=["HTTP", "silent", "half a greeting"]
)
def test_a_stray_does_not_keep_the_supervisor_out(bound: BoundSocket, peers: Peers, path: str, stray: bytes) -> None:
    with echoing(bound):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.connect(path)
            other.sendall(stray)
            if stray.startswith(b"GET"):
                while other.recv(1000):  # until it is closed
                    pass
        peer = peers.connect(zmq.DEALER)
        peer.send(b"end")
        assert peer.recv() == b"end"


def test_a_peer_that_breaks_the_protocol_later_is_dropped(bound: BoundSocket, peers: Peers, path: str) -> None:
    with echoing(bound):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.connect(path)
            with closing(MessageStream(other, "DEALER", Buffers(1 << 20).allocate)) as stream:
                stream.socket.sendall(b"\x80 no flags")
                while stream.read(0):
                    pass
        peer = peers.connect(zmq.DEALER)
        peer.send(b"end")
        assert peer.recv() == b"end"


def test_an_answer_to_a_peer_that_leaves_without_reading_it_is_lost(bound: BoundSocket, peers: Peers) -> None:
    large = bytes(32 << 20)
    with ThreadPoolExecutor(1) as pool, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.connect(peers.path)
        with closing(MessageStream(other, "DEALER", Buffers(1 << 20).allocate)):
            bound.wait_for_peer()
            sent = pool.submit(bound.send, [large])
            with pytest.raises(TimeoutError):
                sent.result(0.05)  # it waits
        sent.result(STEP_MS / 1000)
    peer = peers.connect(zmq.DEALER)
    peer.send(b"hello")
    assert bound.receive(wait=True) is not None
    bound.send([b"an answer"])
    assert peer.recv() == b"an answer"


def test_it_is_readable_while_a_message_or_a_peer_waits(bound: BoundSocket, peers: Peers) -> None:
    def readable() -> bool:
        return bool(select.select([bound], [], [], 0)[0])

    assert not readable()
    assert bound.receive() is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.connect(peers.path)
        with closing(MessageStream(other, "DEALER", Buffers(1 << 20).allocate)) as stream:
            assert readable()
            assert bound.receive() is None
            assert not readable()
            stream.send([b"a"])
            stream.send([b"b"])
            assert readable()
            assert bound.receive() == [b"a"]
            assert bound.receive() == [b"b"]
            assert not readable()
    assert readable(), "the peer has gone"
    assert bound.receive() is None
    assert not readable()


def test_waiting_ends_at_the_limit(bound: BoundSocket, peers: Peers) -> None:
    bound.set_wait(0.01)
    assert bound.receive(wait=True) is None, "without a peer"
    peer = peers.connect(zmq.DEALER)
    bound.wait_for_peer()
    assert bound.receive(wait=True) is None, "with a peer"
    bound.set_wait(0)
    peer.send(b"here")
    assert bound.receive(wait=True) == [b"here"]


def test_a_socket_that_other_code_has_closed_is_explained(bound: BoundSocket, peers: Peers) -> None:
    peers.connect(zmq.DEALER)
    bound.wait_for_peer()
    assert bound._stream is not None
    bound._stream.socket.close()
    with pytest.raises(OSError, match="code of a model must have closed"):
        bound.send([b"an answer"])
    with pytest.raises(OSError, match="code of a model must have closed"):
        bound.receive(wait=True)


@pytest.mark.parametrize(
    ("make", "why"),
    [(lambda path: f"{path}/none/w", "Not a directory"), (lambda path: path, "Address already in use")],
    ids=["no folder", "in use"],
)
@pytest.mark.usefixtures("bound")
def test_a_path_that_cannot_be_bound_raises(path: str, make: Callable[[str], str], why: str) -> None:
    with pytest.raises(OSError, match=why):
        BoundSocket(make(path))


def test_what_arrives_while_it_spins_is_received_and_waiting_ends_at_the_limit(
    bound: BoundSocket, peers: Peers
) -> None:
    peer = peers.connect(zmq.DEALER)
    peer.send(b"first")
    bound.wait_for_peer()
    bound.set_wait(0.3)
    bound.set_spin(0.05)
    assert bound.receive(wait=True) == [b"first"]
    begun = time.monotonic()
    assert bound.receive(wait=True) is None
    assert time.monotonic() - begun >= 0.3
    timer = threading.Timer(0.01, peer.send, (b"second",))
    bound.set_wait(60)
    bound.set_spin(60.0)  # so it does not sleep at all
    timer.start()
    assert bound.receive(wait=True) == [b"second"]
    timer.join()
