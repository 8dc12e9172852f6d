"""The daemon's endpoints: all of them are bound, or nothing stays open."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from multitower.supervisor.loop.runtime_dir import HeldError
from multitower.supervisor.routing.endpoints import Endpoints
from multitower.supervisor.routing.unread import UnreadReplies


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not `tmp_path`: the paths of sockets are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        yield Path(name)


def bind(listen: list[str], runtime_dir: Path) -> Endpoints:
    return Endpoints(listen, runtime_dir, 1 << 20, UnreadReplies(1 << 30, 30.0), 0)


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
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(error):
                bind([f"ipc://{folder}/front.sock", listen.format(folder)], folder / "run")
        assert files(folder) == before
        assert len(os.listdir("/proc/self/fd")) == descriptors
