"""Memory for the inputs of batches, used again: new pages cost more than what is copied into them.

The system's allocator gives large blocks back at once, and the kernel clears each page that it hands out again: 130 us
for 600 kB. A buffer comes back by itself when nothing refers to it any more, so that a model may keep its inputs.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

KEPT_BYTES = 64 << 20
"""Of all buffers that wait to be used again; a worker needs one an input, and a second while its answer leaves."""


class Buffers:
    """Buffers that wait, by their size. Any number of threads may take some.

    Attributes:
        bytes: of all that wait, at most `KEPT_BYTES`.
    """

    def __init__(self) -> None:
        # A collection of garbage may bring one back in the middle of anything, hence the queue.
        self._back: deque[np.ndarray[Any, Any]] = deque()
        self._free: dict[int, list[np.ndarray[Any, Any]]] = {}
        self.bytes = 0
        self._taking = threading.Lock()

    def take(self, size: int) -> memoryview:
        """A buffer of `size` bytes of any content."""
        # Half a power of two: batches of nearly the same number of rows share buffers.
        step = 1 << max(11, size.bit_length() - 2)
        rounded = -(-size // step) * step
        with self._taking:
            self._take_back()
            free = self._free.get(rounded)
            memory = free.pop() if free else None
            if memory is not None:
                self.bytes -= rounded
        if memory is None:
            memory = np.empty(rounded, np.uint8)
        return np.asarray(_Loan(memory, self._back)).data[:size]

    def _take_back(self) -> None:
        while self._back:
            memory = self._back.popleft()
            size = memory.nbytes
            if size > KEPT_BYTES:
                continue
            if self.bytes + size > KEPT_BYTES:
                # What batches are like has changed: those of other sizes may not be wanted any more.
                self._free.clear()
                self.bytes = 0
            self._free.setdefault(size, []).append(memory)
            self.bytes += size


class _Loan:
    """What all views of a buffer refer to."""

    __slots__ = ("__array_interface__", "_back", "_memory")

    def __init__(self, memory: np.ndarray[Any, Any], back: deque[np.ndarray[Any, Any]]) -> None:
        self._memory = memory
        self._back = back
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._back.append(self._memory)
