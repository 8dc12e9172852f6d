"""The gateway under load: killed, with workers killed behind it, with its daemon restarted, and with bad clients."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import psutil
import pytest
from foreign import curl
from running import STEP_S, Running

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing())),
]
with_clients = pytest.mark.skipif(bool(foreign.clients_missing()), reason=str(foreign.clients_missing()))

KILLS = 4
CLIENTS = 1000
MIB = 1 << 20

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 1
restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms, max: 100ms}}
gateway: {http: "127.0.0.1:HTTP", grpc: "127.0.0.1:GRPC", max_connections: 3000, idle_timeout: 20s}
models:
  - name: m
    handler: handlers:DeclaredReckoner
    parameters: {seconds: 0.005}
    batching: {max_batch_size: 4}
    retry: 3
  - {name: sized, handler: "handlers:Sized"}
"""


def config(http: str = "*", grpc: str = "*") -> str:
    return CONFIG.replace("HTTP", http.rpartition(":")[2]).replace("GRPC", grpc.rpartition(":")[2])


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("gateway"), config()) as running:
        yield running.wait_ready()


def report(daemon: Running) -> dict[str, Any]:
    """The gateway's row of the status."""
    row: dict[str, Any] = daemon.status()["daemon"]["gateway"]
    return row


def gateway(daemon: Running) -> psutil.Process:
    """The gateway's process."""
    daemon.wait(lambda: report(daemon)["state"] == "ready")
    return psutil.Process(report(daemon)["pid"])


class Load:
    """Clients in another process, which ask until the end of the block; then `tally` has what they got."""

    def __init__(self, addresses: dict[str, str], form: str, *arguments: str) -> None:
        command = [str(foreign.ENVIRONMENT / "bin" / "python"), str(foreign.PROGRAMS / "load.py"), form, *arguments]
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(addresses) + "\n")
        self.process.stdin.flush()
        self.tally: dict[str, int] = {}

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        rest, _ = self.process.communicate(timeout=STEP_S)
        self.tally = json.loads(rest.splitlines()[-1])

    def wait_answers(self, hundreds: int = 2) -> None:
        """Waits for some hundred answers; the first may have come before."""
        assert self.process.stdout is not None
        for _ in range(hundreds):
            assert self.process.stdout.readline(), "the load ended"


@with_clients
@pytest.mark.parametrize("form", ["http", "grpc"])
def test_no_request_fails_when_workers_are_killed(daemon: Running, form: str) -> None:
    with Load(foreign.addresses(daemon), form, "16") as load:
        load.wait_answers()
        for number in range(KILLS):
            slot = daemon.slot(number % 2)
            seen = len(daemon.lines)
            os.kill(slot["pid"], signal.SIGKILL)
            daemon.wait_line("worker ready", after=seen, slot=slot["slot"], incarnation=slot["incarnation"] + 1)
            load.wait_answers()
    assert set(load.tally) == {"ok"}


@with_clients
@pytest.mark.parametrize("form", ["http", "grpc"])
def test_clients_connect_again_when_the_gateway_is_killed(daemon: Running, form: str) -> None:
    before = report(daemon)["restarts"]
    mt1: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        with daemon.client() as client:
            while not stop.is_set():
                mt1.append(client.infer("m", {"x": np.array([[len(mt1)]])})["y"].item() == 3 * len(mt1) + 1)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with Load(foreign.addresses(daemon), form, "16", "retry") as load:
            for number in range(KILLS):
                load.wait_answers()
                gateway(daemon).kill()
                daemon.wait(lambda number=number: report(daemon)["restarts"] == before + number + 1)
                load.wait_answers()
    finally:
        stop.set()
        thread.join(STEP_S)
    assert set(load.tally) == {"ok", "retried"}
    # Clients of the daemon itself have seen nothing.
    assert mt1
    assert all(mt1)


@with_clients
def test_clients_connect_again_when_the_daemon_is_restarted(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
    with Running(tmp_path / "a", config()) as first:
        first.wait_ready()
        addresses = foreign.addresses(first)
        with Load(addresses, "http", "8", "retry") as load:
            load.wait_answers()
            ended = gateway(first)
            first.signal(signal.SIGKILL)
            assert first.wait_end() == -signal.SIGKILL
            ended.wait(STEP_S)  # nothing holds its ports
            with Running(tmp_path / "b", config(**addresses)) as second:
                second.wait_ready()
                load.wait_answers()
                load.process.stdin.close()  # type: ignore[union-attr]
                load.process.stdin = None
                load.process.wait(STEP_S)
    assert set(load.tally) == {"ok", "retried"}


@pytest.fixture
def many_sockets() -> Iterator[list[socket.socket]]:
    """For a thousand connections, which are closed in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3 * CLIENTS)), hard))
    made: list[socket.socket] = []
    yield made
    for each in made:
        each.close()


def connect(address: str, made: list[socket.socket], number: int) -> None:
    host, _, port = address.partition(":")
    for _ in range(number):
        each = socket.socket()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.settimeout(STEP_S)
        each.connect((host, int(port)))
        made.append(each)


def serves(addresses: dict[str, str]) -> bool:
    body = b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [5]}]}'
    status, answer = curl(f"{addresses['http']}/v2/models/m/infer", body=body)
    return status == 200 and json.loads(answer)["outputs"][0]["data"] == [16]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_connections_that_send_nothing_cost_little_and_are_closed(
    daemon: Running, protocol: str, many_sockets: list[socket.socket]
) -> None:
    addresses = foreign.addresses(daemon)
    process = gateway(daemon)
    before = process.memory_info().rss
    connect(addresses[protocol], many_sockets, CLIENTS)
    assert serves(addresses)
    assert process.memory_info().rss - before < 40 * MIB
    # HTTP/2 may greet first.
    closed = sum(_closed(each) for each in many_sockets)
    assert closed == CLIENTS
    assert serves(addresses)


def _closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_connections_that_never_read_hold_one_reply_each(daemon: Running, many_sockets: list[socket.socket]) -> None:
    addresses = foreign.addresses(daemon)
    process = gateway(daemon)
    before = process.memory_info().rss
    reply = 100_000
    body = json.dumps(
        {
            "inputs": [{"name": "size", "datatype": "INT64", "shape": [2], "data": [reply, 0]}],
            "parameters": {"binary_data_output": True},
        }
    )
    request = f"POST /v2/models/sized/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    connect(addresses["http"], many_sockets, CLIENTS)
    for each in many_sockets:
        # Twenty at a time: all replies together would be 2 GB.
        each.sendall(20 * request)
    daemon.wait(lambda: _completed(daemon) >= CLIENTS)
    # What is bounded shows once nothing more is answered, because nobody reads.
    steady, until = 0, time.monotonic() + STEP_S
    while (now := _completed(daemon)) > steady and time.monotonic() < until:
        steady = now
        time.sleep(1.0)
    assert steady < 20 * CLIENTS, "the kernel has taken all replies"
    grown = process.memory_info().rss - before
    assert grown < CLIENTS * (reply + 100_000), f"{grown / MIB:.0f} MiB after {steady} replies"
    assert serves(addresses)


def _completed(daemon: Running) -> int:
    return next(int(model["completed"]) for model in daemon.status()["models"] if model["name"] == "sized")


def test_an_idle_gateway_takes_less_than_30_mib(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon:
        daemon.wait_ready()
        assert serves(foreign.addresses(daemon))
        assert gateway(daemon).memory_info().rss < 30 * MIB
