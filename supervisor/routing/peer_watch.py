"""Watches the connections of `stream_front`: those that do not begin as they should, and over tcp the silent ones.

A client over tcp may be gone without a word (`multitower/liveness.py`). So the daemon sends a heartbeat, the command
PING of ZMTP 3.1, every quarter of the time after which a silent client counts as gone. A client of which nothing has
been read for three quarters since a heartbeat is gone. Peers of ZMTP 3.0 know no PING, and to a client that reads
nothing none can be sent; there only the kernel ends the connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .stream_peer import StreamPeer

HANDSHAKE_S: Final = 30.0
"""Seconds that a new connection has for its greeting, as with libzmq."""

CROWDED_HANDSHAKE_S: Final = 1.0
"""The same while no more connections are accepted: others wait for its place."""

MAX_MISSED: Final = 3
"""Quarters of the time in which a client may send nothing although it was asked to."""


class PeerWatch:
    """The connections of one front socket that must give signs of life.

    Args:
        peer_timeout_s: seconds after which a client that is silent counts as gone; 0 for never.
    """

    def __init__(self, peer_timeout_s: float) -> None:
        self._interval_s = peer_timeout_s / 4
        self._opening: dict[StreamPeer, float] = {}  # when each has connected, in this order
        self._due: dict[StreamPeer, float] = {}  # when each is looked at next, in this order

    def add(self, peer: StreamPeer, now: float) -> None:
        """Watches a new connection."""
        self._opening[peer] = now
        if self._interval_s:
            self._due[peer] = now + self._interval_s

    def open(self, peer: StreamPeer) -> None:
        """Notes that a connection has sent a message."""
        peer.open = True
        self._opening.pop(peer, None)

    def forget(self, peer: StreamPeer) -> None:
        """Forgets a connection that is closed, with what it has sent of a message."""
        self._opening.pop(peer, None)
        self._due.pop(peer, None)

    def take_late(self, now: float, crowded: bool) -> Iterator[tuple[StreamPeer, float]]:
        """The connections whose handshake has taken too long, each once, and the seconds that it might take.

        Args:
            now: monotonic seconds.
            crowded: whether other clients wait to be accepted until some connection is closed.
        """
        allowed = CROWDED_HANDSHAKE_S if crowded else HANDSHAKE_S
        for peer, connected in list(self._opening.items()):
            if connected + allowed > now:
                break
            del self._opening[peer]
            if not peer.stream.peer_type:
                yield peer, allowed

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
