"""The ZAP handler: libzmq asks it whether a peer that has proved its CURVE key may connect (RFC 27).

It is a socket of the daemon's own loop, bound before the first endpoint, so it does not depend on another thread.
libzmq closes a connection that the handler refuses. The key of an accepted connection is looked up again for each
message (`peers.py`), so what a client may do never depends on this handler alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import zmq
from zmq.utils import z85

from multitower import frames

from ..loop.reactor import unwatched
from .access_control import AccessControl
from .authentication_failures import Failure

ENDPOINT: Final = "inproc://zeromq.zap.01"
"""Where libzmq looks for the handler, in the context of the sockets that need it."""

DOMAIN: Final = b"multitower"
"""The domain of all sockets that use CURVE. It must not be empty: libzmq would not insist on a handler."""

USER_ID: Final = "User-Id"
"""The property of a connection with what the handler calls its peer: the key in Z85, a space, and its address."""

BURST: Final = 64
"""Requests that are answered before other sockets and timers get their turn."""

_VERSION: Final = b"1.0"
_CURVE: Final = b"CURVE"
_OK: Final = b"200"
_DENIED: Final = b"400"
_KEY_BYTES: Final = 32
_MAX_ADDRESS_BYTES: Final = 64
_MAX_FRAMES: Final = 16
_FIRST_CREDENTIAL: Final = 8  # of the frames, counted from the ROUTER's own


class ZapHandler:
    """Answers libzmq's requests.

    Args:
        context: of the sockets that use CURVE. Construct the handler before any of them is bound.
        access: the daemon's.

    Attributes:
        socket: readable when requests have arrived.
        recheck: called when some are left; see `Reactor.add_source`.

    Raises:
        zmq.ZMQError: the system is out of descriptors.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], access: AccessControl) -> None:
        self.recheck: Callable[[], None] = unwatched
        self._access = access
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        try:
            self.socket.set(zmq.LINGER, 0)
            self.socket.set(zmq.SNDHWM, 0)  # libzmq waits for each answer: as many as there are handshakes
            self.socket.bind(ENDPOINT)
        except BaseException:
            self.socket.close(0)
            raise

    def look(self) -> bool:
        """Whether a request has arrived."""
        return frames.readable(self.socket)

    def receive(self) -> None:
        """Answers a burst of the requests that have arrived."""
        for _ in range(BURST):
            request = frames.receive(self.socket, _MAX_FRAMES, routed=True)
            if request is None:
                return
            answer = self._answer(request)
            if answer is not None:
                self.recheck()
                frames.send(self.socket, answer)
        self.recheck()  # there may be more

    def _answer(self, request: list[Any]) -> list[bytes] | None:
        """Returns the answer to a request; None to one that no libzmq sends."""
        if len(request) < _FIRST_CREDENTIAL or request[1] != b"" or request[2] != _VERSION:
            return None
        routing_id, request_id, domain, address, mechanism = (request[index] for index in (0, 3, 4, 5, 7))
        user_id = b""
        key = request[_FIRST_CREDENTIAL] if len(request) == _FIRST_CREDENTIAL + 1 else b""
        if domain == DOMAIN and mechanism == _CURVE and len(key) == _KEY_BYTES:
            encoded: bytes = z85.encode(key)
            if self._access.peers.by_key(encoded.decode("ascii")).authenticated:
                user_id = encoded + b" " + bytes(address)[:_MAX_ADDRESS_BYTES]
        if not user_id:
            source = bytes(address).decode("utf-8", "replace")
            self._access.failures.add("mt1", Failure.UNKNOWN_KEY, source, time.monotonic())
        status, text = (_OK, b"OK") if user_id else (_DENIED, b"unknown key")
        return [routing_id, b"", _VERSION, request_id, status, text, user_id, b""]

    def close(self) -> None:
        """Closes the socket; close those that use CURVE before."""
        self.socket.close(0)
