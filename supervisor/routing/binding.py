"""What listening on an endpoint takes: its path or address, and the words for what prevents it.

Front sockets and the listening sockets of the gateway use it.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

import zmq

from multitower.addresses import literal_version

from ..loop.runtime_dir import HeldError, NotBindableYetError
from ..loop.socket_path import SocketPath

IPC = "ipc://"

LISTEN: Final = "listen"
"""The key of the configuration that names the endpoints of clients."""

SOCKET_MODE = 0o660

_TEMPORARY = frozenset(
    (
        errno.EADDRNOTAVAIL,
        errno.ENODEV,
        errno.ENETDOWN,
        errno.ENOENT,
        errno.EACCES,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.ESTALE,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
    )
)
"""Errors of a bind that no change of the configuration file must mend.

An address or a folder comes, permission is granted, a file system recovers, descriptors or memory become free.
"""


def bind(endpoint: str, binder: zmq.Socket[bytes]) -> None:
    """Binds a socket; `*` is all addresses of both families, and a name its IPv4 address if it has one, else IPv6.

    Raises:
        zmq.ZMQError: it cannot be bound.
    """
    version = literal_version(endpoint)
    first = version == 6 or endpoint.startswith("tcp://*:")
    binder.set(zmq.IPV6, int(first))
    try:
        binder.bind(endpoint)
    except zmq.ZMQError as error:
        # The machine has no IPv6, or the name no IPv4 address.
        if version is not None or error.errno not in (zmq.EADDRNOTAVAIL, zmq.EAFNOSUPPORT, errno.ENODEV):
            raise
        binder.set(zmq.IPV6, int(not first))
        try:
            binder.bind(endpoint)
        except zmq.ZMQError:
            raise error from None


def take_path(endpoint: str, name: str | None = None, *, setting: str = LISTEN) -> SocketPath:
    """Takes the path of an ipc endpoint.

    Args:
        endpoint: `ipc://PATH`.
        name: what errors call it, instead of the endpoint.
        setting: the key of the configuration that names it.

    Raises:
        HeldError: another process holds the path.
        NotBindableYetError: the path cannot be used now, but perhaps later.
        OSError: it cannot be used.
    """
    name = name or endpoint
    path = Path(endpoint.removeprefix(IPC))
    try:
        return SocketPath(path)
    except HeldError:
        raise _held(name, setting) from None
    except FileExistsError as error:
        raise FileExistsError(f"cannot listen on {name}: {error}") from None
    except OSError as error:
        folder = path.parent
        what = f"the folder {folder} does not exist" if not folder.exists() else f"{folder}: {error.strerror}"
        raise bind_error(error.errno, f"cannot listen on {name}: {what}") from None


def _held(name: str, setting: str) -> HeldError:
    return HeldError(f"{name} is in use by another process; `ss -ltnpx` shows which: end it, or change {setting}")


def listen_on_path(path: Path, backlog: int) -> socket.socket:
    """Listens at a path, which is replaced if it exists.

    Raises:
        OSError: the path cannot be used.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        # With a chmod after the bind, the path would be open to others for a moment.
        umask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(umask)
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening


def bind_error(number: int | None, message: str) -> OSError:
    """The error for a bind that failed with this error number: whether it may succeed later."""
    return NotBindableYetError(message) if number in _TEMPORARY else OSError(message)


def listening_error(name: str, error: BaseException, *, setting: str = LISTEN) -> BaseException:
    """The error for a user, for what was raised while an endpoint was bound; `error` itself where there is none.

    Args:
        name: of the endpoint, for people.
        error: as raised.
        setting: the key of the configuration that names the endpoint.
    """
    if isinstance(error, UnicodeError):
        return OSError(f"cannot listen on {name!a}: the address is not UTF-8")
    if not isinstance(error, (zmq.ZMQError, OSError)):
        return error
    if error.errno == errno.EADDRINUSE:
        return _held(name, setting)
    return bind_error(error.errno, f"cannot listen on {name}: {error.strerror or error}")
