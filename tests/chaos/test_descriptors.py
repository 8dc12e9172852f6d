"""File descriptors run out: more clients than the limit allows, and a worker that dies meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running import Running

from multitower import Client, zmtp

CONFIG = """
listen: ["{endpoint}", "tcp://127.0.0.1:*"]
devices: {cpu: 1}
spares: 0
models: [{name: m, handler: "handlers:Reckoner"}]
"""
CROWD_S = 3.0


class Crowd:
    """Clients that shake hands and do nothing more, as many as an endpoint takes, from several threads."""

    def __init__(self, endpoint: str, number: int) -> None:
        self._endpoint = endpoint
        self._number = number
        self._clients: list[socket.socket] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._connect) for _ in range(4)]

    def _connect(self) -> None:
        while not self._stop.is_set() and len(self._clients) < self._number:
            local = self._endpoint.startswith("ipc://")
            client = socket.socket(socket.AF_UNIX if local else socket.AF_INET)
            client.settimeout(0.2)
            self._clients.append(client)
            with contextlib.suppress(OSError):  # the backlog is full
                if local:
                    client.connect(self._endpoint.removeprefix("ipc://"))
                else:
                    host, _, port = self._endpoint.removeprefix("tcp://").rpartition(":")
                    client.connect((host, int(port)))
                # Otherwise the daemon ends it after a second, to make room.
                client.sendall(zmtp.GREETING + zmtp.ready("DEALER"))
                continue
            self._clients.remove(client)
            client.close()
            time.sleep(0.01)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(CROWD_S)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """The test itself needs a descriptor for each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize(("limit", "crowd"), [(120, 400), (256, 1000), (2048, 2500)])
def test_more_clients_than_descriptors_end_nothing(transport: str, limit: int, crowd: int, tmp_path: Path) -> None:
    inside = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")  # the soft and the hard limit
    with Running(tmp_path, CONFIG, inside=inside) as daemon, daemon.wait_ready().client() as client:
        tcp = next(endpoint for endpoint in client.status()["daemon"]["listen"] if endpoint.startswith("tcp"))
        (worker,) = (slot["pid"] for slot in client.status()["slots"])
        with Crowd(daemon.endpoint if transport == "ipc" else tcp, crowd):
            status = client.status()
            assert status["daemon"]["connections"]["paused"]
            assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < limit
            # Descriptors are left for a new worker, and for an operator's connection to the control endpoint.
            os.kill(worker, signal.SIGKILL)
            daemon.wait(lambda: client.status()["slots"][0]["pid"] not in (worker, None))
            daemon.wait(lambda: client.status()["slots"][0]["state"] == "ready")
            with Client(status["daemon"]["control"]) as operator:
                assert operator.status()["daemon"]["ready"]
        daemon.wait(lambda: not client.status()["daemon"]["connections"]["paused"])
        for endpoint in (daemon.endpoint, tcp):
            with Client(endpoint) as other:
                assert other.infer("m", {"x": np.array([[3]])})["y"].tolist() == [[10]]
        assert client.status()["slots"][0]["restarts"] == 1
        daemon.wait_line("no more connections are accepted until others are closed")
        daemon.wait_line("connections are accepted again")
        assert daemon.end() == 0
