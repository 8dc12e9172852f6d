"""A daemon with `security`: every kind of request by every way in, by each role, with no, a wrong or a revoked key.

What must be allowed comes from the one table, so a new operation is tested as soon as it has a row.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq
from asker import CAN_BE_OTHERS, NO_ANSWER, Asker, LocalAsker
from click.testing import CliRunner
from made_security import PRINCIPALS as PRINCIPALS_FILE
from made_security import SERVER_KEY, make_keys, make_security, write_principals, write_secret
from running import START_S, STEP_S, Running
from without_privileges import NOBODY

from multitower import Client, wire
from multitower.cli import commands
from multitower.errors import CONNECT_ERROR, MultitowerError, Reason
from multitower.exit_codes import Exit
from multitower.supervisor.config.principals import Role
from multitower.supervisor.routing.strangers import CLOSED_AFTER
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

NOT_ANSWERED_S = 0.5
"""Seconds for which an answer that must not come is waited for."""


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
    """A daemon with `security`, and the keys to it."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
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
        super().__init__(folder, config)

    @property
    def tcp(self) -> str:
        if not self._tcp:
            listening = self.wait_line("daemon started")["listen"].split(",")
            self._tcp = next(endpoint for endpoint in listening if endpoint.startswith("tcp://"))
        return self._tcp

    @property
    def front(self) -> str:
        return self.endpoint.removeprefix("ipc://")

    @property
    def control(self) -> str:
        return str(self.runtime_dir / "control.sock")

    def reload(self, entries: list[dict[str, Any]], outcome: str = "reloaded") -> dict[str, Any]:
        """Writes the principals, reloads, and returns the line of the log for the outcome."""
        write_principals(self.folder / PRINCIPALS_FILE, entries)
        seen = len(self.lines)
        self.signal(signal.SIGHUP)
        return self.wait_line(outcome, STEP_S, after=seen)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    with Locked(tmp_path_factory.mktemp("security")) as running:
        yield running.wait_ready()


Open = Callable[[Asker], Asker]


@pytest.fixture
def closing() -> Iterator[Open]:
    """Closes what it is given when the test has ended."""
    made: list[Asker] = []

    def keep(asker: Asker) -> Asker:
        made.append(asker)
        return asker

    yield keep
    for asker in made:
        asker.close()


def by_key(daemon: Locked, name: str) -> Asker:
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


# Over tcp.


@pytest.mark.parametrize("who", PRINCIPALS, ids=lambda who: who.name)
def test_over_tcp_a_key_opens_what_the_table_says(daemon: Locked, closing: Open, who: Who) -> None:
    check_front(closing(by_key(daemon, who.name)), who)


@pytest.mark.parametrize("which", ["no key", "wrong key", "wrong key of the daemon"])
def test_over_tcp_nothing_answers_without_the_right_key(daemon: Locked, closing: Open, which: str) -> None:
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


def test_a_refused_order_over_tcp_leaves_a_line(daemon: Locked, closing: Open) -> None:
    assert closing(by_key(daemon, "observes")).ask(wire.RELOAD, {}) == Reason.FORBIDDEN
    # Written now, or before: other tests of this file may have used up the lines of this principal.
    line = daemon.wait_line("audit: reload by observes: forbidden", STEP_S)
    assert (line["principal"], line["from"], line["outcome"]) == ("observes", "127.0.0.1", "forbidden")


def test_a_principal_with_some_models_does_not_learn_the_names_of_others(daemon: Locked, closing: Open) -> None:
    asker = closing(by_key(daemon, "everything-mine"))
    for operation in OPERATIONS.values():
        header, tensors = header_of(operation, "mine-there-is-none")
        if operation.kind in wire.KINDS and operation.scope in (Scope.MODEL, Scope.MODEL_OR_DAEMON):
            asker.ask(operation.kind, header, *tensors)
            assert "theirs" not in asker.message, operation.name
    header = {"model_name": "mine", "slot": 0}
    assert asker.ask(wire.STATUS, header) == Reason.FORBIDDEN


def test_what_an_allowed_header_says_is_decided_for_each_peer(daemon: Locked, closing: Open) -> None:
    header, tensors = header_of(OPERATIONS[wire.INFER], "theirs")
    allowed, forbidden = closing(by_key(daemon, "infers")), closing(by_key(daemon, "infers-mine"))
    for _ in range(2):
        assert allowed.ask(wire.INFER, header, *tensors) == "ok"
        assert forbidden.ask(wire.INFER, header, *tensors) == Reason.FORBIDDEN


# Over Unix sockets.

LOCAL = Who("local", tuple(Role))
OTHERS = Who("others", (Role.INFER, Role.OBSERVE))
needs_others = pytest.mark.skipif(not CAN_BE_OTHERS, reason="only root can connect as another user")


def test_over_ipc_the_daemons_own_user_may_do_everything(daemon: Locked, closing: Open) -> None:
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
    daemon: Locked, admitting: None, closing: Open, claims: dict[str, str]
) -> None:
    claims = {name: daemon.keys[value].public if name == "User-Id" else value for name, value in claims.items()}
    check_front(closing(LocalAsker(daemon.front, NOBODY, **claims)), OTHERS)


def test_orders_are_the_daemons_own_users(daemon: Locked, closing: Open) -> None:
    check_orders(closing(Asker(f"ipc://{daemon.control}")), LOCAL)


@needs_others
def test_other_users_cannot_reach_the_control_endpoint_by_its_path(daemon: Locked) -> None:
    with pytest.raises(PermissionError):
        LocalAsker(daemon.control, NOBODY)


@pytest.mark.parametrize("hop", [(b"anonymous",), (b"0123456789abcdef",), (b"x", b"y")], ids=["none", "void", "two"])
def test_an_order_behind_a_handle_gets_no_more_than_the_handle(
    daemon: Locked, closing: Open, hop: tuple[bytes, ...]
) -> None:
    check_orders(closing(Asker(f"ipc://{daemon.control}", hop=hop)), None)


# Changes.


class Load:
    """Requests of a principal, one after the other, until it is stopped."""

    def __init__(self, asker: Asker) -> None:
        self.answers = 0
        self.failed: list[str] = []
        self._asker = asker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        header, tensors = header_of(OPERATIONS[wire.INFER], "mine")
        while not self._stop.is_set():
            reason = self._asker.ask(wire.INFER, header, *tensors)
            self.answers += 1
            if reason != "ok":
                self.failed.append(reason)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._asker.close()


def changed(entries: list[dict[str, Any]], name: str, **keys: Any) -> list[dict[str, Any]]:
    return [entry | keys if entry["name"] == name else entry for entry in entries]


def test_keys_rotate_and_a_principal_is_revoked_under_load(daemon: Locked, closing: Open) -> None:
    loads = [Load(by_key(daemon, "infers")), Load(Asker(daemon.endpoint))]
    try:
        revoked = closing(by_key(daemon, "everything-mine"))
        header, tensors = header_of(OPERATIONS[wire.INFER], "mine")
        assert revoked.ask(wire.INFER, header, *tensors) == "ok"
        new = make_keys()
        daemon.reload(
            changed(daemon.entries, "infers-mine", public_key=[daemon.keys["infers-mine"].public, new.public])
        )
        for keys in (daemon.keys["infers-mine"], new):
            assert closing(Asker(daemon.tcp, keys, daemon.server)).ask(wire.INFER, header, *tensors) == "ok"
        old = closing(by_key(daemon, "infers-mine"))
        assert old.ask(wire.INFER, header, *tensors) == "ok"

        left = [entry for entry in daemon.entries if entry["name"] != "everything-mine"]
        write_principals(daemon.folder / PRINCIPALS_FILE, changed(left, "infers-mine", public_key=new.public))
        seen = len(daemon.lines)
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_line("audit: reload", STEP_S, after=seen)["outcome"] == "ok"
        # The connections stay, and each further request on them is refused, from the first one on.
        for kind in (wire.INFER, wire.STATUS, wire.METRICS):
            assert revoked.ask(kind, header, *(tensors if kind == wire.INFER else [])) == Reason.UNAUTHENTICATED
        assert revoked.ask(wire.SERVER_LIVE, {}) == "ok"
        assert old.ask(wire.INFER, header, *tensors) == Reason.UNAUTHENTICATED
        again = closing(by_key(daemon, "everything-mine"))
        assert again.ask(wire.SERVER_LIVE, {}, timeout_s=NOT_ANSWERED_S) == NO_ANSWER
        assert closing(Asker(daemon.tcp, new, daemon.server)).ask(wire.INFER, header, *tensors) == "ok"
    finally:
        for load in loads:
            load.stop()
        daemon.reload(daemon.entries)
    assert [load.failed for load in loads] == [[], []]
    assert all(load.answers > 10 for load in loads)


def test_roles_and_models_change_on_a_connection_that_is_open(daemon: Locked, closing: Open) -> None:
    asker = closing(by_key(daemon, "observes"))
    assert asker.ask(wire.METRICS, {}) == "ok"
    try:
        daemon.reload(changed(daemon.entries, "observes", roles=["infer"], models=["theirs"]))
        assert asker.ask(wire.METRICS, {}) == Reason.FORBIDDEN
        for model, reason in (("theirs", "ok"), ("mine", Reason.FORBIDDEN)):
            header, tensors = header_of(OPERATIONS[wire.INFER], model)
            assert asker.ask(wire.INFER, header, *tensors) == reason
    finally:
        daemon.reload(daemon.entries)
    assert asker.ask(wire.METRICS, {}) == "ok"


def test_over_tcp_a_key_that_was_removed_opens_what_is_open_to_all(daemon: Locked, closing: Open) -> None:
    revoked = closing(by_key(daemon, "everything"))
    assert revoked.ask(wire.STATUS, {}) == "ok"
    try:
        daemon.reload([entry for entry in daemon.entries if entry["name"] != "everything"])
        check_front(revoked, None)
    finally:
        daemon.reload(daemon.entries)
    assert revoked.ask(wire.STATUS, {}) == "ok"


def test_a_client_that_goes_on_with_a_revoked_key_is_closed_and_told_why(daemon: Locked) -> None:
    keys = daemon.keys["everything-mine"]
    load = Load(by_key(daemon, "infers"))
    try:
        key_file = write_secret(daemon.folder / "revoked", keys)
        with Client(daemon.tcp, key=str(key_file), server_key=daemon.server) as client:
            client.metadata("mine")
            daemon.reload([entry for entry in daemon.entries if entry["name"] != "everything-mine"])
            told: list[MultitowerError] = []
            while not told or CONNECT_ERROR not in told[-1].details:
                assert len(told) < 2 * CLOSED_AFTER, "it goes on for ever"
                with pytest.raises(MultitowerError) as raised:
                    client.metadata("mine")
                told.append(raised.value)
    finally:
        load.stop()
        daemon.reload(daemon.entries)
    by_message = told[:CLOSED_AFTER]
    assert {error.reason for error in by_message} == {Reason.UNAUTHENTICATED}
    assert len({str(error) for error in by_message}) == 1
    assert "(any more)" in str(by_message[0])
    # One more request was under way when the connection ended.
    assert len(told) <= CLOSED_AFTER + 2
    assert told[-1].details == {CONNECT_ERROR: "key_refused"}
    assert keys.public in str(told[-1])
    assert (load.failed, load.answers > 0) == ([], True)


@pytest.mark.parametrize(
    "frames", [[b"", wire.SERVER_LIVE, b"id", b"{}"], [b"", b"malformed"]], ids=["open", "malformed"]
)
def test_a_flood_with_a_revoked_key_ends_whatever_it_asks_for(
    daemon: Locked, closing: Open, frames: list[bytes]
) -> None:
    revoked = closing(by_key(daemon, "everything-mine"))
    assert revoked.ask(wire.SERVER_LIVE, {}) == "ok"
    monitor = revoked.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        daemon.reload([entry for entry in daemon.entries if entry["name"] != "everything-mine"])
        for _ in range(3 * CLOSED_AFTER):
            with contextlib.suppress(zmq.Again):  # what fits into the buffers is enough
                revoked.socket.send_multipart(frames, zmq.NOBLOCK)
        assert monitor.poll(STEP_S * 1000), "it goes on for ever"
    finally:
        revoked.socket.disable_monitor()
        monitor.close()
        daemon.reload(daemon.entries)


def test_a_principal_is_out_although_the_reload_waits_for_an_order(daemon: Locked, closing: Open) -> None:
    revoked, orders = closing(by_key(daemon, "everything")), closing(Asker(f"ipc://{daemon.control}"))
    assert revoked.ask(wire.STATUS, {}) == "ok"
    answers: list[str] = []
    seen = len(daemon.lines)
    loading = threading.Thread(target=lambda: answers.append(orders.ask(wire.LOAD, {"model_name": "slow"})))
    loading.start()
    try:
        daemon.wait_line("worker started", STEP_S, after=seen)
        left = [entry for entry in daemon.entries if entry["name"] != "everything"]
        write_principals(daemon.folder / PRINCIPALS_FILE, left)
        daemon.signal(signal.SIGHUP)
        until = time.monotonic() + STEP_S
        while revoked.ask(wire.STATUS, {}) != Reason.UNAUTHENTICATED:
            assert time.monotonic() < until
        assert not answers
    finally:
        (daemon.folder / "wait").touch()
        loading.join()
        daemon.wait_line("reloaded", STEP_S, after=seen)
        daemon.reload(daemon.entries)
    assert answers == ["ok"]
    assert revoked.ask(wire.STATUS, {}) == "ok"


def test_a_wrong_file_is_refused_whole_and_changes_nothing(daemon: Locked, closing: Open) -> None:
    asker = closing(by_key(daemon, "observes"))
    assert asker.ask(wire.METRICS, {}) == "ok"
    wrong = [*changed(daemon.entries, "observes", roles=["infer"]), {"name": "new", "roles": ["admin"]}]
    try:
        line = daemon.reload(wrong, "reload refused: nothing has changed")
        assert f"principals.yaml:{len(wrong) + 1}:" in line["cause"]
        assert "'admin' is not a role" in line["cause"]
        assert asker.ask(wire.METRICS, {}) == "ok"
        (daemon.folder / PRINCIPALS_FILE).chmod(0o666)
        seen = len(daemon.lines)
        daemon.signal(signal.SIGHUP)
        refused = daemon.wait_line("reload refused", STEP_S, after=seen)
        assert "others may write" in refused["cause"]
    finally:
        (daemon.folder / PRINCIPALS_FILE).chmod(0o644)
        daemon.reload(daemon.entries)


def test_security_does_not_come_or_go_while_the_daemon_runs(daemon: Locked) -> None:
    text = daemon.config.read_text()
    try:
        without = "\n".join(line for line in text.splitlines() if not line.startswith("security"))
        daemon.config.write_text(without.replace(', "tcp://127.0.0.1:*"', ""))
        line = daemon.reload(daemon.entries, "reload refused")
        assert "security cannot change while the daemon runs" in line["cause"].replace("listen, ", "")
    finally:
        daemon.config.write_text(text)
        daemon.reload(daemon.entries)


def test_a_secret_that_others_may_read_is_a_start_failure(tmp_path: Path) -> None:
    with Locked(tmp_path) as first:
        assert first.wait_line("daemon started", START_S)
        (tmp_path / SERVER_KEY).chmod(0o640)
        first.reload(first.entries, "reload refused")
        assert first.end() == Exit.OK
    with Running(tmp_path, CONFIG) as second:
        assert second.wait_end(START_S) == Exit.CONFIG
        assert "others may use" in second.stderr
        assert os.fspath(tmp_path / SERVER_KEY) in second.stderr


@pytest.mark.parametrize(
    ("security", "consequence"), [(False, "used without `security`"), (True, "tokens in the clear")]
)
def test_insecure_is_said(tmp_path: Path, security: bool, consequence: str) -> None:
    config = CONFIG.replace("127.0.0.1:*", "0.0.0.0:*") + "insecure: true\n"
    lines = [line for line in config.splitlines() if security or not line.startswith("security")]
    make_security(tmp_path)
    with Running(tmp_path, "\n".join(lines)) as daemon:
        line = daemon.wait_line("insecure is set")
        assert (line["level"], line["security"]) == ("warning", security)
        assert consequence in line["message"]
        assert daemon.status()["daemon"]["insecure"] is True
