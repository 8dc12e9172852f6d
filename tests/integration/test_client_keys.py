"""Clients with CURVE keys: they are let in, or told at once and plainly why not; no secret key is ever shown."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle  # noqa: TID251 - errors cross process pools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import FakeDaemon, Received, echo, ok

from multitower import (
    AsyncClient,
    Client,
    ConnectError,
    InvalidKey,
    MultitowerError,
    Unauthenticated,
    curve_keys,
    wire,
)
from multitower.exit_codes import Exit

SERVER, KNOWN, STRANGER = (curve_keys.new_pair() for _ in range(3))
WAIT_S = 60.0
"""A refusal must not take as long as this, which a request would wait for a connection."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MULTITOWER_KEY", "MULTITOWER_SERVER_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def admits() -> set[str]:
    return {KNOWN.public}


@pytest.fixture
def daemon(admits: set[str]) -> Iterator[FakeDaemon]:
    with FakeDaemon(answer=_answer, secret_key=SERVER.secret, admits=admits) as daemon:
        yield daemon


@pytest.fixture
def plain() -> Iterator[FakeDaemon]:
    with FakeDaemon(answer=echo) as daemon:
        yield daemon


METRICS = "multitower_requests 1\n"


def _answer(request: Received) -> list[bytes]:
    if request.kind == wire.METRICS:
        return ok(request.id, {wire.CONTENT_TYPE: "text/plain"}, METRICS.encode())
    return echo(request)


def _threads(endpoint: str, **options: Any) -> Any:
    with Client(endpoint, timeout=WAIT_S, connect_timeout=WAIT_S, **options) as client:
        return client.infer("m", {"x": 1.0})["x"].tolist()


def _asyncio(endpoint: str, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(endpoint, timeout=WAIT_S, connect_timeout=WAIT_S, **options) as client:
            return (await client.infer("m", {"x": 1.0}))["x"].tolist()

    return asyncio.run(ask())


@pytest.fixture(params=[_threads, _asyncio], ids=["threads", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    function: Callable[..., Any] = request.param
    return function


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


# Let in.


def test_every_form_of_the_keys_is_taken(ask: Callable[..., Any], daemon: FakeDaemon, tmp_path: Path) -> None:
    secret = write(tmp_path / "ana.key_secret", curve_keys.certificate(KNOWN.public, KNOWN.secret))
    server = write(tmp_path / "gpus.key", curve_keys.certificate(SERVER.public))
    pair = (KNOWN.public, KNOWN.secret)
    for key, server_key in (
        (secret, server),
        (str(secret), str(server)),
        (pair, SERVER.public),
        ((KNOWN.public.encode(), KNOWN.secret.encode()), SERVER.public.encode()),
        (KNOWN.secret, SERVER.public),
    ):
        assert ask(daemon.endpoint, key=key, server_key=server_key) == 1.0


def test_the_environment_has_the_keys(
    ask: Callable[..., Any], daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = write(tmp_path / "ana.key_secret", curve_keys.certificate(KNOWN.public, KNOWN.secret))
    monkeypatch.setenv("MULTITOWER_SERVER_KEY", SERVER.public)
    for key in (str(secret), KNOWN.secret):
        monkeypatch.setenv("MULTITOWER_KEY", key)
        assert ask(daemon.endpoint) == 1.0
    monkeypatch.setenv("MULTITOWER_KEY", STRANGER.secret)
    assert ask(daemon.endpoint, key=secret) == 1.0  # the argument is first


def test_over_ipc_keys_are_not_used(tmp_socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTITOWER_KEY", "")
    with FakeDaemon(answer=echo, endpoint=tmp_socket):
        assert _threads(tmp_socket) == 1.0


# Refused: at once, and by name.


def refused(ask: Callable[..., Any], endpoint: str, kind: ConnectError, words: str, **options: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(Unauthenticated, match=words) as error:
        ask(endpoint, **options)
    assert time.monotonic() - begun < WAIT_S / 2
    assert error.value.reason == "unauthenticated"
    assert error.value.details["connect_error"] == kind
    assert endpoint in error.value.message
    for pair in (SERVER, KNOWN, STRANGER):
        assert pair.secret not in repr(error.value)


def test_an_unknown_key_is_refused(ask: Callable[..., Any], daemon: FakeDaemon) -> None:
    options = {"key": STRANGER.secret, "server_key": SERVER.public}
    refused(ask, daemon.endpoint, ConnectError.KEY_REFUSED, "does not admit this client's key", **options)


def test_a_client_without_a_key_is_told_that_it_needs_one(ask: Callable[..., Any], daemon: FakeDaemon) -> None:
    refused(ask, daemon.endpoint, ConnectError.KEY_NEEDED, "admits only clients with a key")


def test_a_daemon_without_curve_gets_nothing(ask: Callable[..., Any], plain: FakeDaemon) -> None:
    options = {"key": KNOWN.secret, "server_key": SERVER.public}
    refused(ask, plain.endpoint, ConnectError.NO_CURVE, "does not use CURVE", **options)
    assert plain.requests.empty()


def test_another_daemon_than_was_meant_gets_nothing(ask: Callable[..., Any], daemon: FakeDaemon) -> None:
    options = {"key": KNOWN.secret, "server_key": STRANGER.public}
    refused(ask, daemon.endpoint, ConnectError.SERVER_KEY_WRONG, "has another key than server_key", **options)
    assert daemon.requests.empty()


def test_waiting_for_readiness_ends_at_a_refusal(daemon: FakeDaemon) -> None:
    client = Client(daemon.endpoint, key=STRANGER.secret, server_key=SERVER.public)
    with client, pytest.raises(Unauthenticated):
        client.wait_until_ready(WAIT_S)


def test_a_key_that_is_admitted_later_is_let_in_by_the_same_client(daemon: FakeDaemon, admits: set[str]) -> None:
    with Client(daemon.endpoint, key=STRANGER.secret, server_key=SERVER.public, connect_timeout=WAIT_S) as client:
        for _ in range(3):  # libzmq alone would not connect again
            with pytest.raises(Unauthenticated):
                client.live()
        admits.add(STRANGER.public)
        limit = time.monotonic() + WAIT_S
        while True:
            assert time.monotonic() < limit
            try:
                assert client.infer("m", {"x": 1.0})["x"].tolist() == 1.0
                return
            except Unauthenticated:
                time.sleep(0.01)


def test_a_daemon_that_gets_curve_later_is_reached_by_the_same_client(plain: FakeDaemon) -> None:
    endpoint = plain.endpoint
    with Client(endpoint, key=KNOWN.secret, server_key=SERVER.public, connect_timeout=WAIT_S) as client:
        with pytest.raises(Unauthenticated):
            client.live()
        plain.close()
        with FakeDaemon(answer=echo, endpoint=endpoint, secret_key=SERVER.secret, admits={KNOWN.public}):
            limit = time.monotonic() + WAIT_S
            while True:
                assert time.monotonic() < limit
                try:
                    assert client.infer("m", {"x": 1.0})["x"].tolist() == 1.0
                    return
                except Unauthenticated:
                    time.sleep(0.01)


def test_all_that_wait_are_refused_together(daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, key=STRANGER.secret, server_key=SERVER.public, connect_timeout=WAIT_S) as client:
        futures = [client.submit("m", {"x": 1.0}, timeout=WAIT_S) for _ in range(50)]
        for future in futures:
            assert isinstance(future.exception(WAIT_S / 2), Unauthenticated)


def test_a_program_that_hangs_up_is_not_said_to_have_another_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def hang_up() -> None:
            server.settimeout(0.05)
            while not ended.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            client = Client(endpoint, key=KNOWN.secret, server_key=SERVER.public, connect_timeout=2.0)
            with client, pytest.raises(MultitowerError) as error:
                client.live()
            assert error.value.reason == "not_listening"
        finally:
            ended.set()
            thread.join()


# Keys that cannot be used.


@pytest.mark.parametrize(
    ("key", "server_key", "words"),
    [
        (KNOWN.secret, None, "key is given, and server_key is not.*MULTITOWER_SERVER_KEY"),
        (None, SERVER.public, "server_key is given, and key is not.*MULTITOWER_KEY"),
        ("", SERVER.public, "key: it is empty"),
        (KNOWN.secret, "", "server_key: it is empty"),
        (KNOWN.secret[:-1], SERVER.public, "key: it is neither a file that exists nor a key of 40 characters"),
        ("none.key_secret", SERVER.public, "key: there is no file none.key_secret"),
        ((KNOWN.public, STRANGER.secret), SERVER.public, "are no pair"),
        ((KNOWN.public,), SERVER.public, "a pair is a public and a secret key"),
        (1, SERVER.public, "key: it is int"),
        (KNOWN.secret, SERVER.public[:-1], "server_key: .* is neither a file that exists nor"),
        (KNOWN.secret, 1, "server_key: it is int"),
    ],
    ids=range(11),  # the keys differ from process to process
)
def test_a_key_that_cannot_be_used_is_refused_by_the_constructor(key: Any, server_key: Any, words: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidKey, match=words) as error:
            kind("tcp://127.0.0.1:9", key=key, server_key=server_key)
        assert isinstance(error.value, ValueError)
        for pair in (KNOWN, STRANGER):
            assert pair.secret[:-1] not in str(error.value)
        again = pickle.loads(pickle.dumps(error.value))
        assert (type(again), again.details, again.message) == (InvalidKey, error.value.details, error.value.message)


def test_an_empty_variable_does_not_turn_the_locks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTITOWER_KEY", "")
    monkeypatch.setenv("MULTITOWER_SERVER_KEY", SERVER.public)
    with pytest.raises(InvalidKey, match="MULTITOWER_KEY: it is empty"):
        Client("tcp://127.0.0.1:9")


def test_no_secret_key_is_shown(daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Client(daemon.endpoint, key=(KNOWN.public, KNOWN.secret), server_key=SERVER.public) as client:
        assert client.infer("m", {"x": 1.0})["x"].tolist() == 1.0
        with pytest.raises(TypeError) as error:
            pickle.dumps(client)
        for shown in (repr(client), str(error.value), repr(client._requests), caplog.text):
            assert KNOWN.secret not in shown


# Commands.


def test_the_client_processes_of_bench_get_the_keys_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("click", reason="the client is installed without the command line")
    from multitower.cli import bench

    for name in (wire.KEY_VARIABLE, wire.SERVER_KEY_VARIABLE):
        monkeypatch.setenv(name, "another")  # so that it is restored
    given = {"model": "m", "key": Path("ana.key_secret"), "server_key": SERVER.public}
    bench._pass_keys_on(given)
    assert given == {"model": "m"}  # and so a report has no keys
    assert os.environ[wire.KEY_VARIABLE] == "ana.key_secret"
    assert os.environ[wire.SERVER_KEY_VARIABLE] == SERVER.public
    bench._pass_keys_on({"key": None, "server_key": None})
    assert os.environ[wire.KEY_VARIABLE] == "ana.key_secret"


def test_commands_take_the_keys(daemon: FakeDaemon, tmp_path: Path) -> None:
    pytest.importorskip("click", reason="the client is installed without the command line")
    from click.testing import CliRunner

    from multitower.cli.commands import multitower

    known, stranger = (
        write(tmp_path / name, curve_keys.certificate(pair.public, pair.secret))
        for name, pair in (("known.key_secret", KNOWN), ("stranger.key_secret", STRANGER))
    )
    words = ["metrics", "--endpoint", daemon.endpoint, "--server-key", SERVER.public]
    admitted = CliRunner().invoke(multitower, [*words, "--key", str(known)])
    assert (admitted.exit_code, admitted.output) == (Exit.OK, METRICS)
    refused = CliRunner().invoke(multitower, [*words, "--key", str(stranger)])
    assert refused.exit_code == Exit.NO_PERMISSION
    assert refused.stderr.startswith("multitower: UNAUTHENTICATED/unauthenticated: the daemon at")
    missing = CliRunner().invoke(multitower, [*words, "--key", str(tmp_path / "none")])
    assert missing.exit_code == Exit.NO_PERMISSION
    assert "cannot read the key" in missing.stderr
