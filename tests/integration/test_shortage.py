"""A real daemon whose system lacks a resource, or a call, that worker processes need."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from running import Running

from multitower.exit_codes import Exit

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
restart: {max_restarts: 1}
models: [{name: m, handler: "handlers:Reckoner"}]
"""

FAILING = """
import errno, os, pathlib
from multitower.supervisor.workers import child_process

class Os:
    def __getattr__(self, name):
        return getattr(os, name)

def failing(name, number):
    original = getattr(os, name)
    def call(*arguments):
        if pathlib.Path(FLAG).exists():
            raise OSError(number, os.strerror(number))
        return original(*arguments)
    setattr(Os, name, staticmethod(call))

FLAG = {flag!r}
failing({call!r}, {number})
child_process.os = Os()
from multitower.cli import main
main()
"""


@pytest.mark.parametrize(
    ("call", "number"), [("memfd_create", errno.EMFILE), ("pidfd_open", errno.EMFILE), ("memfd_create", errno.ENOMEM)]
)
def test_a_worker_is_replaced_once_the_system_has_room_for_it(call: str, number: int, tmp_path: Path) -> None:
    flag = tmp_path / "shortage"
    program = ("-c", FAILING.format(flag=str(flag), call=call, number=number))
    with Running(tmp_path, CONFIG, program=program) as daemon, daemon.wait_ready().client() as client:
        flag.touch()
        (before,) = client.status()["slots"]
        os.kill(before["pid"], signal.SIGKILL)
        line = daemon.wait_line("no process could be started")
        assert line["cause"] == f"{call}: {os.strerror(number)}"
        assert line["next"] == "it is tried again until it succeeds"
        # Tries that are more than the restart budget allows.
        daemon.wait(lambda: "no process could be started" in (client.status()["slots"][0]["last_error"] or ""))
        assert daemon.process.poll() is None
        for _ in range(3):
            assert client.status()["slots"][0]["state"] == "starting"
            daemon.wait_line("worker died")
        flag.unlink()
        daemon.wait_line("processes can be started again")
        daemon.wait(lambda: client.status()["slots"][0]["state"] == "ready")
        assert client.status()["slots"][0]["restarts"] == 1
        assert client.infer("m", {"x": [[3]]})["y"].tolist() == [[10]]
        assert daemon.end() == 0


NO_PIDFDS = """
import errno, os
def missing(*_):
    raise OSError({number}, os.strerror({number}))
os.pidfd_open = missing
from multitower.cli import main
main()
"""


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_without_pidfds_the_start_fails_once_and_names_the_call(number: int, tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG, program=("-c", NO_PIDFDS.format(number=number))) as daemon:
        assert daemon.process.wait(60.0) == Exit.CONFIG
        daemon._reader.join(60.0)
        assert f"pidfd_open: {os.strerror(number)}" in daemon.stderr
        assert "Traceback" not in daemon.stderr
        assert daemon.lines == []
