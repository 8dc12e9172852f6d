"""An open region of a client's shared memory. `routing.shared_memory_regions` opens it; areas are parts of it.

This module is not compiled, since regions are referred to weakly.
"""

from __future__ import annotations

import os
import weakref

from multitower.worker_wire import packed_region


class Region:
    """An open region of shared memory. Its descriptor is closed when the last reference to it is gone.

    Args:
        name: the client's name for it.
        descriptor: of the region, open for reading and writing.

    Attributes:
        name, descriptor: as given.
        size: bytes; seals keep the region from shrinking.
        packed: what tables for workers say of it.
    """

    __slots__ = ("__weakref__", "descriptor", "name", "packed", "size")

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False  # the system closes it when the daemon ends
        status = os.fstat(descriptor)
        self.size = status.st_size
        self.packed = packed_region(name, descriptor, status.st_dev, status.st_ino)
