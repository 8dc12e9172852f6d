"""Handles: short names that the gateway puts in front of a client's request, for a credential that was verified.

A handle is given for a credential, and stands for the principal as it was then. When the principal is changed or
removed, the handle is void from that moment on; the gateway then has the credential verified again.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from multitower.bearer_tokens import MAX_TOKEN
from multitower.errors import MultitowerError, Reason, make

from ..config.principals import ANONYMOUS, Principal, Principals
from .failures import Failure, Failures
from .peers import Peer, peer_of
from .tokens import Refusal, TokenVerifier

LIFETIME_S: Final = 60.0
"""Seconds after which a handle is void whose credential was not verified again. The gateway does so each second."""

MAX_HANDLES: Final = 65_536
"""Handles that are kept; each principal has one for each of its credentials."""

MAX_FROM: Final = 64
"""Characters of a client's address."""

INTERFACES: Final = ("http", "grpc")
"""What a client of the gateway speaks, where the gateway says so."""

GATEWAY: Final = "gateway"
"""The interface of the gateway's own endpoint, and of its clients where it does not say what they speak."""

ANONYMOUS_HANDLE: Final = ANONYMOUS.encode("ascii")
"""Stands for clients that have shown no credential."""

Done = Callable[[dict[str, Any] | MultitowerError], None]
"""Takes the header of the reply, or an error."""


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


class Authenticator:
    """Answers `MT1:authenticate`, which only the gateway may ask.

    Args:
        verifier: verifies tokens.
        handles: get what is given.
        failures: count what is refused.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        verifier: TokenVerifier[Principal],
        handles: Handles,
        failures: Failures,
        clock: Callable[[], float],
    ) -> None:
        self._verifier = verifier
        self._handles = handles
        self._failures = failures
        self._clock = clock
        self._principals = Principals()

    def apply(self, principals: Principals) -> None:
        """Puts other principals in force, from the next message on."""
        self._principals = principals
        self._verifier.set_principals(principals.by_name)
        self._handles.apply(principals)

    def answer(self, header: Mapping[str, Any], done: Done) -> None:
        """Answers a request.

        Args:
            header: has `token`, or the `certificate_name` of a certificate that TLS has verified; and `from`, the
                client's address.
            done: called once, now or later: with the `handle`, the name of the `principal` and the milliseconds
                `expires_ms` for which the handle is valid at least, or with an error.

        Raises:
            MultitowerError: the header is malformed; `done` is never called then.
        """
        origin = _text(header, "from", MAX_FROM) or ""
        interface = header.get("interface")
        interface = interface if interface in INTERFACES else GATEWAY
        token, name = _text(header, "token", MAX_TOKEN), _text(header, "certificate_name", MAX_TOKEN)
        if (token is None) == (name is None):
            raise make(Reason.MALFORMED, "a header needs either token or certificate_name", field="token")
        if token is not None:
            credential: Hashable = ("token", self._verifier.digest(token))
            outcome_of = self._verifier.verify
            outcome_of(token, origin, lambda outcome: self._finish(outcome, credential, origin, interface, done))
            return
        principal = self._principals.by_name.get(name or "")
        found = Refusal(Failure.UNKNOWN_CERTIFICATE) if principal is None else principal
        self._finish(found, ("certificate", name), origin, interface, done)

    def _finish(
        self, outcome: Principal | Refusal, credential: Hashable, origin: str, interface: str, done: Done
    ) -> None:
        now = self._clock()
        if isinstance(outcome, Refusal):
            self._failures.add(interface, outcome.failure, origin, now, outcome.principal)
            done(_error(outcome))
            return
        handle = self._handles.give(outcome, credential, origin, now)
        done({"handle": handle.decode("ascii"), "principal": outcome.name, "expires_ms": round(LIFETIME_S * 1000)})


def _error(refusal: Refusal) -> MultitowerError:
    # The same words whatever is wrong.
    if refusal.retry_after_s is None:
        return make(Reason.UNAUTHENTICATED, "the credentials are not valid")
    message = "too many credentials wait to be verified, or were wrong"
    retry_after_ms = max(1, round(refusal.retry_after_s * 1000))
    return make(Reason.QUEUE_FULL, message, limit="authentication", retry_after_ms=retry_after_ms)


def _text(header: Mapping[str, Any], name: str, limit: int) -> str | None:
    """Returns a text of a header, cut behind more characters than it may have; None without one."""
    text = header.get(name)
    if text is not None and not isinstance(text, str):
        raise make(Reason.MALFORMED, f"{name} is not a string", field=name)
    return text if text is None else text[: limit + 1]
