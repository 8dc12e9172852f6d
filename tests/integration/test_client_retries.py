"""Requests that the daemon refused without running them are sent again: a scripted daemon."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon, Received
from new_threads import NewThreads

from multitower import AsyncClient, Client, DeadlineExceeded, MultitowerError, Overloaded, Unavailable, wire
from multitower.errors import Reason

WAIT_S = 60.0


def full(request: Received, retry_after_ms: float = 1) -> list[bytes]:
    return fake_daemon.error(request.id, Reason.QUEUE_FULL, queue_depth=9, retry_after_ms=retry_after_ms)


def refuse(daemon: FakeDaemon, retry_after_ms: float = 1) -> Received:
    request = daemon.next()
    daemon.reply(request, full(request, retry_after_ms))
    return request


def answer(daemon: FakeDaemon) -> Received:
    request = daemon.next()
    daemon.reply(request, fake_daemon.echo(request))
    return request


def has_read(client: Client, daemon: FakeDaemon) -> None:
    """Returns when the client has read all that the daemon has sent it: a later answer is there."""
    probe = client.submit("probe", {"x": 0.0})
    assert answer(daemon).json["model_name"] == "probe"
    probe.result(WAIT_S)


@pytest.mark.parametrize("size", [1, 1 << 16])
@pytest.mark.parametrize("reason", [Reason.QUEUE_FULL, Reason.NO_WORKER])
def test_a_refused_request_is_sent_again_unchanged(
    client: Client, daemon: FakeDaemon, reason: Reason, size: int
) -> None:
    x = np.random.default_rng(0).random(size)
    future = client.submit("m", {"x": x}, timeout=5)
    first = daemon.next()
    begun = time.monotonic()
    daemon.reply(first, fake_daemon.error(first.id, reason, retry_after_ms=200))
    second = daemon.next()
    assert time.monotonic() - begun >= 0.2
    assert not future.done()
    assert (second.kind, second.header, second.frames) == (first.kind, first.header, first.frames)
    assert second.id != first.id
    daemon.reply(first, full(first))  # dropped: the request has another id now
    daemon.reply(second, fake_daemon.echo(second))
    assert np.array_equal(future.result(WAIT_S)["x"], x)
    has_read(client, daemon)
    assert daemon.requests.empty()


@pytest.mark.parametrize("retries", [0, 1, 2, 4])
def test_a_refused_request_is_sent_again_up_to_the_limit(daemon: FakeDaemon, retries: int) -> None:
    with Client(daemon.endpoint, timeout=WAIT_S, retries=retries) as client:
        future = client.submit("m", {"x": 1.0})
        for number in range(retries + 1):
            assert not future.done()
            refuse(daemon, 1 + number)
        error = future.exception(WAIT_S)
        assert isinstance(error, Overloaded)
        assert error.details == {"queue_depth": 9, "retry_after_ms": 1 + retries}
        has_read(client, daemon)


@pytest.mark.parametrize(
    ("reason", "details"),
    [
        *((reason, {"retry_after_ms": 1}) for reason in Reason if reason not in {Reason.QUEUE_FULL, Reason.NO_WORKER}),
        (Reason.NO_WORKER, {}),
        (Reason.NO_WORKER, {"retry_after_ms": "soon"}),
        (Reason.QUEUE_FULL, {"queue_depth": 9}),
    ],
)
def test_requests_that_may_have_run_are_not_sent_again(
    client: Client, daemon: FakeDaemon, reason: Reason, details: dict[str, Any]
) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    daemon.reply(request, fake_daemon.error(request.id, reason, **details))
    error = future.exception(WAIT_S)
    assert isinstance(error, MultitowerError)
    assert (error.reason, error.details) == (reason, details)
    has_read(client, daemon)  # the probe is next: the request was not sent again


@pytest.mark.parametrize("retry_after_ms", [4000, 60_000])
def test_a_retry_past_the_deadline_is_not_made(client: Client, daemon: FakeDaemon, retry_after_ms: int) -> None:
    future = client.submit("m", {"x": 1.0}, timeout=4.0)
    refuse(daemon, retry_after_ms)
    error = future.exception(WAIT_S)
    assert isinstance(error, Overloaded), "at its deadline it would be another error"
    assert error.details == {"queue_depth": 9, "retry_after_ms": retry_after_ms}


def test_the_deadline_holds_over_all_attempts(client: Client, daemon: FakeDaemon) -> None:
    begun = time.monotonic()
    future = client.submit("m", {"x": 1.0}, timeout=1.5)
    refuse(daemon, 200)
    again = daemon.next()
    assert isinstance(future.exception(WAIT_S), DeadlineExceeded)
    assert 1.5 <= time.monotonic() - begun < WAIT_S / 2
    assert daemon.next(wire.CANCEL).id == again.id


def test_a_cancelled_request_is_not_sent_again(client: Client, daemon: FakeDaemon) -> None:
    first, second = (client.submit("m", {"x": x}) for x in (1.0, 2.0))
    for _ in (first, second):
        refuse(daemon, 800)
    has_read(client, daemon)
    assert first.cancel()
    assert daemon.next().inputs["x"].tolist() == 2.0
    third = client.submit("m", {"x": 3.0})
    refuse(daemon, 800)
    # The turn of the first would have come before that of the third, and the daemon has nothing to cancel.
    assert daemon.next().inputs["x"].tolist() == 3.0
    assert not second.done()
    assert not third.done()


def test_close_does_not_wait_for_retries(daemon: FakeDaemon) -> None:
    client = Client(daemon.endpoint, timeout=WAIT_S)
    futures = [client.submit("m", {"x": 1.0}) for _ in range(3)]
    for _ in futures:
        refuse(daemon, 30_000)
    has_read(client, daemon)
    client.close()
    assert daemon.requests.empty(), "it does not send them again first"
    for future in futures:
        error = future.exception(0)
        assert isinstance(error, Unavailable)
        assert error.reason == "closed"


def test_a_retry_is_sent_over_the_next_connection(tmp_socket: str) -> None:
    first = FakeDaemon(endpoint=tmp_socket)
    with Client(tmp_socket, timeout=WAIT_S, connect_timeout=WAIT_S) as client:
        waits, runs = client.submit("m", {"x": 1.0}), client.submit("m", {"x": 2.0})
        refuse(first, 1000)
        first.next()
        has_read(client, first)
        first.close()
        error = runs.exception(WAIT_S)
        assert isinstance(error, Unavailable)
        assert error.reason == "connection_lost"  # it may have run
        assert not waits.done()
        with FakeDaemon(endpoint=tmp_socket) as second:
            assert answer(second).inputs["x"].tolist() == 1.0
            assert waits.result(WAIT_S)["x"].tolist() == 1.0


def test_a_retry_does_not_wait_forever_for_a_lost_daemon(tmp_socket: str) -> None:
    daemon = FakeDaemon(endpoint=tmp_socket)
    with Client(tmp_socket, timeout=WAIT_S, connect_timeout=0.5) as client:
        future = client.submit("m", {"x": 1.0})
        refuse(daemon, 500)
        has_read(client, daemon)
        begun = time.monotonic()
        daemon.close()
        error = future.exception(WAIT_S)
        assert time.monotonic() - begun < WAIT_S / 2
        assert isinstance(error, Unavailable)
        assert error.reason == "not_listening"


def test_a_request_that_waits_for_its_retry_is_outstanding(daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, timeout=WAIT_S, max_outstanding=1) as client:
        first = client.submit("m", {"x": 1.0})
        refuse(daemon, 300)
        later: list[Any] = []
        waiting = threading.Thread(target=lambda: later.append(client.submit("m", {"x": 2.0})))
        waiting.start()
        assert answer(daemon).inputs["x"].tolist() == 1.0
        assert first.result(WAIT_S)["x"].tolist() == 1.0
        assert answer(daemon).inputs["x"].tolist() == 2.0
        waiting.join(WAIT_S)
        assert later[0].result(WAIT_S)["x"].tolist() == 2.0


def test_other_requests_run_while_one_waits_for_its_retry(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    refuse(daemon, 30_000)
    for _ in range(50):
        has_read(client, daemon)
    assert not future.done()
    future.cancel()


def test_hundreds_of_refused_requests_get_one_outcome_each() -> None:
    received: Counter[int] = Counter()

    def every_third_time(request: Received) -> list[bytes]:
        number = int(request.inputs["x"])
        received[number] += 1
        # A third is never let in.
        return fake_daemon.echo(request) if received[number] == 3 and number % 3 else full(request, 20)

    outcomes: Counter[int] = Counter()
    with FakeDaemon(every_third_time) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        futures = [client.submit("m", {"x": number}) for number in range(600)]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: outcomes.update([number]))
        for number, future in enumerate(futures):
            error = future.exception(WAIT_S)
            assert isinstance(error, Overloaded) if number % 3 == 0 else error is None
            assert error is not None or future.result()["x"].tolist() == number
    assert received == dict.fromkeys(range(600), 3)
    assert outcomes == dict.fromkeys(range(600), 1)


def test_a_client_that_waits_for_a_retry_uses_no_cpu(daemon: FakeDaemon) -> None:
    threads = NewThreads()
    with Client(daemon.endpoint, timeout=WAIT_S) as client:
        future = client.submit("m", {"x": 1.0})
        refuse(daemon, 1000)
        has_read(client, daemon)
        (thread,) = threads.named("multitower-client")
        stat = Path(f"/proc/self/task/{thread.native_id}/stat")

        def ticks() -> int:
            user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
            return int(user) + int(system)

        before = ticks()
        daemon.next()
        assert ticks() - before <= os.sysconf("SC_CLK_TCK") // 10  # a tenth of the wait; a busy one takes all of it
        future.cancel()


@pytest.mark.parametrize("how", ["answered", "cancelled", "never"])
def test_coroutines_are_retried_too(how: str) -> None:
    async def test() -> None:
        retries = 0 if how == "never" else 1
        with FakeDaemon() as daemon:
            async with asyncio.timeout(60), AsyncClient(daemon.endpoint, timeout=WAIT_S, retries=retries) as client:
                task = client.submit("m", {"x": 1.0})
                await asyncio.to_thread(refuse, daemon, 800)
                other = client.submit("m", {"x": 2.0})
                assert (await asyncio.to_thread(answer, daemon)).inputs["x"].tolist() == 2.0
                await other  # so the client has read the refusal of the first
                if how == "never":
                    with pytest.raises(Overloaded):
                        await task
                    return
                if how == "answered":
                    assert not task.done()
                    assert (await asyncio.to_thread(answer, daemon)).inputs["x"].tolist() == 1.0
                    assert (await task)["x"].tolist() == 1.0
                    return
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                later = client.submit("m", {"x": 3.0})
                await asyncio.to_thread(refuse, daemon, 1300)
                assert (await asyncio.to_thread(answer, daemon)).inputs["x"].tolist() == 3.0
                await later

    asyncio.run(test(), debug=True)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_negative_number_of_retries_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="retries must be 0 or more, not -1"):
        kind("tcp://127.0.0.1:5555", retries=-1)
