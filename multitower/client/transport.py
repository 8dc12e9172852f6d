"""The socket of a connection, the calls that are outstanding on it, and the lock that guards both.

`connection.py` has the thread that serves the socket; `direct.py` lets callers send and read replies themselves while
that thread sleeps.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from multitower import frames, liveness, wire
from multitower.addresses import ENDPOINT_FORMS
from multitower.client.address_family import AddressFamily
from multitower.client.probe import Probe
from multitower.errors import InvalidEndpoint, MultitowerError

RECONNECT_MS = 100
RECONNECT_MAX_MS = 2000
CONNECT_MS = 5000
"""How long an attempt to connect over TCP, and then the ZeroMQ handshake, may take."""

_MONITORED_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_RETRIED
)

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


class Transport:
    """A DEALER socket to a daemon and the state that the connection's thread shares with callers.

    A thread that holds `lock` may use the socket and all attributes; `new`, `waker`, `closing` and `ended` may be used
    without it.

    Args:
        endpoint: the daemon's.
        peer_timeout_s: see `liveness.socket_options`.

    Attributes:
        lock: held by the connection's thread at all times except while it sleeps.
        waker: wakes that thread.
        socket: the DEALER socket.
        monitor: reports its connection; see `connection_events`.
        new: calls handed over to the thread.
        unsent: calls that wait to be sent, in order.
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
    """

    def __init__(self, endpoint: str, peer_timeout_s: float = liveness.PEER_TIMEOUT_S) -> None:
        self.lock = threading.Lock()
        self.new: deque[Call] = deque()
        self.unsent: deque[Call] = deque()
        self.outstanding: dict[bytes, Call] = {}
        self.unread: deque[list[Any]] = deque()
        self.next_check = float("inf")
        self.message_limit = wire.DEFAULT_MAX_MESSAGE_SIZE
        self.greeted = False
        self.closing = False
        self.ended = False
        self._serial = 0
        self._endpoint = endpoint
        self._family = AddressFamily(endpoint)
        self.probe = Probe(endpoint, by_name=self._family.by_name)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        options = {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,  # queue nothing while no daemon is connected
            # Replies are bounded by the outstanding requests. A limit here would stop reading while an application's
            # callback runs, and the daemon drops what a client does not read.
            zmq.RCVHWM: 0,
            zmq.RECONNECT_IVL: RECONNECT_MS,
            zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
            zmq.IPV6: int(self._family.ipv6),
            # Without these an attempt whose packets are swallowed would last for minutes.
            zmq.CONNECT_TIMEOUT: CONNECT_MS,
            zmq.HANDSHAKE_IVL: CONNECT_MS,
            **liveness.socket_options(endpoint, peer_timeout_s),
        }
        try:
            for option, value in options.items():
                self.socket.set(option, value)
            self.monitor = self.socket.get_monitor_socket(_MONITORED_EVENTS)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)  # with the monitor's sockets
            # Its form was checked; libzmq may know better.
            cause = zmq.strerror(error.errno or 0)
            message = f"{endpoint!r} is not an endpoint: {cause}; an endpoint is {ENDPOINT_FORMS}"
            raise InvalidEndpoint(message) from None
        self.waker = Waker()

    def send_call(self, call: Call) -> None:
        """Sends a call and adds it to `outstanding`.

        Raises:
            zmq.Again: libzmq cannot take a message now.
        """
        self._serial += 1
        call.id = self._serial.to_bytes(8, "little")
        try:
            frames.send(self.socket, (wire.DELIMITER, call.kind, call.id, call.header, *call.body))
        except zmq.ZMQError:
            raise  # no frame was sent
        except BaseException:
            # Ctrl-C between two frames: end the message here, so that its frames do not become the beginning of the
            # next one. The daemon refuses it, and no call has the id of the refusal.
            frames.send(self.socket, (b"",))
            raise
        self.outstanding[call.id] = call

    def send_request(self, kind: bytes, id: bytes) -> None:
        """Sends a request without header fields, unless libzmq cannot take a message now."""
        with contextlib.suppress(zmq.Again):
            frames.send(self.socket, (wire.DELIMITER, kind, id, b"{}"))

    def receive(self) -> list[Any] | None:
        """The next message, or None when none has arrived."""
        if self.unread:
            return self.unread.popleft()
        # Asking the socket for readiness first would cost less. But libzmq then notices that the connection is lost,
        # and drops replies that arrived before.
        return frames.receive(self.socket)

    def is_ready(self, *, to_send: bool) -> bool:
        """Whether a message has arrived or, if `to_send`, whether libzmq can take one."""
        events = self.socket.get(zmq.EVENTS)
        wanted = zmq.POLLIN | zmq.POLLOUT if to_send else zmq.POLLIN
        return isinstance(events, int) and bool(events & wanted)

    def connection_events(self) -> list[int]:
        """The monitor's events since the last call.

        They are `EVENT_CONNECTED`, `EVENT_HANDSHAKE_SUCCEEDED`, `EVENT_DISCONNECTED`, and `EVENT_CONNECT_RETRIED` after
        an attempt to connect has failed or the connection has ended.
        """
        events: list[int] = []
        with contextlib.suppress(zmq.Again):
            while True:
                events.append(int(recv_monitor_message(self.monitor, zmq.NOBLOCK)["event"]))
        return events

    def record_success(self) -> None:
        """Records that the connection has opened."""
        self._family.record_success()

    def try_other_family(self) -> None:
        """Connects with the other address family if its turn has come, after an attempt has failed."""
        if not self._family.record_failure(time.monotonic()):
            return
        with contextlib.suppress(zmq.ZMQError):  # the endpoint was valid before
            self.socket.disconnect(self._endpoint)
        self.socket.set(zmq.IPV6, int(self._family.ipv6))  # for connections from here on
        self.socket.connect(self._endpoint)

    def close(self) -> None:
        """Closes the sockets and the waker. `lock` must be held."""
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self._context.term()
        self.ended = True
        self.waker.close()
