"""A connection to a daemon over tcp, or where there is no epoll: a DEALER socket of libzmq.

`stream_socket.py` does the same over ipc without libzmq's thread. Each method is described there.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Container, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from multitower import frames, liveness
from multitower.addresses import ENDPOINT_FORMS
from multitower.client.address_family import AddressFamily
from multitower.client.connect_errors import EXHAUSTED
from multitower.client.credentials import Credentials
from multitower.errors import ConnectError, InvalidEndpoint

RECONNECT_MS = 100
RECONNECT_MAX_MS = 2000
CONNECT_MS = 5000
"""How long an attempt to connect over TCP, and then the ZeroMQ handshake, may take."""

HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
)
"""Events of a handshake that did not succeed."""

_ABANDONED = HANDSHAKE_FAILED[:2]
"""Those after which libzmq connects no more."""

_MONITORED_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | sum(HANDSHAKE_FAILED)
)

_NOT_ADMITTED = 400
"""The status of a key that the daemon's ZAP handler does not admit (https://rfc.zeromq.org/spec/27)."""

_NEVER = float("inf")


class DealerSocket:
    """A DEALER socket that connects to an endpoint, and again after the connection was lost.

    Args:
        endpoint: the daemon's.
        peer_timeout_s: see `liveness.socket_options`.
        credentials: for CURVE; None for a connection without it.

    Attributes:
        descriptors: the descriptor of the socket's monitor.
        due: when `advance` is to be called: libzmq's thread connects, but gives up where a handshake was refused.
        refusal: why the last handshake was refused; None if that is not known.
        descriptor: the socket's descriptor, which becomes readable when something arrives. Sending may consume that.
        can_divert: there is an epoll, so that `divert` can be called.

    Raises:
        InvalidEndpoint: libzmq refuses the endpoint.
        OSError: this process has no room for a socket; its number is in `EXHAUSTED`.
    """

    def __init__(self, endpoint: str, peer_timeout_s: float, credentials: Credentials | None = None) -> None:
        self.due = _NEVER
        self.refusal: ConnectError | None = None
        self._endpoint = endpoint
        self._has_key = credentials is not None
        self._wait_ms = RECONNECT_MS
        self._family = AddressFamily(endpoint)
        try:
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        except zmq.ZMQError as error:
            raise OSError(error.errno, zmq.strerror(error.errno or 0)) from None
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
        keys: dict[int, bytes] = {}
        if credentials is not None:
            keys = {
                zmq.CURVE_PUBLICKEY: credentials.public.encode(),
                zmq.CURVE_SECRETKEY: credentials.secret.encode(),
                zmq.CURVE_SERVERKEY: credentials.server.encode(),
            }
        try:
            self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
            for option, value in options.items():
                self._socket.set(option, value)
            for option, key in keys.items():
                self._socket.set(option, key)
            self._monitor = self._socket.get_monitor_socket(_MONITORED_EVENTS)
            self._socket.connect(endpoint)
            # Only Linux has it.
            self._epoll = select.epoll() if hasattr(select, "epoll") else None
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)  # with the monitor's sockets
            cause = zmq.strerror(error.errno or 0)
            if error.errno in EXHAUSTED:
                raise OSError(error.errno, cause) from None
            # Its form was checked; libzmq may know better.
            message = f"{endpoint!r} is not an endpoint: {cause}; an endpoint is {ENDPOINT_FORMS}"
            raise InvalidEndpoint(message) from None
        except OSError:
            self._context.destroy(linger=0)
            raise
        self.descriptors = (self._monitor.fileno(),)
        self.descriptor = self._socket.fileno()
        self.can_divert = self._epoll is not None
        if self._epoll is not None:
            self._epoll.register(self.descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        """The descriptor to wait for; while arrivals are diverted, it does not become readable."""
        return self.descriptor if self._epoll is None else self._epoll.fileno()

    def divert(self, diverted: bool) -> None:
        """Sets whether arrivals make only `descriptor` readable, and not `fileno`."""
        assert self._epoll is not None  # `can_divert`
        self._epoll.modify(self.descriptor, 0 if diverted else select.EPOLLIN)

    def advance(self, now: float) -> None:
        """Connects again after a refused handshake, once that is `due`: the daemon may admit the key by then.

        Args:
            now: monotonic seconds.
        """
        if now >= self.due:
            self.due = _NEVER
            self._connect_again()

    def _connect_again(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # the endpoint was valid before
            self._socket.disconnect(self._endpoint)
        self._socket.set(zmq.IPV6, int(self._family.ipv6))  # for connections from here on
        self._socket.connect(self._endpoint)

    def has_events(self, ready: Container[int]) -> bool:
        """Whether `connection_events` has any.

        Args:
            ready: the descriptors that are readable.
        """
        return self.descriptors[0] in ready

    def connection_events(self) -> list[int]:
        """What has happened to the connection since the last call."""
        events: list[int] = []
        with contextlib.suppress(zmq.Again):
            while True:
                message = recv_monitor_message(self._monitor, zmq.NOBLOCK)
                events.append(int(message["event"]))
                if events[-1] in HANDSHAKE_FAILED:
                    self._note_failure(events[-1], int(message["value"]))
        return events

    def _note_failure(self, event: int, value: int) -> None:
        """Notes why a handshake failed, and connects again later if libzmq does not."""
        self.refusal = None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == _NOT_ADMITTED:
            self.refusal = ConnectError.KEY_REFUSED
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self.refusal = ConnectError.NO_CURVE if self._has_key else ConnectError.KEY_NEEDED
        if event in _ABANDONED:
            self.due = time.monotonic() + self._wait_ms / 1000
            self._wait_ms = min(2 * self._wait_ms, RECONNECT_MAX_MS)

    def record_success(self) -> None:
        """Records that the connection has opened."""
        self._wait_ms = RECONNECT_MS
        self._family.record_success()

    def try_other_family(self) -> None:
        """Connects with the other address family if its turn has come, after an attempt has failed."""
        if self._family.record_failure(time.monotonic()):
            self._connect_again()

    def send(self, message: Sequence[Any], *, at_once: bool = True) -> None:
        """Sends a message, always at once.

        Raises:
            zmq.Again: libzmq cannot take a message now.
        """
        try:
            frames.send(self._socket, message)
        except zmq.ZMQError:
            raise  # no frame was sent
        except BaseException:
            # Ctrl-C between two frames: end the message here, so that its frames do not become the beginning of the
            # next one. The daemon refuses it, and no call has the id of the refusal.
            frames.send(self._socket, (b"",))
            raise

    def flush(self) -> None:
        """Does nothing."""

    def receive(self) -> list[Any] | None:
        """The next message, or None when none has arrived."""
        # Asking the socket for readiness first would cost less. But libzmq then notices that the connection is lost,
        # and drops replies that arrived before.
        return frames.receive(self._socket)

    def has_arrivals(self) -> bool:
        """Whether a message has arrived, even if the descriptor does not report it."""
        return frames.readable(self._socket)

    def is_ready(self, *, to_send: bool) -> bool:
        """Whether a message has arrived or, if `to_send`, whether libzmq can take one."""
        events = self._socket.get(zmq.EVENTS)
        wanted = zmq.POLLIN | zmq.POLLOUT if to_send else zmq.POLLIN
        return isinstance(events, int) and bool(events & wanted)

    def close(self) -> None:
        """Closes the sockets."""
        if self._epoll is not None:
            self._epoll.close()
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
