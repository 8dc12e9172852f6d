"""A daemon with `security`: every kind of request by every way in, by each role, with no or a wrong key.

What must be allowed comes from the one table, so a new operation is tested as soon as it has a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from asker import CAN_BE_OTHERS, NO_ANSWER, NOT_ANSWERED_S, Asker, Closing, LocalAsker
from click.testing import CliRunner
from locked_daemon import PRINCIPALS, Locked, Who, by_key, check_front, check_orders, header_of
from made_security import make_keys, write_secret
from running import STEP_S
from without_privileges import NOBODY

from multitower import wire
from multitower.cli import commands
from multitower.errors import Reason
from multitower.exit_codes import Exit
from multitower.supervisor.config.principals import Role
from multitower.supervisor.security.operation_table import OPERATIONS, Scope


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    with Locked(tmp_path_factory.mktemp("security")) as running:
        yield running.wait_ready()


# Over tcp.


@pytest.mark.parametrize("who", PRINCIPALS, ids=lambda who: who.name)
def test_over_tcp_a_key_opens_what_the_table_says(daemon: Locked, closing: Closing, who: Who) -> None:
    check_front(closing(by_key(daemon, who.name)), who)


@pytest.mark.parametrize("which", ["no key", "wrong key", "wrong key of the daemon"])
def test_over_tcp_nothing_answers_without_the_right_key(daemon: Locked, closing: Closing, which: str) -> None:
    keys, server = daemon.keys["everything"], daemon.server
    asker = {
        "no key": lambda: Asker(daemon.tcp),
        "wrong key": lambda: Asker(daemon.tcp, make_keys(), server),
        "wrong key of the daemon": lambda: Asker(daemon.tcp, keys, make_keys().public),
    }[which]()
    closing(asker)
    for kind in (wire.SERVER_LIVE, wire.STATUS):
        assert asker.ask(kind, {}, timeout_s=NOT_ANSWERED_S) == NO_ANSWER
    assert closing(by_key(daemon, "everything")).ask(wire.STATUS, {}) == "ok"


@pytest.mark.parametrize(
    ("who", "order", "code", "words"),
    [
        ("operates", ["reload"], Exit.OK, "reloaded; no slot had to change"),
        ("operates", ["restart", "99"], 1, "NOT_FOUND/slot_unknown: there is no slot 99, only 0"),
        ("operates", ["load", "theirs"], Exit.OK, "theirs was already loaded"),
        ("operates", ["record", "theirs", "--timeout", "10ms"], 1, "no request was recorded"),
        ("everything-mine", ["load", "mine"], Exit.OK, "mine was already loaded"),
        ("everything-mine", ["load", "theirs"], Exit.NO_PERMISSION, "may not do `load` on this model"),
        ("everything-mine", ["reload"], Exit.NO_PERMISSION, "may not do `reload` for the whole daemon"),
        *(
            ("infers", order, Exit.NO_PERMISSION, "principal infers may not do `{}`: it needs the role operate")
            for order in (["reload"], ["restart", "0"], ["load", "mine"], ["unload", "mine"], ["record", "mine"])
        ),
        ("observes", ["reload"], Exit.NO_PERMISSION, "PERMISSION_DENIED/forbidden: principal observes may not"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_give_orders_over_tcp_with_a_key(
    daemon: Locked, tmp_path: Path, who: str, order: list[str], code: int, words: str
) -> None:
    key = write_secret(tmp_path / f"{who}.key_secret", daemon.keys[who])
    if order[0] == "record":
        order = [*order, "--output", str(tmp_path / "recorded")]
    where = ["--endpoint", daemon.tcp, "--key", str(key), "--server-key", daemon.server]
    done = CliRunner().invoke(commands.multitower, [*order, *where])
    assert done.exit_code == code, done.output
    assert words.format(order[0]) in (done.stdout if code == Exit.OK else done.stderr)


def test_an_order_by_a_command_is_written_with_the_principal(daemon: Locked, tmp_path: Path) -> None:
    key = write_secret(tmp_path / "key_secret", daemon.keys["operates"])
    environment = {
        wire.ENDPOINT_VARIABLE: daemon.tcp,
        wire.KEY_VARIABLE: str(key),
        wire.SERVER_KEY_VARIABLE: daemon.server,
    }
    seen = len(daemon.lines)
    assert CliRunner(env=environment).invoke(commands.multitower, ["reload"]).exit_code == Exit.OK
    line = daemon.wait_line("audit: reload by operates: ok", STEP_S, after=seen)
    assert (line["from"], line["outcome"]) == ("127.0.0.1", "ok")
    # The key is not used over ipc: there the kernel says who it is.
    assert (
        CliRunner(env=environment).invoke(commands.multitower, ["reload", "--endpoint", daemon.endpoint]).exit_code == 0
    )
    daemon.wait_line(f"audit: reload by local:{os.geteuid()}: ok", STEP_S, after=seen)


def test_a_refused_order_over_tcp_leaves_a_line(daemon: Locked, closing: Closing) -> None:
    assert closing(by_key(daemon, "observes")).ask(wire.RELOAD, {}) == Reason.FORBIDDEN
    # Written now, or before: other tests of this file may have used up the lines of this principal.
    line = daemon.wait_line("audit: reload by observes: forbidden", STEP_S)
    assert (line["principal"], line["from"], line["outcome"]) == ("observes", "127.0.0.1", "forbidden")


def test_a_principal_with_some_models_does_not_learn_the_names_of_others(daemon: Locked, closing: Closing) -> None:
    asker = closing(by_key(daemon, "everything-mine"))
    for operation in OPERATIONS.values():
        header, tensors = header_of(operation, "mine-there-is-none")
        if operation.kind in wire.KINDS and operation.scope in (Scope.MODEL, Scope.MODEL_OR_DAEMON):
            asker.ask(operation.kind, header, *tensors)
            assert "theirs" not in asker.message, operation.name
    header = {"model_name": "mine", "slot": 0}
    assert asker.ask(wire.STATUS, header) == Reason.FORBIDDEN


def test_what_an_allowed_header_says_is_decided_for_each_peer(daemon: Locked, closing: Closing) -> None:
    header, tensors = header_of(OPERATIONS[wire.INFER], "theirs")
    allowed, forbidden = closing(by_key(daemon, "infers")), closing(by_key(daemon, "infers-mine"))
    for _ in range(2):
        assert allowed.ask(wire.INFER, header, *tensors) == "ok"
        assert forbidden.ask(wire.INFER, header, *tensors) == Reason.FORBIDDEN


# Over Unix sockets.

LOCAL = Who("local", tuple(Role))
OTHERS = Who("others", (Role.INFER, Role.OBSERVE))
needs_others = pytest.mark.skipif(not CAN_BE_OTHERS, reason="only root can connect as another user")


def test_over_ipc_the_daemons_own_user_may_do_everything(daemon: Locked, closing: Closing) -> None:
    check_front(closing(Asker(daemon.endpoint)), LOCAL)


@pytest.fixture
def admitting(daemon: Locked) -> Iterator[None]:
    """Lets the file's mode admit other users, as a group that they belong to would."""
    path = Path(daemon.front)
    modes = {each: each.stat().st_mode & 0o777 for each in (path, path.parent)}
    path.chmod(0o666)
    path.parent.chmod(0o711)
    yield
    for each, mode in modes.items():
        each.chmod(mode)


@needs_others
@pytest.mark.parametrize(
    "claims", [{}, {"User-Id": "everything", "Peer-Address": "localhost:0:0:1"}], ids=["", "lying"]
)
def test_over_ipc_other_users_infer_and_observe(
    daemon: Locked, admitting: None, closing: Closing, claims: dict[str, str]
) -> None:
    claims = {name: daemon.keys[value].public if name == "User-Id" else value for name, value in claims.items()}
    check_front(closing(LocalAsker(daemon.front, NOBODY, **claims)), OTHERS)


def test_orders_are_the_daemons_own_users(daemon: Locked, closing: Closing) -> None:
    check_orders(closing(Asker(f"ipc://{daemon.control}")), LOCAL)


@needs_others
def test_other_users_cannot_reach_the_control_endpoint_by_its_path(daemon: Locked) -> None:
    with pytest.raises(PermissionError):
        LocalAsker(daemon.control, NOBODY)


@pytest.mark.parametrize("hop", [(b"anonymous",), (b"0123456789abcdef",), (b"x", b"y")], ids=["none", "void", "two"])
def test_an_order_behind_a_handle_gets_no_more_than_the_handle(
    daemon: Locked, closing: Closing, hop: tuple[bytes, ...]
) -> None:
    check_orders(closing(Asker(f"ipc://{daemon.control}", hop=hop)), None)
