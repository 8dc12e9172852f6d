"""How the tools end a daemon of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running import START_S, STEP_S, copy_handlers, outliving

from multitower import Client
from multitower.tools import daemon

PROGRAM = """
import signal, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
time.sleep(60)
"""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_daemon_is_drained_with_sigterm() -> None:
    with start() as process:
        assert daemon.end_process(process) == 5
        assert daemon.end_process(process) == 5, "a process that has ended"


def test_a_daemon_that_does_not_drain_in_time_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "END_S", 0.2)
    with start("stubborn") as process:
        assert daemon.end_process(process) == -signal.SIGKILL


class Ended(BaseException):
    """As a signal handler raises it."""


@pytest.fixture
def ended_by_a_signal() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Ended

    former = signal.signal(signal.SIGUSR1, end)
    yield
    signal.signal(signal.SIGUSR1, former)


@pytest.mark.usefixtures("ended_by_a_signal")
def test_a_signal_while_a_daemon_drains_kills_it() -> None:
    with start("stubborn") as process:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Ended):
            daemon.end_process(process)
        ended = process.returncode
        process.kill()
    assert ended == -signal.SIGKILL


def test_the_folder_of_a_daemon_is_removed_even_if_a_signal_ends_its_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(process: subprocess.Popen[bytes]) -> int:
        process.kill()
        process.wait()
        raise Ended

    monkeypatch.setattr(daemon, "serve_command", lambda *_: [sys.executable, "-c", PROGRAM])
    monkeypatch.setattr(daemon, "end_process", end)
    own = daemon.OwnDaemon(tmp_path / "config.yaml", ready_s=0.1)
    with pytest.raises(Ended), own:
        pass
    assert not Path(own.endpoint.removeprefix("ipc://")).parent.exists()


FOREGROUND = """
import sys
from pathlib import Path
from multitower.tools.daemon import serve_in_foreground
sys.exit(serve_in_foreground(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_daemon_in_the_foreground_ends_with_the_tool_that_started_it(
    tmp_path: Path, tmp_socket: str, number: signal.Signals
) -> None:
    copy_handlers(tmp_path)
    config = tmp_path / "config.yaml"
    run = Path(tmp_socket.removeprefix("ipc://")).parent / "run"
    listen = f"listen: ['{tmp_socket}']\nruntime_dir: {run}\ndevices: {{cpu: 1}}\nspares: 0\n"
    config.write_text(f"{listen}models: [{{name: m, handler: 'handlers:Echo'}}]\n")
    with subprocess.Popen([sys.executable, "-c", FOREGROUND, str(config)]) as tool:
        try:
            with Client(tmp_socket, connect_timeout=START_S) as client:
                client.wait_until_ready(START_S)
            children = psutil.Process(tool.pid).children(recursive=True)
        finally:
            tool.send_signal(number)
    assert len(children) >= 2
    alive = outliving(children, STEP_S)
    for process in alive:
        process.kill()
    assert not alive
