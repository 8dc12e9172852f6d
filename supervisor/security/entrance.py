"""The ways in: how the sender of a message is found at each kind of socket.

An entrance belongs to one front socket. Every kind of entrance finds a peer; `authorisation.py` decides what it may do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Final

from ..config.principals import Role
from .access_control import AccessControl
from .authentication_failures import Failure
from .peers import NOBODY, Peer
from .zap import USER_ID

PEER_ADDRESS: Final = "Peer-Address"
"""The property of a connection with the peer's address; of a local socket with user, group and process."""

CHOSEN_BY_LIBZMQ_BYTES: Final = 5
"""Length of the names that libzmq gives to connections: a zero byte, and a number that it counts up."""


class Entrance:
    """Finds who sent a message.

    Args:
        access: the daemon's.

    Attributes:
        of_connection: the property of a message's connection that `identify` needs.
        failure: what a message counts as whose sender is unknown.
        access: as given.
    """

    of_connection: str = PEER_ADDRESS
    failure: Failure = Failure.NO_CREDENTIALS

    def __init__(self, access: AccessControl) -> None:
        self.access = access

    def origin(self, peer: Peer, connection: str | None) -> str:
        """Where a message came from, for the log; empty where that is not known.

        Args:
            peer: who has sent it.
            connection: see `identify`.
        """
        return peer.origin

    @abstractmethod
    def identify(self, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """Returns who sent a message; `NOBODY` without valid credentials.

        Args:
            address: the frames before the delimiter; the first one is the ROUTER's own.
            connection: the property `of_connection`; None for a connection that lacks it.
        """

    def identify_again(self, peer: Peer, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """Returns who sent a message that has waited, with the roles and models that they have now.

        Args:
            peer: what `identify` returned when it arrived.
            address: see `identify`.
            connection: likewise.
        """
        return self.identify(address, connection)


class CurveEntrance(Entrance):
    """An endpoint over tcp: the key that the handshake has proved says who it is."""

    of_connection = USER_ID
    failure = Failure.UNKNOWN_KEY

    def origin(self, peer: Peer, connection: str | None) -> str:
        """See `Entrance.origin`: the address; of nobody also the public key, which tells the operator whose it was."""
        key, _, address = (connection or "").partition(" ")
        if peer.authenticated:
            return address or peer.origin
        if not key:
            return ""
        return f"key {key} at {address}" if address else f"key {key}"

    def identify(self, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """See `Entrance.identify`; the sender is nobody if it has chosen the name of its connection.

        libzmq sends a reply to the connection that has the name then. So a peer that takes the name of another one,
        whose connection has ended, would get that one's replies, and could cancel its requests.
        """
        name = address[0]
        if len(name) != CHOSEN_BY_LIBZMQ_BYTES or name[0] != 0:
            return NOBODY
        return self.access.peers.by_key(connection)


class LocalEntrance(Entrance):
    """An endpoint over ipc: the kernel says which user has connected."""

    def identify(self, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """See `Entrance.identify`."""
        return self.access.peers.local(connection)


class GatewayEntrance(Entrance):
    """The gateway's own endpoint: each message has a handle in front, which names the credential of a client."""

    def identify(self, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """See `Entrance.identify`."""
        # This socket is for the gateway only, so a process of another user is refused.
        if len(address) != 2 or not is_own(self.access.peers.local(connection)):
            return NOBODY
        return self.access.by_handle(address[1])

    def identify_again(self, peer: Peer, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """See `Entrance.identify_again`."""
        return self.access.renewed(peer)

    def is_gateway(self, connection: str | None) -> bool:
        """Whether a message comes from the gateway, as far as the kernel knows: from a process of the daemon's user."""
        return is_own(self.access.peers.local(connection))


class ControlEntrance(Entrance):
    """The control endpoint: local users, and the gateway with a handle in front.

    Args:
        access: the daemon's.
        gateway_pids: returns the gateway's processes. What they send without a handle is nobody's: a client of the
            gateway must never get the rights of the daemon's own user.
    """

    def __init__(self, access: AccessControl, gateway_pids: Callable[[], Collection[int]]) -> None:
        super().__init__(access)
        self._gateway_pids = gateway_pids

    def identify(self, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """See `Entrance.identify`."""
        peer = self.access.peers.local(connection)
        if len(address) == 1:
            return NOBODY if peer.pid in self._gateway_pids() else peer
        if len(address) == 2 and is_own(peer):
            return self.access.by_handle(address[1])
        return NOBODY

    def identify_again(self, peer: Peer, address: tuple[bytes, ...], connection: str | None) -> Peer:
        """See `Entrance.identify_again`."""
        return self.identify(address, connection) if len(address) == 1 else self.access.renewed(peer)


def is_own(peer: Peer) -> bool:
    """Whether a local user is the daemon's own or root."""
    return Role.OPERATE in peer.roles and peer.pid is not None
