"""A daemon with `security`, the keys to it, and what the table of operations allows each of its principals."""

from __future__ import annotations

import itertools
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asker import Asker
from made_security import PRINCIPALS as PRINCIPALS_FILE
from made_security import make_keys, make_security, write_principals
from running import STEP_S, Running

from multitower import wire
from multitower.errors import Reason
from multitower.supervisor.config.principals import Role
from multitower.supervisor.security.operation_table import OPERATIONS, Operation, Scope

CONFIG = """
devices: {cpu: 1}
spares: 0
listen: ["{endpoint}", "tcp://127.0.0.1:*"]
security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}
models:
- {name: mine, handler: 'handlers:Echo', batching: {max_batch_size: 4}}
- {name: theirs, handler: 'handlers:Echo', batching: {max_batch_size: 4}}
- {name: slow, handler: 'handlers:BadLoader', parameters: {way: wait}, load_at_startup: false}
"""


def header_of(operation: Operation, model: str | None) -> tuple[dict[str, Any], list[bytes]]:
    """A header for an operation, which does no harm where it is allowed."""
    header: dict[str, Any] = {} if model is None else {"model_name": model}
    if operation.kind == wire.INFER:
        header["inputs"] = [{"name": "x", "datatype": "FP32", "shape": [1, 1]}]
        return header, [bytes(4)]
    if operation.kind == wire.RECORD:
        header |= {"timeout_ms": 1}
    if operation.kind == wire.RESTART:
        header |= {"slot": 99}
    if operation.kind == wire.UNLOAD and model is not None:
        header |= {"model_name": f"{model}-of-nobody"}  # allowed for "mine-*"
    return header, []


@dataclass(frozen=True)
class Who:
    """A principal of the matrix."""

    name: str
    roles: tuple[Role, ...]
    models: tuple[str, ...] | None = None


PRINCIPALS = (
    Who("infers", (Role.INFER,)),
    Who("observes", (Role.OBSERVE,)),
    Who("operates", (Role.OPERATE,)),
    Who("everything", tuple(Role)),
    Who("infers-mine", (Role.INFER,), ("mine", "mine-*")),
    Who("observes-mine", (Role.OBSERVE,), ("mine", "mine-*")),
    Who("everything-mine", tuple(Role), ("mine", "mine-*")),
)
ASKED = ("mine", "theirs", "none-such", None)
"""Models that each principal asks for; None for none."""


def expected(operation: Operation, who: Who | None, model: str | None) -> str | None:
    """The refusal that the table says; None where there is none."""
    if operation.open:
        return None
    if who is None:
        return Reason.UNAUTHENTICATED
    if operation.roles.isdisjoint(who.roles):
        return Reason.FORBIDDEN
    if who.models is None or operation.scope is Scope.NOTHING:
        return None
    if operation.scope is Scope.DAEMON or (model is None and operation.scope is Scope.MODEL_OR_DAEMON):
        return Reason.FORBIDDEN
    return None if model in (None, "mine") else Reason.FORBIDDEN


class Locked(Running):
    """A daemon with `security`, and the keys to it.

    Args:
        folder: for its files.

    Attributes:
        folder: the same.
        keys: those of each principal, by name.
        entries: of the file of principals at its start.
        server: the daemon's public key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {who.name: make_keys() for who in PRINCIPALS}
        self.entries = [
            {
                "name": who.name,
                "roles": list(who.roles),
                "public_key": self.keys[who.name].public,
                **({} if who.models is None else {"models": list(who.models)}),
            }
            for who in PRINCIPALS
        ]
        self.server = make_security(folder, self.entries).public
        self._tcp = ""
        super().__init__(folder, CONFIG)

    @property
    def tcp(self) -> str:
        """The endpoint over tcp."""
        if not self._tcp:
            listening = self.wait_line("daemon started")["listen"].split(",")
            self._tcp = next(endpoint for endpoint in listening if endpoint.startswith("tcp://"))
        return self._tcp

    @property
    def front(self) -> str:
        """The path of the endpoint for clients."""
        return self.endpoint.removeprefix("ipc://")

    @property
    def control(self) -> str:
        """The path of the control endpoint."""
        return str(self.runtime_dir / "control.sock")

    def reload(self, entries: list[dict[str, Any]], outcome: str = "reloaded") -> dict[str, Any]:
        """Writes the principals, reloads, and returns the line of the log for the outcome."""
        write_principals(self.folder / PRINCIPALS_FILE, entries)
        seen = len(self.lines)
        self.signal(signal.SIGHUP)
        return self.wait_line(outcome, STEP_S, after=seen)


def by_key(daemon: Locked, name: str) -> Asker:
    """A client over tcp with the key of a principal."""
    return Asker(daemon.tcp, daemon.keys[name], daemon.server)


def check_front(asker: Asker, who: Who | None) -> None:
    """Asks for everything at an endpoint for clients, and compares with the table."""
    refusals: dict[tuple[str, str], set[str]] = {}
    for operation, model in itertools.product(OPERATIONS.values(), ASKED):
        header, tensors = header_of(operation, model)
        reason = asker.ask(operation.kind, header, *tensors)
        refusal = expected(operation, who, model)
        if operation.kind == wire.AUTHENTICATE:
            assert reason == Reason.KIND_UNKNOWN  # for the gateway only
        elif refusal is not None:
            assert reason == refusal, (operation.name, model)
            refusals.setdefault((operation.name, reason), set()).add(asker.message)
        else:
            assert reason not in (Reason.FORBIDDEN, Reason.UNAUTHENTICATED, Reason.KIND_UNKNOWN), (
                operation.name,
                model,
            )
            assert model != "mine" or reason == "ok" or operation.changes, (operation.name, asker.message)
    for messages in refusals.values():  # the same for a model that exists and one that does not
        assert len(messages) == 1
        assert "theirs" not in messages.pop()


def check_orders(asker: Asker, who: Who | None) -> None:
    """Does the same at the control endpoint."""
    answered = {wire.SERVER_LIVE, wire.SERVER_READY, wire.SERVER_METADATA, wire.STATUS, wire.METRICS}
    answered |= {operation.kind for operation in OPERATIONS.values() if Role.OPERATE in operation.roles}
    for operation, model in itertools.product(OPERATIONS.values(), ASKED):
        header, tensors = header_of(operation, model)
        reason = asker.ask(operation.kind, header, *tensors)
        refusal = expected(operation, who, model)
        if refusal is not None:
            assert reason == refusal, (operation.name, model)
        elif operation.kind not in answered:
            assert reason == Reason.KIND_UNKNOWN
        else:
            assert reason not in (Reason.FORBIDDEN, Reason.UNAUTHENTICATED, Reason.KIND_UNKNOWN), operation.name
