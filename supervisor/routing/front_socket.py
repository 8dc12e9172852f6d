"""A front socket: the endpoint that clients connect to. It reads requests and sends replies, and never blocks.

The router has one for each address of `listen`, and the control endpoint is one too.
"""

from __future__ import annotations

import functools
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from multitower import frames, liveness, tensors, wire
from multitower.errors import MultitowerError, Reason, make

from ..config.secret_files import CurveKeys
from ..loop.containment import ErrorLog
from ..loop.reactor import unwatched
from ..loop.socket_path import SocketPath
from ..security.entrance import Entrance
from ..security.zap import DOMAIN
from .binding import IPC, bind, bind_error, listening_error, take_path
from .connections import Connections
from .listener import Listener, listen_on_path, take_listening_socket
from .unread import MANY_MARK_BYTES, MARK_BYTES, REPLY_OVERHEAD, Backlog, Mark, UnreadReplies

log = logging.getLogger("multitower.router")

MAX_HOPS = 16
"""Address frames before the delimiter: the client's own, and one for each intermediary."""

MAX_FRAMES = MAX_HOPS + 4 + wire.MAX_INPUTS + 1
"""Frames that are read of a message: one more than any valid one has, so that a message with too many is noticed."""

HANDSHAKE_MS = 5000
"""Milliseconds that the handshake of an encrypted connection may take; it takes a place among the connections."""

RECEIVE_HWM = 64
"""Requests of one client that libzmq reads ahead."""

MANY_CONNECTIONS = 1024
"""Connections from which on marks are closer; see `unread`."""

MAX_RECENT = 8192
"""Connections after which those are forgotten that have got no reply meanwhile and have none unread."""


def internal_error() -> MultitowerError:
    """The error for a request that met a defect of multitower; the caller logs the traceback."""
    return make(Reason.INTERNAL_ERROR, "a defect of the daemon, whose log has the traceback")


class Incoming:
    """A message of a client.

    Attributes:
        address: the frames before the delimiter, which lead back to the client; the first one names its connection.
        body: the frames behind the delimiter; None without a delimiter behind at most `MAX_HOPS` frames.
        connection: the property of its connection that the front socket asks for, as its entrance needs it to find the
            sender; None where it asks for none.
    """

    __slots__ = ("address", "body", "connection")

    def __init__(self, address: tuple[bytes, ...], body: list[Any] | None, connection: str | None = None) -> None:
        self.address = address
        self.body = body
        self.connection = connection


def _with_hops(message: list[Any], connection: str | None) -> Incoming:
    """A message with more address frames than the first one."""
    for index in range(2, min(len(message), MAX_HOPS + 1)):
        if len(message[index]) == 0:
            return Incoming(tuple(message[:index]), message[index + 1 :], connection)
    return Incoming((message[0],), None, connection)


class FrontSocket:
    """One bound ROUTER socket.

    Args:
        context: the router's ZeroMQ context.
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`; the port may be `*`.
        max_message_size: bytes of a request. libzmq closes a connection that sends a frame of over twice that.
        unread: counts what clients leave unread; shared by all front sockets.
        peer_timeout_s: seconds after which a client over tcp that is silent counts as gone; 0 for never.
        connections: accepts its clients.
        entrance: finds who sends its messages; None without locks.
        curve: the daemon's keys, with which connections are encrypted; None for those that are not.
        of_connection: without locks: the property of their connection that messages have; None for none.

    Attributes:
        entrance: as given.
        endpoint: as bound, with the real port.
        dropped: replies whose client had left or did not read.
        recheck: called with each reply; see `Reactor.add_socket`.
        interface: how its clients' requests came: `mt1`, or `gateway` where the gateway is the only client.

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
        entrance: Entrance | None = None,
        curve: CurveKeys | None = None,
        of_connection: str | None = None,
    ) -> None:
        self.entrance = entrance
        self._of_connection = entrance.of_connection if entrance is not None else of_connection
        self._curve = curve
        self.dropped = 0
        self._errors = ErrorLog(log)
        self.recheck: Callable[[], None] = unwatched
        self.interface = "mt1"
        self._unread = unread
        self._connections = connections
        self._listener: Listener | None = None
        # By the first address frame. Every connection that gets a reply is in `_recent`; see `_find_backlog`.
        self._recent: dict[bytes, Backlog] = {}
        self._older: dict[bytes, Backlog] = {}
        self._mark_bytes = MARK_BYTES
        self._forgotten_bytes = 0  # small replies, at most, that a connection without a backlog may have got before
        self._path = take_path(endpoint) if endpoint.startswith(IPC) else None
        try:
            self.socket = context.socket(zmq.ROUTER)
        except BaseException as error:
            self._release_path()
            if isinstance(error, zmq.ZMQError):
                raise bind_error(error.errno, f"cannot listen on {endpoint}: {error.strerror}") from None
            raise
        try:
            self.endpoint = self._open(context, endpoint, max_message_size, peer_timeout_s)
        except BaseException as error:
            self.close()
            translated = listening_error(endpoint, error)
            if translated is error:
                raise
            raise translated from None

    def _open(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, max_message_size: int, peer_timeout_s: float
    ) -> str:
        """Sets the socket's options and binds it; returns its endpoint as bound."""
        options = {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            zmq.RCVHWM: RECEIVE_HWM,
            zmq.SNDHWM: 0,  # without a limit: `unread` bounds replies by their bytes
            zmq.MAXMSGSIZE: 2 * max_message_size,
            **liveness.socket_options(endpoint, peer_timeout_s),
        }
        for option, value in options.items():
            self.socket.set(option, value)
        if self._curve is not None:
            self._encrypt(self._curve)
        if self._path is not None:
            listening, bound = self._listen_on(self._path, endpoint), endpoint
        else:
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
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        }
        for option, value in options.items():
            self.socket.set(option, value)

    def _listen_on(self, path: SocketPath, endpoint: str) -> socket.socket:
        listening = listen_on_path(Path(endpoint.removeprefix(IPC)), self._connections.backlog)
        try:
            path.bound()
        except OSError:
            listening.close()
            raise
        return listening

    def restore(self, endpoint: str) -> bool:
        """Binds an ipc endpoint again if its path was removed, or if it shall have another path from now on.

        Connections that exist are not affected.

        Args:
            endpoint: what to listen on: the present endpoint, or for ipc another one.

        Returns:
            Whether it was bound again.

        Raises:
            HeldError: another process has taken the path.
            OSError: the endpoint cannot be bound.
        """
        if self._path is None or (endpoint == self.endpoint and self._path.intact):
            return False
        if endpoint == self.endpoint:
            if not self._path.retake():
                return False  # only its lock was removed
        else:
            path = take_path(endpoint)
            self._path.release()
            # Together: if listening fails below, the next call takes this path again instead of a second lock on it.
            self._path, self.endpoint = path, endpoint
        assert self._listener is not None  # until `close`
        try:
            listening = self._listen_on(self._path, endpoint)
        except OSError as error:
            raise OSError(f"cannot listen on {endpoint}: {error.strerror or error}") from None
        self._connections.remove(self._listener)
        self._listener.replace(listening)
        self._connections.add(self._listener)
        return True

    def touch(self) -> None:
        """Keeps the files of an ipc endpoint from looking old; see `RuntimeDir`."""
        if self._path is not None:
            self._path.touch()

    @property
    def local(self) -> bool:
        """Whether its clients run on this machine, and so may use shared memory."""
        return self._path is not None

    @property
    def readable(self) -> bool:
        """Whether a message has arrived."""
        return frames.readable(self.socket)

    def receive(self) -> Incoming | None:
        """The next message, or None if there is none."""
        if self._of_connection is not None:
            return self._receive_from(self._of_connection)
        message = frames.receive(self.socket, MAX_FRAMES, routed=True)
        if message is None:
            return None
        if not message[1]:  # no intermediary, as nearly always
            return Incoming((message[0],), message[2:])
        return _with_hops(message, None)

    def _receive_from(self, name: str) -> Incoming | None:
        """The next message, with a property of its connection."""
        found = frames.receive_from(self.socket, MAX_FRAMES, name)
        if found is None:
            return None
        message, connection = found
        if not message[1]:
            return Incoming((message[0],), message[2:], connection)
        return _with_hops(message, connection)

    def refusal(self, address: Sequence[bytes], large: bool) -> MultitowerError | None:
        """The error for a request of this client while too much is unread, or None; see `UnreadReplies.refusal`."""
        return self._unread.refusal(self._find_backlog(address[0]), time.monotonic(), large)

    def answer(
        self, address: Sequence[bytes], id: bytes, answer: Mapping[str, Any] | Sequence[bytes] | MultitowerError
    ) -> None:
        """Answers a request that was not executed. The answer is dropped, and counted, if the client does not read.

        It never raises: an answer that cannot be built is logged with its traceback, and replaced by an error.

        Args:
            address: of the request.
            id: of the request.
            answer: the header of the reply, or all its frames from the header on, or the error that the request gets.
        """
        if self._unread.total >= self._unread.high:
            backlog = self._find_backlog(address[0])
            if self._unread.drops_refusal(backlog, time.monotonic()):
                self.dropped += 1
                return
        try:
            self._answer(address, id, answer)
        except Exception as error:  # noqa: BLE001  it is logged
            self._errors.add("sending a reply", error, {"endpoint": self.endpoint})
            try:
                self._answer(address, id, internal_error())
            except Exception as second:  # noqa: BLE001  it is logged
                self.dropped += 1
                self._errors.add("sending an error reply", second, {"endpoint": self.endpoint})

    def _answer(
        self, address: Sequence[bytes], id: bytes, answer: Mapping[str, Any] | Sequence[bytes] | MultitowerError
    ) -> None:
        if isinstance(answer, MultitowerError):
            self.reply(address, wire.ERROR, id, (wire.dump_json(answer.to_wire()),))
        elif isinstance(answer, Mapping):
            self.reply(address, wire.OK, id, (wire.dump_json(answer),))
        else:
            self.reply(address, wire.OK, id, answer)

    def reply(self, address: Sequence[bytes], kind: bytes, id: bytes, body: Sequence[Any]) -> bool:
        """Sends the reply to an executed request.

        It is dropped, and counted, if the client has left. If the client does not read, an error may replace it; see
        `unread`.

        Returns:
            Whether the body has large frames.

        Raises:
            TypeError: a frame of the body has no bytes; nothing was sent.
        """
        backlog = self._recent.get(address[0])
        if backlog is None:
            backlog = self._find_backlog(address[0])
        small, large = REPLY_OVERHEAD, 0
        for frame in body:
            size = len(frame)
            if size < tensors.BULKY_BYTES:
                small += size
            else:
                large += size
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
            message = (
                f"the client has {backlog.unread} bytes of replies unread, and reads nothing; its reply was dropped"
            )
            error = make(Reason.REPLY_DROPPED, message, unread_bytes=backlog.unread)
            kind, body = wire.ERROR, (wire.dump_json(error.to_wire()),)
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
        """Stops listening, and removes the socket's path.

        Args:
            linger_ms: milliseconds that libzmq may take to send what clients have not read.
        """
        if self._listener is not None:
            self._connections.remove(self._listener)
            self._listener.close()
            self._listener = None
        self.socket.close(linger_ms)
        self._release_path()

    def _release_path(self) -> None:
        """Removes the socket's path; in a folder that cannot be written it stays."""
        if self._path is not None:
            self._path.release()
            self._path = None
