"""Whether the daemon could use its endpoints and its runtime folder. Nothing is created or kept."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from multitower.account_names import group_name, user_name
from multitower.client.threads import Client
from multitower.errors import CONNECT_ERROR, ConnectError, MultitowerError
from multitower.supervisor.loop.runtime_dir import (
    LOCK_NAME,
    LONGEST_NAME,
    MAX_IPC_PATH,
    is_listened_to,
    private_folder,
    temporary_base,
)
from multitower.supervisor.routing.binding import IPC, SOCKET_MODE
from multitower.temporary_folder import NoTemporaryFolderError
from multitower.tools.doctor.disk_space import ADVICE, no_inodes
from multitower.tools.doctor.findings import Finding, Level

SECTION: Final = "endpoints"
_KEY_ERRORS: Final = (ConnectError.KEY_NEEDED, ConnectError.KEY_REFUSED, ConnectError.SERVER_KEY_WRONG)
"""What a daemon with `security` makes a client say that has no key of it."""

ASK_S: Final = 1.0
"""Seconds in which a running daemon answers."""


def findings(endpoints: Sequence[str], runtime_dir: Path | None) -> Iterator[Finding]:
    """Findings about the endpoints and the folder of the workers' sockets."""
    for endpoint in endpoints:
        yield listening_finding(endpoint, endpoint, _taken_finding)
    yield _runtime_dir_finding(runtime_dir)


def listening_finding(endpoint: str, name: str, taken: Callable[[str], Finding]) -> Finding:
    """A finding about whether the daemon could listen on an endpoint.

    Args:
        endpoint: in the form of `listen`.
        name: of the endpoint, for people.
        taken: returns the finding for an endpoint that is in use; gets `name`.
    """
    return _ipc_finding(endpoint, name, taken) if endpoint.startswith(IPC) else _tcp_finding(endpoint, name, taken)


def _ipc_finding(endpoint: str, name: str, taken: Callable[[str], Finding]) -> Finding:
    path = Path(endpoint.removeprefix(IPC))
    folder = path.parent
    if not folder.is_dir():
        return Finding(SECTION, Level.PROBLEM, f"{name}: the folder {folder} does not exist", _creation_advice(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = "make the daemon's user its owner, or configure another"
        return Finding(SECTION, Level.PROBLEM, f"{name}: the folder {folder} cannot be written", advice)
    if path.exists() and not path.is_socket():
        return Finding(SECTION, Level.PROBLEM, f"{name}: {path} is a file, not a socket", "remove or rename it")
    # Whether a process listens on a socket of another user cannot be found out.
    closed = path.exists() and not os.access(path, os.W_OK)
    if closed or _is_locked(path.with_name(path.name + ".lock")) or is_listened_to(path):
        return taken(name)
    if (cause := no_inodes(folder)) is not None:
        return Finding(SECTION, Level.PROBLEM, f"{name}: no socket can be made in {folder}: {cause}", ADVICE)
    length = len(os.fsencode(path))
    text = f"{name} is free ({length} of {MAX_IPC_PATH} bytes of path); {_who_can_connect(folder)}"
    return Finding(SECTION, Level.OK, text)


def _who_can_connect(folder: Path) -> str:
    """Which users the socket will admit, if the daemon runs as this process does."""
    user, status = user_name(os.geteuid()), folder.stat()
    # In a folder with the set-group-ID bit, files get the group of the folder.
    group = status.st_gid if status.st_mode & stat.S_ISGID else os.getegid()
    for each in (folder.absolute(), *folder.absolute().parents):
        status = each.stat()
        passes = stat.S_IXOTH | (stat.S_IXGRP if status.st_gid == group else 0)
        if not status.st_mode & passes:
            mode = stat.S_IMODE(status.st_mode)
            return f"with this user only {user} can connect: the folder {each} has mode {mode:04o}"
    return f"with this user {user} and group {group_name(group)} can connect (mode {SOCKET_MODE:04o})"


def _creation_advice(folder: Path) -> str:
    if folder.is_relative_to("/run"):
        name = folder.relative_to("/run").parts[:1]
        return f"RuntimeDirectory={'/'.join(name)} in the systemd unit creates it, or install -d -o USER {folder}"
    return f"mkdir -p {folder}"


def _tcp_finding(endpoint: str, name: str, taken: Callable[[str], Finding]) -> Finding:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if port == "*":
        return Finding(SECTION, Level.OK, f"{name} takes a free port, shown in the log and by `status`")
    try:
        _try_to_listen(host, int(port))
    except socket.gaierror as error:
        text = f"{name} was not checked: the name {host} cannot be resolved here ({error.strerror})"
        advice = (
            "if it is not the name of a network interface, check DNS; `multitower serve` waits until it is resolved"
        )
        return Finding(SECTION, Level.NOTE, text, advice)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return taken(name)
        advice = "configure another" if error.errno != errno.EACCES else "ports below 1024 need root: configure another"
        if error.errno in (errno.EADDRNOTAVAIL, errno.EACCES):
            advice += "; `multitower serve` waits until it can listen, unless --strict is given"
        return Finding(SECTION, Level.PROBLEM, f"{name} cannot be used: {error.strerror or error}", advice)
    return Finding(SECTION, Level.OK, f"{name} is free")


def _try_to_listen(host: str, port: int) -> None:
    """Listens on the port for a moment."""
    addresses: list[tuple[int, Any]]
    if host == "*":
        addresses = [(socket.AF_INET6, ("::", port))] if socket.has_dualstack_ipv6() else [(socket.AF_INET, ("", port))]
    else:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        addresses = [(family, address) for family, _, _, _, address in found]
        addresses.sort(key=lambda entry: entry[0] == socket.AF_INET6)  # IPv4 first, like the daemon
    family, address = addresses[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if host == "*" and family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Like libzmq: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        # Only this fails where another process listens with the same option.
        probe.listen(1)


def _taken_finding(endpoint: str) -> Finding:
    error = _ask_daemon(endpoint)
    if error is None:
        advice = "`multitower reload` applies a changed configuration to it; a second daemon needs other endpoints"
        return Finding(SECTION, Level.WARNING, f"{endpoint}: a daemon is running there", advice)
    if error.details.get(CONNECT_ERROR) == ConnectError.PERMISSION_DENIED:
        return Finding(SECTION, Level.WARNING, f"{endpoint} belongs to another user", error.message)
    if error.details.get(CONNECT_ERROR) in _KEY_ERRORS:
        advice = (
            "a second daemon needs other endpoints; with its keys, `multitower reload` applies a changed configuration"
        )
        return Finding(SECTION, Level.WARNING, f"{endpoint}: a daemon with `security` is running there", advice)
    advice = "end that process (ss -ltnpx lists it), or configure another endpoint"
    return Finding(SECTION, Level.PROBLEM, f"{endpoint} is used by another process", advice)


def _ask_daemon(endpoint: str) -> MultitowerError | None:
    """Why no daemon answers; None if one does."""
    try:
        with Client(endpoint, timeout=ASK_S, connect_timeout=ASK_S) as client:
            client.live()
    except MultitowerError as error:
        return error
    return None


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # it does not exist, or belongs to another user, as does the folder then
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _runtime_dir_finding(configured: Path | None) -> Finding:
    """A finding about the folder that `supervisor.loop.runtime_dir` would use."""
    systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    chosen = configured or (Path(systemd) if systemd else None)
    refused = None
    if chosen is None:
        try:
            base, refused = temporary_base()
        except NoTemporaryFolderError as error:
            text = f"the workers' sockets: {error.cause}"
            return Finding(SECTION, Level.PROBLEM, text, "set TMPDIR, or runtime_dir to a folder of the daemon's user")
        folder = base / "multitower-12345678"
    else:
        try:
            folder = private_folder(chosen)
        except OSError as error:
            advice = "set runtime_dir to a folder of the daemon's user"
            return Finding(SECTION, Level.PROBLEM, f"the workers' sockets: no folder can be created: {error}", advice)
        if folder.exists():
            return _existing_folder_finding(folder)
    parent = next(parent for parent in folder.parents if parent.exists())
    length = len(os.fsencode(folder / LONGEST_NAME))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        text = f"the workers' sockets: no folder can be created in {parent}"
        return Finding(SECTION, Level.PROBLEM, text, "set runtime_dir to a folder of the daemon's user")
    if (cause := no_inodes(parent)) is not None:
        text = f"the workers' sockets: no folder can be created in {parent}: {cause}"
        return Finding(SECTION, Level.PROBLEM, text, ADVICE)
    if length > MAX_IPC_PATH:
        text = f"the workers' sockets in {folder} would have paths of {length} bytes; the limit is {MAX_IPC_PATH}"
        return Finding(SECTION, Level.PROBLEM, text, "set runtime_dir to a shorter path")
    text = f"the workers' sockets get a folder in {parent} ({length} of {MAX_IPC_PATH} bytes)"
    if refused is not None:
        advice = "set runtime_dir, or unset XDG_RUNTIME_DIR, which `su` and `sudo -E` keep"
        return Finding(SECTION, Level.NOTE, f"{text}, since XDG_RUNTIME_DIR {refused}", advice)
    return Finding(SECTION, Level.OK, text)


def _existing_folder_finding(folder: Path) -> Finding:
    text = f"the workers' sockets: {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = "check its permissions and its file system"
        return Finding(SECTION, Level.PROBLEM, f"{text} cannot be written", advice)
    if _is_locked(folder / LOCK_NAME):
        advice = "a second daemon needs another runtime_dir"
        return Finding(SECTION, Level.WARNING, f"{text} is in use by a running daemon", advice)
    if (cause := no_inodes(folder)) is not None:
        return Finding(SECTION, Level.PROBLEM, f"{text} cannot hold them: {cause}", ADVICE)
    length = len(os.fsencode(folder / LONGEST_NAME))
    if length > MAX_IPC_PATH:
        text = f"{text}: paths would have {length} bytes; the limit is {MAX_IPC_PATH}"
        return Finding(SECTION, Level.PROBLEM, text, "set runtime_dir to a shorter path")
    return Finding(SECTION, Level.OK, f"{text} can be used")
