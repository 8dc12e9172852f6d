"""The descriptors that the process of the tests holds open."""

from __future__ import annotations

import contextlib
import os


def open_descriptors() -> set[str]:
    """All descriptors, as `number -> what`."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{number} -> {os.readlink(f'/proc/self/fd/{number}')}")
    return {entry for entry in found if "/proc/" not in entry}
