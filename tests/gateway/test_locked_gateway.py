"""A daemon with `security` over HTTP and gRPC: each operation by each role, with no token, a wrong or a revoked one.

What must be allowed comes from the one table. A kind of request that no row of this file uses fails a test until
somebody says that the gateway does not offer it; so does a method of a gRPC service without a row.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign
import pytest
from gateway_grpc import Services, grpc, message, read_descriptors
from locked_gateway import (
    ASKED,
    CLOSED,
    FORBIDDEN,
    FREE,
    HEALTH,
    INFER_ROW,
    METHODS,
    PATHS,
    REFUSED,
    GrpcRow,
    HttpRow,
    answer,
    ask,
    call,
)
from made_security import PRINCIPALS as FILE
from made_security import make_security, write_principals
from running import STEP_S, Running
from token_load import Load, idle_connection, over_grpc, over_http

from multitower import wire
from multitower.bearer_tokens import hash_secret
from multitower.supervisor.config.principals import Role
from multitower.supervisor.security.operation_table import OPERATIONS, Scope

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))

DOCS = Path(__file__).parents[2] / "docs" / "security.md"

CONFIG = """
devices: {cpu: 1}
spares: 0
listen: ["{endpoint}"]
security: {principals: principals.yaml}
gateway: {http: "127.0.0.1:*", grpc: "127.0.0.1:*", operate: true}
models:
- {name: mine, handler: 'handlers:Declared', batching: {max_batch_size: 4}}
- {name: theirs, handler: 'handlers:Declared', batching: {max_batch_size: 4}}
"""

NOT_OFFERED = {
    wire.CANCEL: "a client cancels by leaving, and only its own requests",
    wire.RESTART: "only at the control endpoint",
    wire.RECORD: "only at the control endpoint",
    wire.AUTHENTICATE: "the gateway asks for its clients",
}
"""Kinds that no client of the gateway can ask for, and why."""


@dataclass(frozen=True)
class Who:
    """A principal of the matrix; its secret is its name."""

    name: str
    roles: tuple[Role, ...]
    models: tuple[str, ...] | None = None
    rate: float | None = None

    @property
    def token(self) -> str:
        return f"{self.name}.{self.name}"

    def entry(self) -> dict[str, Any]:
        limited: dict[str, Any] = {} if self.models is None else {"models": list(self.models)}
        if self.rate is not None:
            limited["rate"] = self.rate
        return {"name": self.name, "roles": list(self.roles), "token_hash": str(hash_secret(self.name)), **limited}


MINE = ("mine", "mine-*")
PRINCIPALS = (
    Who("infers", (Role.INFER,)),
    Who("observes", (Role.OBSERVE,)),
    Who("operates", (Role.OPERATE,)),
    Who("everything", tuple(Role)),
    Who("infers-mine", (Role.INFER,), MINE),
    Who("observes-mine", (Role.OBSERVE,), MINE),
    Who("everything-mine", tuple(Role), MINE),
)
REVOKED = Who("revoked", tuple(Role))
NOBODY: dict[str, str | None] = {
    "no token": None,
    "an empty one": "",
    "a wrong secret": "everything.nothing",
    "an unknown name": "nobody.everything",
    "no name": "everything",
    "a revoked one": REVOKED.token,
}


def expected(kind: bytes, who: Who | None, model: str | None) -> str:
    """What the table says."""
    operation = OPERATIONS[kind]
    if operation.open:
        return FREE
    if who is None:
        return REFUSED
    if operation.roles.isdisjoint(who.roles):
        return FORBIDDEN
    if who.models is None or operation.scope is Scope.NOTHING:
        return FREE
    if operation.scope is Scope.DAEMON or model is None:
        return FORBIDDEN
    return FREE if model == "mine" else FORBIDDEN


def acceptable(row: HttpRow | GrpcRow, who: Who | None, model: str) -> set[str]:
    """What a request may be answered."""
    named = model if row.model else None
    wanted = expected(row.kind, who, named)
    if model in row.from_metadata and expected(wire.MODEL_METADATA, who, named) == FREE:
        return {wanted, FREE}  # who may see the model's metadata may know what it says
    return {wanted}


UNANSWERED = {"MultiInference"}
"""Methods that are not there: every client with valid credentials learns so."""


def test_every_kind_has_a_row_or_is_not_offered() -> None:
    over_http, over_grpc = ({row.kind for row in rows} for rows in (PATHS, METHODS))
    assert sorted([*over_http, *NOT_OFFERED, wire.RELOAD]) == sorted(OPERATIONS)
    assert sorted([*over_grpc, *NOT_OFFERED, wire.METRICS]) == sorted(OPERATIONS)


def path_of(row: HttpRow) -> str:
    """The method and path of a row as the documentation has them."""
    return f"{row.method} {re.sub(r'/versions/1|/labels/stable|[?].*|-of-nobody', '', row.path)}"


def test_the_documentation_says_which_path_and_method_needs_which_request() -> None:
    told = [line.strip("|").split("|") for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    documented = {
        (kind.strip(" `").encode(), word)
        for kind, _, *columns in (cells for cells in told if len(cells) == 4 and "," not in cells[0])
        for word in re.findall(r"`([^`]+)`", " ".join(columns))
    }
    open_kinds = {kind for kind, operation in OPERATIONS.items() if operation.open}
    paths = {(row.kind, path_of(row)) for row in PATHS if row.kind not in open_kinds}
    methods = {(row.kind, row.name) for row in METHODS if row.kind not in open_kinds}
    assert {(b"MT1:" + kind, word) for kind, word in documented} == paths | methods


def test_every_path_has_a_row() -> None:
    """The gateway's own tests compare the paths that it answers with the documented ones (`documented_paths.rs`)."""
    documented = set(re.findall(r"`((?:GET|POST) /[^`]*)`", DOCS.read_text()))
    assert documented == {path_of(row) for row in PATHS}


def test_every_method_has_a_row() -> None:
    services = [
        (f"{file.package}.{service.name}", method.name)
        for file in read_descriptors().values()
        for service in file.service
        for method in service.method
    ]
    assert {(row.service, row.name) for row in METHODS} == {each for each in services if each[1] not in UNANSWERED}


class Locked(Running):
    """A daemon with `security`, and its gateway."""

    def __init__(self, folder: Path) -> None:
        self.principals = folder / FILE
        make_security(folder)
        self.admit(*PRINCIPALS, REVOKED)
        super().__init__(folder, CONFIG)

    def admit(self, *principals: Who, **secrets: list[str]) -> None:
        """Writes the file of principals; those named in `secrets` have these instead of their names."""
        entries = [who.entry() for who in principals]
        for entry in entries:
            if entry["name"] in secrets:
                entry["token_hash"] = [str(hash_secret(secret)) for secret in secrets[entry["name"]]]
        write_principals(self.principals, entries)

    def reload(self) -> None:
        """Has the daemon read its configuration and the principals again."""
        seen = len(self.lines)
        self.signal(signal.SIGHUP)
        line = self.wait_line("audit: reload", STEP_S, seen)
        assert line["outcome"] == "ok", line


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    with Locked(tmp_path_factory.mktemp("locked")) as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def addresses(daemon: Locked) -> dict[str, str]:
    return foreign.addresses(daemon)


@pytest.fixture(scope="module", autouse=True)
def _revoked(daemon: Locked, addresses: dict[str, str]) -> None:
    """One principal has been there, has used its token, and has been removed."""
    assert ask(addresses["http"], PATHS[5], "mine", REVOKED.token) == (FREE, 200)
    daemon.admit(*PRINCIPALS)
    daemon.reload()


TOKENS = [
    *(pytest.param(who, who.token, id=who.name) for who in PRINCIPALS),
    *(pytest.param(None, token, id=name) for name, token in NOBODY.items()),
]


@pytest.mark.parametrize(("who", "token"), TOKENS)
def test_a_token_opens_what_the_table_says_over_http(
    addresses: dict[str, str], who: Who | None, token: str | None
) -> None:
    wrong = []
    for row, model in itertools.product(PATHS, ASKED):
        outcome, status = ask(addresses["http"], row, model, token)
        wanted = acceptable(row, who, model)
        if outcome not in wanted:
            wrong.append((row.method, row.path, model, outcome, status, wanted))
    assert not wrong


@pytest.mark.parametrize(("who", "token"), TOKENS)
def test_a_token_opens_what_the_table_says_over_grpc(
    addresses: dict[str, str], who: Who | None, token: str | None
) -> None:
    services = Services(addresses["grpc"])
    wrong = []
    for row, model in itertools.product(METHODS, ASKED):
        outcome = call(services, row, model, token)
        wanted = acceptable(row, who, model)
        if outcome not in wanted:
            wrong.append((row.name, model, outcome, wanted))
    services.channel.close()
    assert not wrong


@pytest.mark.parametrize("who", [PRINCIPALS[1], PRINCIPALS[4]], ids=lambda who: who.name)
def test_who_may_not_gets_the_same_answer_whether_there_is_such_a_model_or_not(
    addresses: dict[str, str], who: Who
) -> None:
    rows = [row for row in PATHS if row.model and expected(row.kind, who, "theirs") == FORBIDDEN]
    rows = [row for row in rows if expected(wire.MODEL_METADATA, who, "theirs") == FORBIDDEN or not row.from_metadata]
    broken = HttpRow("POST", "/v2/models/MODEL/infer", wire.INFER, "no JSON")
    for row in (*rows, broken):
        theirs, unknown = (answer(addresses["http"], row, model, who.token) for model in ("theirs", "unheard"))
        assert theirs == unknown, row
    assert rows


def test_the_health_of_a_model_needs_a_token(addresses: dict[str, str]) -> None:
    services = Services(addresses["grpc"])
    request = message("grpc.health.v1.HealthCheckRequest", service="mine")
    with pytest.raises(grpc.RpcError) as refused:
        services.method(HEALTH, "Check")(request, timeout=STEP_S)
    assert refused.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND)
    services.channel.close()


FRESH = Who("fresh", (Role.INFER,))
PROXY = "127.0.0.2"


def test_a_token_that_was_never_used_is_served_beside_wrong_ones_of_the_same_address(
    daemon: Locked, addresses: dict[str, str]
) -> None:
    daemon.admit(*PRINCIPALS, FRESH)
    daemon.reload()
    statuses = [answer(addresses["http"], INFER_ROW, "mine", f"fresh.{number}", PROXY)[0] for number in range(40)]
    assert (statuses[0], statuses[-1]) == (401, 429)
    assert answer(addresses["http"], INFER_ROW, "mine", FRESH.token, PROXY)[0] == 200
    # The same wrong one again is no other one, and who has no limits left is told so by nobody else's.
    assert answer(addresses["http"], INFER_ROW, "mine", "fresh.0", PROXY)[0] == 401
    assert answer(addresses["http"], INFER_ROW, "mine", "fresh.other")[0] == 401


LIMITED = Who("limited", (Role.INFER,), rate=0.5)


def test_a_rate_counts_what_a_client_sends_and_not_what_the_gateway_asks(
    daemon: Locked, addresses: dict[str, str]
) -> None:
    daemon.admit(*PRINCIPALS, LIMITED)
    daemon.reload()
    predict = next(row for row in PATHS if row.path == "/v1/models/MODEL:predict")
    for _ in range(2):  # the gateway asks for the metadata again each time
        assert answer(addresses["http"], predict, "mine", LIMITED.token)[0] == 200
        for row in (predict, INFER_ROW):  # 503 would say that the server has too much to do
            status, headers, content = answer(addresses["http"], row, "mine", LIMITED.token)
            assert (status, headers["retry-after"] in ("1", "2")) == (429, True), content
            assert b"its rate of 0.5 a second" in content
        time.sleep(2.1)


LEAVING, STAYING = Who("leaving", (Role.INFER,)), Who("staying", (Role.INFER,))
SECOND_S = 1.0
"""Within which connections of a principal end that was removed. Its requests are refused at once."""


def test_a_principal_is_revoked_and_a_token_replaced_under_load(daemon: Locked, addresses: dict[str, str]) -> None:
    daemon.admit(*PRINCIPALS, LEAVING, STAYING)
    daemon.reload()
    with contextlib.ExitStack() as stack:
        leaving, staying = (
            [
                Load(over_http(stack, addresses["http"]), who.token),
                Load(over_grpc(stack, addresses["grpc"]), who.token),
            ]
            for who in (LEAVING, STAYING)
        )
        for load in (*leaving, *staying):
            stack.callback(load.stop)
        idle = stack.enter_context(idle_connection(addresses["http"], LEAVING.token))
        for load in (*leaving, *staying):
            load.wait_for(5)

        # One is removed, and the other gets a second token.
        daemon.admit(*PRINCIPALS, STAYING, staying=["staying", "renewed"])
        daemon.reload()
        removed = time.monotonic()
        assert idle.recv(1) == b"", "an idle connection of a principal that was removed is closed"
        took_s = time.monotonic() - removed
        for load in (*leaving, *staying):
            load.wait_for(25)
        # What the others' requests took at the same time is the machine's, not the gateway's.
        busy_s = max(load.longest_s(removed) for load in staying)
        assert took_s < SECOND_S + busy_s
        for load in leaving:  # whatever is sent after the reload is refused
            assert REFUSED in load.sent_since(removed) <= {REFUSED, CLOSED}

        # The clients of the other one change to the second token, and the first one is removed.
        for load in staying:
            load.token = "staying.renewed"
            load.wait_for(5)
        daemon.admit(*PRINCIPALS, STAYING, staying=["renewed"])
        daemon.reload()
        for load in staying:
            load.wait_for(20)
        assert ask(addresses["http"], INFER_ROW, "mine", STAYING.token) == (REFUSED, 401)
        assert ask(addresses["http"], INFER_ROW, "mine", "staying.renewed") == (FREE, 200)
    daemon.admit(*PRINCIPALS)
    daemon.reload()
    for load in staying:
        assert load.meanings() == {FREE}, "no request of others fails"
