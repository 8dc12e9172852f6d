"""The table of operations: which role each kind of request needs, and whether it concerns a model or the whole daemon.

Every kind of `multitower.wire` has a row; a test fails for one that has none. docs/security.md shows the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from multitower import wire

from ..config.principals import Role


class Scope(Enum):
    """What an operation concerns."""

    NOTHING = "nothing that belongs to a model"
    MODEL = "the model that the request names"
    MODEL_OR_DAEMON = "the model that the request names; without one, the whole daemon"
    DAEMON = "the whole daemon"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table.

    Attributes:
        kind: the kind of request.
        roles: a principal needs one of these.
        scope: what it concerns. A principal with `models` may do what concerns one of them, and nothing that concerns
            the whole daemon.
        open: whether it is answered to everybody, also without credentials.
        wider: keys of the header with which it concerns the whole daemon, also where it names a model.
        changes: whether it changes something, so that an audit line is written.
    """

    kind: bytes
    roles: frozenset[Role]
    scope: Scope
    open: bool = False
    wider: tuple[str, ...] = ()
    changes: bool = False

    @property
    def name(self) -> str:
        """The kind without the protocol's version, such as `infer`."""
        return self.kind.decode().removeprefix(f"{wire.VERSION}:")

    def model_in(self, header: Mapping[str, Any]) -> str | None:
        """The model that a request with this header concerns; None for the whole daemon, or for none.

        Args:
            header: as parsed.
        """
        if self.scope in (Scope.NOTHING, Scope.DAEMON) or any(key in header for key in self.wider):
            return None
        name = header.get("model_name")
        return name if isinstance(name, str) else None


_INFER: Final = frozenset({Role.INFER})
_OBSERVE: Final = frozenset({Role.OBSERVE})
_OPERATE: Final = frozenset({Role.OPERATE})
_ABOUT_A_MODEL: Final = _INFER | _OBSERVE

OPERATIONS: Final[Mapping[bytes, Operation]] = {
    operation.kind: operation
    for operation in (
        Operation(wire.INFER, _INFER, Scope.MODEL),
        Operation(wire.CANCEL, _INFER, Scope.NOTHING),  # of the sender's own requests only
        Operation(wire.MODEL_READY, _ABOUT_A_MODEL, Scope.MODEL),
        Operation(wire.MODEL_METADATA, _ABOUT_A_MODEL, Scope.MODEL),
        Operation(wire.MODEL_CONFIG, _ABOUT_A_MODEL, Scope.MODEL),
        Operation(wire.SERVER_LIVE, frozenset(), Scope.NOTHING, open=True),
        Operation(wire.SERVER_READY, frozenset(), Scope.NOTHING, open=True),
        Operation(wire.SERVER_METADATA, frozenset(Role), Scope.NOTHING),
        Operation(wire.STATISTICS, _OBSERVE, Scope.MODEL_OR_DAEMON),
        # An operator needs it, too: it lists the models for the repository index.
        Operation(wire.STATUS, _OBSERVE | _OPERATE, Scope.MODEL_OR_DAEMON, wider=("slot",)),
        Operation(wire.METRICS, _OBSERVE, Scope.DAEMON),
        Operation(wire.RELOAD, _OPERATE, Scope.DAEMON, changes=True),
        Operation(wire.RESTART, _OPERATE, Scope.DAEMON, changes=True),
        Operation(wire.LOAD, _OPERATE, Scope.MODEL, changes=True),
        Operation(wire.UNLOAD, _OPERATE, Scope.MODEL, changes=True),
        Operation(wire.RECORD, _OPERATE, Scope.MODEL, changes=True),  # it hands out what others have sent
        # The gateway asks this at its own endpoint, to find out who its client is.
        Operation(wire.AUTHENTICATE, frozenset(), Scope.NOTHING, open=True),
    )
}
"""All operations, by kind."""

ORDERS: Final = frozenset(kind for kind, operation in OPERATIONS.items() if operation.changes)
"""The kinds that change something."""
