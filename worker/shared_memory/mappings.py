"""Mappings of clients' memory that is used again and again: a copy costs a third of what a system call costs.

A client could do harm by three things. By shortening its file, which would end whoever reads behind the end: the seal
that the daemon insists on forbids that, and it is looked for here again. By changing what the model computes on: nobody
but the copying works on a mapping. And by memory that is not there yet, which a mapping would make: so only places that
have been filled are used like that, all others through system calls, which fail in place of ending the process. A
client that takes filled memory away again gets zeros.

Of a client that has died nothing is kept for longer than `UNUSED_S` and what it takes until that is looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time

from ...worker_wire import WorkerArea

UNUSED_S = 10.0
"""How long a mapping is kept that nothing uses."""

MOST_MAPPINGS = 64
MOST_BYTES = 4 << 30
"""Of a file that is mapped."""

# Linux's numbers (linux/fcntl.h, asm-generic/mman-common.h); Python's modules have them only from later versions on.
_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 2
_MADV_POPULATE_READ = 22

Identity = tuple[str, int, int]
"""A region's name, which holds a number that nobody can guess, and its file."""


class _Mapping:
    """One region's.

    Attributes:
        view: its bytes; None where it cannot be mapped.
        filled: for each of its pages, 1 when it is known to be memory already.
        used: when it was used last, in monotonic seconds.
    """

    __slots__ = ("filled", "used", "view")

    def __init__(self, descriptor: int) -> None:
        self.used = 0.0
        self.filled = bytearray()
        self.view: memoryview | None = None
        size = os.fstat(descriptor).st_size
        if size > MOST_BYTES or not fcntl.fcntl(descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK:
            return
        with contextlib.suppress(OSError, ValueError):  # sealed against writing, or there is no room
            mapped = mmap.mmap(descriptor, size)
            # It is not the worker's to write into a core dump, nor a grandchild's to hold.
            mapped.madvise(mmap.MADV_DONTDUMP)
            mapped.madvise(mmap.MADV_DONTFORK)
            self.view = memoryview(mapped)
            self.filled = bytearray(-(-size // mmap.PAGESIZE))


class Mappings:
    """The mappings of one worker. Any number of threads may use them.

    Attributes:
        known: of each region that has been named lately; None where that was once.
    """

    def __init__(self) -> None:
        self.known: dict[Identity, _Mapping | None] = {}
        self._look_at = 0.0

    def find(self, area: WorkerArea) -> memoryview | None:
        """The place's bytes; None where it is to be reached through its descriptor."""
        mapping = self.known.get((area.region, area.device, area.inode))
        if mapping is None or mapping.view is None or area.offset + area.size > len(mapping.view):
            return None
        if mapping.filled.find(0, *_pages(area)) >= 0:
            return None
        mapping.used = time.monotonic()
        return mapping.view[area.offset : area.offset + area.size]

    def learn(self, area: WorkerArea, descriptor: int) -> None:
        """The place has been used through its descriptor: the next time it may be found here."""
        identity = area.region, area.device, area.inode
        try:
            mapping = self.known[identity]
        except KeyError:
            # Most clients send one request, and a mapping is dear.
            if len(self.known) >= MOST_MAPPINGS:
                self.known.clear()
            self.known[identity] = None
            return
        if mapping is None:
            mapping = self.known[identity] = _Mapping(descriptor)
        mapping.used = time.monotonic()
        if mapping.view is None or not area.size or not _is_filled(area, descriptor):
            return
        if area.offset + area.size > len(mapping.view):
            return  # it has grown meanwhile
        first, end = _pages(area)
        with contextlib.suppress(OSError):  # kernels before 5.14 do it page by page, when it is used
            mapped = mapping.view.obj
            assert isinstance(mapped, mmap.mmap)
            mapped.madvise(_MADV_POPULATE_READ, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE)
        mapping.filled[first:end] = bytes([1]) * (end - first)

    def tick(self) -> None:
        """Gives up what has not been used lately; to be called now and then."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + UNUSED_S / 4
        for identity, mapping in list(self.known.items()):
            # One that somebody is copying from ends with that.
            if mapping is None or mapping.used + UNUSED_S <= now:
                self.known.pop(identity, None)


def _pages(area: WorkerArea) -> tuple[int, int]:
    """The first page of a place, and the one behind its last."""
    return area.offset // mmap.PAGESIZE, -(-(area.offset + area.size) // mmap.PAGESIZE)


def _is_filled(area: WorkerArea, descriptor: int) -> bool:
    return os.lseek(descriptor, area.offset, os.SEEK_HOLE) >= area.offset + area.size
