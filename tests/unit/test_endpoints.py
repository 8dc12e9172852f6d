"""The daemon's endpoints: all of them are bound, or nothing stays open."""

from __future__ import annotations

import os
import subprocess
import sys
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


NOT_UTF8 = r"""
import os, sys
from pathlib import Path
from multitower.supervisor.routing.endpoints import Endpoints
from multitower.supervisor.routing.unread import UnreadReplies

folder = sys.argv[1]
name = os.fsdecode(b"not-utf8-\xff")
listen, runtime_dir = {
    "listen": ([f"ipc://{folder}/front.sock", f"ipc://{folder}/{name}"], Path(folder, "run")),
    "runtime_dir": ([f"ipc://{folder}/front.sock"], Path(folder, name)),
}[sys.argv[2]]
try:
    Endpoints(listen, runtime_dir, 1 << 20, UnreadReplies(), 0)
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


def test_an_endpoint_whose_options_cannot_be_set_is_an_error_and_the_start_does_not_hang(folder: Path) -> None:
    program = NOT_UTF8.replace("1 << 20, Unread", "1 << 62, Unread")  # twice that is no value of MAXMSGSIZE
    command = [sys.executable, "-c", program, str(folder), "listen"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20.0, check=False)
    assert "OverflowError" in run.stderr
    assert not [name for name in files(folder) if name.endswith(".sock")]
