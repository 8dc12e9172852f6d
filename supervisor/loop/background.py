"""What would keep the daemon's loop waiting: run in a thread, its outcome brought back to the loop."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Callable
from typing import Any


class BackgroundJobs:
    """Runs one errand after the other in a thread of its own.

    Attributes:
        descriptor: readable when outcomes wait for `bring_home`.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outcomes: collections.deque[Callable[[], None]] = collections.deque()
        self._lock = threading.Lock()  # so that no thread writes to a descriptor that has been closed
        self._closed = False

    def run(self, errand: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Runs an errand; its result or its exception goes to `then`, in the loop's thread."""

        def go() -> None:
            try:
                outcome = errand()
            except Exception as error:  # noqa: BLE001  whoever asked decides
                outcome = error
            self._outcomes.append(lambda: then(outcome))
            with self._lock:
                if not self._closed:
                    os.eventfd_write(self.descriptor, 1)

        threading.Thread(target=go, name="errand", daemon=True).start()

    def run_callbacks(self) -> None:
        """Hands over the outcomes that there are."""
        os.eventfd_read(self.descriptor)
        while self._outcomes:
            self._outcomes.popleft()()

    def close(self) -> None:
        """Takes no more outcomes; an errand under way ends by itself."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)
