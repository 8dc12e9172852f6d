"""The load that the chaos tests rest on: what goes wrong shows in its count."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import zmq
from load import FLOWING, Load

from multitower import wire

HEADER = wire.reply_header("m", "1", [wire.Tensor("y", "INT64", (1, 1))])
EVERY = 20


class Careless(threading.Thread):
    """A daemon that answers, and fails in one of some ways in every `EVERY`th request."""

    def __init__(self, endpoint: str, ways: tuple[str, ...]) -> None:
        super().__init__(daemon=True)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._ways = itertools.cycle(ways)
        self._over = threading.Event()
        self.failed: Counter[str] = Counter()

    def run(self) -> None:
        infers = 0
        while not self._over.is_set():
            if not self._socket.poll(20):
                continue
            address, _, kind, id, _, *frames = self._socket.recv_multipart()
            if kind != wire.INFER:
                self._socket.send_multipart([address, b"", wire.OK, id, b"{}"])
                continue
            infers += 1
            # The first ones are answered well, so that load flows.
            way = next(self._ways) if infers > FLOWING and infers % EVERY == 0 else ""
            self.failed[way] += bool(way)
            answer = 3 * np.frombuffer(frames[0], "<i8") + 1 + (way == "wrong")
            reply = [address, b"", wire.OK, id, HEADER, answer.tobytes()]
            if way == "worker_died":
                error = {"error": {"code": "UNAVAILABLE", "reason": way, "message": "it died"}}
                reply = [address, b"", wire.ERROR, id, json.dumps(error).encode()]
            for _ in range({"lost": 0, "doubled": 2}.get(way, 1)):
                self._socket.send_multipart(reply)

    def close(self) -> None:
        self._over.set()
        self.join(10)
        self._socket.close()
        self._context.term()


@pytest.fixture
def children() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


@pytest.mark.usefixtures("children")
@pytest.mark.parametrize("raw", [True, False])
def test_every_failure_is_counted(raw: bool, tmp_socket: str) -> None:
    ways = ("wrong", "worker_died", "lost", *(["doubled"] if raw else []))
    daemon = Careless(tmp_socket, ways)
    daemon.start()
    try:
        # A lost answer takes its place among the outstanding for this time.
        with Load(tmp_socket, processes=not raw, raw=raw, clients=2, outstanding=64, timeout=1.0) as load:
            load.wait_ok(300)
            tally = load.stop()
    finally:
        daemon.close()
    faults = tally.faults()
    if not raw:
        faults["lost"] = faults.pop("deadline")  # `Client` fails it itself
    assert {way: faults.get(way) for way in ways} == {way: daemon.failed[way] for way in ways}
    assert min(daemon.failed[way] for way in ways) > 0
    assert set(faults) == set(ways)
    assert tally.ok >= 300


def test_a_client_process_that_fails_tells_why(tmp_socket: str) -> None:
    with (
        pytest.raises(AssertionError, match="ValueError: timeout must be"),
        Load(tmp_socket, processes=1, raw=0, timeout=-1.0),
    ):
        raise AssertionError("load flows from nowhere")
