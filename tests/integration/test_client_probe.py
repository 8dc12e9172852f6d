"""What a client knows about why it has no connection, and how often it examines that."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator

import fake_daemon
import pytest
from fake_daemon import FakeDaemon

from multitower import Client, ConnectError, Unavailable
from multitower.client import probe
from multitower.client.connect_errors import Finding, listens
from multitower.client.connection import Connection
from multitower.client.probe import Probe
from multitower.client.transport import Call, Outcome

TCP = "tcp://host:5555"
WAIT_S = 60.0
REFUSED = Finding(ConnectError.CONNECTION_REFUSED, "refused")


class Examinations:
    """Stands for `examine`: each examination waits until `release`, if it is to."""

    def __init__(self, found: Finding) -> None:
        self.found = found
        self.count = 0
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, endpoint: str, timeout_s: float) -> Finding:
        found = self.found
        self.count += 1
        self.begun.release()
        self.may_end.wait(WAIT_S)
        return found


@pytest.fixture
def examinations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Examinations]:
    examinations = Examinations(REFUSED)
    monkeypatch.setattr(probe, "examine", examinations)
    yield examinations
    examinations.may_end.set()


def ended(client_probe: Probe) -> None:
    """Waits until its examination has ended."""
    assert client_probe._running is not None
    client_probe._running.result(WAIT_S)


def test_an_examination_that_fails_costs_no_call_its_outcome(tmp_socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("as the test wants")

    monkeypatch.setattr(probe, "examine", fail)
    with Client(tmp_socket, connect_timeout=0.1) as client:
        for future in [client.submit("m", {"x": 1.0}) for _ in range(2)]:
            error = future.exception(WAIT_S)
            assert isinstance(error, Unavailable)
            assert error.details["connect_error"] == ConnectError.TIMED_OUT
        with FakeDaemon(lambda request: fake_daemon.ok(request.id, {"ready": True}), tmp_socket):
            client.wait_until_ready(WAIT_S)  # the client's thread still runs


def test_calls_that_expire_together_cost_one_examination(tmp_socket: str, examinations: Examinations) -> None:
    connection = Connection(tmp_socket)
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    connect_by = time.monotonic() + 0.5
    for _ in range(100):
        connection.start(Call(b"x", b"{}", (), connect_by + WAIT_S, connect_by, connect_by, outcomes.put))
    for _ in range(100):
        error = outcomes.get(timeout=WAIT_S)
        assert isinstance(error, Unavailable)
        assert error.message == "refused"
    connection.stop()
    connection.join()
    # On a slow machine some are handed over after the first ones have expired.
    assert examinations.count < 50


def test_a_refused_port_is_examined_after_attempts_of_zeromq_only(examinations: Examinations) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        with Client(endpoint, connect_timeout=WAIT_S, max_outstanding=1000) as client:
            client.submit("m", {"x": 1.0})
            assert examinations.begun.acquire(timeout=WAIT_S)
            before = examinations.count
            for _ in range(100):
                client.submit("m", {"x": 1.0})
                time.sleep(0.001)  # long enough for an examination to end, far shorter than ZeroMQ's pauses
            assert examinations.count - before < 50


def test_one_failed_attempt_is_examined_once(examinations: Examinations) -> None:
    client_probe = Probe(TCP, by_name=True)
    client_probe.record_failure()
    for _ in range(3):
        client_probe.begin()
        ended(client_probe)
    assert examinations.count == 1
    client_probe.record_failure()
    client_probe.begin()
    ended(client_probe)
    assert examinations.count == 2


def test_a_finding_from_before_a_connection_is_dropped(examinations: Examinations) -> None:
    examinations.may_end.clear()
    client_probe = Probe(TCP, by_name=False)
    client_probe.record_failure()
    client_probe.begin()
    running = client_probe._running
    client_probe.record_connected()
    client_probe.record_answer()
    examinations.may_end.set()
    assert running is not None
    assert running.result(WAIT_S) == REFUSED
    client_probe.record_failure()
    client_probe.update()
    assert client_probe.finding(3.0).message.startswith(f"no connection to {TCP} within 3 s")


@pytest.mark.parametrize("endpoint", [TCP, "ipc:///run/front.sock"])
def test_a_daemon_that_has_just_started_is_not_called_another_program(
    endpoint: str, examinations: Examinations
) -> None:
    def finding() -> Finding:
        client_probe.record_failure()
        client_probe.begin()
        if endpoint == TCP:
            ended(client_probe)
        client_probe.update()
        return client_probe.finding(1.0)

    client_probe = Probe(endpoint, by_name=False)
    assert finding() == REFUSED
    examinations.found = listens(endpoint)
    found = finding()
    assert found.kind == ConnectError.TIMED_OUT
    assert "if the daemon has just started, try again in a few seconds, or raise connect_timeout" in found.message
    # It connects, nothing answers, and the connection ends: between two attempts the cause is still that.
    client_probe.record_connected()
    assert client_probe.finding(1.0).kind == ConnectError.NO_ANSWER
    assert finding().kind == ConnectError.NO_ANSWER
    # That process ends, and another one begins to listen.
    examinations.found = REFUSED
    assert finding() == REFUSED
    examinations.found = listens(endpoint)
    assert finding().kind == ConnectError.TIMED_OUT
    # A daemon has answered, and restarts.
    client_probe.record_connected()
    client_probe.record_answer()
    assert finding().kind == ConnectError.TIMED_OUT
