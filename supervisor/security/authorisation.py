"""Authorisation: the one place that decides whether a peer may do something, whichever way it came.

It decides before anything looks for the model, so neither the answer nor its time tells whether there is such a model.
"""

from __future__ import annotations

from typing import Final

from multitower import wire
from multitower.errors import MultitowerError, Reason, make
from multitower.trace_context import split_header

from ..config.principals import Role
from .operation_table import OPERATIONS, Operation, Scope
from .peers import Peer

_UNKNOWN: Final = (
    "this needs the key or token of a principal, and this client has none, or one that the daemon does not know (any "
    "more): is it in the daemon's file of principals, and was that reloaded?"
)
_WHERE: Final = {
    Scope.MODEL: "on this model",
    Scope.MODEL_OR_DAEMON: "on this model, or for the whole daemon",
    Scope.DAEMON: "for the whole daemon",
}
_INFER: Final = OPERATIONS[wire.INFER]


class Authorisation:
    """Decides what peers may do."""

    def check(self, peer: Peer, operation: Operation | None, model: str | None) -> MultitowerError | None:
        """Decides about a request.

        Args:
            peer: who sent it.
            operation: the row of its kind; None for a kind that does not exist.
            model: that it concerns, see `Operation.model_in`; None without one.

        Returns:
            The error that it is answered with; None if it is allowed.
        """
        refusal = self.check_role(peer, operation)
        if refusal is not None or operation is None or operation.open or peer.unrestricted:
            return refusal
        scope = operation.scope
        if scope is Scope.NOTHING or (scope is Scope.MODEL and model is None):
            return None  # a request that has to name a model and does not is malformed
        if scope is not Scope.DAEMON and model is not None and peer.may_use(model):
            return None
        # The same words whether there is such a model or not.
        why = f"{_WHERE[scope]}: its list of models does not allow it"
        return make(Reason.FORBIDDEN, f"{_named(peer)} may not do `{operation.name}` {why}")

    def check_infer(self, peer: Peer, header: bytes) -> MultitowerError | None:
        """Decides about a request for inference.

        Args:
            peer: who sent it.
            header: its bytes.

        Returns:
            The error that it is answered with; None if it is allowed.

        Raises:
            InvalidRequest: the header cannot be read.
        """
        refusal = self.check_role(peer, _INFER)
        if refusal is not None or peer.unrestricted:
            return refusal
        bare, _ = split_header(header)
        if peer.has_used(bare):
            return None
        # By the parser that the plan is made with, so that both read the same name.
        refusal = self.check(peer, _INFER, _INFER.model_in(wire.load_header(bare)))
        if refusal is None:
            peer.remember(bare)
        return refusal

    def check_role(self, peer: Peer, operation: Operation | None) -> MultitowerError | None:
        """Decides about what does not depend on the model, so that nothing of the header needs to be read.

        Args:
            peer: who sent it.
            operation: see `check`.

        Returns:
            The error, as `check` would return it; None if it may be allowed.
        """
        if operation is not None and operation.open:
            return None
        if not peer.authenticated:
            return make(Reason.UNAUTHENTICATED, _UNKNOWN)
        # A kind that does not exist is answered as such, to those who are known.
        if operation is None or not operation.roles.isdisjoint(peer.roles):
            return None
        roles = " or ".join(role.value for role in Role if role in operation.roles)
        return make(Reason.FORBIDDEN, f"{_named(peer)} may not do `{operation.name}`: it needs the role {roles}")


def without_names(peer: Peer, error: MultitowerError) -> MultitowerError:
    """The error that a peer gets in place of one that lists other models than its own."""
    if peer.unrestricted or error.reason != Reason.MODEL_UNKNOWN:
        return error
    return make(Reason.MODEL_UNKNOWN, "there is no such model", field="model_name")


def _named(peer: Peer) -> str:
    return f"principal {peer.name}" if peer.principal is not None else f"this user ({peer.name})"
