"""Memory for large tensors that is used again: new pages cost more than what is copied into them.

The system's allocator returns large blocks to the kernel at once, and the kernel clears each page that it hands out
again: 130 us for 600 kB. A buffer comes back when nothing refers to it any more, so that a model may keep its inputs.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from multitower.lent_memory import lend


class Buffers:
    """Buffers by their size. Any number of threads may allocate some.

    Args:
        max_free_bytes: the limit for all free buffers.

    Attributes:
        free_bytes: the size of all free buffers.
    """

    def __init__(self, max_free_bytes: int) -> None:
        self._max_free_bytes = max_free_bytes
        # The garbage collector may return a buffer while any of the methods runs, hence the queue.
        self._returned: deque[np.ndarray[Any, Any]] = deque()
        self._free: dict[int, list[np.ndarray[Any, Any]]] = {}
        self.free_bytes = 0
        self._lock = threading.Lock()

    def allocate(self, size: int) -> memoryview:
        """A buffer of `size` bytes, with any content."""
        # Sizes are rounded, so that batches of nearly the same number of rows share buffers.
        step = 1 << max(11, size.bit_length() - 2)
        rounded = -(-size // step) * step
        with self._lock:
            self._collect_returned()
            free = self._free.get(rounded)
            memory = free.pop() if free else None
            if memory is not None:
                self.free_bytes -= rounded
        if memory is None:
            memory = np.empty(rounded, np.uint8)
        return lend(memory, self._returned)[:size]

    def collect(self) -> None:
        """Frees what has come back beyond the limit; `allocate` does so, too."""
        with self._lock:
            self._collect_returned()

    def _collect_returned(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            size = memory.nbytes
            if size > self._max_free_bytes:
                continue
            if self.free_bytes + size > self._max_free_bytes:
                # The sizes of batches have changed: buffers of other sizes may never be needed again.
                self._free.clear()
                self.free_bytes = 0
            self._free.setdefault(size, []).append(memory)
            self.free_bytes += size
