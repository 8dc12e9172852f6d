"""`multitower reload`, `load` and their like, with a scripted daemon: their time, and their errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_daemon
import pytest
from click.testing import CliRunner
from fake_daemon import FakeDaemon, Received

from multitower import Reason, Unavailable, wire
from multitower.cli import commands, operate
from multitower.exit_codes import Exit


class Script:
    """What the scripted daemon answers; it is its own control endpoint.

    Attributes:
        orders: the headers of the orders that were received.
        answers: whether it answers orders.
        reply: what its answers have besides.
        control: the control endpoint that its status names.
    """

    def __init__(self, endpoint: str) -> None:
        self.orders: list[dict[str, Any]] = []
        self.answers = True
        self.reply: dict[str, Any] = {"at_next_start": ["heartbeat"]}
        self.control = endpoint

    def answer(self, request: Received) -> list[bytes] | None:
        if request.kind == wire.STATUS:
            return fake_daemon.ok(request.id, {"daemon": {"control": self.control}})
        if request.kind in (wire.RELOAD, wire.LOAD):
            self.orders.append(request.json)
            reply = {"renewed": [], "added": [], "removed": [], "slots": [0], **self.reply}
            return fake_daemon.ok(request.id, reply) if self.answers else None
        return None


@pytest.fixture
def script(tmp_socket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    script = Script(tmp_socket)
    monkeypatch.setenv("MULTITOWER_ENDPOINT", tmp_socket)
    with FakeDaemon(script.answer, tmp_socket):
        yield script


def multitower(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(commands.multitower, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("order", [["reload"], ["load", "m"]], ids=lambda order: order[0])
def test_an_order_states_the_time_that_was_given_and_no_other(order: list[str], script: Script) -> None:
    assert multitower(*order)[0] == Exit.OK
    assert "timeout_ms" not in script.orders[-1], "the daemon's own limit for reading files holds"
    assert multitower(*order, "--timeout", "600")[0] == Exit.OK
    assert script.orders[-1]["timeout_ms"] == 600_000


@pytest.mark.parametrize("order", [["reload"], ["load", "m"]], ids=lambda order: order[0])
def test_an_order_over_its_time_says_that_it_goes_on(order: list[str], script: Script) -> None:
    script.answers = False
    began = time.monotonic()
    code, out, err = multitower(*order, "--timeout", "5")
    assert time.monotonic() - began >= 5
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "the order was not carried out within 5 s (--timeout); the daemon goes on with it" in err
    assert len(script.orders) == 1


def test_a_reload_names_the_keys_that_running_workers_do_not_have_yet(script: Script) -> None:
    code, out, err = multitower("reload")
    assert (code, err) == (Exit.OK, "")
    assert out.splitlines() == [
        "reloaded; no slot had to change",
        "heartbeat applies to workers that start from now on; `multitower restart SLOT` starts one",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"number": 6, "added": ["rt"], "removed": ["ana", "bo"], "changed": []}, "6 (added: rt; removed: ana, bo)"),
        ({"number": 6, "added": [], "removed": [], "changed": []}, "6 (none changed)"),
        (
            {"number": 0, "added": [], "removed": ["ana"], "changed": []},
            "0 (removed: ana): nobody is let in over tcp, HTTP and gRPC",
        ),
    ],
)
def test_a_reload_says_whom_it_has_let_in_or_locked_out(script: Script, changes: dict[str, Any], line: str) -> None:
    script.reply = {"principals": changes}
    code, out, _ = multitower("reload")
    assert (code, out.splitlines()) == (Exit.OK, ["reloaded; no slot had to change", f"principals: {line}"])


def test_an_order_that_was_not_given_in_time_changes_nothing(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0])
    monkeypatch.setattr(operate, "time", SimpleNamespace(monotonic=lambda: next(times, 21.0)))
    code, out, err = multitower("reload", "--timeout", "20")
    assert (code, out) == (1, "")
    assert "asking for the control endpoint took all of 20 s (--timeout); no order was given" in err
    assert script.orders == []


def test_an_order_without_a_limit_states_no_time(script: Script) -> None:
    for seconds in ("inf", "1e308"):
        code, _, err = multitower("reload", "--timeout", seconds)
        assert (code, err) == (Exit.OK, "")
        assert "timeout_ms" not in script.orders[-1]


def test_a_control_endpoint_of_another_machine_is_explained(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "CONNECT_S", 0.1)
    script.control = f"ipc://{tmp_path}/control.sock"[:107]
    code, _, err = multitower("reload", "--timeout", "20")
    assert code == Exit.UNAVAILABLE
    assert "orders are given on the machine, and in the container, where the daemon at ipc://" in err


def test_an_order_without_permission_says_who_may_give_orders() -> None:
    message = "no permission to connect to ipc:///r/control.sock: the folder /r belongs to user a; only a is admitted"
    denied = Unavailable(Reason.NOT_LISTENING, message, {"connect_error": "permission_denied"})
    told = operate._explain_control(denied, "tcp://127.0.0.1:5555")
    assert told.message.endswith(
        "belongs to user a; orders are given by the daemon's own user or root (run this as that user, with sudo -u), "
        "or over tcp with --key, by a principal with the role operate"
    )
    assert told.details == denied.details
    lost = Unavailable(Reason.CONNECTION_LOST, "lost")
    assert operate._explain_control(lost, "tcp://127.0.0.1:5555") is lost
