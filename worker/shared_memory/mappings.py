"""Mappings of clients' regions that are used again and again: copying from one costs a third of a system call.

A client could do harm in three ways. It could shorten its file, and a process that reads behind the end would be
killed: the seal that the daemon insists on forbids that, and it is checked here again. It could change what the model
computes on: only copies work on a mapping. And it could name memory that does not exist yet, which reading through a
mapping would allocate: so only areas that have been filled are accessed in this way. All others are accessed by system
calls, which fail instead of killing the process. A client that frees filled memory again gets zeros.

Nothing of a client that has died is kept for longer than `UNUSED_S` and the time until the next check.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from typing import Final

from multitower.worker_wire import WorkerArea

UNUSED_S = 10.0
"""How long a mapping is kept that is not used."""

MAX_MAPPINGS = 64
MAX_BYTES = 4 << 30
"""The largest file that is mapped."""

# Linux's numbers (linux/fcntl.h, asm-generic/mman-common.h); only later versions of Python have names for them.
_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 2
_MADV_POPULATE_READ = 22

_PAGE: Final = mmap.PAGESIZE

Identity = tuple[str, int, int]
"""A region's name, which contains a random number, and the device and inode of its file."""


class _Mapping:
    """The mapping of one region.

    Attributes:
        view: its bytes; None where it cannot be mapped.
        filled: for each page, 1 if it is known to be allocated.
        used: when it was used last, in monotonic seconds.
    """

    __slots__ = ("filled", "used", "view")

    def __init__(self, descriptor: int) -> None:
        self.used = 0.0
        self.filled = bytearray()
        self.view: memoryview | None = None
        size = os.fstat(descriptor).st_size
        if size > MAX_BYTES or not fcntl.fcntl(descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK:
            return
        with contextlib.suppress(OSError, ValueError):  # sealed against writing, or out of address space
            mapped = mmap.mmap(descriptor, size)
            # A client's memory belongs neither into a core dump of the worker nor into its child processes.
            mapped.madvise(mmap.MADV_DONTDUMP)
            mapped.madvise(mmap.MADV_DONTFORK)
            self.view = memoryview(mapped)
            self.filled = bytearray(-(-size // _PAGE))


class Mappings:
    """The mappings of one worker. Any number of threads may use them.

    Attributes:
        known: the mapping of each region that was used lately; None for a region that was used once.
    """

    def __init__(self) -> None:
        self.known: dict[Identity, _Mapping | None] = {}
        self._next_check = 0.0

    def find(self, area: WorkerArea) -> memoryview | None:
        """The bytes of an area; None where it must be accessed through its descriptor."""
        mapping = self.known.get((area.region, area.device, area.inode))
        if mapping is None or mapping.view is None:
            return None
        offset, end = area.offset, area.offset + area.size
        if end > len(mapping.view) or mapping.filled.find(0, offset // _PAGE, -(-end // _PAGE)) >= 0:
            return None
        mapping.used = time.monotonic()
        return mapping.view[offset:end]

    def record_use(self, area: WorkerArea, descriptor: int) -> None:
        """Notes that an area was accessed through its descriptor, so that `find` may find it the next time."""
        identity = area.region, area.device, area.inode
        try:
            mapping = self.known[identity]
        except KeyError:
            # Not mapped yet: most clients send one request, and a mapping is expensive.
            if len(self.known) >= MAX_MAPPINGS:
                self.known.clear()
            self.known[identity] = None
            return
        if mapping is None:
            mapping = self.known[identity] = _Mapping(descriptor)
        mapping.used = time.monotonic()
        if mapping.view is None or not area.size or not _is_filled(area, descriptor):
            return
        if area.offset + area.size > len(mapping.view):
            return  # the file has grown since
        first, end = _pages(area)
        with contextlib.suppress(OSError):  # kernels before 5.14 map page by page, when a page is used
            mapped = mapping.view.obj
            assert isinstance(mapped, mmap.mmap)
            mapped.madvise(_MADV_POPULATE_READ, first * _PAGE, (end - first) * _PAGE)
        mapping.filled[first:end] = bytes([1]) * (end - first)

    def drop_unused(self) -> None:
        """Drops mappings that were not used lately. To be called regularly; it checks four times in `UNUSED_S`."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + UNUSED_S / 4
        for identity, mapping in list(self.known.items()):
            # A mapping that is being copied from is unmapped once that is done.
            if mapping is None or mapping.used + UNUSED_S <= now:
                self.known.pop(identity, None)


def _pages(area: WorkerArea) -> tuple[int, int]:
    """The first page of an area, and the page behind its last one."""
    return area.offset // _PAGE, -(-(area.offset + area.size) // _PAGE)


def _is_filled(area: WorkerArea, descriptor: int) -> bool:
    return os.lseek(descriptor, area.offset, os.SEEK_HOLE) >= area.offset + area.size
