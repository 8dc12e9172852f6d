"""`wait_until_ready` of both clients: it waits for the daemon and its models, and reports what is missing."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import fake_daemon
import pytest
from fake_daemon import FakeDaemon

from multitower import AsyncClient, Client, Unavailable, wire
from multitower.client import requests

WAIT_S = 60.0


def test_wait_until_ready_waits_for_the_daemon_and_for_its_models(tmp_socket: str) -> None:
    answers = iter([False, False, True])

    def answer(request: fake_daemon.Received) -> list[bytes]:
        assert request.kind == wire.SERVER_READY
        return fake_daemon.ok(request.id, {"ready": next(answers), "slots_ready": 0, "slots_total": 1})

    with Client(tmp_socket, connect_timeout=0.05) as client:
        waiting = threading.Thread(target=client.wait_until_ready, args=(WAIT_S,))
        waiting.start()
        with FakeDaemon(answer, tmp_socket):
            waiting.join(WAIT_S)
        assert list(answers) == []


def test_wait_until_ready_reports_what_is_missing(tmp_socket: str) -> None:
    with Client(tmp_socket, connect_timeout=0.1) as client, pytest.raises(Unavailable, match="no daemon listens"):
        client.wait_until_ready(0.3)

    ready = 1

    def answer(request: fake_daemon.Received) -> list[bytes]:
        return fake_daemon.ok(request.id, {"live": True, "ready": False, "slots_ready": ready, "slots_total": 2})

    with FakeDaemon(answer, tmp_socket), Client(tmp_socket) as client:
        client.live()
        with pytest.raises(Unavailable, match="1 of 2 slots are ready; `multitower status` tells why") as error:
            client.wait_until_ready(1.0)
        assert error.value.reason == "no_worker"
        ready = 2
        with pytest.raises(Unavailable, match="2 of 2 slots are ready, but some model is on none of them"):
            client.wait_until_ready(1.0)


def _run_async(endpoint: str, seconds: float) -> None:
    async def wait() -> None:
        async with AsyncClient(endpoint) as client:
            await client.wait_until_ready(seconds)

    asyncio.run(wait())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_last_question_without_an_answer_does_not_hide_what_is_missing(
    kind: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "ANSWER_S", WAIT_S)
    answers = iter([1, 1])

    def answer(request: fake_daemon.Received) -> list[bytes] | None:
        if next(answers, None) is None:
            return None
        return fake_daemon.ok(request.id, {"ready": False, "slots_ready": 1, "slots_total": 2})

    with FakeDaemon(answer) as daemon, Client(daemon.endpoint) as client:
        wait = client.wait_until_ready if kind is Client else partial(_run_async, daemon.endpoint)
        with pytest.raises(Unavailable, match="not ready after 2 s: 1 of 2 slots are ready"):
            wait(2.0)


@pytest.mark.parametrize(
    ("first", "given_s", "cause"),
    [("1 of 2", 5.0, "no answer"), ("1 of 2", 0.02, "1 of 2"), ("", 0.02, "no answer")],
)
def test_a_daemon_that_answers_no_longer_is_the_cause(first: str, given_s: float, cause: str) -> None:
    wait = requests.ReadinessWait(0.0)
    if first:
        wait.note_state({"slots_ready": 1, "slots_total": 2})
    wait.note_error(TimeoutError("no answer"), given_s)
    with pytest.raises(Unavailable, match=f"not ready after 0 s: {cause}") as raised:
        wait.check()
    assert raised.value.reason == "no_worker"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_reason_is_that_of_the_last_attempt_if_no_daemon_was_reached(
    tmp_socket: str, kind: type[Client | AsyncClient]
) -> None:
    with Client(tmp_socket, connect_timeout=0.05) as client:
        wait = client.wait_until_ready if kind is Client else partial(_run_async, tmp_socket)
        with pytest.raises(Unavailable, match="no daemon listens") as raised:
            wait(0.2)
    assert (raised.value.reason, raised.value.details["connect_error"]) == ("not_listening", "no_such_file")
