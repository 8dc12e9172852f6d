"""Listening sockets of front sockets: what `Connections` asks of them, and the one over ipc, with its path.

`listener.py` has the one over tcp, which lets libzmq accept.
"""

from __future__ import annotations

import abc
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .binding import IPC, listen_on_path, listening_error, take_path

if TYPE_CHECKING:
    from .connections import Connections

_NO_ROOM: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""Errors of accept(2) after which the client still waits, so that it is tried again later, and not at once."""


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


class PathListener(Acceptor):
    """A listening Unix socket, from which connections are accepted one by one, and its path.

    Args:
        endpoint: `ipc://PATH`.
        connections: says when clients are accepted.
        on_accepted: gets each connection.

    Attributes:
        endpoint: as given, or what `restore` was called with last.

    Raises:
        HeldError: another process holds the path.
        NotBindableYetError: the path cannot be used now, but perhaps later.
        OSError: it cannot be used.
    """

    def __init__(self, endpoint: str, connections: Connections, on_accepted: Callable[[socket.socket], None]) -> None:
        self.endpoint = endpoint
        self._connections = connections
        self._on_accepted = on_accepted
        self._accepted: list[int] = []
        try:
            endpoint.encode()  # neither clients nor the status could name another one
        except UnicodeError as error:
            raise listening_error(endpoint, error) from None
        self._path = take_path(endpoint)
        try:
            self._listening = self._listen()
        except OSError as error:
            self._path.release()
            raise listening_error(endpoint, error) from None
        try:
            connections.add(self)
        except BaseException:
            self._listening.close()
            self._path.release()
            raise

    def _listen(self) -> socket.socket:
        listening = listen_on_path(Path(self.endpoint.removeprefix(IPC)), self._connections.backlog)
        try:
            listening.setblocking(False)
            self._path.bound()
        except OSError:
            listening.close()
            raise
        return listening

    def restore(self, endpoint: str) -> bool:
        """Binds the socket again; see `FrontSocket.restore`."""
        if endpoint == self.endpoint:
            # Otherwise only its lock was removed.
            if self._path.intact or not self._path.retake():
                return False
        else:
            path = take_path(endpoint)
            self._path.release()
            # Together: if listening fails below, the next call takes this path again instead of a second lock on it.
            self._path, self.endpoint = path, endpoint
        try:
            listening = self._listen()
        except OSError as error:
            raise OSError(f"cannot listen on {endpoint}: {error.strerror or error}") from None
        self._connections.remove(self)
        self._listening.close()
        self._listening = listening
        self._connections.add(self)
        return True

    def touch(self) -> None:
        """Keeps the files from looking old."""
        self._path.touch()

    @property
    def descriptor(self) -> int:
        """Readable while clients wait to be accepted."""
        return self._listening.fileno()

    def accept(self) -> None:
        """Accepts one of the clients that wait."""
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            # Otherwise it has gone.
            if error.errno in _NO_ROOM:
                self._connections.pause()
            return
        self._accepted.append(connection.fileno())
        self._on_accepted(connection)

    def read_accepted(self) -> list[int]:
        """The descriptors of the connections that have been accepted since the last call."""
        accepted, self._accepted = self._accepted, []
        return accepted

    def set_backlog(self, connections: int) -> None:
        """Sets how many connections may wait to be accepted."""
        self._listening.listen(connections)

    def close(self) -> None:
        """Stops listening, and removes the path; in a folder that cannot be written it stays."""
        self._connections.remove(self)
        self._listening.close()
        self._path.release()
        self._on_accepted = _close  # it refers to the front socket, which refers to this


def _close(connection: socket.socket) -> None:
    connection.close()
