"""What a reload changes in the security of a daemon that runs: keys, roles, models, and principals that are removed."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from asker import NO_ANSWER, NOT_ANSWERED_S, Asker, Closing
from locked_daemon import Locked, by_key, check_front, header_of
from made_security import PRINCIPALS as PRINCIPALS_FILE
from made_security import SERVER_KEY, make_keys, write_principals, write_secret
from running import STEP_S

from multitower import Client, wire
from multitower.errors import CONNECT_ERROR, MultitowerError, Reason
from multitower.supervisor.routing.strangers import CLOSED_AFTER
from multitower.supervisor.security.operation_table import OPERATIONS


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    with Locked(tmp_path_factory.mktemp("security")) as running:
        yield running.wait_ready()


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


def test_keys_rotate_and_a_principal_is_revoked_under_load(daemon: Locked, closing: Closing) -> None:
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


def test_roles_and_models_change_on_a_connection_that_is_open(daemon: Locked, closing: Closing) -> None:
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


def test_over_tcp_a_key_that_was_removed_opens_what_is_open_to_all(daemon: Locked, closing: Closing) -> None:
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
    daemon: Locked, closing: Closing, frames: list[bytes]
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


def test_a_principal_is_out_although_the_reload_waits_for_an_order(daemon: Locked, closing: Closing) -> None:
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


def test_a_wrong_file_is_refused_whole_and_changes_nothing(daemon: Locked, closing: Closing) -> None:
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


def test_a_secret_that_others_may_read_by_now_is_refused(daemon: Locked) -> None:
    try:
        (daemon.folder / SERVER_KEY).chmod(0o640)
        assert "others may use" in daemon.reload(daemon.entries, "reload refused")["cause"]
    finally:
        (daemon.folder / SERVER_KEY).chmod(0o600)
        daemon.reload(daemon.entries)
