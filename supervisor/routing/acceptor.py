"""Listening sockets of front sockets: what `Connections` asks of them, and the one over ipc, with its path.

`tcp_listener.py` has the one over tcp. Where connections are encrypted, `listener.py` lets libzmq accept them.
"""

from __future__ import annotations

import abc
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .binding import IPC, listen_on_path, listening_error, take_path
from .stream_peer import Origin, read_credentials

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


class StreamListener(Acceptor):
    """A listening socket, from which the daemon accepts connections one by one.

    Args:
        endpoint: that it listens at.
        connections: says when clients are accepted.
        on_accepted: gets each connection.
        listening: the listening socket, which does not block from now on. The listener owns it.

    Attributes:
        endpoint: as given, or what `restore` was called with last.
        peer_timeout_s: seconds after which a client that is silent counts as gone; 0 for never.
    """

    def __init__(
        self,
        endpoint: str,
        connections: Connections,
        on_accepted: Callable[[socket.socket], None],
        listening: socket.socket,
        peer_timeout_s: float = 0.0,
    ) -> None:
        self.peer_timeout_s = peer_timeout_s
        self.endpoint = endpoint
        self._connections = connections
        self._on_accepted = on_accepted
        self._listening = listening
        self._accepted: list[int] = []
        try:
            listening.setblocking(False)
            connections.add(self)
        except BaseException:
            listening.close()
            raise

    @property
    @abc.abstractmethod
    def local(self) -> bool:
        """Whether its clients run on this machine."""

    @abc.abstractmethod
    def prepare(self, connection: socket.socket) -> Origin:
        """Sets the options of a connection that has been accepted, and finds out whose it is.

        Raises:
            OSError: it has ended.
        """

    def restore(self, endpoint: str) -> bool:
        """Binds the socket again; see `FrontSocket.restore`. Only a path can be removed."""
        return False

    def touch(self) -> None:
        """Keeps the files from looking old."""

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
        """Stops listening."""
        self._connections.remove(self)
        self._listening.close()
        self._on_accepted = _close  # it refers to the front socket, which refers to this


class PathListener(StreamListener):
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
        try:
            endpoint.encode()  # neither clients nor the status could name another one
        except UnicodeError as error:
            raise listening_error(endpoint, error) from None
        self._path = take_path(endpoint)
        try:
            listening = self._listen(endpoint, connections.backlog)
        except OSError as error:
            self._path.release()
            raise listening_error(endpoint, error) from None
        try:
            super().__init__(endpoint, connections, on_accepted, listening)
        except BaseException:
            self._path.release()
            raise

    @property
    def local(self) -> bool:
        """Only processes of this machine can connect."""
        return True

    def prepare(self, connection: socket.socket) -> Origin:
        """Asks the kernel which process has connected. It needs no option: the kernel ends it with the process."""
        return read_credentials(connection)

    def _listen(self, endpoint: str, backlog: int) -> socket.socket:
        listening = listen_on_path(Path(endpoint.removeprefix(IPC)), backlog)
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
            listening = self._listen(endpoint, self._connections.backlog)
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

    def close(self) -> None:
        """Stops listening, and removes the path; in a folder that cannot be written it stays."""
        super().close()
        self._path.release()


def socket_inode(descriptor: int) -> int | None:
    """The inode of the socket that a descriptor refers to: each socket has another one.

    Returns:
        None if it refers to no socket: the connection has been closed, and another file may have its number by now.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def _close(connection: socket.socket) -> None:
    connection.close()
