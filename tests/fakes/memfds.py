"""Regions of shared memory as a client of another make would make them, and whether an array lies in one of ours."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from multitower import wire

NONCE = "0123456789abcdef" * 2
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


@contextmanager
def region(
    content: bytes = b"", *, size: int = 1 << 16, sealed: bool = True, head: bytes = wire.REGION_MAGIC + NONCE.encode()
) -> Iterator[tuple[str, int]]:
    """A region of this process with `content` at byte 4096; its name and descriptor."""
    name, descriptor = make_region(content, size=size, sealed=sealed, head=head)
    try:
        yield name, descriptor
    finally:
        os.close(descriptor)


def make_region(
    content: bytes = b"", *, size: int = 1 << 16, sealed: bool = True, head: bytes = wire.REGION_MAGIC + NONCE.encode()
) -> tuple[str, int]:
    """The same, for the caller to close."""
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, head, 0)
        os.pwrite(descriptor, content, 4096)
        if sealed:
            fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK)
    except OSError:
        os.close(descriptor)
        raise
    return name_of(descriptor), descriptor


def name_of(descriptor: int, pid: int | None = None) -> str:
    """The name under which a daemon would look for a descriptor of this process."""
    return f"mt-{pid or os.getpid()}-{descriptor}-{NONCE}"


def in_shared_memory(array: np.ndarray) -> bool:
    """It lies in a mapping of a memfd of the client's."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < last:
            return "/memfd:multitower" in line
    return False
