"""A front socket without libzmq and without a loop, and its clients: peers of ZeroMQ, and sockets that send bytes."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq

from multitower import wire, zmtp
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.front_socket import Incoming
from multitower.supervisor.routing.stream_front import StreamFront
from multitower.supervisor.routing.tcp_listener import TcpListener
from multitower.supervisor.routing.unread import UnreadReplies
from multitower.tensors import BULKY_BYTES

MAX_MESSAGE = 4 * BULKY_BYTES
WAIT_S = 60.0
PEER_TIMEOUT_S = 40.0
QUARTER_S = PEER_TIMEOUT_S / 4

HELLO = zmtp.GREETING + zmtp.ready("DEALER")
OLD_HELLO = zmtp.GREETING[:11] + b"\0" + zmtp.GREETING[12:] + zmtp.ready("DEALER")
"""As a socket of ZMTP 3.0 sends it."""

ANSWERED = b"".join(zmtp.encode([b"", wire.OK, b"1", b"{}"]))


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
