"""Shortens the interpreter's switch interval while threads do work that can wait.

One thread of Python runs at a time. While one computes, the event loop gets its turn after the switch interval, which
is 5 ms by default.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.0005
"""Seconds after which the event loop gets its turn."""


class SwitchInterval:
    """The switch interval of this process, which several threads may want to be short at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0.0

    @contextmanager
    def short(self) -> Iterator[None]:
        """Makes the interval short. It gets its former value when the last user has ended."""
        with self._lock:
            if not self._users:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_S)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    sys.setswitchinterval(self._before)


switch_interval: Final = SwitchInterval()
"""That of this process."""
