"""Watches the connections of `stream_front`: those that do not begin as they should, and over tcp the silent ones.

A client over tcp may be gone without a word (`multitower/liveness.py`). So the daemon sends a heartbeat, the command
PING of ZMTP 3.1, every quarter of the time after which a silent client counts as gone. A client of which nothing has
been read for three quarters since a heartbeat is gone. Peers of ZMTP 3.0 know no PING, and to a client that reads
nothing none can be sent; there only the kernel ends the connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .handshake_watch import HandshakeWatch
from .stream_peer import StreamPeer

HANDSHAKE_S: Final = 30.0
"""Seconds that a new connection has for its greeting, as with libzmq."""

MAX_MISSED: Final = 3
"""Quarters of the time in which a client may send nothing although it was asked to."""


class PeerWatch:
    """The connections of one front socket that must give signs of life.

    Args:
        peer_timeout_s: seconds after which a client that is silent counts as gone; 0 for never.

    Attributes:
        handshakes: those that have not sent a message yet.
    """

    def __init__(self, peer_timeout_s: float) -> None:
        self._interval_s = peer_timeout_s / 4
        self.handshakes: HandshakeWatch[StreamPeer] = HandshakeWatch(HANDSHAKE_S, _has_greeted)
        self._due: dict[StreamPeer, float] = {}  # when each is looked at next, in this order

    def add(self, peer: StreamPeer, now: float) -> None:
        """Watches a new connection."""
        self.handshakes.add(peer, now)
        if self._interval_s:
            self._due[peer] = now + self._interval_s

    def open(self, peer: StreamPeer) -> None:
        """Notes that a connection has sent a message."""
        peer.open = True
        self.handshakes.forget(peer)

    def forget(self, peer: StreamPeer) -> None:
        """Forgets a connection that is closed, with what it has sent of a message."""
        self.handshakes.forget(peer)
        self._due.pop(peer, None)

    def take_due(self, now: float) -> Iterator[tuple[StreamPeer, bool]]:
        """Sends heartbeats that are due.

        Args:
            now: monotonic seconds.

        Yields:
            Each connection whose time it was, and whether its client is gone or it cannot be written. Such a one is not
            watched any more.
        """
        due = []
        for peer, at in self._due.items():
            if at > now:
                break
            due.append(peer)
        for peer in due:
            del self._due[peer]
            silent = self._is_silent(peer)
            if not silent:
                self._due[peer] = now + self._interval_s
            yield peer, silent

    def _is_silent(self, peer: StreamPeer) -> bool:
        stream = peer.stream
        if peer.heard or stream.unsent or not stream.knows_pings:
            peer.heard = False
            peer.missed = 0
        elif peer.missed >= MAX_MISSED:
            return True
        if stream.knows_pings and not stream.unsent:
            try:
                stream.ping()
            except OSError:
                return True
            peer.missed += 1
        return False


def _has_greeted(peer: StreamPeer) -> bool:
    return bool(peer.stream.peer_type)
