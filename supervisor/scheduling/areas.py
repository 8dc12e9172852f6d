"""Areas of clients' shared memory, as requests hold them in the place of frames.

`routing.regions` opens the regions that they lie in.
"""

from __future__ import annotations

import os
import weakref

from multitower.worker_wire import WorkerArea


class Region:
    """An open region. Its descriptor is closed when nothing refers to it any more.

    Attributes:
        name: the client's word for it.
        descriptor: open for reading and writing.
        size: bytes; its seals keep it from shrinking.
        device: with `inode`, what the descriptor refers to.
    """

    __slots__ = ("__weakref__", "descriptor", "device", "inode", "name", "size")

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False  # at the daemon's end, the system does it
        status = os.fstat(descriptor)
        self.size = status.st_size
        self.device = status.st_dev
        self.inode = status.st_ino


class OpenArea:
    """A part of a region, in the place of a frame. Its parts are pieces."""

    __slots__ = ("offset", "region", "size")

    def __init__(self, region: Region, offset: int, size: int) -> None:
        self.region = region
        self.offset = offset
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> OpenArea:
        start, end, _ = part.indices(self.size)
        return OpenArea(self.region, self.offset + start, end - start)

    def read(self) -> bytes:
        """A copy of its bytes."""
        parts = []
        position, end = self.offset, self.offset + self.size
        while position < end:
            part = os.pread(self.region.descriptor, end - position, position)
            if not part:
                raise EOFError(f"the region {self.region.name} ends at byte {position}")
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def for_worker(self, entry: int, tensor: int | str) -> WorkerArea:
        """It as a worker is told."""
        region = self.region
        return WorkerArea(
            entry, tensor, region.name, region.descriptor, region.device, region.inode, self.offset, self.size
        )
