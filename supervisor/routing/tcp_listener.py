"""A listening socket over tcp, from which the daemon's loop accepts connections itself.

libzmq reads the address and binds it, so that what `listen` may name does not depend on who accepts: names, network
interfaces, `*`, scopes. Then the daemon takes the listening socket over.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
from collections.abc import Callable
from typing import Final

import zmq

from multitower import liveness

from .acceptor import StreamListener
from .binding import bind, listening_error
from .connections import Connections
from .stream_peer import Origin, read_address

WATCH_S: Final = 5.0
"""Seconds until libzmq's thread must have begun to poll a descriptor, or have stopped to."""

_monitors = itertools.count()


class TcpListener(StreamListener):
    """A listening socket over tcp.

    Args:
        context: the ZeroMQ context that reads the address.
        peer_timeout_s: seconds after which a client that is silent counts as gone; 0 for never.
        endpoint: `tcp://HOST:PORT`; the port may be `*`.
        connections: says when clients are accepted.
        on_accepted: gets each connection.

    Attributes:
        endpoint: as bound, with the real port.

    Raises:
        HeldError: another process listens there.
        NotBindableYetError: the endpoint cannot be bound now, but perhaps later.
        OSError: the endpoint cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        peer_timeout_s: float,
        endpoint: str,
        connections: Connections,
        on_accepted: Callable[[socket.socket], None],
    ) -> None:
        try:
            listening, bound = take_listening_socket(context, functools.partial(bind, endpoint), connections.backlog)
        except (zmq.ZMQError, UnicodeError) as error:
            raise listening_error(endpoint, error) from None
        super().__init__(bound, connections, on_accepted, listening, peer_timeout_s)

    @property
    def local(self) -> bool:
        """Clients may run on another machine."""
        return False

    def prepare(self, connection: socket.socket) -> Origin:
        """See `StreamListener.prepare`: small replies leave at once, and the kernel ends silent connections."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        liveness.watch_connection(connection, self.peer_timeout_s)
        return read_address(connection)


def take_listening_socket(
    context: zmq.Context[zmq.Socket[bytes]], bind: Callable[[zmq.Socket[bytes]], None], backlog: int
) -> tuple[socket.socket, str]:
    """Lets libzmq, which knows how to read its addresses, make a listening socket, and takes it over.

    Args:
        context: the router's ZeroMQ context.
        bind: binds a ZeroMQ socket to a tcp address.
        backlog: connections that may wait to be accepted.

    Returns:
        The socket, and the endpoint as bound.

    Raises:
        zmq.ZMQError: it cannot be bound.
    """
    with context.socket(zmq.ROUTER) as binder, context.socket(zmq.PAIR) as monitor:
        binder.set(zmq.LINGER, 0)
        binder.set(zmq.BACKLOG, backlog)
        address = monitor_address()
        binder.monitor(address, zmq.EVENT_LISTENING | zmq.EVENT_CLOSED)
        try:
            monitor.connect(address)
            bind(binder)
            event = monitor.recv_multipart(zmq.NOBLOCK)  # sent by `bind` itself
            listening = socket.socket(fileno=os.dup(monitor_value(event)))
            endpoint = binder.getsockopt_string(zmq.LAST_ENDPOINT)
            # A client that is accepted before the binder has stopped listening is disconnected, and connects again.
            binder.unbind(endpoint)
            monitor.poll(round(WATCH_S * 1000))
        finally:
            binder.disable_monitor()
        return listening, endpoint


def monitor_address() -> str:
    """A new address. libzmq frees that of a closed monitor some time later: until then a bind would find it in use."""
    return f"inproc://monitor-{next(_monitors)}"


def monitor_value(event: list[bytes]) -> int:
    """The value of an event of a monitor: in 32 bits, after 16 bits for the event (zmq_socket_monitor(3))."""
    return int.from_bytes(event[0][2:6], "little", signed=True)
