"""The threads that a test has started: those of tests before it may still be ending."""

from __future__ import annotations

import threading


class NewThreads:
    """The threads that have started since this was made and have not ended."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def named(self, name: str) -> list[threading.Thread]:
        """Those whose names begin so."""
        return [each for each in threading.enumerate() if each not in self._before and each.name.startswith(name)]
