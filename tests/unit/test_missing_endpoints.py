"""Endpoints that cannot be bound at the start: the daemon tries them again, and they delay no other one."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any

import pytest
import zmq
from endpoint_scene import bind

from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.loop.runtime_dir import HeldError
from multitower.supervisor.routing import acceptor, name_resolution, tcp_listener
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.endpoints import Endpoints
from multitower.supervisor.routing.front_socket import FrontSocket
from multitower.supervisor.routing.unread import UnreadReplies

WAIT_MS = 5000


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


def test_an_endpoint_is_tried_again_after_any_error(short_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    late = short_folder / "late"
    listen = [f"ipc://{late}/front.sock"]

    def fail(_: FrontSocket) -> None:
        raise RuntimeError("a defect")

    with closing(BackgroundJobs()) as background, closing(waiting(listen, short_folder, background)) as endpoints:
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
    number: int, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipc, tcp = f"ipc://{short_folder}/front.sock", "tcp://127.0.0.1:*"
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
        bind([ipc], short_folder / "strict")
    with closing(BackgroundJobs()) as background, closing(waiting([ipc, tcp], short_folder, background)) as endpoints:
        assert set(endpoints.problems) == {ipc, tcp}
        assert all(os.strerror(number) in cause for cause in endpoints.problems.values())
        prevented = False
        retry(endpoints, background)
        assert [front.endpoint.split(":")[0] for front in endpoints.fronts] == ["ipc", "tcp"]
        assert endpoints.problems == {}


def test_a_name_that_no_resolver_accepts_keeps_no_other_endpoint_from_being_bound(short_folder: Path) -> None:
    late = short_folder / "late"
    wrong = "tcp://a..b.example:5999"
    listen = [f"ipc://{late}/front.sock", wrong]
    with closing(BackgroundJobs()) as background, closing(waiting(listen, short_folder, background)) as endpoints:
        late.mkdir()
        retry(endpoints, background)
        assert [front.endpoint for front in endpoints.fronts] == listen[:1]
        assert "the name a..b.example cannot be resolved" in endpoints.problems[wrong]


def test_a_name_server_that_does_not_answer_delays_no_other_endpoint(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
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
    with closing(BackgroundJobs()) as background, closing(waiting(listen, short_folder, background)) as endpoints:
        assert len(endpoints.fronts) == 1
        assert list(endpoints.missing) == listen[:2]
        assert "its name was not resolved within 1 s" in endpoints.missing[listen[0]]
        answers.set()
        retry(endpoints, background)
        assert len(endpoints.fronts) == 3, endpoints.missing
        assert not endpoints.missing


def test_all_names_are_looked_up_at_the_same_time(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_three = threading.Barrier(3)

    def look_up(*_: Any, **__: Any) -> Any:
        all_three.wait(WAIT_MS / 1000)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(name_resolution, "RESOLVE_S", 2 * WAIT_MS / 1000)
    listen = [f"tcp://{name}.example:*" for name in ("a", "b", "c")]
    with closing(BackgroundJobs()) as background, closing(waiting(listen, short_folder, background)) as endpoints:
        assert list(endpoints.missing) == listen
    assert not all_three.broken, "one was looked up after another"


def test_a_name_whose_port_another_process_holds_is_no_reason_to_wait(short_folder: Path) -> None:
    with socket.socket() as other, closing(BackgroundJobs()) as background:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(HeldError, match="tcp://localhost:"):
            waiting([f"tcp://localhost:{other.getsockname()[1]}"], short_folder, background)
