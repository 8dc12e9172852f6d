"""The shared memory of one client: regions cut into equal areas, one area per request, reused.

A region is a memfd, so that no file remains, whichever process dies. The daemon opens it through /proc by the name in
a request's header. The same few areas are reused in turn: requests then repeat their headers byte for byte, which the
daemon's cache of headers relies on, and the memory stays in the processor's caches.

An `Allocation` holds an area: for the request, and then for the arrays of its outputs, which are views of it. Without
either the area is free again, unless the request ended in a way that lets a worker write to it later: such an area is
retired and never used again.
"""

from __future__ import annotations

import bisect
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

MAX_BYTES = 512 << 20
"""Of all regions of a client; tensors that do not fit travel in frames. Pages use memory once they are written to."""

REGION_BYTES = 32 << 20
MAX_AREAS = 32
UNUSED_S = 10.0
"""How long a region without an area in use is kept; checked when a request needs an area."""

ALIGNMENT = 64
"""Of tensors within an area, in bytes: a cache line, and what vector instructions prefer."""

# From linux/fcntl.h; Python's fcntl module has them from 3.13 on.
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4


class ClientRegion:
    """One memfd and its mapping.

    Args:
        area_bytes: size of an area.
        areas: how many areas it has.

    Attributes:
        name: its name in requests.
        address: address of its first byte.
        size: bytes: one page for the protocol's mark, then the areas.
        area_bytes: size of an area.
        areas: how many areas it has.
        map: its mapping.
        free: offsets of the areas that nothing holds, the last used one at the end.
        retired: how many areas are never used again.
        used: when an area was allocated last, monotonic seconds.

    Raises:
        OSError: the system has no memfds, or no memory.
    """

    def __init__(self, area_bytes: int, areas: int) -> None:
        self.area_bytes = area_bytes
        self.size = mmap.PAGESIZE + area_bytes * areas
        self.retired = 0
        self.used = 0.0
        self.areas = areas
        self.free = [mmap.PAGESIZE + area_bytes * index for index in reversed(range(areas))]
        nonce = secrets.token_hex(16)
        descriptor = os.memfd_create("multitower", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, self.size)
            import fcntl  # not available on every system where the rest of the client works

            fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
            self.map = mmap.mmap(descriptor, self.size)
        except BaseException:
            os.close(descriptor)
            raise
        # Descriptor and mapping are released once nothing refers to them. At the interpreter's end the system does it,
        # since requests may still be on their way.
        weakref.finalize(self, os.close, descriptor).atexit = False
        self.name = f"mt-{os.getpid()}-{descriptor}-{nonce}"
        head = wire.REGION_MAGIC + nonce.encode()
        self.map[: len(head)] = head
        self.address: int = np.frombuffer(self.map, np.uint8).__array_interface__["data"][0]

    def view(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array at `offset` that does not hold the area."""
        return np.ndarray(shape, dtype, self.map, offset)

    @property
    def unused(self) -> bool:
        """Whether no request and no array holds an area of it."""
        return len(self.free) + self.retired == self.areas


class Allocation:
    """An area held by a request or by arrays; returned to its arena when nothing refers to it.

    Attributes:
        region: the region that contains the area.
        offset: the area's first byte in the region.
        retired: the area is never used again.
    """

    __slots__ = ("_returned", "offset", "region", "retired")

    def __init__(self, region: ClientRegion, offset: int, returned: deque[tuple[ClientRegion, int, bool]]) -> None:
        self.region = region
        self.offset = offset
        self.retired = False
        self._returned = returned

    def __del__(self) -> None:
        # The garbage collector may call this in any thread, also in one that holds the arena's lock.
        self._returned.append((self.region, self.offset, self.retired))

    def retire(self) -> None:
        """Excludes the area from further use: a worker may still write to it."""
        self.retired = True

    def contains(self, area: wire.Area) -> bool:
        """Whether `area` lies within this one."""
        start, end = self.offset, self.offset + self.region.area_bytes
        return area.region == self.region.name and start <= area.offset and area.offset + area.size <= end

    def array(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any], *, writeable: bool) -> Array:
        """An array at `offset` of the region; it and all its views hold the area."""
        array = np.asarray(_ArrayBase(self, offset, tuple(shape), dtype, writeable))
        return array if array.dtype == dtype else array.view(dtype)


class _ArrayBase:
    """What numpy keeps as the base of an array and of all its views."""

    __slots__ = ("__array_interface__", "allocation")

    def __init__(
        self, allocation: Allocation, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], writeable: bool
    ) -> None:
        self.allocation = allocation
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            # A dtype of another package (bfloat16) has no type string.
            "typestr": dtype.str if dtype.isbuiltin == 1 else f"<u{dtype.itemsize}",
            "data": (allocation.region.address + offset, not writeable),
        }


class Arena:
    """The regions of one client. Safe for use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[int, list[ClientRegion]] = {}  # by the size of their areas
        self._by_address: list[tuple[int, ClientRegion]] = []  # sorted
        self._bytes = 0
        self._next_cleanup = 0.0
        self._returned: deque[tuple[ClientRegion, int, bool]] = deque()

    def allocate(self, size: int) -> Allocation | None:
        """Allocates an area of at least `size` bytes; None when there is no room."""
        area_bytes = _area_bytes(size)
        with self._lock:
            self._collect_returned()
            regions = self._regions.setdefault(area_bytes, [])
            now = time.monotonic()
            if now >= self._next_cleanup:
                self._next_cleanup = now + UNUSED_S / 4
                self._drop_unused(now - UNUSED_S)
            # Always the first region with a free area, so that the last ones become unused.
            region = next((region for region in regions if region.free), None)
            if region is None:
                region = self._add_region(area_bytes)
                if region is None:
                    return None
            region.used = now
            return Allocation(region, region.free.pop(), self._returned)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Array | None:
        """An uninitialised array that requests can send without a copy; None when there is no room for it."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size <= 0 or dtype.hasobject:
            return None  # numpy refuses negative dimensions, with its own words
        allocation = self.allocate(size)
        return None if allocation is None else allocation.array(allocation.offset, shape, dtype, writeable=True)

    def locate(self, array: Array) -> tuple[ClientRegion, int] | None:
        """The region that contains a contiguous array, and its offset there; None when no region does."""
        if array.base is None:
            return None  # it owns its memory: nearly always
        address: int = array.__array_interface__["data"][0]
        with self._lock:
            index = bisect.bisect_right(self._by_address, address, key=_address) - 1
            if index < 0:
                return None
            start, region = self._by_address[index]
            offset = address - start
            return (region, offset) if mmap.PAGESIZE <= offset <= region.size - array.nbytes else None

    def _collect_returned(self) -> None:
        while self._returned:
            region, offset, retired = self._returned.popleft()
            if not retired:
                region.free.append(offset)
                continue
            region.retired += 1
            with contextlib.suppress(OSError):  # the memory is then released with the region
                region.map.madvise(mmap.MADV_REMOVE, offset, region.area_bytes)
            if region.retired == region.areas:
                self._drop(region)

    def _add_region(self, area_bytes: int) -> ClientRegion | None:
        areas = max(1, min(MAX_AREAS, REGION_BYTES // area_bytes))
        size = mmap.PAGESIZE + area_bytes * areas
        if size > MAX_BYTES:
            return None  # also without the other regions
        if self._bytes + size > MAX_BYTES:
            self._drop_unused(float("inf"))
        if self._bytes + size > MAX_BYTES:
            return None
        try:
            region = ClientRegion(area_bytes, areas)
        except OSError:
            return None
        self._bytes += region.size
        self._regions[area_bytes].append(region)
        bisect.insort(self._by_address, (region.address, region), key=_address)
        return region

    def _drop_unused(self, since: float) -> None:
        for region in [region for regions in self._regions.values() for region in regions]:
            if region.unused and region.used <= since:
                self._drop(region)

    def _drop(self, region: ClientRegion) -> None:
        self._regions[region.area_bytes].remove(region)
        self._by_address.remove((region.address, region))
        self._bytes -= region.size


def _address(entry: tuple[int, ClientRegion]) -> int:
    return entry[0]


def _area_bytes(size: int) -> int:
    """The size of areas that hold `size` bytes: whole pages, at most a fifth more than needed."""
    pages = -(-size // mmap.PAGESIZE)
    step = 1 << max(0, pages.bit_length() - 3)
    return -(-pages // step) * step * mmap.PAGESIZE
