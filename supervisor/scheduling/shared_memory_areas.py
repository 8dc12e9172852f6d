"""Areas of clients' shared memory, which stand in a request in the place of frames."""

from __future__ import annotations

import errno
import os
from typing import final

from multitower.worker_wire import packed_area

from .shared_memory_region import Region


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

    def packed(self, entry: int, tensor: int | str) -> str:
        """The row of a table that describes the area to a worker.

        Args:
            entry: index of the request in its batch.
            tensor: index of the input, or name of the output, that it holds.
        """
        return packed_area(entry, tensor, self.region.packed, self.offset, self.size)
