"""A front socket: the endpoint that clients connect to. It reads requests and sends replies, and never blocks.

The router has one for each address of `listen`, one for the gateway, and the control endpoint is one too. There are two
kinds: `stream_front.py` serves its connections without libzmq; for CURVE, `router_front.py` is a ROUTER of libzmq.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.containment import ErrorLog
from ..loop.reactor import unwatched
from ..security.authenticator import GATEWAY
from ..security.entrance import Entrance
from .connections import Connections
from .unread import REPLY_OVERHEAD, Backlog, UnreadReplies

log = logging.getLogger("multitower.router")

MAX_HOPS = 16
"""Address frames before the delimiter: the client's own, and one for each intermediary."""

MAX_HOP_BYTES = 255
"""Of one of them: an identity of ZeroMQ has no more. They are kept with a request, and sent back with its reply."""

MAX_FRAMES = MAX_HOPS + 4 + wire.MAX_INPUTS + 1
"""Frames of a message that are kept: one more than any valid one has, so that a message with too many is noticed."""

LOG_EVERY_S = 10.0
"""Seconds from one line of the log about connections that are closed to the next."""


def internal_error() -> MultitowerError:
    """The error for a request that met a defect of multitower; the caller logs the traceback."""
    return make(Reason.INTERNAL_ERROR, "a defect of the daemon, whose log has the traceback")


class Incoming:
    """A message of a client.

    Attributes:
        address: the frames before the delimiter, which lead back to the client; the first one names its connection.
        body: the frames behind the delimiter; None without a delimiter behind at most `MAX_HOPS` frames of at most
            `MAX_HOP_BYTES`.
        connection: the property of its connection that the front socket's entrance needs to find the sender; None where
            there is none.
    """

    __slots__ = ("address", "body", "connection")

    def __init__(self, address: tuple[bytes, ...], body: list[Any] | None, connection: str | None = None) -> None:
        self.address = address
        self.body = body
        self.connection = connection


class FrontSocket(abc.ABC):
    """One bound endpoint.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`.
        unread: counts what clients leave unread; shared by all front sockets.
        connections: accepts its clients.
        entrance: finds who sends its messages; None without `security`.

    Attributes:
        entrance: as given.
        endpoint: as bound, with the real port.
        dropped: replies whose client had left or did not read.
        recheck: called with each reply, and where messages are left unread; see `Reactor.add_source`.
        interface: how its clients' requests came: `mt1`, or `gateway` where the gateway is the only client.
    """

    def __init__(
        self, endpoint: str, unread: UnreadReplies, connections: Connections, entrance: Entrance | None
    ) -> None:
        self.endpoint = endpoint
        self.entrance = entrance
        self.dropped = 0
        self.recheck: Callable[[], object] = unwatched
        self.interface = "mt1"
        self._errors = ErrorLog(log)
        self._unread = unread
        self._connections = connections

    # What is listened at.

    @property
    @abc.abstractmethod
    def local(self) -> bool:
        """Whether its clients run on this machine, and so may use shared memory."""

    @property
    def takes_orders(self) -> bool:
        """Whether the senders are known, so that those who may can give orders here.

        None are taken at the gateway's endpoint: the gateway gives its orders at the control socket.
        """
        return self.entrance is not None and self.interface != GATEWAY

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
        return False

    def touch(self) -> None:  # noqa: B027  only a path has files
        """Keeps the files of an ipc endpoint from looking old; see `RuntimeDir`."""

    @abc.abstractmethod
    def close(self, linger_ms: int = 0) -> None:
        """Stops listening, and closes all connections.

        Args:
            linger_ms: milliseconds for which what clients have not read may still be sent.
        """

    # Requests.

    @property
    @abc.abstractmethod
    def descriptor(self) -> int:
        """Readable when messages may have arrived."""

    @property
    @abc.abstractmethod
    def readable(self) -> bool:
        """Whether a message is there that `descriptor` may not report."""

    @abc.abstractmethod
    def look(self) -> bool:
        """Called before the loop waits, if `recheck` was: sends what has been collected, and returns `readable`."""

    @abc.abstractmethod
    def receive(self) -> Incoming | None:
        """The next message, or None if there is none."""

    def tick(self, now: float) -> None:  # noqa: B027  most have nothing to do
        """Does periodic work; called a few times a second.

        Args:
            now: monotonic seconds.
        """

    def note_stranger(self, client: bytes) -> None:  # noqa: B027  only where keys can be revoked
        """Called when nobody knows the sender of the message that was received last; closes a connection after many.

        Args:
            client: the name of its connection.
        """

    # Replies.

    @abc.abstractmethod
    def _find_backlog(self, client: bytes) -> Backlog:
        """The backlog of a connection; a new one, if it has none unread."""

    @abc.abstractmethod
    def reply(self, address: Sequence[bytes], kind: bytes, id: bytes, body: Sequence[Any]) -> bool:
        """Sends the reply to an executed request.

        It is dropped, and counted, if the client has left. If the client does not read, an error may replace it; see
        `unread`.

        Returns:
            Whether the body has large frames.

        Raises:
            TypeError: a frame of the body has no bytes; nothing was sent.
        """

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


def reply_bytes(address: Sequence[bytes], body: Sequence[Any]) -> tuple[int, int]:
    """Returns the bytes of a reply that count as unread: of its small frames, with the overhead, and of its large ones.

    Args:
        address: the frames before the delimiter.
        body: the frames from the header on.
    """
    small, large = REPLY_OVERHEAD, 0
    if len(address) > 1:
        small += sum(map(len, address)) - len(address[0])  # of proxies
    for frame in body:
        size = len(frame)
        if size < tensors.BULKY_BYTES:
            small += size
        else:
            large += size
    return small, large


def dropped_reply(unread_bytes: int) -> MultitowerError:
    """The error that replaces a reply to a client that reads nothing.

    Args:
        unread_bytes: what the client has unread.
    """
    message = f"the client has {unread_bytes} bytes of replies unread, and reads nothing; its reply was dropped"
    return make(Reason.REPLY_DROPPED, message, unread_bytes=unread_bytes)


def incoming(name: bytes, message: list[Any], start: int, connection: str | None) -> Incoming:
    """A message as it was received.

    Args:
        name: of its connection.
        message: its frames.
        start: the index of its first frame behind the name.
        connection: see `Incoming`.
    """
    if len(message) > start and not message[start]:  # no intermediary, as nearly always
        return Incoming((name,), message[start + 1 :], connection)
    for index in range(start, min(len(message), MAX_HOPS + start)):
        size = len(message[index])
        if size == 0:
            return Incoming((name, *message[start:index]), message[index + 1 :], connection)
        if size > MAX_HOP_BYTES:
            break
    return Incoming((name,), None, connection)
