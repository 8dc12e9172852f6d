"""The daemon supervises the gateway: a real daemon, and a stand-in program that serves a few words."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_stand_in import write_program
from running import Running, multitower

from multitower.exit_codes import Exit
from multitower.supervisor.config.loading import load
from multitower.tools.doctor.gateway import findings as gateway_findings

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
drain_timeout: 20s
restart: {max_restarts: 100, backoff: {first: 10ms, max: 10ms}}
gateway:
  http: 127.0.0.1:*
  grpc: unix:grpc.sock
  program: ./gateway
  max_buffered_bytes: 200MiB
models:
  - {name: echo, handler: "handlers:Echo"}
"""


def ask(address: str, word: str = "hello") -> dict[str, Any] | None:
    """Sends a word to the stand-in; returns what it answers, None if the connection ends without an answer."""
    with ask_later(address, word) as connection:
        return answer(connection)


def ask_later(address: str, word: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(word.encode())
    return connection


def answer(connection: socket.socket) -> dict[str, Any] | None:
    try:
        text = connection.makefile().read()
    except ConnectionResetError:
        return None
    return json.loads(text) if text else None


def http_of(daemon: Running) -> str:
    address: str = daemon.wait_line("gateway ready")["http"]
    return address


def gateway(daemon: Running) -> dict[str, Any]:
    report: dict[str, Any] = daemon.status()["daemon"]["gateway"]
    return report


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon with a stand-in; the tests may kill it, but leave it running."""
    folder = tmp_path_factory.mktemp("gateway")
    write_program(folder / "gateway")
    with Running(folder, CONFIG.replace("unix:grpc.sock", f"unix:{folder}/grpc.sock")) as daemon:
        yield daemon.wait_ready()


def test_the_gateway_gets_its_sockets_and_settings(shared: Running) -> None:
    about = ask(http_of(shared))
    assert about is not None
    assert about["group"] == about["pid"], "no signal of a terminal reaches it"
    settings = about["settings"]
    assert settings["daemon"] == f"{shared.runtime_dir}/gateway.sock"
    assert settings["control"] == f"{shared.runtime_dir}/control.sock"
    assert [(each["http"], each["grpc"]) for each in settings["listeners"]] == [(True, False), (False, True)]
    assert settings["daemon_pid"] == shared.process.pid
    assert (settings["limits"]["max_body_bytes"], settings["limits"]["max_buffered_bytes"]) == (64 << 20, 200 << 20)
    assert Path(settings["daemon"]).is_socket()


def test_lines_and_plain_text_of_the_gateway_are_in_the_log(shared: Running) -> None:
    address = http_of(shared)
    assert shared.wait_line("listening", threads=1)["logger"] == "multitower.gateway"
    ask(address, "write something plain")
    assert shared.wait_line("something plain", gateway=True)["level"] == "info"
    ask(address, "write thread 'main' panicked at src/main.rs:1:1:")
    assert shared.wait_line("thread 'main' panicked", gateway=True)["level"] == "error"
    ask(address, 'write {"level": "warning", "event": "slow client", "fields": {"peer": "127.0.0.1:9"}}')
    assert shared.wait_line("slow client", peer="127.0.0.1:9")["level"] == "warning"


def test_the_status_counts_and_names_the_gateway(shared: Running) -> None:
    address = http_of(shared)
    before = gateway(shared)["requests"]
    ask(address)
    shared.wait(lambda: gateway(shared)["requests"] > before)
    report = gateway(shared)
    assert (report["state"], report["cause"], report["http"]) == ("ready", None, [address])
    assert report["grpc"] == [f"unix:{shared.config.parent}/grpc.sock"]


def test_doctor_recognises_the_gateway_of_a_running_daemon(shared: Running) -> None:
    address = http_of(shared)
    config = load(shared.config, environment={}, overrides=[f"gateway.http={address}"])
    taken = {finding.text: finding.level for finding in gateway_findings(config)}
    assert taken[f"{address}: the gateway of a running daemon serves there"] == "warning"
    assert taken[f"unix:{shared.config.parent}/grpc.sock: the gateway of a running daemon serves there"] == "warning"


@pytest.mark.parametrize("word", ["die 3", "kill", "record no record"])
def test_a_gateway_that_dies_is_started_again_while_its_port_stays_bound(shared: Running, word: str) -> None:
    address = http_of(shared)
    shared.wait(lambda: gateway(shared)["state"] == "ready")
    before, lines = gateway(shared), len(shared.lines)
    if word == "kill":
        os.kill(before["pid"], signal.SIGKILL)
    else:
        ask(address, word)
    shared.wait_line("gateway died", pid=before["pid"], after=lines)
    about = ask(address)  # waits in the backlog, where no process has accepted it yet
    assert about is not None
    assert about["pid"] != before["pid"]
    shared.wait(lambda: gateway(shared)["state"] == "ready")
    report = gateway(shared)
    assert report["restarts"] == before["restarts"] + 1
    assert report["requests"] >= before["requests"], "the counts are since the daemon's start"
    with shared.client() as client:
        assert client.live()
    kinds = [event["message"] for event in shared.status()["daemon"]["events"] if event["kind"] == "gateway"]
    assert {"gateway died", "gateway serves again"} <= set(kinds)


def test_a_removed_unix_socket_is_bound_again_for_another_process(shared: Running) -> None:
    lines = len(shared.lines)
    path = shared.config.parent / "grpc.sock"
    before = gateway(shared)["pid"]
    path.unlink()
    shared.wait_line("the socket of the gateway was removed", after=lines)
    shared.wait(lambda: gateway(shared)["state"] == "ready" and gateway(shared)["pid"] != before)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"hello")
        assert answer(connection) is not None


def test_a_reload_replaces_the_process_which_answers_what_it_has(shared: Running) -> None:
    address, lines = http_of(shared), len(shared.lines)
    with ask_later(address, "hang") as held:
        shared.wait(lambda: gateway(shared)["outstanding"] == 1)
        before = gateway(shared)
        edit(shared, "  http:", "  threads: 2\n  http:")
        shared.process.send_signal(signal.SIGHUP)
        shared.wait_line("gateway ready", after=lines)
        former = answer(held)
    assert former is not None
    assert (former["pid"], former["stopping"]) == (before["pid"], True)
    about = ask(address)
    assert about is not None
    assert about["settings"]["threads"] == 2
    assert gateway(shared)["restarts"] == before["restarts"], "a replacement is no restart"


def test_an_operator_restarts_the_gateway(shared: Running) -> None:
    shared.wait(lambda: gateway(shared)["state"] == "ready")
    before = gateway(shared)
    done = multitower("restart", "gateway", daemon=shared)
    after = gateway(shared)
    assert (done.returncode, done.stdout) == (0, f"the gateway is ready; it is process {after['pid']}\n"), done.stderr
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"]
    about = ask(http_of(shared))
    assert about is not None
    done = multitower("restart", "door", daemon=shared)
    assert (done.returncode, "'door' is neither the number of a slot nor 'gateway'" in done.stderr) == (2, True)


def test_a_reload_that_moves_the_gateway_is_refused(shared: Running) -> None:
    edit(shared, "127.0.0.1:*", "127.0.0.1:1")
    lines = len(shared.lines)
    shared.process.send_signal(signal.SIGHUP)
    try:
        line = shared.wait_line("reload refused", after=lines)
        assert "gateway.http cannot change while the daemon runs" in str(line)
    finally:
        edit(shared, "127.0.0.1:1", "127.0.0.1:*")


def edit(daemon: Running, old: str, new: str) -> None:
    text = daemon.config.read_text()
    assert old in text
    daemon.config.write_text(text.replace(old, new))


# Tests below end or break their daemon.


def test_a_drain_ends_the_gateway_before_the_workers(tmp_path: Path) -> None:
    write_program(tmp_path / "gateway")
    with Running(tmp_path, CONFIG) as daemon:
        address = http_of(daemon.wait_ready())
        with ask_later(address, "hang") as held:
            daemon.wait(lambda: gateway(daemon)["outstanding"] == 1)
            daemon.process.terminate()
            about = answer(held)
            assert about is not None
            assert about["stopping"]
        assert daemon.wait_end(60) == 0
        messages = [line["message"] for line in daemon.lines]
        assert messages.index("draining") < messages.index("gateway ended") < messages.index("worker ended")
        assert not (tmp_path / "grpc.sock").exists()
        with pytest.raises(ConnectionRefusedError):
            ask(address)


def test_no_gateway_outlives_a_daemon_that_is_killed(tmp_path: Path) -> None:
    # It ignores the end of its stdin, as a program that hangs does.
    write_program(tmp_path / "gateway", ENDS_WITH_DAEMON=False)
    with Running(tmp_path, CONFIG) as daemon:
        about = ask(http_of(daemon))
        assert about is not None
        pidfd = os.pidfd_open(about["pid"])
        daemon.process.kill()
        ended, _, _ = select.select([pidfd], [], [], 60)
        os.close(pidfd)
        assert ended


def test_a_gateway_that_keeps_dying_fails_and_the_daemon_serves_on(tmp_path: Path) -> None:
    program = write_program(tmp_path / "gateway", EXIT_CODE=7)
    with Running(tmp_path, CONFIG.replace("max_restarts: 100", "max_restarts: 2")) as daemon:
        daemon.wait_line("gateway died too often: it has failed")
        report = gateway(daemon.wait_ready())
        assert (report["state"], report["restarts"], report["pid"]) == ("failed", 2, None)
        assert report["cause"] == "exited with code 7; restart.max_restarts is 2 within 60 s"
        with daemon.client() as client:
            assert client.server_ready()["ready"]
            assert "\nmultitower_gateway_restarts_total 2\n" in client.metrics()
        write_program(program)
        daemon.process.send_signal(signal.SIGHUP)
        assert ask(http_of(daemon)) is not None


def test_an_address_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    write_program(tmp_path / "gateway")
    with Running(tmp_path, CONFIG.replace("unix:grpc.sock", f"unix:{tmp_path}/later/grpc.sock")) as daemon:
        daemon.wait_ready()
        report = gateway(daemon)
        assert report["state"] == "waiting"
        assert f"the folder {tmp_path}/later does not exist" in report["cause"]
        (waiting,) = daemon.status()["daemon"]["waiting"]
        assert (waiting["kind"], waiting["name"]) == ("endpoint", f"unix:{tmp_path}/later/grpc.sock")
        (tmp_path / "later").mkdir()
        assert ask(http_of(daemon)) is not None


def test_what_the_gateway_needs_is_checked_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cases = [
            (
                {},
                ("127.0.0.1:*", address),
                Exit.TEMPORARY,
                f"{address} is in use by another process; `ss -ltnpx` shows which: end it, or change gateway.http",
            ),
            ({"VERSION": "9.9.9"}, ("", ""), Exit.UNAVAILABLE, "has version 9.9.9, but multitower has"),
            (None, ("", ""), Exit.UNAVAILABLE, f"{tmp_path}/gateway does not exist"),
        ]
        for constants, change, code, words in cases:
            (tmp_path / "gateway").unlink(missing_ok=True)
            if constants is not None:
                write_program(tmp_path / "gateway", **constants)
            with Running(tmp_path, CONFIG.replace(*change) if change[0] else CONFIG) as daemon:
                assert daemon.wait_end(60) == code
                assert words in daemon.stderr
                assert not any("started" in line["message"] for line in daemon.lines)
