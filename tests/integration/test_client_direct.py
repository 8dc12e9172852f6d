"""A caller that waits for the only outstanding reply (the leader) reads it itself; other outcomes reach it as well."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon, Received

from multitower import Client, DeadlineExceeded, InvalidRequest, Unavailable, frames, wire
from multitower.client import retries
from multitower.client.connection import Connection
from multitower.client.direct import DirectPath
from multitower.client.transport import Call
from multitower.errors import Reason

WAIT_S = 60.0
PATIENCE_S = 30.0
"""Less than the clients' time-outs: after that they would send what they have by chance."""


def direct_path(client: Client) -> DirectPath:
    return client._requests.connection._direct


class Scene:
    """A client with a leader: a thread that waits in `infer` for the reply to `request`."""

    def __init__(self, daemon: FakeDaemon, client: Client, pool: ThreadPoolExecutor, timeout: float) -> None:
        self.daemon, self.client = daemon, client
        client.live()
        for attempt in range(50):
            # On a slow machine the request may expire before its caller reads: the next one gets more time.
            seconds = timeout * 2 ** min(attempt, 6)
            self.waiting: Future[Any] = pool.submit(client.infer, "m", {"x": 1.0}, timeout=seconds)
            while (request := daemon.requests.get(timeout=WAIT_S)).kind == wire.CANCEL:
                pass  # of one that expired
            self.request = request
            if self._leads():
                return
            self.reply()  # the connection's thread did not sleep when the call was made
            with contextlib.suppress(DeadlineExceeded):
                self.waiting.result(WAIT_S)
        raise AssertionError("no caller reads its own reply")

    def _leads(self) -> bool:
        until = time.monotonic() + 0.2
        while direct_path(self.client).leader is None and time.monotonic() < until:
            time.sleep(0.001)
        return direct_path(self.client).leader is not None

    def reply(self, request: Received | None = None) -> None:
        request = request or self.request
        self.daemon.reply(request, fake_daemon.echo(request))

    def works(self) -> None:
        """Later requests are answered, with a leader and without."""
        for _ in range(2):
            one = self.client.submit("m", {"x": 2.0})
            self.reply(self.daemon.next())
            assert one.result(WAIT_S)["x"] == 2.0
            with ThreadPoolExecutor(1) as pool:
                alone = pool.submit(self.client.infer, "m", {"x": 3.0})
                self.reply(self.daemon.next())
                assert alone.result(WAIT_S)["x"] == 3.0


SceneMaker = Callable[..., contextlib.AbstractContextManager[Scene]]


@pytest.fixture(params=["tcp", "ipc"])
def endpoint(request: pytest.FixtureRequest, tmp_socket: str) -> str:
    """Where a scripted daemon may listen, for each of the two kinds of sockets."""
    return "tcp://127.0.0.1:*" if request.param == "tcp" else tmp_socket


@pytest.fixture
def scene(endpoint: str) -> SceneMaker:
    """Makes scenes."""

    def answer(request: Received) -> list[bytes] | None:
        return fake_daemon.ok(request.id, {"live": True}) if request.kind == wire.SERVER_LIVE else None

    @contextlib.contextmanager
    def make(timeout: float = WAIT_S) -> Iterator[Scene]:
        with (
            ThreadPoolExecutor(1) as pool,
            FakeDaemon(answer, endpoint) as daemon,
            Client(daemon.endpoint, connect_timeout=WAIT_S) as client,
        ):
            yield Scene(daemon, client, pool, timeout)

    return make


def test_the_leader_gets_its_answer(scene: SceneMaker) -> None:
    with scene() as made:
        made.reply()
        assert made.waiting.result(WAIT_S)["x"] == 1.0
        made.works()


def test_others_get_their_answers_while_a_leader_waits(scene: SceneMaker) -> None:
    with scene() as made:
        others = [made.client.submit("m", {"x": float(number)}) for number in range(20)]
        for request in reversed([made.daemon.next() for _ in others]):
            made.reply(request)
        assert [other.result(WAIT_S)["x"].tolist() for other in others] == list(range(20))
        assert not made.waiting.done()
        made.reply()
        assert made.waiting.result(WAIT_S)["x"] == 1.0
        made.works()


def test_callbacks_of_others_run_in_the_clients_thread_while_a_leader_waits(scene: SceneMaker) -> None:
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


def test_the_leader_does_not_wait_past_its_deadline(scene: SceneMaker) -> None:
    with scene(0.3) as made:
        assert isinstance(made.waiting.exception(WAIT_S), DeadlineExceeded)
        made.daemon.next(wire.CANCEL)
        made.reply()  # late: dropped
        made.works()


def test_an_error_reply_reaches_the_leader(scene: SceneMaker) -> None:
    with scene() as made:
        made.daemon.reply(made.request, fake_daemon.error(made.request.id, Reason.SHAPE_INVALID))
        assert isinstance(made.waiting.exception(WAIT_S), InvalidRequest)
        made.works()


def test_a_refused_request_of_a_leader_is_sent_again(scene: SceneMaker) -> None:
    with scene() as made:
        refusal = fake_daemon.error(made.request.id, Reason.QUEUE_FULL, retry_after_ms=1)
        made.daemon.reply(made.request, refusal)
        made.reply(made.daemon.next())
        assert made.waiting.result(WAIT_S)["x"] == 1.0
        made.works()


def test_a_refused_request_of_a_leader_is_sent_again_after_the_daemon_was_replaced(
    scene: SceneMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()

    def close_daemon(*_: object) -> float:
        begin = time.monotonic()
        made.daemon.close()
        closed.set()
        return time.monotonic() - begin + 0.3

    with scene() as made:
        monkeypatch.setattr(retries, "delay_before_retry", close_daemon)
        made.daemon.reply(made.request, fake_daemon.error(made.request.id, Reason.QUEUE_FULL, retry_after_ms=1))
        assert closed.wait(WAIT_S)
        with FakeDaemon(endpoint=made.daemon.endpoint) as made.daemon:
            other = made.client.submit("m", {"x": 2.0})
            requests = [made.daemon.requests.get(timeout=PATIENCE_S) for _ in range(2)]
            for request in requests:
                made.reply(request)
            assert made.waiting.result(WAIT_S)["x"] == 1.0
            assert other.result(WAIT_S)["x"] == 2.0
            made.works()


def test_a_lost_connection_reaches_the_leader(scene: SceneMaker) -> None:
    with scene() as made:
        made.daemon.close()
        assert isinstance(error := made.waiting.exception(WAIT_S), Unavailable)
        assert error.reason == "connection_lost"


def test_close_reaches_the_leader(scene: SceneMaker) -> None:
    with scene() as made:
        made.client.close()
        assert isinstance(error := made.waiting.exception(WAIT_S), Unavailable)
        assert error.reason == "closed"


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_callers_that_lead_now_and_then_get_their_own_answers(endpoint: str, threads: int) -> None:
    def work(number: int) -> None:
        for turn in range(200):
            value = 1000 * number + turn
            if turn % 3 == 0:
                time.sleep(0.0005 * number)
            assert client.infer("m", {"x": np.array([value])}, timeout=WAIT_S)["x"].tolist() == [value]

    with (
        FakeDaemon(fake_daemon.echo, endpoint) as daemon,
        Client(daemon.endpoint) as client,
        ThreadPoolExecutor(threads) as pool,
    ):
        for done in [pool.submit(work, number) for number in range(threads)]:
            done.result()


def infer_until_interrupted(client: Client) -> None:
    """Calls `infer` until Ctrl-C: not every call finds the connection's thread asleep."""
    for _ in range(1000):
        client.infer("m", {"x": 1.0})


def test_ctrl_c_while_it_becomes_leader_leaves_the_socket_to_the_thread(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeDaemon(fake_daemon.echo, endpoint) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        socket = direct_path(client)._transport.socket
        divert = socket.divert

        def interrupted(diverted: bool) -> None:
            monkeypatch.undo()
            divert(diverted)
            raise KeyboardInterrupt

        monkeypatch.setattr(socket, "divert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer_until_interrupted(client)
        assert direct_path(client).leader is None
        assert client.submit("m", {"x": 2.0}).result(WAIT_S)["x"] == 2.0


def test_a_second_ctrl_c_while_the_leader_stops_leaves_the_socket_to_the_thread(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeDaemon(fake_daemon.echo, endpoint) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        wait = direct_path(client)._wait
        assert wait is not None
        clear, interrupts = wait.clear, [KeyboardInterrupt, KeyboardInterrupt]

        def interrupted() -> None:
            if interrupts and threading.current_thread() is threading.main_thread():
                raise interrupts.pop()
            clear()

        monkeypatch.setattr(wait, "clear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer_until_interrupted(client)
        assert not interrupts
        assert client.submit("m", {"x": 2.0}).result(PATIENCE_S)["x"] == 2.0
        # The thread reads that reply first, and then ends the lead of the call that was cancelled.
        until = time.monotonic() + PATIENCE_S
        while direct_path(client).leader is not None:
            assert time.monotonic() < until
            time.sleep(0.001)


def test_ctrl_c_between_two_frames_does_not_spoil_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    send_frame = frames._send_frame

    def interrupted(socket: Any, frame: Any, flags: int, copy: bool) -> None:
        send_frame(socket, frame, flags, copy)
        # Behind the header: the scripted daemon reads no less.
        if frame[:1] == b"{" and threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            raise KeyboardInterrupt

    with FakeDaemon(fake_daemon.echo) as daemon, Client(daemon.endpoint, timeout=WAIT_S) as client:
        client.infer("m", {"x": 1.0})
        monkeypatch.setattr(frames, "_native", None)
        monkeypatch.setattr(frames, "_send_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer_until_interrupted(client)
        assert client.infer("m", {"x": 2.0})["x"] == 2.0


def test_ctrl_c_at_any_moment_releases_the_lock(tmp_socket: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def send_until_interrupted() -> None:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 300e-6))
        while True:
            connection._direct.send(call)

    before = signal.signal(signal.SIGALRM, interrupt)
    connection = Connection(tmp_socket)  # nothing listens: `send` takes the lock and releases it
    call = Call(wire.INFER, b"{}", (), 0.0, 0.0, 0.0, lambda _: None)
    try:
        for _ in range(500):
            with contextlib.suppress(KeyboardInterrupt):
                send_until_interrupted()
            assert connection._transport.lock.acquire(timeout=WAIT_S)
            connection._transport.lock.release()
    finally:
        signal.signal(signal.SIGALRM, before)
        connection.stop()
        connection.join()
