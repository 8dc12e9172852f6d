"""How the tools end a daemon of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

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
