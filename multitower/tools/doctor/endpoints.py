"""Whether the daemon can have its endpoints and its folder: looked at, not taken."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.supervisor.loop.runtime_dir import LOCK_NAME, LONGEST_NAME, MAX_IPC_PATH, private_folder
from multitower.supervisor.routing.front_socket import IPC
from multitower.tools.doctor.findings import Finding, Level

SECTION: Final = "endpoints"
ASK_S: Final = 1.0
"""A daemon that lives answers within that."""


def findings(endpoints: Sequence[str], runtime_dir: Path | None) -> Iterator[Finding]:
    """What there is to say of the endpoints and of the folder of the workers' sockets."""
    for endpoint in endpoints:
        yield _ipc(endpoint) if endpoint.startswith(IPC) else _tcp(endpoint)
    yield _folder(runtime_dir)


def _ipc(endpoint: str) -> Finding:
    path = Path(endpoint.removeprefix(IPC))
    folder = path.parent
    if not folder.is_dir():
        return Finding(SECTION, Level.PROBLEM, f"{endpoint}: the folder {folder} does not exist", _make(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = "give it to the daemon's user, or name another"
        return Finding(SECTION, Level.PROBLEM, f"{endpoint}: the folder {folder} cannot be written", advice)
    if path.exists() and not path.is_socket():
        return Finding(SECTION, Level.PROBLEM, f"{endpoint}: {path} is a file that is no socket", "remove or rename it")
    if _is_locked(path.with_name(path.name + ".lock")):
        return _held(endpoint)
    length = len(os.fsencode(path))
    return Finding(SECTION, Level.OK, f"{endpoint} is free ({length} of {MAX_IPC_PATH} bytes of path)")


def _make(folder: Path) -> str:
    if folder.is_relative_to("/run"):
        name = folder.relative_to("/run").parts[:1]
        return f"RuntimeDirectory={'/'.join(name)} in the systemd unit makes it, or install -d -o USER {folder}"
    return f"mkdir -p {folder}"


def _tcp(endpoint: str) -> Finding:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if port == "*":
        return Finding(SECTION, Level.OK, f"{endpoint} takes a free port, which the log and `status` tell")
    try:
        _listen(host, int(port))
    except socket.gaierror as error:
        text = f"{endpoint} was not looked at: {host} is not resolved here ({error.strerror})"
        return Finding(SECTION, Level.NOTE, text, "libzmq takes names of network interfaces, too; else see DNS")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _held(endpoint)
        advice = "choose another" if error.errno != errno.EACCES else "ports below 1024 are root's: choose another"
        return Finding(SECTION, Level.PROBLEM, f"{endpoint} cannot be used: {error.strerror or error}", advice)
    return Finding(SECTION, Level.OK, f"{endpoint} is free")


def _listen(host: str, port: int) -> None:
    """Takes the port for a moment."""
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As libzmq does: a port whose last connections are ending is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("" if host == "*" else host.strip("[]"), port))
        # Only this tells of somebody who listens with the same option.
        probe.listen(1)


def _held(endpoint: str) -> Finding:
    if _answers(endpoint):
        advice = "`multitower reload` gives it a changed configuration; a second one needs endpoints of its own"
        return Finding(SECTION, Level.WARNING, f"{endpoint}: a daemon serves there", advice)
    advice = "end what holds it (ss -ltnpx shows who), or choose another"
    return Finding(SECTION, Level.PROBLEM, f"{endpoint} is held by another process", advice)


def _answers(endpoint: str) -> bool:
    try:
        with Client(endpoint, timeout=ASK_S, connect_timeout=ASK_S) as client:
            return client.live()
    except MultitowerError:
        return False


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # none, or another user's: then the folder tells
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _folder(configured: Path | None) -> Finding:
    """The folder that `runtime.RuntimeDir` would use."""
    systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    chosen = configured or (Path(systemd) if systemd else None)
    if chosen is None:
        folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / "multitower-12345678"
    else:
        try:
            folder = private_folder(chosen)
        except OSError as error:
            advice = "set runtime_dir to a folder of the daemon's user"
            return Finding(SECTION, Level.PROBLEM, f"the workers' sockets: no folder can be made: {error}", advice)
        if folder.exists():
            return _existing(folder)
    parent = next(parent for parent in folder.parents if parent.exists())
    length = len(os.fsencode(folder / LONGEST_NAME))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        text = f"the workers' sockets: no folder can be made in {parent}"
        return Finding(SECTION, Level.PROBLEM, text, "set runtime_dir to a folder of the daemon's user")
    if length > MAX_IPC_PATH:
        text = f"the workers' sockets in {folder} would have paths of {length} bytes, and {MAX_IPC_PATH} are the most"
        return Finding(SECTION, Level.PROBLEM, text, "set runtime_dir to a shorter path")
    return Finding(
        SECTION, Level.OK, f"the workers' sockets get a folder in {parent} ({length} of {MAX_IPC_PATH} bytes)"
    )


def _existing(folder: Path) -> Finding:
    told = f"the workers' sockets: {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(SECTION, Level.PROBLEM, f"{told} cannot be written", "see its permissions and its file system")
    if _is_locked(folder / LOCK_NAME):
        advice = "a second daemon needs a runtime_dir of its own"
        return Finding(SECTION, Level.WARNING, f"{told} is in use by a running daemon", advice)
    length = len(os.fsencode(folder / LONGEST_NAME))
    if length > MAX_IPC_PATH:
        text = f"{told}: paths of {length} bytes, and {MAX_IPC_PATH} are the most"
        return Finding(SECTION, Level.PROBLEM, text, "set runtime_dir to a shorter path")
    return Finding(SECTION, Level.OK, f"{told} can be used")
