"""The descriptors that the process of the tests holds open, and connections that others do."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

WAIT_S = 60.0


def open_descriptors() -> set[str]:
    """All descriptors, as `number -> what`."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{number} -> {os.readlink(f'/proc/self/fd/{number}')}")
    return {entry for entry in found if "/proc/" not in entry}


@contextlib.contextmanager
def leaving_no_descriptor() -> Iterator[set[str]]:
    """Yields the descriptors that are open, and waits at the end of the block until no others are.

    A count would not do: what tests before left to threads and to the garbage collector may be closed meanwhile.
    """
    before = open_descriptors()
    yield before
    until = time.monotonic() + WAIT_S
    while left := open_descriptors() - before:
        assert time.monotonic() < until, f"left open: {sorted(left)}"
        time.sleep(0.005)


def accepted_connections(pid: int, port: int) -> int:
    """How many connections at its TCP port a process holds, whatever the other side has become.

    A count of all its descriptors would not do: a daemon opens and closes some at any time.

    Args:
        pid: the process, which may be in a network namespace of its own.
        port: the port that it listens at.
    """
    held = set()
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            held.add(os.readlink(f"{folder}/{number}"))
    # See proc_pid_net(5): local and remote address as hexadecimal address:port, state (0A listens), ..., inode.
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(local.rpartition(":")[2], 16) == port and state != "0A" and f"socket:[{inode}]" in held
        for _, local, _, state, _, _, _, _, _, inode, *_ in lines
    )
