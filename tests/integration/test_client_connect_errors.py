"""Why there is no connection: each cause is told apart, in both clients and in the commands, with what to check."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import without_privileges
import zmq
from descriptors import leaving_no_descriptor
from fake_daemon import FakeDaemon

from multitower import AsyncClient, Client, ConnectError, Unavailable
from multitower.account_names import group_name, user_name
from multitower.client import connect_errors
from multitower.errors import CONNECT_ERROR

WAIT_S = 60.0
CONNECT_S = 2.0
"""Long enough for what a host answers, on a slow machine. An ipc endpoint is examined at the end of any time."""

IPC_CONNECT_S = 0.1

Ask = Callable[[str], Unavailable]


def _connect_s(endpoint: str) -> float:
    return IPC_CONNECT_S if endpoint.startswith("ipc:") else CONNECT_S


def _threads(endpoint: str) -> Unavailable:
    with Client(endpoint, connect_timeout=_connect_s(endpoint)) as client, pytest.raises(Unavailable) as error:
        client.status()
    return error.value


def _asyncio(endpoint: str) -> Unavailable:
    async def ask() -> None:
        async with AsyncClient(endpoint, connect_timeout=_connect_s(endpoint)) as client:
            await client.infer("m", {"x": 1.0})

    with pytest.raises(Unavailable) as error:
        asyncio.run(ask())
    return error.value


@pytest.fixture(params=[_threads, _asyncio], ids=["threads", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Asks at an endpoint where no daemon listens, and returns the error."""
    function: Ask = request.param
    return function


@pytest.fixture
def path(tmp_socket: str) -> Path:
    """Where a socket may be made."""
    return Path(tmp_socket.removeprefix("ipc://"))


@pytest.fixture
def listening(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that listens and that nobody serves."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(16)
        yield server


def _check(error: Unavailable, kind: ConnectError, *words: str) -> None:
    assert error.reason == "not_listening"
    assert error.details["connect_error"] == kind
    for word in words:
        assert word in error.message


# Unix sockets.


def test_a_missing_socket_is_named(ask: Ask, tmp_socket: str, path: Path) -> None:
    _check(ask(tmp_socket), ConnectError.NO_SUCH_FILE, f"there is no file {path}", "multitower serve")


def test_a_missing_folder_is_named(ask: Ask, tmp_socket: str, path: Path) -> None:
    _check(ask(f"{tmp_socket}.d/front.sock"), ConnectError.NO_SUCH_FILE, f"there is no folder {path}.d")


def test_a_folder_that_is_a_file_is_named(ask: Ask, tmp_socket: str, path: Path) -> None:
    path.touch()
    _check(ask(f"{tmp_socket}/front.sock"), ConnectError.NO_SUCH_FILE, f"{path} is not a folder")


def test_a_path_that_is_no_socket_is_named(ask: Ask, tmp_socket: str, path: Path) -> None:
    path.touch()
    _check(ask(tmp_socket), ConnectError.NOT_A_SOCKET, f"{path} is not a socket")


def test_a_socket_that_a_dead_daemon_left_is_told_apart(ask: Ask, tmp_socket: str, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    _check(ask(tmp_socket), ConnectError.CONNECTION_REFUSED, "no process listens on it")


def test_a_socket_of_another_kind_is_told_apart(ask: Ask, tmp_socket: str, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        _check(ask(tmp_socket), ConnectError.NOT_A_SOCKET, f"{path} is a socket of another kind")


@pytest.mark.usefixtures("listening")
def test_a_listener_that_does_not_answer_is_told_apart(
    ask: Ask, tmp_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "IPC_CONNECT_S", CONNECT_S)  # ZeroMQ has to connect first
    _check(ask(tmp_socket), ConnectError.NO_ANSWER, "does not answer as a multitower daemon", "max_connections")


def test_a_full_queue_of_connections_is_no_answer(ask: Ask, tmp_socket: str, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))  # the queue is full now
        _check(ask(tmp_socket), ConnectError.NO_ANSWER, "it accepts no more connections (max_connections)")


def test_an_abstract_socket_has_no_path(ask: Ask) -> None:
    error = ask(f"ipc://@multitower-test-{os.getpid()}")
    _check(error, ConnectError.CONNECTION_REFUSED, "no daemon listens at ipc://@")


BOTH_CLIENTS = """
import asyncio, sys
from multitower import AsyncClient, Client, Unavailable
def show(error):
    print(error.details["connect_error"], error.message)
try:
    with Client(sys.argv[1], connect_timeout=0.5) as client:
        client.status()
except Unavailable as error:
    show(error)
async def ask():
    async with AsyncClient(sys.argv[1], connect_timeout=0.5) as client:
        await client.status()
try:
    asyncio.run(ask())
except Unavailable as error:
    show(error)
"""


@pytest.mark.usefixtures("listening")
def test_a_socket_of_another_user_is_named_with_its_group_and_mode(tmp_socket: str, path: Path) -> None:
    mode = without_privileges.give_away(path, 0o660)
    done = without_privileges.run(["-W", "error", "-c", BOTH_CLIENTS, tmp_socket])
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    status = path.stat()
    owner, group = user_name(status.st_uid), group_name(status.st_gid)
    for line in lines:
        assert line.startswith(f"permission_denied no permission to connect to {tmp_socket}: ")
        assert f"the socket {path} belongs to user {owner} and group {group} (mode {mode:04o})" in line
        assert f"runs as user {user_name(os.geteuid())}; " in line
        assert (f"join the group (usermod -aG {group} " if mode else f"only {owner} is admitted") in line


@pytest.mark.usefixtures("listening")
def test_a_folder_of_another_user_is_named(tmp_socket: str, path: Path) -> None:
    folder = path.parent
    mode = without_privileges.give_away(folder, 0o700)
    try:
        done = without_privileges.run(["-W", "error", "-c", BOTH_CLIENTS, tmp_socket])
    finally:
        if os.geteuid() == 0:
            os.chown(folder, 0, 0)
        folder.chmod(0o700)
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        assert line.startswith("permission_denied ")
        assert f"the folder {folder} belongs to user" in line
        assert f"(mode {mode:04o})" in line


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(
    "command",
    [["status"], ["infer", "m"], ["bench"], ["reload"]],
    ids=lambda command: command[0],
)
def test_each_command_tells_in_one_line_that_it_has_no_permission(
    command: list[str], tmp_socket: str, path: Path
) -> None:
    pytest.importorskip("click", reason="the client is installed without the command line")
    without_privileges.give_away(path, 0o660)
    seconds = [] if command[0] == "bench" else ["--timeout", "0.5"]
    done = without_privileges.run(["-m", "multitower", *command, *seconds, "--endpoint", tmp_socket])
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.count("\n") == 1
    assert f"no permission to connect to {tmp_socket}: the socket {path} belongs to user" in done.stderr


# TCP.


def test_a_refused_port_is_told_apart(ask: Ask) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        _check(ask(endpoint), ConnectError.CONNECTION_REFUSED, f"no daemon listens at {endpoint}: the connection is")


def test_a_name_without_an_address_is_told_apart(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = ask("tcp://a..b:5555")  # ZeroMQ refuses this name without DNS
    _check(error, ConnectError.NAME_NOT_RESOLVED, "tcp://a..b:5555 cannot be resolved: Name or service", "DNS")


def test_a_listener_that_speaks_another_protocol_is_told_apart(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        _check(ask(endpoint), ConnectError.NO_ANSWER, f"something listens at {endpoint}")


def test_a_host_that_drops_packets_is_a_time_out(ask: Ask) -> None:
    with socket.socket() as server, socket.socket() as first:
        # The queue is full: the kernel drops what would begin another connection.
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        first.connect(server.getsockname())
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        error = ask(endpoint)
        _check(error, ConnectError.TIMED_OUT, f"no connection to {endpoint}", "the host does not answer")


def test_a_stopped_daemon_does_not_answer() -> None:
    program = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    with subprocess.Popen([sys.executable, "-c", f"{program}; time.sleep(600)"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            process.send_signal(signal.SIGSTOP)
            _check(_threads(f"tcp://127.0.0.1:{port}"), ConnectError.NO_ANSWER, "or the daemon is stopped")
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "kind"), [(113, ConnectError.UNREACHABLE), (101, ConnectError.UNREACHABLE), (13, "permission_denied")]
)
def test_errors_of_the_network_are_told_apart(monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    def connect(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "connect", connect)
    found = connect_errors.examine("tcp://192.0.2.1:5555", 1.0)
    assert found.kind == kind
    assert f"no connection to tcp://192.0.2.1:5555: {os.strerror(number)}" in found.message


# Before and after.


def test_the_cause_is_the_present_one_not_that_of_an_earlier_attempt(tmp_socket: str, path: Path) -> None:
    with Client(tmp_socket, connect_timeout=IPC_CONNECT_S) as client:
        with pytest.raises(Unavailable, match="there is no file"):
            client.status()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with pytest.raises(Unavailable, match="no process listens on it"):
            client.status()
        path.unlink()
        path.touch()
        with pytest.raises(Unavailable, match="is not a socket"):
            client.status()


def test_a_connection_costs_no_probe() -> None:
    with FakeDaemon(lambda request: None) as daemon, Client(daemon.endpoint) as client:
        client.submit("m", {"x": 1.0})
        daemon.next()
        assert client._requests.connection._transport.probe._running is None


# Errors of this process.


@pytest.mark.parametrize(
    ("endpoint", "function"),
    [
        ("ipc:///run/nowhere.sock", "socket.__init__"),
        ("ipc://@nowhere", "socket.connect"),
        ("tcp://127.0.0.1:1", "socket.__init__"),
        ("tcp://127.0.0.1:1", "socket.connect"),
        ("tcp://127.0.0.1:1", "getaddrinfo"),
    ],
)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_process_without_file_descriptors_is_told_so(
    function: str, number: int, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    owner, _, name = function.rpartition(".")
    monkeypatch.setattr(socket.socket if owner else socket, name, fail)
    found = connect_errors.examine(endpoint, 1.0)
    assert found.kind == ConnectError.NO_SOCKET
    assert f"this process cannot open a socket: {os.strerror(number)}; check its limit of open files" in found.message


@pytest.mark.parametrize(
    ("endpoint", "where"),
    [
        *itertools.product(("ipc:///run/nowhere.sock", "tcp://127.0.0.1:1"), ("epoll", "pipe", "eventfd")),
        ("tcp://127.0.0.1:1", "Context"),
        ("tcp://127.0.0.1:1", "connect"),
        ("tcp://127.0.0.1:1", "get_monitor_socket"),
    ],
)
def test_a_client_that_cannot_be_made_says_so_and_leaves_no_descriptor(
    where: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        number = errno.EMFILE
        raise zmq.ZMQError(number) if owner in (zmq, zmq.Socket) else OSError(number, os.strerror(number))

    owner = {"epoll": select, "pipe": os, "eventfd": os, "Context": zmq}.get(where, zmq.Socket)
    with leaving_no_descriptor(), monkeypatch.context() as patch:
        patch.setattr(owner, where, fail)
        with pytest.raises(Unavailable) as raised:
            Client(endpoint)
    assert raised.value.details == {CONNECT_ERROR: "no_socket"}
    assert "cannot open a socket: Too many open files; check its limit of open files" in str(raised.value)


@pytest.mark.parametrize("gid", [0, 65534], ids=["root's group", "a group without a name in a container"])
def test_nobody_is_told_to_join_a_group_that_nobody_should_be_in(gid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgroups", lambda: [4242])
    monkeypatch.setattr(os, "getegid", lambda: 4242)
    status = os.stat_result((0o140660, 0, 0, 1, 4243, gid, 0, 0, 0, 0))
    advice = connect_errors._admission("ada", status, admits_group=True)
    assert "usermod" not in advice
    assert "Group= in its systemd unit" in advice


REMOVED = """
import os, sys
from multitower import Client, Unavailable
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
for endpoint in ("ipc://front.sock", "ipc://@multitower-test-nobody"):
    with Client(endpoint, connect_timeout=0.1) as client:
        for future in [client.submit("m", {"x": 1.0}) for _ in range(2)]:
            error = future.exception(60)
            print(type(error).__name__, error.details["connect_error"])
"""


def test_a_removed_working_directory_leaves_no_call_without_an_outcome(tmp_path: Path) -> None:
    folder = tmp_path / "removed"
    folder.mkdir()
    command = [sys.executable, "-c", REMOVED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stderr == ""
    outcomes = ["Unavailable no_such_file"] * 2 + ["Unavailable connection_refused"] * 2
    assert done.stdout.splitlines() == outcomes
