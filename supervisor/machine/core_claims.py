"""Which cores the daemons of a machine have bound their workers to, so that two daemons do not bind the same ones.

A daemon binds an abstract Unix socket (unix(7)) with its cores in the name, `@multitower-cores:PID:0-3,8`, and every
process finds it in /proc/net/unix. The kernel removes the name when the daemon ends, however it ends. Users do not
matter, nor do private folders. Daemons in containers with networks of their own do not see each other: give each
container its own cores.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from .cores import format_core_list, parse_core_list

SOCKETS: Final = Path("/proc/net/unix")

_PREFIX: Final = "multitower-cores"
_TURN: Final = f"\0{_PREFIX}-turn"
_TURN_S: Final = 2.0
"""Seconds to wait for a turn. A daemon takes milliseconds, so a process that holds it for longer is ignored."""

_MAX_LIST: Final = 64
"""Characters of a list of cores in a name, which has at most 107 bytes."""


def read_claims(file: Path = SOCKETS) -> dict[str, frozenset[int]]:
    """Returns the cores that daemons have claimed, by the pid of each daemon and a random word, as in `1234:9f3c`.

    Args:
        file: the system's list of Unix sockets. Where it cannot be read, nothing is claimed.
    """
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    claims: dict[str, frozenset[int]] = {}
    for line in lines:
        _, separator, name = line.rpartition(f" @{_PREFIX}:")
        claimant, _, cores = name.rpartition(":")
        if separator:
            with contextlib.suppress(ValueError):
                claims[claimant] = claims.get(claimant, frozenset()).union(parse_core_list(cores))
    return claims


class CoreClaims:
    """The cores that this daemon has claimed, from `claim` until `close` or the end of the process."""

    def __init__(self) -> None:
        self._claimant = f"{os.getpid()}:{secrets.token_hex(4)}"
        self._sockets: list[socket.socket] = []
        self._claimed: frozenset[int] = frozenset()

    def taken(self) -> frozenset[int]:
        """Returns the cores that other daemons have claimed."""
        others = (cores for claimant, cores in read_claims().items() if claimant != self._claimant)
        return frozenset[int]().union(*others)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Keeps other daemons from claiming cores between a call of `taken` and one of `claim`.

        It may block for `_TURN_S`. Without a turn until then, or where such sockets cannot be made, it goes on.
        """
        deadline = time.monotonic() + _TURN_S
        with contextlib.ExitStack() as stack:
            while time.monotonic() < deadline:
                try:
                    stack.enter_context(_bound_socket(_TURN))
                    break
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        break
                time.sleep(0.01)
            yield

    def claim(self, cores: Collection[int]) -> None:
        """Claims cores in addition to those claimed before. Best effort: a sandbox may forbid such sockets."""
        new = sorted(set(cores) - self._claimed)
        self._claimed |= set(new)
        for part in _parts(new):
            with contextlib.suppress(OSError):
                self._sockets.append(_bound_socket(f"\0{_PREFIX}:{self._claimant}:{part}"))

    def close(self) -> None:
        """Gives up all claims."""
        for claim in self._sockets:
            claim.close()
        self._sockets.clear()
        self._claimed = frozenset()


def _bound_socket(name: str) -> socket.socket:
    """A socket with a name.

    Raises:
        OSError: another socket has the name, or the system does not allow it.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(name)
    except OSError:
        made.close()
        raise
    return made


def _parts(cores: Collection[int]) -> Iterator[str]:
    """Lists in the kernel's format that are short enough for a name."""
    part: list[int] = []
    for core in sorted(cores):
        if len(format_core_list([*part, core])) > _MAX_LIST:
            yield format_core_list(part)
            part = []
        part.append(core)
    if part:
        yield format_core_list(part)
