"""The socket of a connection, the calls that are outstanding on it, and the lock that guards both.

`connection.py` has the thread that serves the socket; `direct.py` lets callers send and read replies themselves while
that thread sleeps.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from multitower import liveness, wire
from multitower.client.address_family import AddressFamily
from multitower.client.credentials import Credentials
from multitower.client.dealer_socket import DealerSocket
from multitower.client.probe import Probe
from multitower.client.stream_socket import StreamSocket
from multitower.errors import MultitowerError

Outcome = list[Any] | MultitowerError
"""The header and output frames of an `MT1:ok` reply, or the error."""


class Call:
    """A request and the function that receives its outcome.

    Attributes:
        kind: kind of request.
        header: its header frame.
        body: its tensor frames.
        deadline: when the call fails without a reply, monotonic seconds.
        connect_by: when the call fails if it could not be sent by then, monotonic seconds.
        started: when the application made the call, monotonic seconds.
        done: receives the outcome; called once, in the connection's thread or in the thread that reads the reply.
        id: unique within the connection; assigned each time the call is sent.
        without_shared_memory: encodes the same request without shared memory, as header and tensor frames; None where
            the request uses none.
        over: the call has its outcome.
        retries: how often the call was refused and sent again.
    """

    __slots__ = (
        "body",
        "connect_by",
        "deadline",
        "done",
        "header",
        "id",
        "kind",
        "over",
        "retries",
        "started",
        "without_shared_memory",
    )

    def __init__(
        self,
        kind: bytes,
        header: bytes,
        body: Sequence[Any],
        deadline: float,
        connect_by: float,
        started: float,
        done: Callable[[Outcome], None],
        without_shared_memory: Callable[[], tuple[bytes, Sequence[Any]]] | None = None,
    ) -> None:
        self.kind = kind
        self.header = header
        self.body = body
        self.deadline = deadline
        self.connect_by = connect_by
        self.started = started
        self.done = done
        self.without_shared_memory = without_shared_memory
        self.id = b""
        self.over = False
        self.retries = 0

    @property
    def size(self) -> int:
        """Bytes of the header and of all tensor frames."""
        return len(self.header) + sum(map(len, self.body))

    def settle(self, outcome: Outcome) -> None:
        """Passes the outcome to `done`. No-op if the call is over."""
        if not self.over:
            self.over = True
            # Dropped, so that a future and its call do not keep each other alive.
            done, self.done, self.without_shared_memory = self.done, _ignore, None
            done(outcome)


def _ignore(_: Outcome) -> None:
    pass


class Waker:
    """A pipe that wakes the connection's thread.

    Attributes:
        needed: the thread sleeps, or is about to.
    """

    def __init__(self) -> None:
        self.needed = True
        self._closed = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        # So that no thread writes into a descriptor that was closed and now belongs to another file. Reentrant: the
        # garbage collector may run a client's finalizer, which wakes, in a thread that is waking.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._reader

    def wake(self, *, always: bool = False) -> None:
        """Wakes the thread if it sleeps. No-op after `close`.

        Args:
            always: also if the thread does not sleep, so that its next sleep ends at once.
        """
        if self.needed or always:
            with self._lock:
                if not self._closed:
                    with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
                        os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Reads what `wake` has written."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def close(self) -> None:
        """Closes the pipe."""
        with self._lock:
            self._closed = True
            os.close(self._writer)
            os.close(self._reader)


def _open_socket(endpoint: str, peer_timeout_s: float, credentials: Credentials | None) -> DealerSocket | StreamSocket:
    path = endpoint.removeprefix("ipc://")
    if path != endpoint and hasattr(select, "epoll"):
        return StreamSocket(path)
    return DealerSocket(endpoint, peer_timeout_s, credentials)


class Transport:
    """A socket to a daemon and the state that the connection's thread shares with callers.

    A thread that holds `lock` may use the socket and all attributes; `new`, `waker`, `closing` and `ended` may be used
    without it.

    Args:
        endpoint: the daemon's.
        peer_timeout_s: see `liveness.socket_options`.
        credentials: for CURVE; None for a connection without it.

    Attributes:
        lock: held by the connection's thread at all times except while it sleeps.
        waker: wakes that thread.
        socket: the socket, of one of two kinds with the same methods.
        new: calls handed over to the thread.
        unsent: calls that wait to be sent, in order.
        postponed: kind and id of requests without header fields that wait to be sent on the present connection.
        outstanding: calls that were sent and have no outcome, by id.
        unread: messages that a caller has received and the thread has to handle.
        probe: knows why there is no connection.
        next_check: the earliest deadline known, monotonic seconds.
        message_limit: the daemon's `max_message_size`, bytes.
        greeted: the daemon has answered the greeting; calls may be sent.
        closing: the connection is to end.
        ended: the thread takes no more calls.

    Raises:
        InvalidEndpoint: the endpoint is malformed.
        OSError: this process has no room for a socket or a pipe.
    """

    def __init__(
        self,
        endpoint: str,
        peer_timeout_s: float = liveness.PEER_TIMEOUT_S,
        credentials: Credentials | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.new: deque[Call] = deque()
        self.unsent: deque[Call] = deque()
        # Bounded by the calls that were sent: the greeting, and one cancellation for each of them.
        self.postponed: deque[tuple[bytes, bytes]] = deque()
        self.outstanding: dict[bytes, Call] = {}
        self.unread: deque[list[Any]] = deque()
        self.next_check = float("inf")
        self.message_limit = wire.DEFAULT_MAX_MESSAGE_SIZE
        self.greeted = False
        self.closing = False
        self.ended = False
        self._serial = 0
        self.socket = _open_socket(endpoint, peer_timeout_s, credentials)
        try:
            self.waker = Waker()
        except OSError:
            self.socket.close()
            raise
        public = None if credentials is None else credentials.public
        self.probe = Probe(
            endpoint, by_name=AddressFamily(endpoint).by_name, public_key=public, examined=self.waker.wake
        )

    def send_call(self, call: Call, *, at_once: bool = True) -> None:
        """Sends a call and adds it to `outstanding`.

        Args:
            call: what to send.
            at_once: if not, the caller calls `socket.flush` after further calls.

        Raises:
            zmq.Again: the socket cannot take a message now.
        """
        self._serial += 1
        call.id = self._serial.to_bytes(8, "little")
        self.socket.send((wire.DELIMITER, call.kind, call.id, call.header, *call.body), at_once=at_once)
        self.outstanding[call.id] = call

    def send_request(self, kind: bytes, id: bytes) -> None:
        """Sends a request without header fields, or adds it to `postponed` if the socket cannot take a message now."""
        self.postponed.append((kind, id))
        self.send_postponed()

    def send_postponed(self) -> bool:
        """Sends the requests in `postponed`, as far as the socket takes them.

        Returns:
            Whether none is left.
        """
        while self.postponed:
            try:
                self.socket.send((wire.DELIMITER, *self.postponed[0], b"{}"))
            except zmq.Again:
                return False
            self.postponed.popleft()
        return True

    def receive(self) -> list[Any] | None:
        """The next message, or None when none has arrived."""
        if self.unread:
            return self.unread.popleft()
        return self.socket.receive()

    def close(self) -> None:
        """Closes the socket and the waker. `lock` must be held."""
        self.socket.close()
        self.ended = True
        self.waker.close()
