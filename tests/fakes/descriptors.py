"""The descriptors that the process of the tests holds open."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

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
