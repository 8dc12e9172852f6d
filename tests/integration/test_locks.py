"""A daemon with locks: every kind of request by every way in, by each role, without a key, with a wrong or revoked one.

What must be allowed comes from the one table, so a new operation is tested as soon as it has a row.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq
from made_locks import Keys, make_keys, make_locks
from running import STEP_S, Running

from multitower import wire
from multitower.errors import Reason
from multitower.supervisor.config.principals import Role
from multitower.supervisor.security.operations import OPERATIONS, Operation, Scope

CONFIG = """
devices: {cpu: 1}
spares: 0
listen: ["{endpoint}", "tcp://127.0.0.1:*"]
security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}
models:
- {name: mine, handler: 'handlers:Echo', batching: {max_batch_size: 4}}
- {name: theirs, handler: 'handlers:Echo', batching: {max_batch_size: 4}}
"""

ANSWER_MS = int(STEP_S * 1000)


class Asker:
    """A socket that asks as a client may, or must not."""

    def __init__(self, endpoint: str, keys: Keys | None = None, server: str | None = None, *hop: bytes) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        if server is not None and keys is not None:
            self.socket.set(zmq.CURVE_SERVERKEY, server.encode())
            self.socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            self.socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._hop = hop
        self._ids = itertools.count()
        self.socket.connect(endpoint)

    def send(self, kind: bytes, header: dict[str, Any], *tensors: bytes) -> bytes:
        id = str(next(self._ids)).encode()
        self.socket.send_multipart([*self._hop, b"", kind, id, wire.dump_json(header), *tensors])
        return id

    def ask(self, kind: bytes, header: dict[str, Any], *tensors: bytes, timeout_ms: int = ANSWER_MS) -> str:
        """Asks, and returns the reason of the error; `ok` without one, `no answer` without an answer in time."""
        id = self.send(kind, header, *tensors)
        if not self.socket.poll(timeout_ms):
            return "no answer"
        frames = self.socket.recv_multipart()
        assert frames[: len(self._hop)] == list(self._hop)
        delimiter, outcome, replied, body, *_ = frames[len(self._hop) :]
        assert (delimiter, replied) == (b"", id)
        self.message = body.decode()
        return "ok" if outcome == wire.OK else str(json.loads(body)["error"]["reason"])

    def close(self) -> None:
        self._context.destroy(linger=0)


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
    if operation.kind == wire.UNLOAD:
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
    """A daemon with locks, and the keys to it."""

    def __init__(self, folder: Path, config: str = CONFIG, **arguments: Any) -> None:
        self.folder = folder
        self.keys = {who.name: make_keys() for who in PRINCIPALS}
        self.server = make_locks(folder, self.entries()).public
        super().__init__(folder, config, **arguments)

    def entries(self) -> list[dict[str, Any]]:
        return [
            {
                "name": who.name,
                "roles": list(who.roles),
                "public_key": self.keys[who.name].public,
                **({} if who.models is None else {"models": list(who.models)}),
            }
            for who in PRINCIPALS
        ]

    @property
    def tcp(self) -> str:
        line = self.wait_line("daemon started")
        return next(endpoint for endpoint in line["listen"].split(",") if endpoint.startswith("tcp://"))

    @property
    def control(self) -> str:
        return f"ipc://{self.wait_line('daemon started')['runtime_dir']}/control.sock"

    def asker(self, name: str) -> Asker:
        return Asker(self.tcp, self.keys[name], self.server)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    with Locked(tmp_path_factory.mktemp("locks")) as running:
        yield running.wait_ready()


@pytest.fixture
def ask(daemon: Locked) -> Iterator[Any]:
    made: list[Asker] = []

    def make(*arguments: Any) -> Asker:
        made.append(Asker(*arguments))
        return made[-1]

    yield make
    for asker in made:
        asker.close()


@pytest.mark.parametrize("who", PRINCIPALS, ids=lambda who: who.name)
def test_a_key_opens_what_the_table_says_over_tcp(daemon: Locked, ask: Any, who: Who) -> None:
    asker = ask(daemon.tcp, daemon.keys[who.name], daemon.server)
    for operation, model in itertools.product(OPERATIONS.values(), ASKED):
        header, tensors = header_of(operation, model)
        reason = asker.ask(operation.kind, header, *tensors)
        refusal = expected(operation, who, model)
        if operation.kind not in wire.KINDS and (operation.open or not operation.roles.isdisjoint(who.roles)):
            assert reason == Reason.KIND_UNKNOWN  # an order, which is none here: nothing is looked for
        elif refusal is not None:
            assert reason == refusal, (operation.name, model)
        else:
            assert reason not in (Reason.FORBIDDEN, Reason.UNAUTHENTICATED), (operation.name, model)
            assert model != "mine" or reason == "ok", (operation.name, asker.message)
