"""How long a new connection may take until it has shaken hands: less, while others wait for its place.

A connection without a handshake costs its client nothing, and takes one of `max_connections` places. While
few are free, it is ended after a second; a client that was only slow connects again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

CROWDED_HANDSHAKE_S: Final = 1.0
"""Seconds that a new connection has for its handshake while places are nearly full; see `Connections.crowded`."""

Connection = TypeVar("Connection", bound=Hashable)


class HandshakeWatch(Generic[Connection]):
    """The connections of one front socket that are not known to have shaken hands.

    Args:
        allowed_s: seconds that a handshake may take while there is room.
        has_shaken_hands: asked of a connection when its time is over.
    """

    def __init__(self, allowed_s: float, has_shaken_hands: Callable[[Connection], bool]) -> None:
        self._allowed_s = allowed_s
        self._has_shaken_hands = has_shaken_hands
        self._opening: dict[Connection, float] = {}  # when each has connected, in this order

    def add(self, connection: Connection, now: float) -> None:
        """Watches a new connection."""
        self._opening[connection] = now

    def forget(self, connection: Connection) -> None:
        """Forgets a connection that has shaken hands or is closed."""
        self._opening.pop(connection, None)

    def take_late(self, now: float, crowded: bool) -> Iterator[tuple[Connection, float]]:
        """The connections whose handshake has taken too long, each once, and the seconds that it might take.

        Args:
            now: monotonic seconds.
            crowded: whether the shorter time holds.
        """
        allowed = min(CROWDED_HANDSHAKE_S, self._allowed_s) if crowded else self._allowed_s
        due = []
        for connection, connected in self._opening.items():
            if connected + allowed > now:
                break
            due.append(connection)
        for connection in due:
            del self._opening[connection]
            if not self._has_shaken_hands(connection):
                yield connection, allowed
