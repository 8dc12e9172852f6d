"""Keeps what is known about why there is no connection, for the errors of requests that cannot be sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from multitower.client.connect_errors import IPC, Finding, examine, listens, no_answer, timed_out
from multitower.client.key_errors import KEY_ERRORS, examine_keys, refused
from multitower.errors import ConnectError

CONNECT_S: Final = 2.0
"""How long an address may take to answer the probe."""


class Probe:
    """Examines an endpoint after attempts to connect have failed.

    All methods belong to the connection's thread. A host is examined in a thread of its own, since resolving a name and
    connecting may take longer than a request has; an ipc endpoint is examined in `update`.

    Args:
        endpoint: the daemon's.
        by_name: its host has a name.
        public_key: the client's, in Z85; None if it has none.
        examined: called when an examination in the background has ended, in that thread.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        by_name: bool,
        public_key: str | None = None,
        examined: Callable[[], None] = lambda: None,
    ) -> None:
        self._public_key = public_key
        self._examined = examined
        self._failed_handshakes = 0  # in a row
        self._endpoint = endpoint
        self._by_name = by_name
        self._connected = False
        self._unanswered = False  # a connection has opened, and no daemon has answered since
        self._failed = False  # an attempt has failed since the last examination began
        self._found: Finding | None = None
        self._running: Future[Finding | None] | None = None

    def record_connected(self) -> None:
        """Records that a connection has opened, whatever listens there."""
        self._connected = self._unanswered = True
        self._failed = False
        self._found = self._running = None

    def record_answer(self) -> None:
        """Records that a daemon has answered."""
        self._unanswered = False
        self._failed_handshakes = 0

    def record_failure(self) -> None:
        """Records that an attempt to connect has failed, or that the connection was lost."""
        self._connected = False
        self._failed = True

    def record_failed_handshake(self, refusal: ConnectError | None) -> None:
        """Records that a connection has opened, and its handshake has failed.

        Args:
            refusal: why, if that is known.
        """
        self._connected = False
        if refusal is None:
            self._failed_handshakes += 1
        else:
            self._found, self._running = refused(self._endpoint, refusal, self._public_key), None

    def refusal(self) -> Finding | None:
        """Why no attempt can succeed before somebody gives other keys; None if nothing of that kind is known."""
        self._collect()
        found = self._found
        return found if found is not None and found.kind in KEY_ERRORS else None

    def begin(self) -> None:
        """Examines the host in the background if an attempt has failed since the last examination.

        So ZeroMQ's pauses between its attempts hold for examinations too, however many requests are made.
        """
        if not self._failed or self._endpoint.startswith(IPC):
            return
        self._collect()
        if self._running is not None:
            return
        result: Future[Finding | None] = Future()
        result.add_done_callback(lambda _: self._examined())
        failed_handshakes = self._failed_handshakes
        thread = threading.Thread(
            target=lambda: result.set_result(self._examine(failed_handshakes)), name="multitower-probe", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no thread can be started: the cause stays unknown
            return
        self._running, self._failed = result, False

    def update(self) -> None:
        """Examines an ipc endpoint now, and takes over what is known about a host."""
        if self._endpoint.startswith(IPC) and not self._connected:
            self._record(self._examine())
        self._collect()

    def finding(self, waited_s: float) -> Finding:
        """Why there is no connection, as of the last `update`.

        Args:
            waited_s: seconds that the request has waited for one.
        """
        if self._connected:
            return no_answer(self._endpoint)
        return self._found or timed_out(self._endpoint, waited_s, by_name=self._by_name)

    def _examine(self, failed_handshakes: int = 0) -> Finding | None:
        try:
            if failed_handshakes:
                found = examine_keys(self._endpoint, CONNECT_S, self._public_key, failed_handshakes)
                if found is not None:
                    return found
            return examine(self._endpoint, CONNECT_S)
        except Exception:  # noqa: BLE001  the request fails anyway; without a finding its error names no cause
            return None

    def _collect(self) -> None:
        if self._running is not None and self._running.done():
            self._record(self._running.result())
            self._running = None

    def _record(self, found: Finding | None) -> None:
        if found == listens(self._endpoint):
            # Between two attempts of ZeroMQ. What it was connected to before has not answered.
            self._found = no_answer(self._endpoint) if self._unanswered else found
        else:
            self._found = found
            self._unanswered = False  # what listens there later is another process
