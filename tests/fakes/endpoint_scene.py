"""Binds the endpoints of a daemon without a daemon."""

from __future__ import annotations

from pathlib import Path

from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.endpoints import Endpoints
from multitower.supervisor.routing.unread import UnreadReplies


def bind(listen: list[str], runtime_dir: Path) -> Endpoints:
    """Binds all of them, or raises."""
    return Endpoints(listen, runtime_dir, 1 << 20, UnreadReplies(1 << 30, 30.0), 0, Connections(100))


def files(folder: Path) -> list[str]:
    """The files and sockets below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
