"""How the tools end a daemon of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from running import HANDLERS, START_S, STEP_S, outliving

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
    (tmp_path / "handlers.py").write_text(HANDLERS.read_text())
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
