"""Hosts with IPv4 addresses, IPv6 addresses or both, for the client, the daemon's sockets and the doctor."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from multitower.addresses import literal_version
from multitower.client.address_family import AddressFamily
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.tcp_listener import TcpListener

WAIT_S = 60.0
FAKES = Path(__file__).parents[1] / "fakes"


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload that knows the names of `resolver.c`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("resolver") / "resolver.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(FAKES / "resolver.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def _run(resolver: Path, script: str, *arguments: str) -> str:
    environment = {**os.environ, "LD_PRELOAD": str(resolver), "PYTHONPATH": os.pathsep.join([*sys.path, str(FAKES)])}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ASK = """
import sys
import fake_daemon
from multitower import Client
with fake_daemon.FakeDaemon(fake_daemon.echo, sys.argv[1]) as daemon:
    port = daemon.endpoint.rpartition(":")[2]
    with Client(f"tcp://{sys.argv[2]}:{port}", timeout=60, connect_timeout=60) as client:
        print(client.infer("m", {"x": 1.0})["x"])
"""


@needs_ipv6
@pytest.mark.parametrize(
    ("listen", "name"),
    [
        ("tcp://[::1]:*", "six.test"),
        ("tcp://127.0.0.1:*", "four.test"),
        ("tcp://[::1]:*", "both.test"),
        ("tcp://127.0.0.1:*", "both.test"),
    ],
)
def test_a_client_finds_a_host_by_any_of_its_addresses(resolver: Path, listen: str, name: str) -> None:
    assert _run(resolver, ASK, listen, name) == "1.0"


RECOVER = """
import fake_daemon
from multitower import Client, Unavailable
with fake_daemon.FakeDaemon(fake_daemon.echo, "tcp://127.0.0.1:*") as daemon:
    port = daemon.endpoint.rpartition(":")[2]
    client = Client(f"tcp://both.test:{port}", timeout=60, connect_timeout=60)
    client.infer("m", {"x": 1.0})
with fake_daemon.FakeDaemon(fake_daemon.echo, f"tcp://[::1]:{port}"):
    for attempt in range(50):
        try:
            print(client.infer("m", {"x": 1.0})["x"])
            break
        except Unavailable:
            pass
client.close()
"""


@needs_ipv6
def test_a_client_follows_a_daemon_to_its_other_address(resolver: Path) -> None:
    assert _run(resolver, RECOVER) == "1.0"


BIND = """
import sys, zmq
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.tcp_listener import TcpListener
context = zmq.Context()
front = TcpListener(context, 30.0, f"tcp://{sys.argv[1]}:*", Connections(1), print)
print(front.endpoint.rpartition(":")[0])
front.close()
context.term()
"""


@needs_ipv6
@pytest.mark.parametrize(
    ("name", "bound"),
    [("four.test", "tcp://127.0.0.1"), ("six.test", "tcp://[::1]"), ("both.test", "tcp://127.0.0.1")],
)
def test_the_daemon_listens_on_the_address_of_a_name(resolver: Path, name: str, bound: str) -> None:
    assert _run(resolver, BIND, name) == bound


DOCTOR = """
import sys
from multitower.tools.doctor.endpoints import findings
print(next(findings([f"tcp://{sys.argv[1]}:{sys.argv[2]}"], None)).text)
"""


@needs_ipv6
@pytest.mark.parametrize("host", ["six.test", "*", "[::1]"])
def test_the_doctor_examines_ipv6_endpoints(resolver: Path, host: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = str(other.getsockname()[1])
        assert "is used by another process" in _run(resolver, DOCTOR, host, port)


@needs_ipv6
def test_a_star_listens_on_both_families() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front = TcpListener(context, 30.0, "tcp://*:*", Connections(1), socket.socket.close)
    try:
        port = int(front.endpoint.rpartition(":")[2])
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=WAIT_S).close()
    finally:
        front.close()
        context.term()


def test_a_name_that_does_not_exist_cannot_be_bound() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with pytest.raises(OSError, match=r"cannot listen on tcp://no-such-host\.invalid:5555"):
            TcpListener(context, 30.0, "tcp://no-such-host.invalid:5555", Connections(1), socket.socket.close)
    finally:
        context.term()


@pytest.mark.parametrize(
    ("endpoint", "version"),
    [
        ("tcp://127.0.0.1:5555", 4),
        ("tcp://[::1]:5555", 6),
        ("tcp://::1:5555", 6),
        ("tcp://[fe80::1%eth0]:5555", 6),
        ("tcp://localhost:5555", None),
        ("tcp://*:5555", None),
        ("ipc:///tmp/[a]", None),
    ],
)
def test_addresses_are_told_from_names(endpoint: str, version: int | None) -> None:
    assert literal_version(endpoint) == version


def test_the_families_of_a_name_take_turns_and_those_of_an_address_do_not() -> None:
    family = AddressFamily("tcp://host:1")
    turns = [now / 100 for now in range(2000) if family.record_failure(now / 100)]
    assert turns[:4] == pytest.approx([0.0, 0.1, 0.3, 0.7], abs=0.05)
    assert max(late - early for early, late in itertools.pairwise(turns)) <= 4.1
    for endpoint in ("tcp://127.0.0.1:1", "tcp://[::1]:1", "ipc:///tmp/a"):
        assert not AddressFamily(endpoint).record_failure(0.0)
