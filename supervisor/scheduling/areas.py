"""Areas of clients' shared memory, which stand in a request in the place of frames.

`routing.regions` opens the regions. This module is not compiled, since it refers to regions weakly.
"""

from __future__ import annotations

import errno
import os
import weakref
from typing import final

from multitower.worker_wire import WorkerArea


class Region:
    """An open region of shared memory. Its descriptor is closed when the last reference to it is gone.

    Args:
        name: the client's name for it.
        descriptor: of the region, open for reading and writing.

    Attributes:
        name, descriptor: as given.
        size: bytes; seals keep the region from shrinking.
        device, inode: identify what the descriptor refers to, as in `os.stat`.
    """

    __slots__ = ("__weakref__", "descriptor", "device", "inode", "name", "size")

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False  # the system closes it when the daemon ends
        status = os.fstat(descriptor)
        self.size = status.st_size
        self.device = status.st_dev
        self.inode = status.st_ino


@final
class OpenArea:
    """An area of an open region, which holds one tensor. A slice of it is an area, too.

    Attributes:
        region: the region.
        offset: in the region, in bytes.
        size: bytes; also its length.
    """

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
        """A copy of its bytes.

        Raises:
            OSError: they cannot be read.
        """
        parts = []
        position, end = self.offset, self.offset + self.size
        while position < end:
            part = os.pread(self.region.descriptor, end - position, position)
            if not part:
                raise OSError(errno.EIO, f"the region {self.region.name} ends at byte {position}")
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def for_worker(self, entry: int, tensor: int | str) -> WorkerArea:
        """The area as a message to a worker describes it.

        Args:
            entry: index of the request in its batch.
            tensor: index of the input, or name of the output, that it holds.
        """
        region = self.region
        return WorkerArea(
            entry, tensor, region.name, region.descriptor, region.device, region.inode, self.offset, self.size
        )
