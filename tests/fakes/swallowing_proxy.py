"""A TCP proxy that can swallow what passes through it, as a NAT box does that has forgotten a connection."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Self


class SwallowingProxy:
    """Forwards connections to a port of this machine, from its construction until `close`. A context manager.

    Args:
        target: `tcp://127.0.0.1:PORT`.

    Attributes:
        endpoint: where it listens.
    """

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._swallowed: list[socket.socket] = []
        self._swallows_new = False
        self._wake, self._woken = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="swallowing-proxy", daemon=True)
        self._thread.start()

    def swallow(self) -> None:
        """From now on nothing passes, over the present connections and over new ones; none of them ends."""
        with self._lock:
            self._swallowed += self._peers
            self._peers.clear()
            self._swallows_new = True
        self._wake.send(b"\0")

    def restore(self) -> None:
        """New connections pass again. Those that were swallowed stay silent."""
        with self._lock:
            self._swallows_new = False

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                watched = [self._listener, self._woken, *self._peers]
            for ready in select.select(watched, [], [])[0]:
                if ready is self._listener:
                    self._accept()
                elif ready is self._woken:
                    ready.recv(64)
                else:
                    self._forward(ready)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        with self._lock:
            if self._swallows_new:
                self._swallowed.append(client)
                return
        try:
            daemon = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        with self._lock:
            self._peers |= {client: daemon, daemon: client}

    def _forward(self, source: socket.socket) -> None:
        with self._lock:
            peer = self._peers.get(source)
        if peer is None:
            return
        try:
            data = source.recv(1 << 16)
            peer.sendall(data)
        except OSError:
            data = b""
        if not data:
            with self._lock:
                self._peers.pop(source, None)
                self._peers.pop(peer, None)
            source.close()
            peer.close()

    def close(self) -> None:
        """Ends all connections and stops listening."""
        self._closing = True
        self._wake.send(b"\0")
        self._thread.join(20.0)
        for one in (self._listener, self._wake, self._woken, *self._peers, *self._swallowed):
            with contextlib.suppress(OSError):
                one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
