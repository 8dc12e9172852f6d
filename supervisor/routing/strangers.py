"""Connections over CURVE whose sender nobody knows any more, since its principal was removed, and that go on asking.

Each of their messages is answered by a refusal, so that the client learns why. That costs as much as other answers, and
nothing would ever end it: so a connection is closed after `CLOSED_AFTER` messages. The handshake of the next one is
refused, and the client is told so.

libzmq cannot be told to close a connection, but says by which descriptor a message came. The connection may have been
closed since, and another one may have that number by the time the message is read. So the socket that is closed is the
one that had the number already `CLOSED_AFTER` messages of this connection before: no more than `READ_AHEAD` wait to be
read, so the last of them arrived later than that, by this socket.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from .acceptor import socket_inode
from .listener import Accepted, same_socket

READ_AHEAD: Final = 64
"""Messages of one connection that libzmq reads ahead."""

CLOSED_AFTER: Final = 2 * READ_AHEAD
"""Messages after which a connection is closed."""

MAX_STRANGERS: Final = 8192
"""Connections whose messages are counted; the one that was first seen goes."""


class _Stranger:
    """A connection.

    Attributes:
        accepted: the socket that had its number when counting began; None where that number had no socket.
        messages: since then.
    """

    __slots__ = ("accepted", "messages")

    def __init__(self, accepted: Accepted | None) -> None:
        self.accepted = accepted
        self.messages = 0


class Strangers:
    """Counts messages by connection, and closes connections that have sent too many."""

    def __init__(self) -> None:
        self._by_name: dict[bytes, _Stranger] = {}

    def note(self, name: bytes, descriptor: int) -> None:
        """Counts a message whose sender nobody knows.

        Args:
            name: of its connection.
            descriptor: by which it came.
        """
        stranger = self._by_name.get(name)
        if stranger is None or stranger.accepted is None or stranger.accepted[0] != descriptor:
            if stranger is None and len(self._by_name) >= MAX_STRANGERS:
                del self._by_name[next(iter(self._by_name))]
            inode = socket_inode(descriptor)
            self._by_name[name] = _Stranger(None if inode is None else (descriptor, inode))
            return
        stranger.messages += 1
        if stranger.messages < CLOSED_AFTER:
            return
        del self._by_name[name]
        # An OSError says that it has been closed already, maybe by the client.
        with contextlib.suppress(OSError), same_socket(stranger.accepted) as connection:
            connection.shutdown(socket.SHUT_RDWR)  # libzmq notices that, and closes it
