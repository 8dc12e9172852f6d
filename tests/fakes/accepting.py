"""Accepts the clients of front sockets in a thread, as the daemon's loop does between requests."""

from __future__ import annotations

import select
import threading
from typing import Self

from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.security.zap import ZapHandler

WAIT_S = 0.02


class Accepting:
    """Accepts while it is entered. Leave it before a front socket is made or closed.

    Args:
        connections: of the clients.
        zap: lets clients with CURVE in; None without.
    """

    def __init__(self, connections: Connections, zap: ZapHandler | None = None) -> None:
        self._connections = connections
        self._zap = zap
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if select.select([self._connections.descriptor], [], [], WAIT_S)[0]:
                self._connections.accept()
            self._connections.tick()
            if self._zap is not None:
                self._zap.receive()
