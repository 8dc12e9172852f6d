"""Clients that read slowly get every answer; clients that do not read cost bounded memory, and delay nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from running import START_S, Running

from multitower import Client, wire

pytestmark = pytest.mark.chaos

MIB = 1 << 20

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
max_unread_bytes: LIMIT
unread_timeout: TIMEOUT
models:
  - {name: sized, handler: "handlers:Sized", queue: {max_size: 5000}}
  - {name: echo, handler: "handlers:Echo"}
"""


def config(limit: str = "2GiB", timeout: str = "30s") -> str:
    return CONFIG.replace("LIMIT", limit).replace("TIMEOUT", timeout)


class RawClient:
    """A client that asks for replies of a size, and reads them only when the test does."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.asked = 0
        self._socket = context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 1)
        self._socket.set(zmq.RCVTIMEO, int(START_S * 1000))
        self._socket.connect(endpoint)

    def ask(self, size: int, requests: int = 1, *, milliseconds: int = 0) -> None:
        """Sends requests for replies of `size` bytes, which take the worker some time."""
        header = wire.infer_header("sized", [wire.Tensor("size", "INT64", (2,))], timeout_us=int(START_S * 1e6))
        wanted = np.array([size, milliseconds], np.int64).tobytes()
        for _ in range(requests):
            self._socket.send_multipart([b"", wire.INFER, str(self.asked).encode(), header, wanted])
            self.asked += 1

    def read(self) -> tuple[int, int | str]:
        """The number of a request, and the bytes of its tensor or the reason of its error."""
        _, kind, id, header, *tensors = self._socket.recv_multipart(copy=False)
        if kind.bytes == wire.ERROR:
            return int(id.bytes), json.loads(header.bytes)["error"]["reason"]
        return int(id.bytes), sum(map(len, tensors))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def raw_clients(daemon: Running, count: int = 1, *, endpoint: str = "") -> Iterator[list[RawClient]]:
    with zmq.Context() as context:
        made = [RawClient(context, endpoint or daemon.endpoint) for _ in range(count)]
        try:
            yield made
        finally:
            for client in made:
                client.close()


def settled(daemon: Running, client: Client, *askers: RawClient) -> None:
    """Waits until every request of these clients has been answered or refused."""

    def answered() -> bool:
        state = client.status()
        sized = state["models"][0]
        count = sized["completed"] + sized["failed"] + state["daemon"]["rejected"]
        return bool(count >= sum(asker.asked for asker in askers))

    daemon.wait(answered)


def test_a_steady_slow_reader_gets_every_large_reply(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon, daemon.wait_ready().client() as client:
        with raw_clients(daemon) as (reader,):
            reader.ask(16 * MIB, 64)
            settled(daemon, client, reader)
            assert client.status()["daemon"]["unread_bytes"] > 900 * MIB
            assert sorted(reader.read() for _ in range(64)) == [(number, 16 * MIB) for number in range(64)]
        assert client.status()["daemon"]["replies_dropped"] == 0
        daemon.wait(lambda: client.status()["daemon"]["unread_bytes"] == 0)


@pytest.mark.parametrize("limit", ["2GiB", "1MiB"])
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_reply_of_any_size_arrives(transport: str, limit: str, tmp_path: Path) -> None:
    both = config(limit).replace('["{endpoint}"]', '["{endpoint}", "tcp://127.0.0.1:*"]')
    with Running(tmp_path, both) as daemon:
        listen = daemon.wait_ready().status()["daemon"]["listen"]
        (endpoint,) = (found for found in listen if found.startswith(transport))
        with raw_clients(daemon, endpoint=endpoint) as (reader,):
            for size in (520 * MIB, 1, 520 * MIB):
                reader.ask(size)
                assert reader.read()[1] == size


def test_a_client_that_pauses_gets_every_small_reply(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon, daemon.wait_ready().client() as client:
        with raw_clients(daemon) as (reader,):
            reader.ask(100, 4000)
            settled(daemon, client, reader)
            assert sorted(reader.read() for _ in range(4000)) == [(number, 100) for number in range(4000)]
        assert client.status()["daemon"]["replies_dropped"] == 0


def test_forty_clients_that_do_not_read_share_one_limit(tmp_path: Path) -> None:
    limit = 512 * MIB
    with (
        Running(tmp_path, config("512MiB", "2s")) as daemon,
        daemon.wait_ready().client() as client,
        raw_clients(daemon, 40) as lazy,
    ):
        client.infer("echo", {"x": np.ones(3)})
        before = client.status()["daemon"]["rss_bytes"]
        for each in lazy:
            each.ask(8 * MIB, 100)
        settled(daemon, client, *lazy)
        highest = client.status()["daemon"]["rss_bytes"] - before
        # Those that are at it go on asking, after they have read nothing for long enough to lose replies.
        deadline = time.monotonic() + 4.0
        waits = []
        while time.monotonic() < deadline:
            for each in lazy:
                each.ask(8 * MIB)
            begun = time.monotonic()
            assert client.infer("echo", {"x": np.ones(3)})["x"].tolist() == [1, 1, 1]
            waits.append(time.monotonic() - begun)
            highest = max(highest, client.status()["daemon"]["rss_bytes"] - before)
        assert highest < 1.2 * limit
        assert sorted(waits)[len(waits) // 2] < 1.0
        line = daemon.wait_line("clients leave replies unread")
        assert line["requests_refused"] > 0
        # The first of each one's answers are whole, and what was refused was refused in words.
        _, reply = lazy[0].read()
        assert reply == 8 * MIB
        found = {lazy[0].read()[1] for _ in range(20)}
        assert found <= {8 * MIB, "queue_full", "reply_dropped"}


def test_a_client_that_reads_nothing_gets_an_error_for_what_was_dropped(tmp_path: Path) -> None:
    with (
        Running(tmp_path, config("16MiB", "1s").replace("cpu: 1", "cpu: 2")) as daemon,
        daemon.wait_ready().client() as client,
        raw_clients(daemon) as (lazy,),
    ):
        # It ends when its client has left too much unread, and read nothing for two seconds.
        lazy.ask(MIB, milliseconds=4000)
        daemon.wait(lambda: any(slot["depth"] for slot in client.status()["slots"]))
        lazy.ask(MIB, 40)
        settled(daemon, client, lazy)
        assert client.status()["daemon"]["replies_dropped"] == 1
        found = dict(lazy.read() for _ in range(lazy.asked))
        assert found.pop(0) == "reply_dropped"
        arrived = [number for number, answer in found.items() if answer == MIB]
        assert arrived == list(range(1, len(arrived) + 1)), "what was executed arrives"
        assert len(arrived) >= 12
        assert all(found[number] == "queue_full" for number in range(len(arrived) + 1, 41))
        lazy.ask(MIB)
        assert lazy.read() == (41, MIB), "a client that reads again is served again"


def test_a_flood_of_refusals_is_bounded(tmp_path: Path) -> None:
    with (
        Running(tmp_path, config("8MiB", "1s")) as daemon,
        daemon.wait_ready().client() as client,
        raw_clients(daemon) as (lazy,),
    ):

        def stays_unread() -> bool:
            """Whether its own socket has taken all that it takes: that counts as read, a moment after it was sent."""
            for _ in range(50):
                if client.status()["daemon"]["unread_bytes"] < 8 * MIB:
                    return False
                time.sleep(0.02)
            return True

        while not stays_unread():
            lazy.ask(8 * MIB)
            settled(daemon, client, lazy)
        whole = lazy.asked
        before = client.status()["daemon"]["rss_bytes"]
        daemon.wait(lambda: lazy.ask(1, 5000) or client.status()["daemon"]["replies_dropped"] > 20_000)
        assert client.status()["daemon"]["rss_bytes"] - before < 32 * MIB
        assert [lazy.read() for _ in range(whole)] == [(number, 8 * MIB) for number in range(whole)]
        assert lazy.read() == (whole, "queue_full")
