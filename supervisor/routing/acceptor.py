"""Listening sockets of front sockets: what `Connections` asks of them, and the one that accepts by itself.

`listener.py` has the one that lets libzmq accept.
"""

from __future__ import annotations

import abc
import socket
from collections.abc import Callable


class Acceptor(abc.ABC):
    """A listening socket, whose clients are accepted when `Connections` says so."""

    @property
    @abc.abstractmethod
    def descriptor(self) -> int:
        """Readable while clients wait to be accepted."""

    @abc.abstractmethod
    def accept(self) -> None:
        """Accepts some of the clients that wait, or lets libzmq do so."""

    @abc.abstractmethod
    def read_accepted(self) -> list[int]:
        """The descriptors of the connections that have been accepted since the last call."""

    @abc.abstractmethod
    def set_backlog(self, connections: int) -> None:
        """Sets how many connections may wait to be accepted."""

    @abc.abstractmethod
    def replace(self, listening: socket.socket) -> None:
        """Goes on with another listening socket; connections that have been accepted stay."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stops listening."""


class StreamListener(Acceptor):
    """A listening Unix socket, from which connections are accepted one by one.

    Args:
        listening: the listening socket. The listener owns it.
        on_accepted: gets each connection.
    """

    def __init__(self, listening: socket.socket, on_accepted: Callable[[socket.socket], None]) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._on_accepted = on_accepted
        self._accepted: list[int] = []

    @property
    def descriptor(self) -> int:
        """Readable while clients wait to be accepted."""
        return self._listening.fileno()

    def accept(self) -> None:
        """Accepts one of the clients that wait."""
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return  # it has gone, or descriptors or memory are short; then `Connections` pauses
        descriptor = connection.fileno()
        self._on_accepted(connection)
        self._accepted.append(descriptor)

    def read_accepted(self) -> list[int]:
        """The descriptors of the connections that have been accepted since the last call."""
        accepted, self._accepted = self._accepted, []
        return accepted

    def set_backlog(self, connections: int) -> None:
        """Sets how many connections may wait to be accepted."""
        self._listening.listen(connections)

    def replace(self, listening: socket.socket) -> None:
        """Goes on with another listening socket; connections that have been accepted stay."""
        listening.setblocking(False)
        self._listening.close()
        self._listening = listening

    def close(self) -> None:
        """Stops listening."""
        self._listening.close()
