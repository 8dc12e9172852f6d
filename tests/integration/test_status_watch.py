"""`multitower status --watch`: in a terminal and in a pipe, to its end, and across a restart of the daemon."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import fake_daemon
import pytest
from fake_daemon import FakeDaemon
from status_example import STATUS

WITHIN_S = 60.0
SHOWN = "multitower 0.1.0 (compiled), pid 4711"


def daemon_at(endpoint: str) -> FakeDaemon:
    return FakeDaemon(lambda request: fake_daemon.ok(request.id, STATUS), endpoint)


def watching(
    endpoint: str, *arguments: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "multitower", "status", "--watch", "0.1", "--endpoint", endpoint, *arguments]
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment = {**kept, "TERM": "xterm", **environment}
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


class Terminal:
    """A terminal that a command writes to."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size; the next text that `wait_for` reads may still be of the old one."""
        termios.tcsetwinsize(self.ours, (rows, columns))

    def wait_for(self, text: str, times: int = 1) -> None:
        """Waits until this text has been written so many more times."""
        until, wanted = time.monotonic() + WITHIN_S, self.text.count(text) + times
        while self.text.count(text) < wanted:
            assert time.monotonic() < until, f"{text!r} was not written:\n{self.text}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Sends a signal; returns the exit code, and what was written to standard error."""
    process.send_signal(number)
    return process.wait(WITHIN_S), process.stderr.read() if process.stderr is not None else ""


def test_on_a_terminal_it_is_drawn_in_place_until_ctrl_c(tmp_socket: str, terminal: Terminal) -> None:
    terminal.resize(200, 60)
    with daemon_at(tmp_socket), watching(tmp_socket, stdout=terminal.theirs, COLUMNS="60") as process:
        terminal.wait_for(SHOWN, times=3)
        assert "more lines" not in terminal.text
        terminal.resize(80, 20)
        terminal.wait_for("more lines", times=2)
        assert end(process) == (0, "")
    assert terminal.text.count("\x1b[H") >= 5
    assert terminal.text.count("\x1b[2J") == 1, "the terminal is cleared once"
    frames = [each.splitlines() for each in terminal.text.split("\x1b[H")[1:-1]]
    assert len(frames[0]) < 60
    assert max(map(len, frames[0])) > 80, "the terminal's own width holds, not COLUMNS"
    assert len(frames[-1]) <= 20


def test_a_terminal_without_cursor_movements_gets_no_escape_sequences(tmp_socket: str, terminal: Terminal) -> None:
    with daemon_at(tmp_socket), watching(tmp_socket, stdout=terminal.theirs, TERM="dumb") as process:
        terminal.wait_for(SHOWN, times=2)
        assert end(process) == (0, "")
    assert "\x1b" not in terminal.text


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_left_out_if_no_color_is_set(tmp_socket: str, terminal: Terminal, no_color: str) -> None:
    with daemon_at(tmp_socket), watching(tmp_socket, stdout=terminal.theirs, NO_COLOR=no_color) as process:
        terminal.wait_for(SHOWN, times=2)
        assert end(process) == (0, "")
    assert ("\x1b[32mready" in terminal.text) is (no_color == "")


def test_it_shows_that_the_daemon_does_not_answer_and_goes_on_when_it_is_back(
    tmp_socket: str, terminal: Terminal
) -> None:
    with watching(tmp_socket, "--timeout", "5", stdout=terminal.theirs, COLUMNS="200") as process:
        terminal.wait_for("no answer from the daemon")
        for _ in range(2):
            with daemon_at(tmp_socket):
                terminal.wait_for(SHOWN)
            terminal.wait_for("no answer from the daemon")
        assert end(process) == (0, "")


def test_it_ends_quietly_when_the_reader_of_its_pipe_has_gone(tmp_socket: str) -> None:
    with daemon_at(tmp_socket), watching(tmp_socket) as process:
        assert process.stdout is not None
        assert "Ctrl-C ends it" in process.stdout.readline()
        process.stdout.close()
        process.wait(WITHIN_S)
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_as_json_it_prints_an_object_a_line(tmp_socket: str) -> None:
    with daemon_at(tmp_socket), watching(tmp_socket, "--json") as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline()) == STATUS
        process.stdout.close()
        end(process)


@pytest.mark.parametrize("seconds", ["0", "nan", "inf", "1e12", "soon"])
def test_an_interval_that_is_no_time_is_refused(seconds: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "multitower", "status", f"--watch={seconds}", "--endpoint", f"ipc://{tmp_path}/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 2
    assert "--watch" in done.stderr
