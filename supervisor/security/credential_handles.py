"""Handles: short names that the gateway puts in front of a client's request, for a credential that was verified.

A handle is given for a credential, and stands for the principal as it was then. When the principal is changed or
removed, the handle is void from that moment on; the gateway then has the credential verified again.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from ..config.principals import ANONYMOUS, Principal, Principals
from .peers import Peer, peer_of

LIFETIME_S: Final = 60.0
"""Seconds after which a handle is void whose credential was not verified again. The gateway does so twice a second."""

MAX_HANDLES: Final = 65_536
"""Handles that are kept; each principal has one for each of its credentials."""

ANONYMOUS_HANDLE: Final = ANONYMOUS.encode("ascii")
"""Stands for clients that have shown no credential."""


@dataclass(slots=True)
class _Given:
    peer: Peer
    credential: Hashable
    until: float


class Handles:
    """The handles that have been given."""

    def __init__(self) -> None:
        self._by_handle: OrderedDict[bytes, _Given] = OrderedDict()  # in the order in which they become void
        self._by_credential: dict[Hashable, bytes] = {}

    def give(self, principal: Principal, credential: Hashable, origin: str, now: float) -> bytes:
        """Returns the handle of a credential: a new one, or the one that it has, which stays valid for longer.

        Args:
            principal: whose credential it is.
            credential: what stands for it in memory.
            origin: where it was shown first, for the log.
            now: monotonic seconds.
        """
        handle = self._by_credential.get(credential)
        given = self._by_handle.get(handle) if handle is not None else None
        if handle is None or given is None or given.until <= now or given.peer.principal != principal:
            if handle is not None:
                self._remove(handle)
            handle = secrets.token_hex(8).encode("ascii")
            given = _Given(peer_of(principal, origin), credential, now)
            self._by_handle[handle] = given
            self._by_credential[credential] = handle
        given.until = now + LIFETIME_S
        self._by_handle.move_to_end(handle)
        while len(self._by_handle) > MAX_HANDLES or next(iter(self._by_handle.values())).until <= now:
            self._remove(next(iter(self._by_handle)))
        return handle

    def find(self, handle: bytes, now: float) -> Peer | None:
        """Returns who asks with a handle; None if it is void or unknown.

        Args:
            handle: as the gateway sent it.
            now: monotonic seconds.
        """
        given = self._by_handle.get(handle)
        return given.peer if given is not None and now < given.until else None

    def apply(self, principals: Principals) -> None:
        """Makes the handles of principals void that have been changed or removed."""
        for handle, given in list(self._by_handle.items()):
            principal = given.peer.principal
            if principal is None or principals.by_name.get(principal.name) != principal:
                self._remove(handle)

    def _remove(self, handle: bytes) -> None:
        given = self._by_handle.pop(handle)
        if self._by_credential.get(given.credential) == handle:
            del self._by_credential[given.credential]
