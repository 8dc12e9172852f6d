"""The shared memory of one client: segments cut into equal areas, one area a request, used again and again.

A segment is a memfd, so nothing of it is left in the file system whatever dies. The daemon opens it through /proc by
the name that requests give. The same few areas come round, so that requests repeat their headers byte for byte, which
the daemon's cache of headers lives on, and so that the memory stays in the processor's caches.

An area is held by a `Lease`: by the request, and then by the arrays of its outputs, which are views of it. When none
of them is left it is free again, unless the request ended such that a worker may still write to it: such an area is
never used again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from multitower import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    Array = NDArray[Any]

MOST_BYTES = 512 << 20
"""Of all segments of a client; what does not fit travels in frames. Memory is used only where it was written to."""

SEGMENT_BYTES = 32 << 20
MOST_AREAS = 32
UNUSED_S = 10.0
"""How long a segment is kept that nothing lies in; looked at when a request needs an area."""

ALIGNMENT = 64
"""Of tensors within an area: a cache line, and what vector instructions like."""

# Linux's numbers (linux/fcntl.h); the fcntl module has them only from Python 3.13 on.
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4


class ClientRegion:
    """One memfd and its mapping.

    Attributes:
        name: what requests call it.
        address: of its first byte.
        size: bytes; `area_bytes` of each of its `areas`, the first page besides.
        map: its mapping.
        free: where areas begin that nothing holds, the last one used last.
        condemned: how many areas are never used again.
        used: when an area was given out last, in monotonic seconds.
    """

    def __init__(self, area_bytes: int, areas: int) -> None:
        """Makes it.

        Raises:
            OSError: the system has no memfds, or no room.
        """
        self.area_bytes = area_bytes
        self.size = mmap.PAGESIZE + area_bytes * areas
        self.condemned = 0
        self.used = 0.0
        self.areas = areas
        self.free = [mmap.PAGESIZE + area_bytes * index for index in reversed(range(areas))]
        nonce = secrets.token_hex(16)
        descriptor = os.memfd_create("multitower", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, self.size)
            import fcntl  # which not every system has where the client runs otherwise

            fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
            self.map = mmap.mmap(descriptor, self.size)
        except BaseException:
            os.close(descriptor)
            raise
        # Unmapped, likewise, once nothing refers to it any more. At the interpreter's end the system does it: requests
        # may still be on their way.
        weakref.finalize(self, os.close, descriptor).atexit = False
        self.name = f"mt-{os.getpid()}-{descriptor}-{nonce}"
        head = wire.REGION_MAGIC + nonce.encode()
        self.map[: len(head)] = head
        self.address: int = np.frombuffer(self.map, np.uint8).__array_interface__["data"][0]

    def view(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array of it, which holds no lease."""
        return np.ndarray(shape, dtype, self.map, offset)

    @property
    def unused(self) -> bool:
        """No request and no array holds any of it."""
        return len(self.free) + self.condemned == self.areas


class Lease:
    """An area that a request, or an array, holds; given back when nothing refers to it any more.

    Attributes:
        region: it lies in.
        offset: its first byte there.
    """

    __slots__ = ("_back", "condemned", "offset", "region")

    def __init__(self, region: ClientRegion, offset: int, back: deque[tuple[ClientRegion, int, bool]]) -> None:
        self.region = region
        self.offset = offset
        self.condemned = False
        self._back = back

    def __del__(self) -> None:
        # The garbage collector may come here in any thread, one that holds the arena's lock too.
        self._back.append((self.region, self.offset, self.condemned))

    def condemn(self) -> None:
        """A worker may still write to it: it is not to be used again."""
        self.condemned = True

    def holds(self, area: wire.Area) -> bool:
        """The area lies within this one."""
        start, end = self.offset, self.offset + self.region.area_bytes
        return area.region == self.region.name and start <= area.offset and area.offset + area.size <= end

    def array(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any], *, writeable: bool) -> Array:
        """A view of it that holds it, from byte `offset` of its segment on."""
        array = np.asarray(_Holder(self, offset, tuple(shape), dtype, writeable))
        return array if array.dtype == dtype else array.view(dtype)


class _Holder:
    """What numpy keeps as the base of an array, and of all views of it."""

    __slots__ = ("__array_interface__", "lease")

    def __init__(
        self, lease: Lease, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], writeable: bool
    ) -> None:
        self.lease = lease
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            # A dtype of another package's (bfloat16) has no code of its own here.
            "typestr": dtype.str if dtype.isbuiltin == 1 else f"<u{dtype.itemsize}",
            "data": (lease.region.address + offset, not writeable),
        }


class Arena:
    """The segments of one client. Safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[int, list[ClientRegion]] = {}
        self._bytes = 0
        self._look_at = 0.0
        self._back: deque[tuple[ClientRegion, int, bool]] = deque()

    def lease(self, size: int) -> Lease | None:
        """An area of at least `size` bytes; None when there is no room for it."""
        area_bytes = _area_bytes(size)
        with self._lock:
            self._take_back()
            segments = self._regions.setdefault(area_bytes, [])
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + UNUSED_S / 4
                self._drop_unused(now - UNUSED_S)
            # Always the first that has room: the last ones become unused.
            region = next((region for region in segments if region.free), None)
            if region is None:
                region = self._new_region(area_bytes)
                if region is None:
                    return None
                segments.append(region)
            region.used = now
            return Lease(region, region.free.pop(), self._back)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Array | None:
        """An array that requests can use where it lies; None when there is no room for it."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if not size or dtype.hasobject:
            return None
        lease = self.lease(size)
        return None if lease is None else lease.array(lease.offset, shape, dtype, writeable=True)

    def locate(self, array: Array) -> tuple[ClientRegion, int] | None:
        """Where a contiguous array lies in here; None when it does not."""
        if array.base is None:
            return None  # it has memory of its own: nearly always
        address: int = array.__array_interface__["data"][0]
        with self._lock:
            for segments in self._regions.values():
                for region in segments:
                    offset = address - region.address
                    if mmap.PAGESIZE <= offset <= region.size - array.nbytes:
                        return region, offset
        return None

    def _take_back(self) -> None:
        while self._back:
            region, offset, condemned = self._back.popleft()
            if not condemned:
                region.free.append(offset)
                continue
            region.condemned += 1
            with contextlib.suppress(OSError):  # the memory stays in use until the segment goes
                region.map.madvise(mmap.MADV_REMOVE, offset, region.area_bytes)
            if region.condemned == region.areas:
                self._drop(region)

    def _new_region(self, area_bytes: int) -> ClientRegion | None:
        areas = max(1, min(MOST_AREAS, SEGMENT_BYTES // area_bytes))
        size = mmap.PAGESIZE + area_bytes * areas
        if size > MOST_BYTES:
            return None  # not even if all else went
        if self._bytes + size > MOST_BYTES:
            self._drop_unused(float("inf"))
        if self._bytes + size > MOST_BYTES:
            return None
        try:
            region = ClientRegion(area_bytes, areas)
        except OSError:
            return None
        self._bytes += region.size
        return region

    def _drop_unused(self, since: float) -> None:
        for region in [each for segments in self._regions.values() for each in segments]:
            if region.unused and region.used <= since:
                self._drop(region)

    def _drop(self, region: ClientRegion) -> None:
        self._regions[region.area_bytes].remove(region)
        self._bytes -= region.size


def _area_bytes(size: int) -> int:
    """The size of the areas that serve `size` bytes: whole pages, with at most a fifth more than needed."""
    pages = -(-size // mmap.PAGESIZE)
    step = 1 << max(0, pages.bit_length() - 3)
    return -(-pages // step) * step * mmap.PAGESIZE
