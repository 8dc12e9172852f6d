"""The daemon's endpoints: all of them are bound, or nothing stays open."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from math import inf
from pathlib import Path
from typing import Any

import pytest
import zmq
from accepting import Accepting
from descriptors import leaving_no_descriptor, open_descriptors

from multitower import wire
from multitower.supervisor.config.principals import Principals
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.loop.runtime_dir import HeldError
from multitower.supervisor.routing import acceptor, tcp_listener
from multitower.supervisor.routing import endpoints as endpoints_module
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.endpoints import CONTROL_MESSAGE_BYTES, Endpoints, problem_kind
from multitower.supervisor.routing.front_socket import FrontSocket
from multitower.supervisor.routing.stream_front import StreamFront
from multitower.supervisor.routing.tcp_listener import TcpListener
from multitower.supervisor.routing.unread import UnreadReplies
from multitower.supervisor.security.access_control import AccessControl


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not `tmp_path`: the paths of sockets are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        yield Path(name)


def bind(listen: list[str], runtime_dir: Path) -> Endpoints:
    return Endpoints(listen, runtime_dir, 1 << 20, UnreadReplies(1 << 30, 30.0), 0, Connections(100))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_the_front_sockets_and_the_control_socket_are_bound_and_removed(folder: Path) -> None:
    listen = ["tcp://127.0.0.1:*", f"ipc://{folder}/front.sock"]
    with closing(bind(listen, folder / "run")) as endpoints:
        tcp, ipc = endpoints.fronts
        assert tcp.endpoint.startswith("tcp://127.0.0.1:")
        assert not tcp.endpoint.endswith("*")
        assert ipc.endpoint == listen[1]
        assert endpoints.control.endpoint == f"ipc://{endpoints.runtime.control_socket}"
        assert (folder / "front.sock").is_socket()
    assert files(folder) == []


def test_a_message_to_the_control_socket_is_small_whatever_requests_may_have(folder: Path) -> None:
    listen = [f"ipc://{folder}/front.sock"]
    unread, until = UnreadReplies(1 << 30, 30.0), time.monotonic() + 60.0
    with (
        closing(Endpoints(listen, folder / "run", 64 << 20, unread, 0, Connections(100))) as endpoints,
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
    folder: Path, listen: str, error: type[Exception]
) -> None:
    with closing(bind([f"ipc://{folder}/taken.sock"], folder / "other")):
        before = files(folder)
        with leaving_no_descriptor():
            for _ in range(3):
                with pytest.raises(error):
                    bind([f"ipc://{folder}/front.sock", listen.format(folder)], folder / "run")
        assert files(folder) == before


def test_with_security_no_endpoint_over_tcp_is_bound_without_encryption(folder: Path) -> None:
    with closing(BackgroundJobs()) as background, closing(Connections(100)) as connections:
        access = AccessControl(Principals([]), background)
        with pytest.raises(OSError, match=r"cannot listen on tcp://127\.0\.0\.1:\*: .* needs security\.curve"):
            Endpoints(["tcp://127.0.0.1:*"], folder / "run", 1 << 20, UnreadReplies(), 0, connections, access=access)
    assert files(folder) == []


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
def test_a_path_that_is_not_utf8_is_an_error_and_the_start_does_not_hang(key: str, folder: Path) -> None:
    # In a process of its own: a start that hangs in libzmq cannot be interrupted.
    command = [sys.executable, "-c", NOT_UTF8, str(folder), key]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20.0, check=True)
    assert run.stdout.startswith("cannot listen on ")
    assert "\\udcff" in run.stdout
    assert run.stdout.endswith("the address is not UTF-8\n")
    assert not [name for name in files(folder) if name.endswith(".sock")]


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


WAIT_MS = 5000


def connect(endpoints: Endpoints, endpoint: str) -> zmq.Socket[bytes]:
    client = endpoints.context.socket(zmq.DEALER)
    client.set(zmq.LINGER, 0)
    client.connect(endpoint)
    return client


def exchange(endpoints: Endpoints, client: zmq.Socket[bytes], number: int = 0) -> bool:
    """Sends a request to a front socket, or for -1 to the control socket, and returns whether the reply comes back."""
    front = endpoints.control if number < 0 else endpoints.fronts[number]
    client.send_multipart([b"", b"kind", b"id"])
    until = time.monotonic() + WAIT_MS / 1000
    with Accepting(endpoints.control_connections if number < 0 else endpoints.connections):
        while (incoming := front.receive()) is None:
            if time.monotonic() > until:
                return False
            select.select([front.descriptor], [], [], 0.01)
    front.answer(incoming.address, b"id", {})
    if not client.poll(WAIT_MS):
        return False
    return client.recv_multipart() == [b"", wire.OK, b"id", b"{}"]


@pytest.mark.parametrize("removed", ["the socket", "the lock", "the folder"])
def test_a_removed_path_is_bound_again_and_connected_clients_stay(folder: Path, removed: str) -> None:
    (folder / "front").mkdir(mode=0o750)
    listen = [f"ipc://{folder}/front/front.sock"]
    with closing(bind(listen, folder / "run")) as endpoints, ExitStack() as stack:
        before = stack.enter_context(connect(endpoints, listen[0]))
        assert exchange(endpoints, before)
        path = folder / "front" / "front.sock"
        if removed == "the socket":
            path.unlink()
        elif removed == "the lock":
            path.with_name("front.sock.lock").unlink()
        else:
            shutil.rmtree(path.parent)
        endpoints.keep(0.0)
        assert endpoints.problems == {}
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o660
        assert path.parent.stat().st_mode & 0o777 == 0o750
        after = stack.enter_context(connect(endpoints, listen[0]))
        assert exchange(endpoints, after)
        assert exchange(endpoints, before), "its connection is the one that it had"
        with pytest.raises(HeldError):
            bind(listen, folder / "other")
    assert files(folder) == []


def test_a_removed_runtime_folder_brings_its_control_socket_back(folder: Path) -> None:
    with closing(bind(["tcp://127.0.0.1:*"], folder / "run")) as endpoints, ExitStack() as stack:
        before = stack.enter_context(connect(endpoints, endpoints.control.endpoint))
        assert exchange(endpoints, before, -1)
        shutil.rmtree(folder / "run")
        endpoints.keep(0.0)
        after = stack.enter_context(connect(endpoints, endpoints.control.endpoint))
        assert exchange(endpoints, after, -1)
        assert exchange(endpoints, before, -1)
    assert files(folder) == []


def test_the_control_socket_follows_the_runtime_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "xdg"))
    with closing(bind(["tcp://127.0.0.1:*"], folder / "run")) as endpoints, ExitStack() as stack:
        shutil.rmtree(folder / "run")
        (folder / "run").touch()
        endpoints.keep(0.0)
        assert endpoints.runtime.path.parent == folder / "xdg"
        assert endpoints.control.endpoint == f"ipc://{endpoints.runtime.control_socket}"
        client = stack.enter_context(connect(endpoints, endpoints.control.endpoint))
        assert exchange(endpoints, client, -1)
    assert files(folder) == ["run"]


def test_a_control_socket_that_could_not_listen_once_is_bound_by_the_next_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "xdg"))

    def refuse(_: socket.socket, _backlog: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(bind(["tcp://127.0.0.1:*"], folder / "run")) as endpoints, ExitStack() as stack:
        shutil.rmtree(folder / "run")
        (folder / "run").touch()
        with monkeypatch.context() as context:
            context.setattr(socket.socket, "listen", refuse)
            for now in (0.0, 0.25):
                endpoints.keep(now)
                assert "No space left on device" in str(endpoints.problems)
        endpoints.keep(0.5)
        assert endpoints.problems == {}
        assert endpoints.control.endpoint == f"ipc://{endpoints.runtime.control_socket}"
        client = stack.enter_context(connect(endpoints, endpoints.control.endpoint))
        assert exchange(endpoints, client, -1)
    assert files(folder) == ["run"]


def test_a_runtime_folder_that_cannot_be_locked_leaves_no_folders_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "xdg"))

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with closing(bind(["tcp://127.0.0.1:*"], folder / "run")) as endpoints:
        shutil.rmtree(folder / "run")
        (folder / "run").touch()
        with monkeypatch.context() as context:
            context.setattr(fcntl, "flock", refuse)
            for now in (0.0, 0.25, 0.5):
                endpoints.keep(now)
            kinds = {name: problem_kind(name) for name in endpoints.problems}
            assert kinds == {str(folder / "run"): "runtime_dir", endpoints.control.endpoint: "endpoint"}
            assert "No locks available" in str(endpoints.problems)
            assert caplog.text.count("runtime folder is lost") == 1
            assert caplog.text.count("endpoint is lost") == 1
            assert list((folder / "xdg").iterdir()) == []
        endpoints.keep(0.75)
        assert endpoints.problems == {}


def test_a_path_that_another_process_took_is_left_to_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "front.sock"
    listen = [f"ipc://{path}"]
    with closing(bind(listen, folder / "run")) as endpoints, ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        path.unlink()
        other.bind(str(path))
        other.listen()
        for now in (0.0, 1.0):
            endpoints.keep(now)
        assert "cannot be bound again" in endpoints.problems[listen[0]]
        assert caplog.text.count("endpoint is lost") == 1, "once, not each second"
        assert list(endpoints.problems) == listen
        other.close()
        endpoints.keep(2.0)
        assert endpoints.problems == {}
        assert exchange(endpoints, stack.enter_context(connect(endpoints, listen[0])))


def test_what_is_intact_is_not_bound_again(folder: Path) -> None:
    with closing(bind([f"ipc://{folder}/front.sock"], folder / "run")) as endpoints:
        before = open_descriptors()
        for now in range(5):
            endpoints.keep(float(now))
        assert open_descriptors() <= before


class NoSocket(zmq.Context[zmq.Socket[bytes]]):
    """A context of a process that has no descriptor left."""

    def socket(self, *_: object, **__: object) -> zmq.Socket[bytes]:
        raise zmq.ZMQError(errno.EMFILE)


def waiting(listen: list[str], folder: Path, background: BackgroundJobs) -> Endpoints:
    unread = UnreadReplies(1 << 30, 30.0)
    return Endpoints(listen, folder / "run", 1 << 20, unread, 0, Connections(100), background)


def retry(endpoints: Endpoints, background: BackgroundJobs) -> None:
    """Tries again what is missing, whenever it is due."""
    assert endpoints.missing
    assert endpoints.retry_at < inf
    endpoints.retry(endpoints.retry_at)
    assert select.select([background.descriptor], [], [], WAIT_MS / 1000)[0]
    background.run_callbacks()


def test_a_socket_that_cannot_be_made_is_an_os_error() -> None:
    endpoint = "tcp://127.0.0.1:*"
    with (
        NoSocket() as context,
        pytest.raises(OSError, match=f"cannot listen on {re.escape(endpoint)}: Too many open files"),
    ):
        StreamFront(
            endpoint, 1 << 20, UnreadReplies(), Connections(100), listen=functools.partial(TcpListener, context, 0)
        )


def test_an_endpoint_is_tried_again_after_any_error(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    late = folder / "late"
    listen = [f"ipc://{late}/front.sock"]

    def fail(_: FrontSocket) -> None:
        raise RuntimeError("a defect")

    with closing(BackgroundJobs()) as background, closing(waiting(listen, folder, background)) as endpoints:
        late.mkdir()
        endpoints.on_bound = fail
        retry(endpoints, background)
        assert "a defect" in caplog.text
        assert endpoints.fronts == []
        assert "a defect" in endpoints.problems[listen[0]]
        bound: list[FrontSocket] = []
        endpoints.on_bound = bound.append
        retry(endpoints, background)
        assert endpoints.fronts == bound != []
        assert endpoints.retry_at == inf


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_bind_that_permissions_or_resources_prevent_is_waited_for(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipc, tcp = f"ipc://{folder}/front.sock", "tcp://127.0.0.1:*"
    listen, take = acceptor.listen_on_path, tcp_listener.take_listening_socket
    prevented = True

    def listen_on_path(path: Path, backlog: int) -> socket.socket:
        if prevented and path.name == "front.sock":
            raise OSError(number, os.strerror(number))
        return listen(path, backlog)

    def take_listening_socket(*arguments: Any) -> tuple[socket.socket, str]:
        if prevented:
            raise zmq.ZMQError(number)
        return take(*arguments)

    monkeypatch.setattr(acceptor, "listen_on_path", listen_on_path)
    monkeypatch.setattr(tcp_listener, "take_listening_socket", take_listening_socket)
    with pytest.raises(OSError, match=os.strerror(number)):
        bind([ipc], folder / "strict")
    with closing(BackgroundJobs()) as background, closing(waiting([ipc, tcp], folder, background)) as endpoints:
        assert set(endpoints.problems) == {ipc, tcp}
        assert all(os.strerror(number) in cause for cause in endpoints.problems.values())
        prevented = False
        retry(endpoints, background)
        assert [front.endpoint.split(":")[0] for front in endpoints.fronts] == ["ipc", "tcp"]
        assert endpoints.problems == {}


def test_a_name_that_no_resolver_accepts_keeps_no_other_endpoint_from_being_bound(folder: Path) -> None:
    late = folder / "late"
    wrong = "tcp://a..b.example:5999"
    listen = [f"ipc://{late}/front.sock", wrong]
    with closing(BackgroundJobs()) as background, closing(waiting(listen, folder, background)) as endpoints:
        late.mkdir()
        retry(endpoints, background)
        assert [front.endpoint for front in endpoints.fronts] == listen[:1]
        assert "the name a..b.example cannot be resolved" in endpoints.problems[wrong]


def test_many_tcp_endpoints_are_bound_one_after_the_other(folder: Path) -> None:
    """The address of a monitor is free some time after its end: no other one may get the same."""
    for _ in range(100):
        with closing(bind([f"tcp://127.0.0.{number}:*" for number in (1, 2, 3)], folder / "run")) as endpoints:
            assert len(endpoints.fronts) == 3


def test_a_name_server_that_does_not_answer_delays_no_other_endpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    look_up = socket.getaddrinfo

    def wait(host: str, *arguments: Any, **more: Any) -> Any:
        if host.endswith(".example"):
            assert answers.wait(WAIT_MS / 1000)
            host = "127.0.0.1"
        return look_up(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    listen = ["tcp://slow.example:*", "tcp://slower.example:*", "tcp://localhost:*"]
    with closing(BackgroundJobs()) as background, closing(waiting(listen, folder, background)) as endpoints:
        assert len(endpoints.fronts) == 1
        assert list(endpoints.missing) == listen[:2]
        assert "its name was not resolved within 1 s" in endpoints.missing[listen[0]]
        answers.set()
        retry(endpoints, background)
        assert len(endpoints.fronts) == 3, endpoints.missing
        assert not endpoints.missing


def test_all_names_are_looked_up_at_the_same_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_three = threading.Barrier(3)

    def look_up(*_: Any, **__: Any) -> Any:
        all_three.wait(WAIT_MS / 1000)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(endpoints_module, "RESOLVE_S", 2 * WAIT_MS / 1000)
    listen = [f"tcp://{name}.example:*" for name in ("a", "b", "c")]
    with closing(BackgroundJobs()) as background, closing(waiting(listen, folder, background)) as endpoints:
        assert list(endpoints.missing) == listen
    assert not all_three.broken, "one was looked up after another"


def test_a_name_whose_port_another_process_holds_is_no_reason_to_wait(folder: Path) -> None:
    with socket.socket() as other, closing(BackgroundJobs()) as background:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(HeldError, match="tcp://localhost:"):
            waiting([f"tcp://localhost:{other.getsockname()[1]}"], folder, background)
