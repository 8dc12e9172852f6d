"""`Client` and its connection: no daemon, lost, reconnected, message too large, forked, closed, unreferenced."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import fake_daemon
import numpy as np
import pytest
from descriptors import leaving_no_descriptor
from fake_daemon import FakeDaemon
from new_threads import NewThreads

from multitower import AsyncClient, Client, InvalidRequest, MultitowerError, Unavailable, wire

WAIT_S = 60.0


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.fixture(params=["tcp", "ipc"])
def endpoint(request: pytest.FixtureRequest, tmp_socket: str) -> str:
    """Where a scripted daemon may listen, for each of the two kinds of sockets."""
    return "tcp://127.0.0.1:*" if request.param == "tcp" else tmp_socket


def works(client: Client) -> bool:
    return bool(client.infer("m", {"x": 1.0}, timeout=WAIT_S)["x"].tolist() == 1.0)


# Nothing there.


def test_without_a_daemon_the_error_says_what_to_do(tmp_socket: str) -> None:
    with Client(tmp_socket, connect_timeout=0.1) as client:
        for ask in (client.status, lambda: client.infer("m", {"x": 1.0})):
            with pytest.raises(Unavailable) as error:
                ask()
            assert error.value.reason == "not_listening"
            for words in (tmp_socket, "multitower serve", "MULTITOWER_ENDPOINT"):
                assert words in error.value.message


def test_a_closed_port_is_not_listening() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        with Client(endpoint, connect_timeout=0.1) as client, pytest.raises(Unavailable, match=endpoint) as error:
            client.infer("m", {"x": 1.0})
    assert error.value.reason == "not_listening"


def test_a_listener_without_zeromq_is_not_a_daemon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with Client(endpoint, connect_timeout=0.1) as client, pytest.raises(Unavailable) as error:
            client.infer("m", {"x": 1.0})
    assert error.value.reason == "not_listening"


def test_a_listener_that_does_not_answer_is_not_a_daemon() -> None:
    with FakeDaemon(metadata=None) as daemon:
        with Client(daemon.endpoint, connect_timeout=0.5) as client, pytest.raises(Unavailable) as error:
            client.infer("m", {"x": 1.0})
        assert error.value.reason == "not_listening"
        assert "does not answer" in error.value.message
        assert daemon.requests.empty()


def test_a_daemon_that_starts_in_time_is_found(tmp_socket: str) -> None:
    with Client(tmp_socket, connect_timeout=WAIT_S) as client:
        future = client.submit("m", {"x": 1.0})
        with FakeDaemon(fake_daemon.echo, tmp_socket):
            assert future.result(WAIT_S)["x"].tolist() == 1.0


def test_a_short_timeout_ends_a_long_connect_timeout(tmp_socket: str) -> None:
    with Client(tmp_socket, connect_timeout=WAIT_S) as client, pytest.raises(Unavailable):
        client.infer("m", {"x": 1.0}, timeout=0.1)


def test_the_endpoint_is_the_argument_or_the_variable_or_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MULTITOWER_ENDPOINT", "ipc:///from/the/environment")
    for argument, wanted in (("ipc:///given", "ipc:///given"), (None, "ipc:///from/the/environment")):
        with Client(argument) as client:
            assert client.endpoint == wanted
            assert wanted in repr(client)
    monkeypatch.delenv("MULTITOWER_ENDPOINT")
    with Client() as client:
        assert client.endpoint == wire.DEFAULT_ENDPOINT == "tcp://127.0.0.1:5555"


@pytest.mark.parametrize("argument", [{"timeout": 0}, {"connect_timeout": -1}, {"max_outstanding": 0}], ids=str)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_arguments_are_checked(kind: type, argument: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(argument))):
        kind("tcp://127.0.0.1:5555", **argument)


# Lost, and found again.


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_lost_connection_fails_outstanding_requests_and_reconnects(transport: str, tmp_socket: str) -> None:
    first = FakeDaemon(endpoint="tcp://127.0.0.1:*" if transport == "tcp" else tmp_socket)
    with Client(first.endpoint, timeout=WAIT_S, connect_timeout=WAIT_S) as client:
        futures = [client.submit("m", {"x": 1.0}) for _ in range(20)]
        for _ in futures:
            first.next()
        first.close()
        for future in futures:
            error = future.exception(WAIT_S / 2)
            assert isinstance(error, Unavailable)
            assert error.reason == "connection_lost"
            assert first.endpoint in error.message
        with FakeDaemon(fake_daemon.echo, first.endpoint):
            assert works(client)


def test_between_two_daemons_requests_fail_as_not_listening(tmp_socket: str) -> None:
    with Client(tmp_socket, connect_timeout=0.2) as client:
        for _ in range(2):
            with FakeDaemon(fake_daemon.echo, tmp_socket):
                until(lambda: _answers(client))
            until(lambda: not _answers(client))
            with pytest.raises(Unavailable, match="no daemon listens"):
                client.infer("m", {"x": 1.0})


def _answers(client: Client) -> bool:
    try:
        return works(client)
    except Unavailable:
        return False


def test_replies_that_arrived_before_the_connection_ended_count(endpoint: str) -> None:
    with FakeDaemon(endpoint=endpoint) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        busy, lost = threading.Event(), threading.Event()

        def callback(_: object) -> None:
            busy.set()
            lost.wait(WAIT_S)

        futures = [client.submit("m", {"x": float(number)}) for number in range(3)]
        futures[0].add_done_callback(callback)
        requests = [daemon.next() for _ in futures]
        daemon.reply(requests[0], fake_daemon.echo(requests[0]))
        assert busy.wait(WAIT_S)
        # The client's thread is held up while an answer arrives and the connection ends.
        daemon.reply(requests[1], fake_daemon.echo(requests[1]))
        daemon.close(linger=int(WAIT_S * 1000))
        lost.set()
        assert futures[1].result(WAIT_S)["x"].tolist() == 1.0
        error = futures[2].exception(WAIT_S)
        assert isinstance(error, Unavailable)
        assert error.reason == "connection_lost"


def test_the_client_sets_no_identity() -> None:
    """The ROUTER makes one up, which begins with a zero byte; a chosen one could meet its own double."""
    with FakeDaemon() as daemon, Client(daemon.endpoint) as client:
        client.submit("m", {"x": 1.0})
        assert daemon.next().address[:1] == b"\0"


# Too large.


def test_messages_over_the_limit_of_the_daemon_are_not_sent() -> None:
    with FakeDaemon(metadata={"max_message_size": 10_000}) as daemon, Client(daemon.endpoint) as client:
        with pytest.raises(InvalidRequest) as error:
            client.infer("m", {"x": np.zeros(10_000, np.uint8)})
        assert error.value.reason == "too_large"
        assert "10000" in error.value.message
        future = client.submit("m", {"x": np.zeros(9_000, np.uint8)})
        request = daemon.next()
        assert len(request.frames[0]) == 9_000
        daemon.reply(request, fake_daemon.echo(request))
        assert future.result(WAIT_S)


@pytest.mark.parametrize("metadata", [{}, {"max_message_size": "large"}, {"max_message_size": -1}], ids=str)
def test_the_default_limit_holds_if_the_daemon_names_none(metadata: dict[str, Any]) -> None:
    with FakeDaemon(fake_daemon.echo, metadata=metadata) as daemon, Client(daemon.endpoint) as client:
        assert works(client)
        with pytest.raises(InvalidRequest, match=str(wire.DEFAULT_MAX_MESSAGE_SIZE)):
            client.infer("m", {"x": np.zeros(wire.DEFAULT_MAX_MESSAGE_SIZE, np.uint8)})


def test_the_next_daemon_may_have_another_limit(tmp_socket: str) -> None:
    x = np.zeros(20_000, np.uint8)
    with Client(tmp_socket, timeout=WAIT_S, connect_timeout=WAIT_S) as client:
        with FakeDaemon(None, tmp_socket, metadata={"max_message_size": 10_000}):
            unanswered = client.submit("m", {"x": x[:1]})
            with pytest.raises(InvalidRequest):
                client.infer("m", {"x": x})
        # Until the client notices the lost connection, the limit of that daemon holds.
        with pytest.raises(Unavailable):
            unanswered.result(WAIT_S)
        with FakeDaemon(fake_daemon.echo, tmp_socket, metadata={"max_message_size": 100_000}):
            assert client.infer("m", {"x": x})["x"].shape == x.shape


# Closed.


def test_close_fails_outstanding_and_later_requests(endpoint: str) -> None:
    with FakeDaemon(endpoint=endpoint) as daemon:
        client = Client(daemon.endpoint, timeout=WAIT_S, max_outstanding=2)
        futures = [client.submit("m", {"x": 1.0}) for _ in range(2)]
        raised: list[BaseException] = []

        def submit() -> None:
            try:
                client.submit("m", {"x": 1.0})
            except Unavailable as error:
                raised.append(error)

        waiting = threading.Thread(target=submit)  # for room
        waiting.start()
        for _ in futures:
            daemon.next()
        client.close()
        client.close()
        waiting.join(WAIT_S)
        errors = [*raised, *(future.exception(WAIT_S) for future in futures)]
        assert len(errors) == 3
        for call in (client.status, lambda: client.infer("m", {"x": 1.0}), lambda: client.submit("m", {"x": 1.0})):
            with pytest.raises(Unavailable) as refused:
                call()
            errors.append(refused.value)
        assert {getattr(error, "reason", error) for error in errors} == {"closed"}


def test_close_in_a_callback_does_not_deadlock() -> None:
    with FakeDaemon(fake_daemon.echo) as daemon:
        client = Client(daemon.endpoint, timeout=WAIT_S)
        closed = threading.Event()

        def callback(_: object) -> None:
            client.close()
            closed.set()

        client.submit("m", {"x": 1.0}).add_done_callback(callback)
        assert closed.wait(WAIT_S)


def test_requests_submitted_during_close_get_an_outcome() -> None:
    for _ in range(20):
        with FakeDaemon(fake_daemon.echo) as daemon:
            client = Client(daemon.endpoint, timeout=WAIT_S)
            futures: list[Future[Any]] = []
            begun = threading.Barrier(4)

            def work(client: Client = client, futures: list[Future[Any]] = futures, begun: Any = begun) -> None:
                begun.wait(WAIT_S)
                try:
                    while True:
                        futures.append(client.submit("m", {"x": 1.0}))
                except Unavailable:
                    return

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            begun.wait(WAIT_S)
            client.close()
            for thread in threads:
                thread.join(WAIT_S)
            for future in futures:
                error = future.exception(WAIT_S)
                assert error is None or getattr(error, "reason", None) == "closed"


def test_after_close_nothing_is_written_to_reused_descriptors(endpoint: str) -> None:
    with FakeDaemon(endpoint=endpoint) as daemon:
        client = Client(daemon.endpoint)
        future = client.submit("m", {"x": 1.0})
        daemon.next()
        client.close()
        pipes = [os.pipe() for _ in range(20)]
        try:
            client.close()
            future.cancel()
            del client
            gc.collect()
            for reader, _ in pipes:
                os.set_blocking(reader, False)
                with pytest.raises(BlockingIOError):
                    os.read(reader, 1)
        finally:
            for descriptor in (end for pipe in pipes for end in pipe):
                os.close(descriptor)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_unreferenced_client_leaves_neither_thread_nor_descriptor(kind: type, endpoint: str) -> None:
    with FakeDaemon(endpoint=endpoint) as daemon:
        with Client(daemon.endpoint) as first:  # the libraries open some descriptors once
            first.server_metadata()
        gc.collect()
        threads = NewThreads()
        with leaving_no_descriptor():
            client = kind(daemon.endpoint)
            future = (
                client._requests.start_query(wire.STATUS, {}) if kind is AsyncClient else client.submit("m", {"x": 1.0})
            )
            daemon.requests.get(timeout=WAIT_S)
            (thread,) = threads.named("multitower-client")
            del client
            gc.collect()
            error = future.exception(WAIT_S)
            assert isinstance(error, MultitowerError)
            assert error.reason == "closed"
            thread.join(WAIT_S)
            assert not thread.is_alive()


# Other processes.

FORK = """
import os, sys
from multitower import Client, Unavailable
client = Client(sys.argv[1], timeout=20)
print(client.infer("m", {"x": 1.0})["x"])
pid = os.fork()
if pid == 0:
    code = 1
    try:
        for call in (client.status, lambda: client.submit("m", {"x": 1.0})):
            try:
                call()
            except Unavailable as error:
                assert error.reason == "closed" and "fork" in error.message, error
            else:
                raise AssertionError("used in a child")
        client.close()
        with Client(sys.argv[1], timeout=20) as own:
            assert own.infer("m", {"x": 2.0})["x"] == 2.0
        code = 0
    finally:
        sys.stderr.flush()
        if code:
            os._exit(code)
    sys.exit(0)  # with all handlers of the interpreter's exit
_, status = os.waitpid(pid, 0)
assert status == 0, status
print(client.infer("m", {"x": 3.0})["x"])
client.close()
"""

FORGOTTEN = """
import sys
from multitower import Client
client = Client(sys.argv[1], timeout=20)
assert client.infer("m", {"x": 1.0})["x"] == 1.0
future = client.submit("never", {"x": 1.0})
print("end")
"""


def _run(program: str, endpoint: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, endpoint],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_client_is_refused_in_a_forked_child_but_a_new_one_works(endpoint: str) -> None:
    with FakeDaemon(fake_daemon.echo, endpoint) as daemon:
        assert _run(FORK, daemon.endpoint).split() == ["1.0", "3.0"]


def test_an_interpreter_exits_with_a_client_open(endpoint: str) -> None:
    def answer(request: fake_daemon.Received) -> list[bytes] | None:
        return None if request.json["model_name"] == "never" else fake_daemon.echo(request)

    with FakeDaemon(answer, endpoint) as daemon:
        assert _run(FORGOTTEN, daemon.endpoint).split() == ["end"]
