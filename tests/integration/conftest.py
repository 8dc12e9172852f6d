from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from asker import Asker, Closing
from fake_daemon import FakeDaemon

from multitower import Client

WAIT_S = 60.0


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """A scripted daemon. Files that need another kind of daemon have a fixture of this name, which comes first."""
    with FakeDaemon() as daemon:
        yield daemon


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    """A client of the scripted daemon."""
    with Client(daemon.endpoint, timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def closing() -> Iterator[Closing]:
    made: list[Asker] = []

    def keep(asker: Asker) -> Asker:
        made.append(asker)
        return asker

    yield keep
    for asker in made:
        asker.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Stands for a service manager: the socket `notify`, to which a daemon sends its state."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(WAIT_S)
        yield listening
