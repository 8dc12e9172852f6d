"""The answer to `MT1:authenticate`: who the client is that a credential belongs to, and a handle for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from multitower.bearer_tokens import MAX_TOKEN
from multitower.errors import MultitowerError, Reason, make

from ..config.principals import Principal, Principals
from .authentication_failures import Failure, Failures
from .credential_handles import LIFETIME_S, Handles
from .tokens import Refusal, TokenVerifier

MAX_FROM: Final = 64
"""Characters of a client's address."""

INTERFACES: Final = ("http", "grpc")
"""What a client of the gateway speaks, where the gateway says so."""

GATEWAY: Final = "gateway"
"""The interface of the gateway's own endpoint, and of its clients where it does not say what they speak."""

_HINTS: Final = {
    Failure.MALFORMED_TOKEN: "a token has the form NAME.SECRET",
    Failure.UNKNOWN_CERTIFICATE: "no principal has the name (CN) of this certificate",
}

Done = Callable[[dict[str, Any] | MultitowerError], None]
"""Takes the header of the reply, or an error."""


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
        verifier: TokenVerifier,
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
            self._verifier.verify(
                token, origin, lambda outcome: self._finish(outcome, credential, origin, interface, done)
            )
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
    # The same words for an unknown name and for a wrong secret. A hint about the form of a token, or about the name in
    # a certificate, tells the client nothing that it does not know.
    if refusal.retry_after_s is None:
        hint = _HINTS.get(refusal.failure)
        return make(Reason.UNAUTHENTICATED, "the credentials are not valid" + (f": {hint}" if hint else ""))
    retry_after_ms = max(1, round(refusal.retry_after_s * 1000))
    if refusal.of_source:
        message = "too many credentials of this client's address were wrong"
        return make(Reason.QUEUE_FULL, message, limit="authentication", retry_after_ms=retry_after_ms)
    # Without `limit` in the details: the client need not be the cause.
    return make(Reason.QUEUE_FULL, "too many credentials wait to be verified", retry_after_ms=retry_after_ms)


def _text(header: Mapping[str, Any], name: str, limit: int) -> str | None:
    """Returns a text of a header, cut behind more characters than it may have; None without one."""
    text = header.get(name)
    if text is not None and not isinstance(text, str):
        raise make(Reason.MALFORMED, f"{name} is not a string", field=name)
    return text if text is None else text[: limit + 1]
