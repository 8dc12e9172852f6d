"""Memory that tells when nothing refers to it any more. Not compiled: numpy's arrays have no compiled subclasses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections import deque

    Memory = np.ndarray[Any, np.dtype[np.uint8]]


def lend(memory: Memory, returned: deque[Memory]) -> memoryview:
    """A view of memory that is appended to `returned` once neither the view nor what is made of it exists.

    Args:
        memory: an array that owns its memory.
        returned: where it goes afterwards, at any time in any thread.
    """
    loan = memory.view(_Loan)
    loan.returned = returned
    return loan.data


class _Loan(np.ndarray[Any, np.dtype[np.uint8]]):
    """What all views of lent memory refer to. Those of a plain array would refer to the memory itself."""

    __slots__ = ("returned",)
    returned: deque[Memory]

    def __del__(self) -> None:
        self.returned.append(self.base)  # type: ignore[arg-type]
