"""Mutated messages of every kind: each gets its one reply, and nothing else comes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import zmq
from amount import amount
from fuzz import UNKNOWN_KINDS, Fuzzer
from running import Running

from multitower import wire

COUNT = amount("MULTITOWER_FUZZ", 300)
SEED = amount("MULTITOWER_FUZZ_SEED", 1)
MAX_GROWTH = 4 << 20
"""Bytes in the second half of a kind's messages: what they leave behind is bounded, and was there before."""

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
max_message_size: 1MiB
models:
  - name: declared
    handler: handlers:Declared
    batching: {max_batch_size: 8}
  - name: echo
    handler: handlers:Echo
"""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + COUNT // 10)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("fuzz"), CONFIG) as running:
        yield running.wait_ready()
        assert running.end() == 0


@pytest.fixture
def socket(daemon: Running) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(daemon.endpoint)
        yield socket


@pytest.mark.parametrize("kind", [*sorted(wire.KINDS), *UNKNOWN_KINDS], ids=lambda kind: repr(kind[:20])[2:-1])
def test_mutated_messages_each_get_one_reply_and_change_nothing(
    kind: bytes, daemon: Running, socket: zmq.Socket[bytes]
) -> None:
    process = psutil.Process(daemon.process.pid)
    fuzzer = Fuzzer(socket, SEED)
    try:
        fuzzer.throw(kind, COUNT // 2)
        half = process.memory_info().rss
        fuzzer.throw(kind, COUNT - COUNT // 2)
        growth = process.memory_info().rss - half
    except AssertionError as error:
        raise AssertionError(f"{error}\n{daemon.text()[-5000:]}") from None
    assert growth < MAX_GROWTH
    assert fuzzer.outcomes.total() == COUNT
    assert len(fuzzer.outcomes) > 1 or kind in UNKNOWN_KINDS, "it does not reach far into the daemon"
    with daemon.client() as client:
        client.live()
        started = time.monotonic()
        answer = client.infer("declared", {"x": np.ones((1, 3), np.float32), "n": np.array([7])})
        assert time.monotonic() - started < 20.0
        assert (answer["y"].tolist(), answer["m"].tolist()) == ([[2.0, 2.0, 2.0]], [7])
        status = client.status()
        assert [(slot["state"], slot["restarts"]) for slot in status["slots"]] == [("ready", 0)] * 2
        assert [model["queue"] for model in status["models"]] == [0, 0]
        assert status["daemon"]["replies_dropped"] == 0
