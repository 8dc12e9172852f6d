"""Finds out why a client has no connection, and says what to check.

ZeroMQ connects in the background, again and again, and reports no cause. So a plain socket connects once, after an
attempt has failed; nothing of this runs while there is a connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import stat
from pathlib import Path
from typing import Final, NamedTuple

from multitower import wire
from multitower.account_names import group_name, user_name
from multitower.addresses import split_tcp
from multitower.errors import CONNECT_ERROR, ConnectError, MultitowerError, Reason, make

IPC: Final = "ipc://"

_IS_IT_RUNNING: Final = (
    "is the daemon running (multitower serve CONFIG), and is this its endpoint "
    f"({wire.ENDPOINT_VARIABLE} or the client's argument)?"
)
_BUSY: Final = (
    "another program listens there, or the daemon is stopped, or it accepts no more connections (max_connections)"
)
_FIREWALL: Final = "check the address, and whether a firewall drops the packets"
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of making a socket or connecting it that concern this process or machine, not the endpoint."""

_OVERFLOW_GID: Final = 65534
"""The group of files whose group a container does not know."""


KEY_ERRORS: Final = frozenset(
    (ConnectError.KEY_REFUSED, ConnectError.KEY_NEEDED, ConnectError.NO_CURVE, ConnectError.SERVER_KEY_WRONG)
)
"""Causes that lie in the keys: no attempt can succeed before somebody gives other ones."""


class Finding(NamedTuple):
    """Why there is no connection.

    Attributes:
        kind: for programs.
        message: what happened and what to check, for people.
    """

    kind: ConnectError
    message: str

    def to_error(self) -> MultitowerError:
        """The error of a request that could not be sent."""
        reason = Reason.UNAUTHENTICATED if self.kind in KEY_ERRORS else Reason.NOT_LISTENING
        return make(reason, self.message, **{CONNECT_ERROR: self.kind.value})


def timed_out(endpoint: str, waited_s: float, *, by_name: bool) -> Finding:
    """What is known where no attempt to connect has ended.

    Args:
        endpoint: the daemon's.
        waited_s: seconds that the request has waited for a connection.
        by_name: the host has a name, which has to be resolved.
    """
    nothing = f"no connection to {endpoint} within {waited_s:.3g} s"
    if endpoint.startswith(IPC):
        return Finding(ConnectError.TIMED_OUT, f"{nothing}; {_IS_IT_RUNNING}")
    name = ", or its name is not resolved in time" if by_name else ""
    return Finding(ConnectError.TIMED_OUT, f"{nothing}: the host does not answer{name}; {_FIREWALL}; {_IS_IT_RUNNING}")


def no_answer(endpoint: str) -> Finding:
    """What is known where the connection opens and nothing answers."""
    message = f"something listens at {endpoint}, but it does not answer as a multitower daemon: {_BUSY}"
    if endpoint.startswith("tcp://"):
        message += ". Is this an address of `gateway`, for HTTP and gRPC? This client needs one of `listen`"
    return Finding(ConnectError.NO_ANSWER, message)


def listens(endpoint: str) -> Finding:
    """What is known where a plain socket connects, but ZeroMQ is not connected: it pauses between its attempts."""
    message = (
        f"something listens at {endpoint}, but this client is not connected to it yet: if the daemon has just started, "
        "try again in a few seconds, or raise connect_timeout; otherwise another program listens there"
    )
    return Finding(ConnectError.TIMED_OUT, message)


def no_socket(endpoint: str, error: OSError) -> Finding:
    """What is known where this process, or its machine, has no room for a socket.

    Args:
        endpoint: the daemon's.
        error: one whose number is in `EXHAUSTED`.
    """
    message = (
        f"no connection to {endpoint}: this process cannot open a socket: {error.strerror or error}; check its limit "
        "of open files (ulimit -n), and free memory"
    )
    return Finding(ConnectError.NO_SOCKET, message)


def examine(endpoint: str, timeout_s: float) -> Finding:
    """Connects once with a plain socket and tells what happens.

    The connection to an ipc endpoint never blocks. If it is denied, the names of users and groups are looked up.

    Args:
        endpoint: the daemon's; `addresses.check_endpoint` accepts it.
        timeout_s: seconds that each address of a host may take to answer; resolving its name may take longer.
    """
    if endpoint.startswith(IPC):
        return _examine_path(endpoint)
    return _examine_host(endpoint, timeout_s)


# Unix sockets.


def _examine_path(endpoint: str) -> Finding:
    name = endpoint.removeprefix(IPC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect("\0" + name[1:] if name.startswith("@") else name)
    except OSError as error:
        return _refused_path(endpoint, name, error)
    return listens(endpoint)


def _refused_path(endpoint: str, name: str, error: OSError) -> Finding:
    if error.errno == errno.EAGAIN:  # the queue of connections that wait to be accepted is full
        return no_answer(endpoint)
    if error.errno in EXHAUSTED:
        return no_socket(endpoint, error)
    nobody = f"no daemon listens at {endpoint}"
    if name.startswith("@"):
        return Finding(ConnectError.CONNECTION_REFUSED, f"{nobody}; {_IS_IT_RUNNING}")
    path = Path(name)
    with contextlib.suppress(OSError):  # the working directory may have been removed
        path = path.absolute()
    if error.errno == errno.EACCES:
        return _denied(endpoint, path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Finding(ConnectError.NO_SUCH_FILE, f"{nobody}: {_what_is_missing(path)}; {_IS_IT_RUNNING}")
    if error.errno == errno.EPROTOTYPE:
        message = f"{nobody}: {path} is a socket of another kind (not SOCK_STREAM); is this the daemon's endpoint?"
        return Finding(ConnectError.NOT_A_SOCKET, message)
    if error.errno == errno.ECONNREFUSED:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(path.stat().st_mode):
                message = f"{nobody}: {path} is not a socket; is this the daemon's endpoint?"
                return Finding(ConnectError.NOT_A_SOCKET, message)
        reason = "its socket is there, but no process listens on it: the daemon has ended without removing it"
        return Finding(ConnectError.CONNECTION_REFUSED, f"{nobody}: {reason}; {_IS_IT_RUNNING}")
    return Finding(ConnectError.UNREACHABLE, f"{nobody}: {error.strerror or error}; {_IS_IT_RUNNING}")


def _what_is_missing(path: Path) -> str:
    folder = path.parent
    if folder.is_dir():
        return f"there is no file {path}"
    if folder.exists():
        return f"{folder} is not a folder"
    return f"there is no folder {folder}"


def _denied(endpoint: str, path: Path) -> Finding:
    """The socket, or a folder on the way to it, admits other users only."""
    closed = next(
        (each for each in reversed(path.parents) if not os.access(each, os.X_OK, effective_ids=True)),
        None,
    )
    what, bit = (f"the folder {closed}", stat.S_IXGRP) if closed is not None else (f"the socket {path}", stat.S_IWGRP)
    user = user_name(os.geteuid())
    try:
        status = (closed or path).stat()
    except OSError:
        what_it_is, advice = f"{what} cannot be examined", "ask who runs the daemon"
    else:
        owner, group = user_name(status.st_uid), group_name(status.st_gid)
        mode = stat.S_IMODE(status.st_mode)
        what_it_is = f"{what} belongs to user {owner} and group {group} (mode {mode:04o})"
        advice = _admission(user, status, admits_group=bool(mode & bit))
    return Finding(
        ConnectError.PERMISSION_DENIED,
        f"no permission to connect to {endpoint}: {what_it_is}, and this process runs as user {user}; {advice}",
    )


def _admission(user: str, status: os.stat_result, *, admits_group: bool) -> str:
    """What gives a user access that a socket or a folder denies."""
    owner, group = user_name(status.st_uid), group_name(status.st_gid)
    if not admits_group:
        return f"only {owner} is admitted: run this as {owner}, or let the daemon listen where others are admitted"
    if status.st_gid in (os.getegid(), *os.getgroups()):
        return "its group is admitted and this process has it: check access control lists and security modules"
    if status.st_gid in (0, _OVERFLOW_GID):
        # Nobody should join root's group, or one that stands for groups without a name.
        return (
            "let the daemon run with a group that you are in (Group= in its systemd unit), or let it listen on "
            "tcp://127.0.0.1:PORT as well"
        )
    if _is_in_group(status.st_gid):
        return f"{user} is in that group, but this process was started before: log in again"
    return f"join the group (usermod -aG {group} {user}, as root) and log in again"


def _is_in_group(gid: int) -> bool:
    """Whether the user of this process is in a group by the system's databases."""
    try:
        entry = pwd.getpwuid(os.geteuid())
        return gid in os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, OSError):
        return False


# TCP.


def _examine_host(endpoint: str, timeout_s: float) -> Finding:
    host, port = split_tcp(endpoint)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno in EXHAUSTED:
            return no_socket(endpoint, error)
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        message = f"the name of the host in {endpoint} cannot be resolved: {cause}; check its spelling, and DNS"
        return Finding(ConnectError.NAME_NOT_RESOLVED, message)
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(timeout_s)
                probe.connect(address)
        except OSError as error:
            # A refusal says more than another address that does not answer.
            if failure is None or error.errno == errno.ECONNREFUSED:
                failure = error
        else:
            return listens(endpoint)
    if failure is None or isinstance(failure, TimeoutError):
        message = f"no connection to {endpoint}: the host does not answer; {_FIREWALL}; {_IS_IT_RUNNING}"
        return Finding(ConnectError.TIMED_OUT, message)
    if failure.errno in EXHAUSTED:
        return no_socket(endpoint, failure)
    if failure.errno == errno.ECONNREFUSED:
        message = f"no daemon listens at {endpoint}: the connection is refused; {_IS_IT_RUNNING}"
        return Finding(ConnectError.CONNECTION_REFUSED, message)
    kind_found = (
        ConnectError.PERMISSION_DENIED if failure.errno in (errno.EACCES, errno.EPERM) else ConnectError.UNREACHABLE
    )
    message = (
        f"no connection to {endpoint}: {failure.strerror or failure}; check the address, the network, and firewalls"
    )
    return Finding(kind_found, message)
