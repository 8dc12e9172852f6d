"""Endpoints whose paths are removed or taken while the daemon runs: they are bound again as soon as they can be."""

from __future__ import annotations

import errno
import fcntl
import select
import shutil
import socket
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import zmq
from accepting import Accepting
from descriptors import open_descriptors
from endpoint_scene import bind, files

from multitower import wire
from multitower.supervisor.loop.runtime_dir import HeldError
from multitower.supervisor.routing.endpoints import Endpoints, problem_kind

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
def test_a_removed_path_is_bound_again_and_connected_clients_stay(short_folder: Path, removed: str) -> None:
    (short_folder / "front").mkdir(mode=0o750)
    listen = [f"ipc://{short_folder}/front/front.sock"]
    with closing(bind(listen, short_folder / "run")) as endpoints, ExitStack() as stack:
        before = stack.enter_context(connect(endpoints, listen[0]))
        assert exchange(endpoints, before)
        path = short_folder / "front" / "front.sock"
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
            bind(listen, short_folder / "other")
    assert files(short_folder) == []


def test_a_removed_runtime_folder_brings_its_control_socket_back(short_folder: Path) -> None:
    with closing(bind(["tcp://127.0.0.1:*"], short_folder / "run")) as endpoints, ExitStack() as stack:
        before = stack.enter_context(connect(endpoints, endpoints.control.endpoint))
        assert exchange(endpoints, before, -1)
        shutil.rmtree(short_folder / "run")
        endpoints.keep(0.0)
        after = stack.enter_context(connect(endpoints, endpoints.control.endpoint))
        assert exchange(endpoints, after, -1)
        assert exchange(endpoints, before, -1)
    assert files(short_folder) == []


def test_the_control_socket_follows_the_runtime_folder(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short_folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "xdg"))
    with closing(bind(["tcp://127.0.0.1:*"], short_folder / "run")) as endpoints, ExitStack() as stack:
        shutil.rmtree(short_folder / "run")
        (short_folder / "run").touch()
        endpoints.keep(0.0)
        assert endpoints.runtime.path.parent == short_folder / "xdg"
        assert endpoints.control.endpoint == f"ipc://{endpoints.runtime.control_socket}"
        client = stack.enter_context(connect(endpoints, endpoints.control.endpoint))
        assert exchange(endpoints, client, -1)
    assert files(short_folder) == ["run"]


def test_a_control_socket_that_could_not_listen_once_is_bound_by_the_next_check(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "xdg"))

    def refuse(_: socket.socket, _backlog: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(bind(["tcp://127.0.0.1:*"], short_folder / "run")) as endpoints, ExitStack() as stack:
        shutil.rmtree(short_folder / "run")
        (short_folder / "run").touch()
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
    assert files(short_folder) == ["run"]


def test_a_runtime_folder_that_cannot_be_locked_leaves_no_folders_behind(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (short_folder / "xdg").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "xdg"))

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with closing(bind(["tcp://127.0.0.1:*"], short_folder / "run")) as endpoints:
        shutil.rmtree(short_folder / "run")
        (short_folder / "run").touch()
        with monkeypatch.context() as context:
            context.setattr(fcntl, "flock", refuse)
            for now in (0.0, 0.25, 0.5):
                endpoints.keep(now)
            kinds = {name: problem_kind(name) for name in endpoints.problems}
            assert kinds == {str(short_folder / "run"): "runtime_dir", endpoints.control.endpoint: "endpoint"}
            assert "No locks available" in str(endpoints.problems)
            assert caplog.text.count("runtime folder is lost") == 1
            assert caplog.text.count("endpoint is lost") == 1
            assert list((short_folder / "xdg").iterdir()) == []
        endpoints.keep(0.75)
        assert endpoints.problems == {}


def test_a_path_that_another_process_took_is_left_to_it(short_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = short_folder / "front.sock"
    listen = [f"ipc://{path}"]
    with closing(bind(listen, short_folder / "run")) as endpoints, ExitStack() as stack:
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


def test_what_is_intact_is_not_bound_again(short_folder: Path) -> None:
    with closing(bind([f"ipc://{short_folder}/front.sock"], short_folder / "run")) as endpoints:
        before = open_descriptors()
        for now in range(5):
            endpoints.keep(float(now))
        assert open_descriptors() <= before
