"""Whether clearly more memory is available than when loading a model was killed, as when memory is short. Pure."""

from __future__ import annotations

from typing import Final

MORE_MEMORY: Final = 1.1
MIN_MORE_BYTES: Final = 64 << 20


def has_grown(before: int, now: int) -> bool:
    """Whether a model whose loading was killed is worth another try.

    Args:
        before: bytes that were available before the attempt.
        now: bytes that are available now.
    """
    return now > MORE_MEMORY * before + MIN_MORE_BYTES
