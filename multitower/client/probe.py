"""Keeps what is known about why there is no connection, for the errors of requests that cannot be sent."""

from __future__ import annotations

import threading
from typing import Final

from multitower.client.connect_errors import IPC, Finding, examine, no_answer, timed_out

CONNECT_S: Final = 2.0
"""How long an address may take to answer the probe."""


class Probe:
    """Examines an endpoint after attempts to connect have failed.

    All methods belong to the connection's thread. A host is examined in a thread of its own, since resolving a name and
    connecting may take longer than a request has; an ipc endpoint is examined when its finding is asked for.

    Args:
        endpoint: the daemon's.
        by_name: its host has a name.
    """

    def __init__(self, endpoint: str, *, by_name: bool) -> None:
        self._endpoint = endpoint
        self._by_name = by_name
        self._accepted = False
        self._failed = False
        self._found: Finding | None = None
        self._thread: threading.Thread | None = None

    def record_accepted(self) -> None:
        """Records that a connection has opened, whatever listens there."""
        self._accepted = True
        self._failed = False
        self._found = None

    def record_failure(self) -> None:
        """Records that an attempt to connect has failed, or that the connection was lost."""
        self._accepted = False
        self._failed = True

    def begin(self) -> None:
        """Examines the host in the background if an attempt has failed. No-op while an examination is under way."""
        if not self._failed or self._endpoint.startswith(IPC):
            return
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._examine_host, name="multitower-probe", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started: the cause stays unknown
            return
        self._thread = thread

    def _examine_host(self) -> None:
        self._found = examine(self._endpoint, CONNECT_S)

    def finding(self, waited_s: float) -> Finding:
        """Why there is no connection, as far as is known.

        Args:
            waited_s: seconds that the request has waited for one.
        """
        if self._accepted:
            return no_answer(self._endpoint)
        if self._endpoint.startswith(IPC):
            return examine(self._endpoint, 0.0)
        return self._found or timed_out(self._endpoint, waited_s, by_name=self._by_name)
