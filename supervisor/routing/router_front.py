"""The front socket over tcp with `security`: a ROUTER socket of libzmq, which encrypts its connections with CURVE."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import zmq

from multitower import frames, liveness, tensors, wire

from ..config.secret_files import CurveKeys
from ..loop.log import event
from ..security.entrance import Entrance
from ..security.zap import DOMAIN
from .binding import bind, bind_error, listening_error
from .connections import Connections
from .front_socket import LOG_EVERY_S, MAX_FRAMES, FrontSocket, Incoming, dropped_reply, incoming, reply_bytes
from .listener import HANDSHAKE_S, Listener
from .strangers import READ_AHEAD, Strangers
from .tcp_listener import take_listening_socket
from .unread import MANY_MARK_BYTES, MARK_BYTES, Backlog, Mark, UnreadReplies

log = logging.getLogger("multitower.router")

MANY_CONNECTIONS = 1024
"""Connections from which on marks are closer; see `unread`."""

MAX_RECENT = 8192
"""Connections after which those are forgotten that have got no reply meanwhile and have none unread."""


class RouterFront(FrontSocket):
    """One bound ROUTER socket.

    Args:
        context: the router's ZeroMQ context.
        endpoint: `tcp://HOST:PORT`; the port may be `*`.
        max_message_size: bytes of a request. libzmq closes a connection that sends a frame of over twice that.
        unread: counts what clients leave unread; shared by all front sockets.
        peer_timeout_s: seconds after which a client over tcp that is silent counts as gone; 0 for never.
        connections: accepts its clients.
        entrance: finds who sends its messages.
        curve: the daemon's keys, with which connections are encrypted.

    Attributes:
        socket: the ROUTER socket.

    Raises:
        HeldError: another process listens there.
        NotBindableYetError: the endpoint cannot be bound now, but perhaps later.
        OSError: the endpoint cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        max_message_size: int,
        unread: UnreadReplies,
        peer_timeout_s: float,
        connections: Connections,
        entrance: Entrance,
        curve: CurveKeys,
    ) -> None:
        super().__init__(endpoint, unread, connections, entrance)
        self._of_connection = entrance.of_connection
        self._strangers = Strangers()
        self._descriptor = -1  # by which the last message came
        self._late = 0  # connections that have been ended since the last line of the log
        self._logged = 0.0
        self._listener: Listener | None = None
        # By the first address frame. Every connection that gets a reply is in `_recent`; see `_find_backlog`.
        self._recent: dict[bytes, Backlog] = {}
        self._older: dict[bytes, Backlog] = {}
        self._mark_bytes = MARK_BYTES
        self._forgotten_bytes = 0  # small replies, at most, that a connection without a backlog may have got before
        _make_names_unpredictable()
        try:
            self.socket = context.socket(zmq.ROUTER)
        except zmq.ZMQError as error:
            raise bind_error(error.errno, f"cannot listen on {endpoint}: {error.strerror}") from None
        try:
            self.endpoint = self._open(context, endpoint, max_message_size, peer_timeout_s, curve)
        except BaseException as error:
            self.close()
            translated = listening_error(endpoint, error)
            if translated is error:
                raise
            raise translated from None

    def _open(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        max_message_size: int,
        peer_timeout_s: float,
        curve: CurveKeys,
    ) -> str:
        """Sets the socket's options and binds it; returns its endpoint as bound."""
        options = {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            zmq.RCVHWM: READ_AHEAD,
            zmq.SNDHWM: 0,  # without a limit: `unread` bounds replies by their bytes
            zmq.MAXMSGSIZE: 2 * max_message_size,
            **liveness.socket_options(endpoint, peer_timeout_s),
        }
        for option, value in options.items():
            self.socket.set(option, value)
        self._encrypt(curve)
        bind_it = functools.partial(bind, endpoint)
        listening, bound = take_listening_socket(context, bind_it, self._connections.backlog)
        try:
            listener = Listener(context, self.socket, listening, bound)
        except BaseException:
            listening.close()
            raise
        try:
            self._connections.add(listener)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        return bound

    def _encrypt(self, keys: CurveKeys) -> None:
        """Lets only those in who use CURVE, and whom the ZAP handler admits; fails closed without that handler."""
        options: dict[int, Any] = {
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_SECRETKEY: keys.secret.encode(),
            zmq.ZAP_DOMAIN: DOMAIN,
            zmq.ZAP_ENFORCE_DOMAIN: 1,
            zmq.HANDSHAKE_IVL: round(HANDSHAKE_S * 1000),
        }
        for option, value in options.items():
            self.socket.set(option, value)

    @property
    def local(self) -> bool:
        """Clients may run on another machine."""
        return False

    @property
    def descriptor(self) -> int:
        """libzmq's; see `frames.descriptor`."""
        return frames.descriptor(self.socket)

    def look(self) -> bool:
        """Whether a message is left."""
        return self.readable

    @property
    def readable(self) -> bool:
        """Whether a message has arrived."""
        return frames.readable(self.socket)

    def receive(self) -> Incoming | None:
        """The next message, or None if there is none."""
        found = frames.receive_from(self.socket, MAX_FRAMES, self._of_connection)
        if found is None:
            return None
        message, connection, self._descriptor = found
        return incoming(message[0], message, 1, connection)

    def note_stranger(self, client: bytes) -> None:
        """See `FrontSocket.note_stranger`."""
        self._strangers.note(client, self._descriptor)

    def tick(self, now: float) -> None:
        """Ends connections that do not shake hands in time; see `FrontSocket.tick`."""
        if self._listener is not None:
            self._late += self._listener.end_late(now, self._connections.crowded)
        if self._late and now >= self._logged + LOG_EVERY_S:
            fields = {"endpoint": self.endpoint, "count": self._late}
            event(log, logging.WARNING, "connections are closed whose handshake took too long", **fields)
            self._late, self._logged = 0, now

    def reply(self, address: Sequence[bytes], kind: bytes, id: bytes, body: Sequence[Any]) -> bool:
        """Sends the reply to an executed request; see `FrontSocket.reply`."""
        backlog = self._recent.get(address[0])
        if backlog is None:
            backlog = self._find_backlog(address[0])
        small, large = reply_bytes(address, body)
        backlog.unmarked += small
        if large or backlog.unmarked >= self._mark_bytes:
            self._reply_tracked(backlog, address, kind, id, body, droppable=large > 0)
        else:
            self._send((*address, wire.DELIMITER, kind, id, *body))
        return large > 0

    def _reply_tracked(
        self,
        backlog: Backlog,
        address: Sequence[bytes],
        kind: bytes,
        id: bytes,
        body: Sequence[Any],
        *,
        droppable: bool,
    ) -> None:
        """Sends a reply with large frames, or one that is a mark; see `unread`."""
        now = time.monotonic()
        self._unread.collect(backlog, now)
        if droppable and self._unread.drops_reply(backlog, now):
            self.dropped += 1
            kind, body = wire.ERROR, (wire.dump_json(dropped_reply(backlog.unread).to_wire()),)
        tracked = list(body)
        marks: list[Mark] = []
        last = len(tracked) - 1
        unmarked = backlog.unmarked
        for index, frame in enumerate(tracked):
            size = len(frame)
            large = size >= tensors.BULKY_BYTES
            ends = index == last and (large or unmarked >= self._mark_bytes)
            if large or ends:
                made = zmq.Frame(frame if type(frame) is bytes else memoryview(frame), track=True, copy=False)
                tracked[index] = made
                marks.append(Mark(made.tracker, size if large else 0, unmarked if ends else 0))
        if self._send((*address, wire.DELIMITER, kind, id, *tracked)):
            for mark in marks:
                self._unread.add(backlog, mark, now)
                backlog.unmarked -= mark.small

    def _send(self, message: Sequence[Any]) -> bool:
        """Sends a message, and returns True; counts it as dropped if its client has left."""
        # Before it is sent: a send that fails may have used up the notification of requests that have arrived, too.
        self.recheck()
        try:
            frames.send(self.socket, message)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.dropped += 1
            return False
        return True

    def _find_backlog(self, client: bytes) -> Backlog:
        """The backlog of a connection; a new one, if it has got no reply lately and has none unread.

        A backlog that is forgotten has less than a mark's bytes that are not counted. If its connection gets a reply
        again, that one is a mark and counts them: so connections that get a few replies each, in turn, are counted.
        """
        backlog = self._recent.get(client)
        if backlog is not None:
            return backlog
        if len(self._recent) >= MANY_CONNECTIONS:
            self._mark_bytes = MANY_MARK_BYTES
        if len(self._recent) >= MAX_RECENT:
            self._mark_bytes = self._forgotten_bytes = MANY_MARK_BYTES
            unread = {other: found for other, found in self._older.items() if self._may_be_unread(found)}
            self._older, self._recent = unread | self._recent, {}
        backlog = self._older.pop(client) if client in self._older else Backlog(self._forgotten_bytes)
        self._recent[client] = backlog
        return backlog

    def _may_be_unread(self, backlog: Backlog) -> bool:
        """Whether a connection has replies unread, or may have as many bytes of them as there are from mark to mark."""
        return bool(backlog.marks) or backlog.unmarked >= self._mark_bytes

    def close(self, linger_ms: int = 0) -> None:
        """Stops listening; libzmq closes the connections.

        Args:
            linger_ms: milliseconds that libzmq may take to send what clients have not read.
        """
        if self._listener is not None:
            self._connections.remove(self._listener)
            self._listener.close()
            self._listener = None
        self.socket.close(linger_ms)


def _make_names_unpredictable() -> None:
    """Has libzmq begin at a random number when the next ROUTER counts up the names of its connections.

    It takes the first number from rand(3), which begins alike in each process. A peer may choose its own name, and one
    that chooses a name which libzmq then gives to another connection makes libzmq abort the process (an assertion in
    `routing_socket_base_t::add_out_pipe`, libzmq 4.3.5).
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
