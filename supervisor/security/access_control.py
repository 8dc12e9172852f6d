"""The access control of a daemon: all that decides who may do what, and how much, in one place.

A daemon without `security` in its configuration has none of it, and pays nothing for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..config.principals import Principals
from ..loop.background import BackgroundJobs
from .authentication_failures import Failures
from .authenticator import Authenticator
from .authorisation import Authorisation
from .credential_handles import ANONYMOUS_HANDLE, Handles
from .peers import NOBODY, Peer, Peers, peer_of
from .principal_limits import Uses
from .tokens import TokenVerifier


class AccessControl:
    """The access control of a daemon. For the loop's thread.

    Args:
        principals: those in force.
        background: runs what takes long.
        clock: returns monotonic seconds.

    Attributes:
        principals: those in force.
        peers: finds who sent a message, by its key or its user.
        authorisation: decides what they may do.
        uses: what principals have asked for, and their limits.
        failures: counts failed authentications.
        authenticator: answers the gateway, which asks for its clients.
    """

    def __init__(
        self,
        principals: Principals,
        background: BackgroundJobs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.principals = principals
        self.peers = Peers(principals)
        self.authorisation = Authorisation()
        self.uses = Uses()
        self.failures = Failures(clock())
        self._handles = Handles()
        self._verifier = TokenVerifier(background, clock)
        self.authenticator = Authenticator(self._verifier, self._handles, self.failures, clock)
        self._clock = clock
        self.apply(principals)

    def apply(self, principals: Principals) -> None:
        """Puts other principals in force, from the next message on."""
        self.principals = principals
        self.peers.apply(principals)
        self.authenticator.apply(principals)
        self.uses.set_principals(principals.by_name.values(), self._clock())

    def by_handle(self, handle: bytes) -> Peer:
        """The peer for the handle that the gateway put in front of a message; nobody if it is void or unknown."""
        if handle == ANONYMOUS_HANDLE:
            return NOBODY
        return self._handles.find(handle, self._clock()) or NOBODY

    def renewed(self, peer: Peer) -> Peer:
        """A peer that was found by a handle, with the roles and models that its principal has now.

        Nobody if the principal was removed, or a token of it, which may be the one that was shown. The handle itself
        tells neither: it is void once the principal has changed, and a minute after its client has gone away.
        """
        former = peer.principal
        principal = self.principals.by_name.get(former.name) if former is not None else None
        if former is None or principal is None or not set(former.token_hashes) <= set(principal.token_hashes):
            return NOBODY
        return peer_of(principal, peer.origin)

    @property
    def due(self) -> float:
        """When `tick` must be called at the latest, in monotonic seconds."""
        return self._verifier.due

    def tick(self, now: float) -> None:
        """Goes on with what waits for its time.

        Args:
            now: monotonic seconds.
        """
        self._verifier.tick(now)

    def report(self) -> list[dict[str, Any]]:
        """Returns a row for each principal, as the status has it: who it is and what it has asked for; no secrets."""
        rows: list[dict[str, Any]] = []
        for name, principal in self.principals.by_name.items():
            use = self.uses.of(name)
            assert use is not None  # since `apply`
            row = {
                "name": name,
                "roles": sorted(role.value for role in principal.roles),
                "models": None if principal.models is None else list(principal.models),
                "max_outstanding": principal.max_outstanding,
                "rate": principal.rate,
                **use.to_json(),
            }
            rows.append(row)
        return rows
