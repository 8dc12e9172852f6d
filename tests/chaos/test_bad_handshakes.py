"""Thousands of connections that do not get in: garbage, wrong keys, silence. Who is let in is served meanwhile.

`MULTITOWER_CHAOS_HANDSHAKES` is the number of connections, of each kind a third.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from asker import Asker
from made_locks import Keys, make_keys, make_locks
from running import STEP_S, Running

from multitower import wire

HANDSHAKES = int(os.environ.get("MULTITOWER_CHAOS_HANDSHAKES", "1200"))
SILENT_AT_ONCE = 200
WRONG_AT_ONCE = 50
MAX_GROWTH = 64 << 20

CONFIG = """
devices: {cpu: 1}
spares: 0
listen: ["{endpoint}", "tcp://127.0.0.1:*"]
security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}
models: [{name: echo, handler: 'handlers:Echo', batching: {max_batch_size: 4}}]
"""

HEADER = {"model_name": "echo", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1]}]}


class Locked:
    """A daemon, its public key, and the key of a client that is let in."""

    def __init__(self, daemon: Running, server: Keys, client: Keys) -> None:
        self.daemon, self._server, self._client = daemon, server, client
        listening = daemon.wait_line("daemon started")["listen"].split(",")
        self.endpoint = next(endpoint for endpoint in listening if endpoint.startswith("tcp://"))
        host, port = self.endpoint.removeprefix("tcp://").split(":")
        self.address = (host, int(port))
        self.process = psutil.Process(daemon.process.pid)

    def asker(self, keys: Keys | None = None) -> Asker:
        return Asker(self.endpoint, keys or self._client, self._server.public)

    def garbage(self, number: int) -> None:
        random_bytes = random.Random(number)
        with socket.create_connection(self.address, timeout=STEP_S) as connection:
            data = random_bytes.randbytes(random_bytes.choice([1, 9, 64, 200, 4000]))
            # The beginning of a valid greeting, every other time.
            connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03" + data if number % 2 else data)
            connection.settimeout(0.02)
            try:
                while connection.recv(4096):
                    pass
            except OSError:
                pass  # it does not answer, or resets the connection

    def silence(self, count: int) -> None:
        opened = [socket.create_connection(self.address, timeout=STEP_S) for _ in range(count)]
        time.sleep(0.1)
        for connection in opened:
            connection.close()

    def wrong_keys(self, count: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            strangers, monitors = [], []
            for _ in range(count):
                stranger = context.socket(zmq.DEALER)
                strangers.append(stranger)
                keys = make_keys()
                stranger.set(zmq.CURVE_SERVERKEY, self._server.public.encode())
                stranger.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
                stranger.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
                stranger.set(zmq.RECONNECT_IVL, -1)
                monitors.append(stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED))
                stranger.connect(self.endpoint)
            for monitor in monitors:
                assert monitor.poll(int(STEP_S * 1000)), "a stranger was not refused"
        finally:
            context.destroy(linger=0)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    client = make_keys()
    server = make_locks(tmp_path, [{"name": "client", "roles": ["infer"], "public_key": client.public}])
    with Running(tmp_path, CONFIG) as daemon:
        yield Locked(daemon.wait_ready(), server, client)


class Load:
    """Requests of a client that is let in, one after the other."""

    def __init__(self, asker: Asker) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._asker = asker
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            reason = self._asker.ask(wire.INFER, HEADER, bytes(4))
            if reason != "ok":
                self.failed.append(reason)
            self.answered += 1

    def rate_while(self, call: Callable[[], Any]) -> float:
        """Answers per second while something is done."""
        before, began = self.answered, time.monotonic()
        call()
        return (self.answered - before) / (time.monotonic() - began)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._asker.close()


def attack(locked: Locked) -> None:
    third = HANDSHAKES // 3
    for number in range(third):
        locked.garbage(number)
    for left in range(third, 0, -SILENT_AT_ONCE):
        locked.silence(min(left, SILENT_AT_ONCE))
    for left in range(third, 0, -WRONG_AT_ONCE):
        locked.wrong_keys(min(left, WRONG_AT_ONCE))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_bad_handshakes_cost_the_honest_nothing_and_leave_nothing_behind(locked: Locked) -> None:
    load = Load(locked.asker())
    try:
        locked.wrong_keys(10)  # what the first ones take stays
        alone = load.rate_while(lambda: time.sleep(2.0))
        descriptors, memory = locked.process.num_fds(), locked.process.memory_info().rss
        attacked = load.rate_while(lambda: attack(locked))
        # Somebody new gets in, too.
        with closing(locked.asker()) as new:
            assert new.ask(wire.INFER, HEADER, bytes(4)) == "ok"
    finally:
        load.stop()
    assert load.failed == []
    until = time.monotonic() + STEP_S
    for _ in itertools.count():
        if locked.process.num_fds() <= descriptors:
            break
        assert time.monotonic() < until, (locked.process.num_fds(), descriptors)
        time.sleep(0.1)
    grown = locked.process.memory_info().rss - memory
    figures = f"{attacked / alone:.2f} of the answers, {grown >> 10} KiB more memory"
    print(f"\n{HANDSHAKES} bad handshakes: {figures}")  # noqa: T201  docs/reliability.md quotes such figures
    assert grown < MAX_GROWTH
    failures = [line for line in locked.daemon.lines if line["message"].startswith("authentication failed")]
    assert 0 < len(failures) < 100  # at a bounded rate
