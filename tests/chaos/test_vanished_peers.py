"""Clients on another machine whose link is cut: nobody learns of it but by waiting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import linked_machines
import numpy as np
import pytest
from descriptors import accepted_connections
from linked_machines import SERVER_ADDRESS, LinkedMachines
from running import STEP_S, Running

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(linked_machines.why_not() is not None, reason=str(linked_machines.why_not())),
]

PORT = 5599
CLIENTS = 50

CONFIG = f"""
listen: ["{{endpoint}}", "tcp://{SERVER_ADDRESS}:{PORT}"]
insecure: true
devices: {{cpu: 1}}
spares: 0
peer_timeout: 2s
models: [{{name: echo, handler: "handlers:Echo"}}]
"""

# Each line that it reads makes each of its clients send a request; it prints how many were answered.
PROGRAM = f"""
import sys
import numpy as np
from multitower import Client, MultitowerError

clients = [
    Client("tcp://{SERVER_ADDRESS}:{PORT}", timeout=float(sys.argv[2]), connect_timeout=60, peer_timeout=2)
    for _ in range(int(sys.argv[1]))
]
for _ in sys.stdin:
    answered = 0
    for client in clients:
        try:
            answered += client.infer("echo", {{"x": np.ones(3)}})["x"].tolist() == [1, 1, 1]
        except MultitowerError:
            pass
    print(answered, flush=True)
"""


@pytest.fixture
def machines() -> Iterator[LinkedMachines]:
    with linked_machines.linked_machines() as made:
        yield made


class FarClients:
    """Clients in a process on the other machine."""

    def __init__(self, machines: LinkedMachines, number: int, timeout: float = STEP_S) -> None:
        command = [*machines.on_client, sys.executable, "-c", PROGRAM, str(number), str(timeout)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> FarClients:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=STEP_S)

    def answered(self) -> int:
        """Sends a request by each client; returns how many were answered."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def test_the_connections_of_clients_behind_a_cut_link_are_released(tmp_path: Path, machines: LinkedMachines) -> None:
    with Running(tmp_path, CONFIG, inside=machines.on_server) as daemon, daemon.wait_ready().client() as near:
        pid = daemon.process.pid
        with FarClients(machines, CLIENTS) as far:
            assert far.answered() == CLIENTS
            # One that answered heartbeats too late connects again, and looks for the cause over another connection.
            daemon.wait(lambda: accepted_connections(pid, PORT) == CLIENTS)
            machines.cut()
        # Their machine is gone: no packet tells the daemon that they are.
        daemon.wait(lambda: accepted_connections(pid, PORT) == 0)
        assert near.infer("echo", {"x": np.ones(3)})["x"].tolist() == [1, 1, 1]
        machines.heal()
        with FarClients(machines, 1) as others:
            assert others.answered() == 1


def test_a_client_serves_again_once_its_link_is_healed(tmp_path: Path, machines: LinkedMachines) -> None:
    with (
        Running(tmp_path, CONFIG, inside=machines.on_server) as daemon,
        daemon.wait_ready().client() as near,
        FarClients(machines, 2, timeout=3.0) as far,
    ):
        assert far.answered() == 2
        machines.cut()
        assert far.answered() == 0
        assert near.infer("echo", {"x": np.ones(3)})["x"].tolist() == [1, 1, 1]
        machines.heal()
        daemon.wait(lambda: far.answered() == 2)
