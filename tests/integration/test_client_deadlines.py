"""`Client` against a scripted daemon: no call waits past its deadline, and the daemon is told of cancelled requests."""

from __future__ import annotations

import concurrent.futures
import signal
import sys
import threading
import time
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon

from multitower import Client, DeadlineExceeded, wire

WAIT_S = 60.0


def answer(daemon: FakeDaemon) -> None:
    request = daemon.next()
    daemon.reply(request, fake_daemon.echo(request))


def test_a_request_without_an_answer_fails_at_its_deadline_and_is_cancelled(client: Client, daemon: FakeDaemon) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded) as error:
        client.infer("m", {"x": 1.0}, timeout=0.2)
    assert time.monotonic() - begun >= 0.2
    assert error.value.reason == "deadline"
    assert isinstance(error.value, TimeoutError)
    request = daemon.next()
    assert daemon.next(wire.CANCEL).id == request.id


def test_a_late_answer_is_dropped(client: Client, daemon: FakeDaemon) -> None:
    with pytest.raises(DeadlineExceeded):
        client.infer("m", {"x": 1.0}, timeout=0.1)
    late = daemon.next()
    cancel = daemon.next(wire.CANCEL)
    daemon.reply(late, fake_daemon.outputs(late.id, x=np.array(7.0)))
    daemon.reply(cancel, fake_daemon.ok(cancel.id, {"cancelled": 0}))
    future = client.submit("m", {"x": 2.0})
    answer(daemon)
    assert future.result(WAIT_S)["x"].tolist() == 2.0


def test_each_request_has_its_own_deadline(client: Client, daemon: FakeDaemon) -> None:
    first = client.submit("m", {"x": 1.0}, timeout=WAIT_S)
    answer(daemon)
    first.result(WAIT_S)  # from now on the client sleeps until something is due
    slow = client.submit("m", {"x": 1.0}, timeout=WAIT_S)
    quick = client.submit("m", {"x": 2.0}, timeout=0.1)
    assert isinstance(quick.exception(WAIT_S), DeadlineExceeded)
    assert not slow.done()
    answer(daemon)
    assert slow.result(WAIT_S)["x"].tolist() == 1.0


def test_hundreds_expire_together(client: Client, daemon: FakeDaemon) -> None:
    futures = [client.submit("m", {"x": 1.0}, timeout=0.3) for _ in range(500)]
    assert {type(future.exception(WAIT_S)) for future in futures} == {DeadlineExceeded}
    ids = [daemon.next().id for _ in futures]
    assert sorted(daemon.next(wire.CANCEL).id for _ in futures) == sorted(ids)


def test_a_query_fails_at_the_timeout_of_the_client(daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, timeout=0.1) as client, pytest.raises(DeadlineExceeded):
        client.status()


# Cancelling.


def test_a_cancelled_future_cancels_its_request(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    assert future.cancel()
    assert daemon.next(wire.CANCEL).id == request.id
    assert future.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(0)
    done, waiting = concurrent.futures.wait([future], WAIT_S)
    assert (done, waiting) == ({future}, set())


def test_answers_to_a_cancelled_request_are_dropped(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    request = daemon.next()
    future.cancel()
    cancel = daemon.next(wire.CANCEL)
    daemon.reply(request, fake_daemon.error(request.id, fake_daemon.errors.Reason.CANCELLED))
    daemon.reply(cancel, fake_daemon.ok(cancel.id, {"cancelled": 1}))
    after = client.submit("m", {"x": 2.0})
    answer(daemon)
    assert after.result(WAIT_S)["x"].tolist() == 2.0


def test_a_completed_request_cannot_be_cancelled(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("m", {"x": 1.0})
    answer(daemon)
    assert future.result(WAIT_S)
    assert not future.cancel()


def test_a_request_cancelled_before_it_was_sent_is_never_sent(tmp_socket: str) -> None:
    with Client(tmp_socket, connect_timeout=WAIT_S) as client:
        futures = [client.submit("m", {"x": float(number)}) for number in range(3)]
        assert futures[0].cancel()
        assert futures[2].cancel()
        with FakeDaemon(endpoint=tmp_socket) as daemon:
            request = daemon.next()
            assert request.inputs["x"].tolist() == 1.0
            daemon.reply(request, fake_daemon.echo(request))
            assert futures[1].result(WAIT_S)
            assert daemon.requests.empty()


def test_ctrl_c_cancels_the_request(client: Client, daemon: FakeDaemon) -> None:
    ids: list[bytes] = []

    main = threading.main_thread().ident or 0

    def interrupt() -> None:
        ids.append(daemon.next().id)
        # The request is out before its caller waits for it.
        until = time.monotonic() + WAIT_S
        while sys._current_frames()[main].f_code.co_name != "wait" and time.monotonic() < until:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        client.infer("m", {"x": 1.0})
    assert [daemon.next(wire.CANCEL).id] == ids


# Room.


def test_submit_waits_while_max_outstanding_is_reached(daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, timeout=WAIT_S, max_outstanding=2) as client:
        first = [client.submit("m", {"x": 1.0}) for _ in range(2)]
        third: list[Any] = []
        waiting = threading.Thread(target=lambda: third.append(client.submit("m", {"x": 3.0})))
        waiting.start()
        requests = [daemon.next() for _ in first]
        assert not third
        assert daemon.requests.empty()
        daemon.reply(requests[0], fake_daemon.echo(requests[0]))
        answer(daemon)
        waiting.join(WAIT_S)
        assert third[0].result(WAIT_S)["x"].tolist() == 3.0


@pytest.mark.parametrize("how", ["answered", "failed", "cancelled", "expired", "not sendable"])
def test_every_outcome_lets_another_request_start(how: str, daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, timeout=WAIT_S, max_outstanding=1) as client:
        if how == "not sendable":
            with pytest.raises(ValueError, match="timeout"):
                client.submit("m", {"x": 1.0}, timeout=-1)
            with pytest.raises(Exception, match="'x'"):
                client.submit("m", {"x": object()})
        else:
            first = client.submit("m", {"x": 1.0}, timeout=0.1 if how == "expired" else None)
            request = daemon.next()
            if how == "answered":
                daemon.reply(request, fake_daemon.echo(request))
            elif how == "failed":
                daemon.reply(request, fake_daemon.error(request.id, fake_daemon.errors.Reason.QUEUE_FULL))
            elif how == "cancelled":
                first.cancel()
                daemon.next(wire.CANCEL)
            else:
                daemon.next(wire.CANCEL)
        second = client.submit("m", {"x": 2.0})
        answer(daemon)
        assert second.result(WAIT_S)["x"].tolist() == 2.0


def test_waiting_for_others_counts_towards_the_timeout(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(daemon.endpoint, timeout=WAIT_S, max_outstanding=1) as client:
        client.submit("m", {"x": 1.0})
        with pytest.raises(DeadlineExceeded, match="max_outstanding"):
            client.submit("m", {"x": 2.0}, timeout=0.1)
        first = daemon.next()
        acquire, replied_at = client._outstanding.acquire, 0.0

        def make_room_and_acquire(seconds: float, *, wait: bool) -> None:
            nonlocal replied_at
            replied_at = time.monotonic()
            daemon.reply(first, fake_daemon.echo(first))
            acquire(seconds, wait=wait)

        monkeypatch.setattr(client._outstanding, "acquire", make_room_and_acquire)
        waited = client.submit("m", {"x": 3.0}, timeout=WAIT_S)
        assert waited._call is not None
        assert waited._call.deadline <= replied_at + WAIT_S, "the whole time begins when there is room"


def test_submit_in_a_callback_does_not_wait_for_others(daemon: FakeDaemon) -> None:
    """The room would have to be made by the thread that runs the callback."""
    with Client(daemon.endpoint, timeout=WAIT_S, max_outstanding=2) as client:
        outcome: list[BaseException] = []
        done = threading.Event()

        def callback(_: object) -> None:
            try:
                for _ in range(3):
                    client.submit("m", {"x": 1.0})
            except DeadlineExceeded as error:
                outcome.append(error)
            done.set()

        client.submit("m", {"x": 1.0}).add_done_callback(callback)
        answer(daemon)
        assert done.wait(WAIT_S)
        assert "max_outstanding" in str(outcome[0])
