"""A file system that does not answer: FUSE, where no program serves it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MNT_DETACH = 2


@contextmanager
def hung_mount(folder: Path) -> Iterator[None]:
    """Mounts it over a folder; each look at it hangs until the end. Skips the test where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/fuse cannot be opened: {error.strerror}")
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"hung", bytes(folder), b"fuse", 0, options) != 0:
            pytest.skip(f"nothing can be mounted here: {os.strerror(ctypes.get_errno())}")
    except BaseException:
        os.close(device)
        raise
    try:
        yield
    finally:
        os.close(device)  # those that wait get ENOTCONN
        libc.umount2(bytes(folder), _MNT_DETACH)
