"""Who sent a message: found for each message, from what libzmq or the gateway says of its sender.

- CURVE: the key that the handshake has proved (`User-Id`), looked up among the principals in force. So a key that was
  revoked is unknown from the next message on, whatever connections are open.
- Local sockets: the user of the connecting process, by the kernel (`Peer-Address`).
- The gateway: the handle that it puts in front of a client's request, and that the daemon gave it for credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Final

from multitower.curve_keys import KEY_CHARACTERS

from ..config.principals import ANONYMOUS, Principal, Principals, Role

MAX_LOCAL: Final = 1024
"""Connections of local sockets whose users are remembered at a time."""

MAX_MODEL_NAME: Final = 1024
"""Characters of a model's name that are compared with patterns; no model has a longer name."""

MAX_HEADERS: Final = 256
MAX_HEADER_BYTES: Final = 16 << 10
"""Headers that are remembered for each peer, and the size of one."""

_LOCAL_ADDRESS: Final = re.compile(r"[^:]*:([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")
"""libzmq's name for the peer of a local socket: a word, then user, group and process."""


class Peer:
    """Who sent a message, and what they may do.

    Args:
        name: a principal's, `local:UID` for a user of this machine, `anonymous` without valid credentials.
        roles: what it may do.
        models: names or patterns of models on which it may; None for all.
        authenticated: whether it is known who this is.
        origin: where the message came from, for audit lines.
        principal: whose key or token it was; None for local users and anonymous ones.
        pid: the process of a local user that has connected; None for others.

    Attributes:
        name, roles, authenticated, origin, principal, pid: as given.
        unrestricted: whether it may do what its roles allow on all models, and on the whole daemon.
    """

    __slots__ = (
        "_allowed",
        "_exact",
        "_patterns",
        "authenticated",
        "name",
        "origin",
        "pid",
        "principal",
        "roles",
        "unrestricted",
    )

    def __init__(
        self,
        name: str,
        roles: Iterable[Role] = (),
        models: Iterable[str] | None = None,
        *,
        authenticated: bool = True,
        origin: str = "",
        principal: Principal | None = None,
        pid: int | None = None,
    ) -> None:
        self.name = name
        self.roles = frozenset(roles)
        self.authenticated = authenticated
        self.origin = origin
        self.principal = principal
        self.pid = pid
        self._allowed: set[bytes] = set()
        self.unrestricted = models is None
        listed = () if models is None else tuple(models)
        self._exact = frozenset(listed)
        self._patterns = tuple(re.compile(translate(each)) for each in listed if any(sign in each for sign in "*?["))

    def may_use(self, model: str) -> bool:
        """Whether the model is one of its models, by the name alone: whether there is such a model does not matter."""
        if self.unrestricted or model in self._exact:
            return True
        if len(model) > MAX_MODEL_NAME:
            return False
        return any(pattern.match(model) for pattern in self._patterns)

    def has_used(self, header: bytes) -> bool:
        """Whether this peer has been allowed a request for inference with this header before."""
        return header in self._allowed

    def remember(self, header: bytes) -> None:
        """Remembers a header that was allowed, so that it need not be parsed for the next decision.

        What is refused is never remembered, nor what others were allowed: so the time of a refusal tells nothing.
        """
        if len(header) <= MAX_HEADER_BYTES:
            if len(self._allowed) >= MAX_HEADERS:
                self._allowed.clear()
            self._allowed.add(header)


def peer_of(principal: Principal, origin: str) -> Peer:
    """The peer for a principal's credentials.

    Args:
        principal: whose they are.
        origin: where the message came from.
    """
    return Peer(principal.name, principal.roles, principal.models, origin=origin, principal=principal)


NOBODY: Final = Peer(ANONYMOUS, authenticated=False)
"""The peer of a message without valid credentials."""


class Peers:
    """Finds the peer of a message by its key or by its user.

    Args:
        principals: those in force.
        uid: the daemon's own user.
    """

    def __init__(self, principals: Principals, uid: int | None = None) -> None:
        self._own = os.geteuid() if uid is None else uid
        self._by_key: dict[str, Peer] = {}
        self._local: dict[str, Peer] = {}
        self.apply(principals)

    def apply(self, principals: Principals) -> None:
        """Puts other principals in force, from the next message on."""
        self._by_key = {key: peer_of(principal, "tcp") for key, principal in principals.by_key.items()}

    def by_key(self, user_id: str | None) -> Peer:
        """The peer for the `User-Id` of a message: it begins with the CURVE key of the peer; see `zap.USER_ID`."""
        return NOBODY if user_id is None else self._by_key.get(user_id[:KEY_CHARACTERS], NOBODY)

    def local(self, address: str | None) -> Peer:
        """The peer for the `Peer-Address` of a message from a local socket.

        The daemon's user and root may do everything. Other users that the socket's mode admits may infer and observe.
        """
        if address is None:
            return NOBODY
        peer = self._local.get(address)
        if peer is None:
            peer = self._local_peer(address)
            if len(self._local) >= MAX_LOCAL:
                self._local.clear()
            self._local[address] = peer
        return peer

    def _local_peer(self, address: str) -> Peer:
        found = _LOCAL_ADDRESS.fullmatch(address)
        if found is None:
            return NOBODY
        uid, pid = int(found[1]), int(found[3])
        roles = frozenset(Role) if uid in (0, self._own) else frozenset({Role.INFER, Role.OBSERVE})
        return Peer(f"local:{uid}", roles, origin=f"pid {pid}", pid=pid)
