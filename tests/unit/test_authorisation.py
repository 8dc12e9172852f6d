"""Who may do what: the table of operations, and the decision about each request."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from multitower import wire
from multitower.supervisor.config.principals import Principal, Principals, Role
from multitower.supervisor.security.authorisation import Authorisation
from multitower.supervisor.security.operation_table import OPERATIONS, Operation, Scope
from multitower.supervisor.security.peers import NOBODY, Peer, Peers, peer_of

DOCS = Path(__file__).parents[2] / "docs" / "security.md"
NOT_ASKED = {"OK", "ERROR"}
"""Constants of `wire` that are kinds of replies."""


def kinds() -> set[bytes]:
    named = {name: value for name, value in vars(wire).items() if isinstance(value, bytes) and name not in NOT_ASKED}
    return {value for value in named.values() if value.startswith(b"MT1:") and value != wire.REGION_MAGIC}


def test_every_kind_has_a_row() -> None:
    assert kinds() == set(OPERATIONS)
    assert kinds() > wire.KINDS


def test_every_operation_needs_a_role_unless_it_is_open() -> None:
    assert {operation.kind for operation in OPERATIONS.values() if not operation.roles} == {
        operation.kind for operation in OPERATIONS.values() if operation.open
    }


def row_of(operation: Operation) -> str:
    roles = "anybody" if operation.open else ", ".join(role for role in Role if role in operation.roles)
    return f"| `{operation.name}` | {roles} | {operation.scope.value} |"


def test_the_documentation_has_the_table() -> None:
    rows = re.findall(r"^\| `.*$", DOCS.read_text(), re.MULTILINE)
    assert rows[: len(OPERATIONS)] == [row_of(operation) for operation in OPERATIONS.values()]


ROLES = [frozenset(role for role, has in zip(Role, chosen, strict=True) if has) for chosen in product((0, 1), repeat=3)]
MODELS = (None, ("mine", "our-*"))
ASKED = (None, "mine", "our-1", "ours", "theirs", "")


def allowed(operation: Operation, roles: frozenset[Role], restricted: bool, model: str | None) -> bool:
    """What the table says, in other words than the code's."""
    if operation.open:
        return True
    if not roles & operation.roles:
        return False
    if not restricted or operation.scope is Scope.NOTHING:
        return True
    if operation.scope is Scope.DAEMON:
        return False
    if model is None:
        return operation.scope is Scope.MODEL  # it is malformed
    return model in ("mine", "our-1")


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_the_decision_is_the_tables(operation: Operation) -> None:
    for roles, models, model in product(ROLES, MODELS, ASKED):
        refusal = Authorisation().check(Peer("somebody", roles, models), operation, model)
        expected = None if allowed(operation, roles, models is not None, model) else "forbidden"
        assert (refusal and refusal.reason) == expected, (roles, models, model)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
@pytest.mark.parametrize("model", ASKED)
def test_nobody_gets_only_what_is_open(operation: Operation, model: str | None) -> None:
    refusal = Authorisation().check(NOBODY, operation, model)
    assert (refusal and refusal.reason) == (None if operation.open else "unauthenticated")


def test_a_kind_that_does_not_exist_is_told_to_those_who_are_known() -> None:
    refusal = Authorisation().check(NOBODY, None, None)
    assert refusal is not None
    assert refusal.reason == "unauthenticated"
    assert Authorisation().check(Peer("somebody", [Role.INFER], ["mine"]), None, None) is None


@pytest.mark.parametrize(
    ("peer", "kind", "words"),
    [
        (Peer("one", [Role.OBSERVE]), wire.INFER, "one) may not do `infer`: it needs the role infer"),
        (Peer("one", [Role.INFER]), wire.STATUS, "`status`: it needs the role observe or operate"),
        (Peer("one", [Role.INFER], ["mine"]), wire.INFER, "`infer` on this model: its list of models does not"),
        (Peer("one", [Role.OBSERVE], ["mine"]), wire.METRICS, "`metrics` for the whole daemon: its list of models"),
    ],
)
def test_the_refusal_says_why_and_is_the_same_for_any_model(peer: Peer, kind: bytes, words: str) -> None:
    refusals = {str(Authorisation().check(peer, OPERATIONS[kind], model)) for model in ("theirs", "none-such")}
    (refusal,) = refusals
    assert words in refusal
    assert "theirs" not in refusal


def test_a_slot_concerns_the_daemon_also_beside_a_model() -> None:
    status = OPERATIONS[wire.STATUS]
    assert status.model_in({"model_name": "mine"}) == "mine"
    assert status.model_in({"model_name": "mine", "slot": 0}) is None
    refusal = Authorisation().check(Peer("somebody", [Role.OBSERVE], ["mine"]), status, None)
    assert refusal is not None


@pytest.mark.parametrize("header", [{}, {"model_name": 1}, {"model_name": ["mine"]}, {"model_name": None}])
def test_what_is_no_name_is_no_model(header: dict[str, object]) -> None:
    assert OPERATIONS[wire.STATISTICS].model_in(header) is None


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("digits", "digits", True),
        ("digits", "Digits", False),
        ("digits", "digits2", False),
        ("resnet-*", "resnet-", True),
        ("resnet-*", "resnet-50", True),
        ("resnet-*", "my-resnet-50", False),
        ("resnet-*", "resnet-\n", True),
        ("resnet-?", "resnet-50", False),
        ("m[12]", "m2", True),
        ("m[!12]", "m2", False),
        ("*", "anything", True),
        ("a.b", "axb", False),
        ("*", "x" * 2000, False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert Peer("somebody", [Role.INFER], [pattern]).may_use(name) is matches


KEYS = ("a" * 40, "b" * 40, "c" * 40)


def test_a_key_is_known_as_long_as_its_principal_has_it() -> None:
    first = Principal("first", frozenset({Role.INFER}), public_keys=KEYS[:2])
    peers = Peers(Principals([first]), uid=1000)
    for known in KEYS[:2]:
        assert (peers.by_key(known).name, peers.by_key(known).principal) == ("first", first)
    for unknown in (KEYS[2], "", None):
        assert peers.by_key(unknown) is NOBODY
    peers.apply(Principals([Principal("first", frozenset({Role.INFER}), public_keys=KEYS[1:2])]))
    assert peers.by_key(KEYS[0]) is NOBODY
    assert peers.by_key(KEYS[1]).authenticated


@pytest.mark.parametrize("uid", [0, 1000])
def test_roots_and_the_daemons_own_users_may_do_everything(uid: int) -> None:
    peer = Peers(Principals(), uid=1000).local(f"localhost:{uid}:100:4711")
    assert (peer.name, peer.roles, peer.unrestricted) == (f"local:{uid}", frozenset(Role), True)
    assert "4711" in peer.origin


def test_other_users_of_the_machine_infer_and_observe() -> None:
    peer = Peers(Principals(), uid=1000).local("localhost:1001:1000:4711")
    assert peer.roles == {Role.INFER, Role.OBSERVE}


@pytest.mark.parametrize("address", [None, "", "127.0.0.1", ":::", "0:0:0:0:0", "localhost:0:0", "localhost:0x0:0:0"])
def test_an_address_that_cannot_be_read_is_nobodys(address: str | None) -> None:
    assert Peers(Principals(), uid=1000).local(address) is NOBODY


def test_a_peer_tells_where_it_came_from() -> None:
    assert peer_of(Principal("first", frozenset(Role)), "192.0.2.1:5").origin == "192.0.2.1:5"
