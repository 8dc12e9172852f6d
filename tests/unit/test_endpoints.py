"""The daemon's endpoints at its start: all of them are bound, or nothing stays open."""

from __future__ import annotations

import errno
import functools
import os
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import zmq
from accepting import Accepting
from descriptors import leaving_no_descriptor
from endpoint_scene import bind, files

from multitower.supervisor.config.principals import Principals
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.loop.runtime_dir import HeldError
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.endpoints import CONTROL_MESSAGE_BYTES, Endpoints
from multitower.supervisor.routing.stream_front import StreamFront
from multitower.supervisor.routing.tcp_listener import TcpListener
from multitower.supervisor.routing.unread import UnreadReplies
from multitower.supervisor.security.access_control import AccessControl


def test_the_front_sockets_and_the_control_socket_are_bound_and_removed(short_folder: Path) -> None:
    listen = ["tcp://127.0.0.1:*", f"ipc://{short_folder}/front.sock"]
    with closing(bind(listen, short_folder / "run")) as endpoints:
        tcp, ipc = endpoints.fronts
        assert tcp.endpoint.startswith("tcp://127.0.0.1:")
        assert not tcp.endpoint.endswith("*")
        assert ipc.endpoint == listen[1]
        assert endpoints.control.endpoint == f"ipc://{endpoints.runtime.control_socket}"
        assert (short_folder / "front.sock").is_socket()
    assert files(short_folder) == []


def test_a_message_to_the_control_socket_is_small_whatever_requests_may_have(short_folder: Path) -> None:
    listen = [f"ipc://{short_folder}/front.sock"]
    unread, until = UnreadReplies(1 << 30, 30.0), time.monotonic() + 60.0
    with (
        closing(Endpoints(listen, short_folder / "run", 64 << 20, unread, 0, Connections(100))) as endpoints,
        Accepting(endpoints.control_connections),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as client,
    ):
        client.set(zmq.LINGER, 0)
        client.connect(endpoints.control.endpoint)
        monitor = client.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        client.send_multipart([b"", b"kind", b"1", *[bytes(64 << 10)] * 160])
        while (incoming := endpoints.control.receive()) is None:
            assert time.monotonic() < until
        assert incoming.body is not None
        assert CONTROL_MESSAGE_BYTES < sum(map(len, incoming.body)) < CONTROL_MESSAGE_BYTES + (65 << 10)
        client.send_multipart([b"", b"kind", b"2", bytes(2 * CONTROL_MESSAGE_BYTES + 1)])
        while not monitor.poll(1):
            assert endpoints.control.receive() is None
            assert time.monotonic() < until
        client.disable_monitor()
        monitor.close()


@pytest.mark.parametrize(
    ("listen", "error"),
    [("ipc://{}/taken.sock", HeldError), ("ipc://{}/missing/front.sock", OSError)],
    ids=["an endpoint in use", "a missing folder"],
)
def test_where_an_endpoint_cannot_be_bound_nothing_stays_open(
    short_folder: Path, listen: str, error: type[Exception]
) -> None:
    with closing(bind([f"ipc://{short_folder}/taken.sock"], short_folder / "other")):
        before = files(short_folder)
        with leaving_no_descriptor():
            for _ in range(3):
                with pytest.raises(error):
                    bind([f"ipc://{short_folder}/front.sock", listen.format(short_folder)], short_folder / "run")
        assert files(short_folder) == before


def test_with_security_no_endpoint_over_tcp_is_bound_without_encryption(short_folder: Path) -> None:
    with closing(BackgroundJobs()) as background, closing(Connections(100)) as connections:
        access = AccessControl(Principals([]), background)
        with pytest.raises(OSError, match=r"cannot listen on tcp://127\.0\.0\.1:\*: .* needs security\.curve"):
            Endpoints(
                ["tcp://127.0.0.1:*"], short_folder / "run", 1 << 20, UnreadReplies(), 0, connections, access=access
            )
    assert files(short_folder) == []


NOT_UTF8 = r"""
import os, sys
from pathlib import Path
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.endpoints import Endpoints
from multitower.supervisor.routing.unread import UnreadReplies

folder = sys.argv[1]
name = os.fsdecode(b"not-utf8-\xff")
listen, runtime_dir = {
    "listen": ([f"ipc://{folder}/front.sock", f"ipc://{folder}/{name}"], Path(folder, "run")),
    "runtime_dir": ([f"ipc://{folder}/front.sock"], Path(folder, name)),
}[sys.argv[2]]
try:
    Endpoints(listen, runtime_dir, 1 << 20, UnreadReplies(), 0, Connections(100))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("key", ["listen", "runtime_dir"])
def test_a_path_that_is_not_utf8_is_an_error_and_the_start_does_not_hang(key: str, short_folder: Path) -> None:
    # In a process of its own: a start that hangs in libzmq cannot be interrupted.
    command = [sys.executable, "-c", NOT_UTF8, str(short_folder), key]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20.0, check=True)
    assert run.stdout.startswith("cannot listen on ")
    assert "\\udcff" in run.stdout
    assert run.stdout.endswith("the address is not UTF-8\n")
    assert not [name for name in files(short_folder) if name.endswith(".sock")]


OPTIONS = """
import zmq
from multitower.supervisor.routing.connections import Connections
from curve_front import CurveLocks

# Twice that is no value of MAXMSGSIZE.
with zmq.Context() as context:
    CurveLocks(context).open(Connections(100), max_message_size=1 << 62)
"""


def test_an_endpoint_whose_options_cannot_be_set_is_an_error_and_the_start_does_not_hang() -> None:
    command = [sys.executable, "-c", OPTIONS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20.0, check=False)
    assert "OverflowError" in run.stderr


class NoSocket(zmq.Context[zmq.Socket[bytes]]):
    """A context of a process that has no descriptor left."""

    def socket(self, *_: object, **__: object) -> zmq.Socket[bytes]:
        raise zmq.ZMQError(errno.EMFILE)


def test_a_socket_that_cannot_be_made_is_an_os_error() -> None:
    endpoint = "tcp://127.0.0.1:*"
    with (
        NoSocket() as context,
        pytest.raises(OSError, match=f"cannot listen on {re.escape(endpoint)}: Too many open files"),
    ):
        StreamFront(
            endpoint, 1 << 20, UnreadReplies(), Connections(100), listen=functools.partial(TcpListener, context, 0)
        )


def test_many_tcp_endpoints_are_bound_one_after_the_other(short_folder: Path) -> None:
    """The address of a monitor is free some time after its end: no other one may get the same."""
    for _ in range(100):
        with closing(bind([f"tcp://127.0.0.{number}:*" for number in (1, 2, 3)], short_folder / "run")) as endpoints:
            assert len(endpoints.fronts) == 3
