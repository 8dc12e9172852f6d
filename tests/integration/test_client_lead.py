"""A caller that waits alone reads its own answer, and hears of any other outcome; nobody else waits longer for it."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon, Received

from multitower import Client, DeadlineExceeded, InvalidRequest, Unavailable, frames, wire
from multitower.client.connection import Call, Connection
from multitower.errors import Reason

WAIT_S = 20.0


class Scene:
    """A client whose caller, in a thread, waits for the answer to `request`."""

    def __init__(self, daemon: FakeDaemon, client: Client, pool: ThreadPoolExecutor, timeout: float) -> None:
        self.daemon, self.client = daemon, client
        client.live()
        for _ in range(50):
            self.waiting: Future[Any] = pool.submit(client.infer, "m", {"x": 1.0}, timeout=timeout)
            self.request = daemon.next()
            if self._leads():
                return
            self.reply()  # the client's thread did not sleep when the call was made
            self.waiting.result(WAIT_S)
        raise AssertionError("no caller reads its own answer")

    def _leads(self) -> bool:
        gate = self.client._requests.connection._gate
        assert gate is not None
        until = time.monotonic() + 0.2
        while not gate.shut and time.monotonic() < until:
            time.sleep(0.001)
        return gate.shut

    def reply(self, request: Received | None = None) -> None:
        request = request or self.request
        self.daemon.reply(request, fake_daemon.echo(request))

    def works(self) -> None:
        """What comes afterwards is answered, to callers that wait alone and to others."""
        for _ in range(2):
            one = self.client.submit("m", {"x": 2.0})
            self.reply(self.daemon.next())
            assert one.result(WAIT_S)["x"] == 2.0
            with ThreadPoolExecutor(1) as pool:
                alone = pool.submit(self.client.infer, "m", {"x": 3.0})
                self.reply(self.daemon.next())
                assert alone.result(WAIT_S)["x"] == 3.0


@contextlib.contextmanager
def scene(timeout: float = WAIT_S) -> Iterator[Scene]:
    def answer(request: Received) -> list[bytes] | None:
        return fake_daemon.ok(request.id, {"live": True}) if request.kind == wire.SERVER_LIVE else None

    with ThreadPoolExecutor(1) as pool, FakeDaemon(answer) as daemon, Client(daemon.endpoint) as client:
        yield Scene(daemon, client, pool, timeout)


def test_it_gets_its_answer() -> None:
    with scene() as made:
        made.reply()
        assert made.waiting.result(WAIT_S)["x"] == 1.0
        made.works()


def test_others_get_theirs_meanwhile_and_it_its_own_afterwards() -> None:
    with scene() as made:
        others = [made.client.submit("m", {"x": float(number)}) for number in range(20)]
        for request in reversed([made.daemon.next() for _ in others]):
            made.reply(request)
        assert [other.result(WAIT_S)["x"].tolist() for other in others] == list(range(20))
        assert not made.waiting.done()
        made.reply()
        assert made.waiting.result(WAIT_S)["x"] == 1.0
        made.works()


def test_callbacks_of_others_run_in_the_clients_thread() -> None:
    with scene() as made:
        threads: list[str] = []
        other = made.client.submit("m", {"x": 2.0})
        other.add_done_callback(lambda _: threads.append(threading.current_thread().name))
        request = made.daemon.next()
        made.reply(request)
        other.result(WAIT_S)
        made.reply()
        made.waiting.result(WAIT_S)
        assert threads == ["multitower-client"]


def test_its_deadline_is_kept() -> None:
    with scene(0.3) as made:
        assert isinstance(made.waiting.exception(WAIT_S), DeadlineExceeded)
        made.daemon.next(wire.CANCEL)
        made.reply()  # late, and nobody's
        made.works()


def test_an_error_is_its_outcome_too() -> None:
    with scene() as made:
        made.daemon.reply(made.request, fake_daemon.error(made.request.id, Reason.SHAPE_INVALID))
        assert isinstance(made.waiting.exception(WAIT_S), InvalidRequest)
        made.works()


def test_a_refusal_is_sent_again() -> None:
    with scene() as made:
        refusal = fake_daemon.error(made.request.id, Reason.QUEUE_FULL, retry_after_ms=1)
        made.daemon.reply(made.request, refusal)
        made.reply(made.daemon.next())
        assert made.waiting.result(WAIT_S)["x"] == 1.0
        made.works()


def test_a_lost_connection_is_its_outcome_too() -> None:
    with scene() as made:
        made.daemon.close()
        assert isinstance(error := made.waiting.exception(WAIT_S), Unavailable)
        assert error.reason == "connection_lost"


def test_close_is_heard() -> None:
    with scene() as made:
        made.client.close()
        assert isinstance(error := made.waiting.exception(WAIT_S), Unavailable)
        assert error.reason == "closed"


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_callers_that_are_alone_now_and_then(threads: int) -> None:
    def work(number: int) -> None:
        for turn in range(200):
            value = 1000 * number + turn
            if turn % 3 == 0:
                time.sleep(0.0005 * number)
            assert client.infer("m", {"x": np.array([value])}, timeout=WAIT_S)["x"].tolist() == [value]

    with FakeDaemon(fake_daemon.echo) as daemon, Client(daemon.endpoint) as client, ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, number) for number in range(threads)]:
            done.result()


def ask_on(client: Client) -> None:
    """Until Ctrl-C: not every caller finds the client's thread asleep."""
    for _ in range(1000):
        client.infer("m", {"x": 1.0})


def test_ctrl_c_while_it_begins_leaves_the_socket_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeDaemon(fake_daemon.echo) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        gate = client._requests.connection._gate
        assert gate is not None
        shut_it = gate.shut_it

        def interrupted() -> None:
            monkeypatch.undo()
            shut_it()
            raise KeyboardInterrupt

        monkeypatch.setattr(gate, "shut_it", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask_on(client)
        assert not gate.shut
        assert client.submit("m", {"x": 2.0}).result(WAIT_S)["x"] == 2.0


def test_ctrl_c_between_two_frames_is_not_the_next_request_s_concern(monkeypatch: pytest.MonkeyPatch) -> None:
    send_frame = frames._send_frame

    def interrupted(socket: Any, frame: Any, flags: int, copy: bool) -> None:
        send_frame(socket, frame, flags, copy)
        # Behind the header: the scripted daemon reads no less.
        if frame[:1] == b"{" and threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            raise KeyboardInterrupt

    with FakeDaemon(fake_daemon.echo) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        client.infer("m", {"x": 1.0})
        monkeypatch.setattr(frames, "_at_once", None)
        monkeypatch.setattr(frames, "_send_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask_on(client)
        assert client.infer("m", {"x": 2.0})["x"] == 2.0


def test_ctrl_c_at_any_moment_gives_the_lock_back(tmp_socket: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def try_on() -> None:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 300e-6))
        while True:
            connection._send_at_once(call)

    before = signal.signal(signal.SIGALRM, interrupt)
    connection = Connection(tmp_socket)  # nobody listens: it takes the lock, and gives it back
    call = Call(wire.INFER, b"{}", (), 0.0, 0.0, lambda _: None)
    try:
        for _ in range(500):
            with contextlib.suppress(KeyboardInterrupt):
                try_on()
            assert connection._using.acquire(timeout=WAIT_S)
            connection._using.release()
    finally:
        signal.signal(signal.SIGALRM, before)
        connection.stop()
        connection.join()
