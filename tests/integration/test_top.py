"""`multitower top` in a terminal: keys, sizes, a worker that is killed, a daemon that restarts, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_daemon
import pytest
from fake_daemon import FakeDaemon
from pty_terminal import WITHIN_S, PtyTerminal
from running import Running
from status_example import STATUS

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
models:
  - {name: m, handler: "handlers:Echo"}
"""
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
TOP = (sys.executable, "-m", "multitower", "top")


@pytest.fixture
def terminal() -> Iterator[PtyTerminal]:
    terminal = PtyTerminal()
    yield terminal
    terminal.close()


def daemon_at(endpoint: str) -> FakeDaemon:
    return FakeDaemon(lambda request: fake_daemon.ok(request.id, STATUS), endpoint)


@contextlib.contextmanager
def top(terminal: PtyTerminal, endpoint: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Runs the command in the terminal, which becomes that of its session."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "LC_ALL")}
    process = subprocess.Popen(
        [*TOP, "--interval", "0.1", "--endpoint", endpoint, "--timeout", "1"],
        stdin=terminal.theirs,
        stdout=terminal.theirs,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "TERM": "xterm", "LANG": "C.UTF-8", **environment},
        start_new_session=True,
        preexec_fn=make_controlling_terminal,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(WITHIN_S)
        assert process.stderr is not None
        process.stderr.close()


def make_controlling_terminal() -> None:
    """In the new process: standard input becomes the terminal of its session, so that Ctrl-C and sizes reach it."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def end_of(process: subprocess.Popen[str], terminal: PtyTerminal) -> tuple[int, str]:
    """Waits for the end; returns the exit code and what was written to standard error. The terminal is restored."""
    code = process.wait(WITHIN_S)
    terminal.read()
    assert not terminal.alternate
    assert terminal.cursor_shown
    assert termios.tcgetattr(terminal.theirs) == terminal.mode
    assert process.stderr is not None
    return code, process.stderr.read()


def test_a_killed_worker_is_seen_and_keys_show_why(
    terminal: PtyTerminal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Running(tmp_path_factory.mktemp("daemon"), CONFIG) as daemon:
        daemon.wait_ready()
        with top(terminal, daemon.endpoint) as process:
            terminal.wait_for("2/2 slots ready")
            os.kill(daemon.slot(1)["pid"], signal.SIGKILL)
            terminal.wait_for("worker died: killed by SIGKILL")
            terminal.wait_for("2/2 slots ready")
            terminal.press("j\r")
            terminal.wait_for("last error: killed by SIGKILL")
            terminal.press("3")
            events = terminal.wait_for("[3 events]")
            died, ready = (
                next(n for n, line in enumerate(events) if text in line) for text in ("died", "worker ready")
            )
            assert ready < died, "the newest first"
            terminal.press("q")
            assert end_of(process, terminal) == (0, "")


def test_it_follows_keys_and_sizes(tmp_socket: str, terminal: PtyTerminal) -> None:
    with daemon_at(tmp_socket), top(terminal, tmp_socket) as process:
        terminal.wait_for(">  0      ready")
        assert terminal.alternate
        assert not terminal.cursor_shown
        terminal.press("r")
        terminal.wait_for(">  2      loading")
        terminal.press("\x1b[B\x1b[C")
        terminal.wait_for("State↓")
        terminal.press("?")
        terminal.wait_for("sort the other way round")
        terminal.press("x2")
        terminal.wait_for(">  embeddings")
        terminal.resize(120, 40)
        wide = terminal.wait_for("Refused")
        assert len(wide) >= 39
        terminal.resize(40, 10)
        terminal.wait_for(lambda lines: len(lines) <= 10 and max(map(len, lines)) <= 40)
        terminal.press("\x1b[B\r")
        terminal.wait_for("Esc: back")
        terminal.press("\x1b")
        terminal.wait_for("Tab: view")
        terminal.press("\x03")
        assert end_of(process, terminal) == (0, "")
    assert "32" in terminal.styles, "colours are used"


def test_it_survives_a_restart_of_the_daemon_and_shows_that_it_is_away(tmp_socket: str, terminal: PtyTerminal) -> None:
    with top(terminal, tmp_socket) as process:
        terminal.wait_for("no answer from the daemon")
        for _ in range(2):
            with daemon_at(tmp_socket):
                terminal.wait_for(lambda lines: not any("no answer" in line for line in lines) and len(lines) > 5)
            away = terminal.wait_for("no answer from the daemon")
            assert any(line.startswith("as of then:") for line in away), "what was known stays"
        terminal.press("q")
        assert end_of(process, terminal) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_the_terminal_restored(
    tmp_socket: str, terminal: PtyTerminal, number: signal.Signals
) -> None:
    with daemon_at(tmp_socket), top(terminal, tmp_socket) as process:
        terminal.wait_for("slots ready")
        process.send_signal(number)
        assert end_of(process, terminal) == (-number, "")


def test_an_exception_ends_it_with_the_terminal_restored(tmp_socket: str, terminal: PtyTerminal) -> None:
    broken: dict[str, Any] = {**STATUS, "slots": [{"slot": "no slot"}]}
    answers = [STATUS, broken]

    def answer(request: fake_daemon.Received) -> list[bytes]:
        return fake_daemon.ok(request.id, answers.pop(0) if answers else broken)

    with FakeDaemon(answer, tmp_socket), top(terminal, tmp_socket) as process:
        code, error = end_of(process, terminal)
        assert code == 1
        assert "KeyError" in error


def test_ctrl_z_gives_the_terminal_back_and_takes_it_again(tmp_socket: str, terminal: PtyTerminal) -> None:
    # Nothing stops here: the kernel ignores SIGTSTP where no shell could continue the process. So it goes on at once.
    with daemon_at(tmp_socket), top(terminal, tmp_socket) as process:
        terminal.wait_for("slots ready")
        process.send_signal(signal.SIGTSTP)
        terminal.wait_for(lambda _: terminal.text.count(ENTERED) == 2)
        assert terminal.text.count(LEFT) == 1
        terminal.wait_for("slots ready")
        terminal.press("q")
        assert end_of(process, terminal) == (0, "")


def test_without_colour_and_without_utf_8(tmp_socket: str, terminal: PtyTerminal) -> None:
    with daemon_at(tmp_socket), top(terminal, tmp_socket, NO_COLOR="1", LC_ALL="C") as process:
        terminal.wait_for(">  0      ready")
        terminal.press("q")
        assert end_of(process, terminal) == (0, "")
    assert terminal.styles == set()
    assert terminal.text.isascii()


@pytest.mark.parametrize("where", ["in a pipe", "on a dumb terminal"])
def test_it_refuses_where_it_cannot_draw_and_names_what_works(
    tmp_socket: str, terminal: PtyTerminal, where: str
) -> None:
    stdout = subprocess.PIPE if where == "in a pipe" else terminal.theirs
    done = subprocess.run(
        [*TOP, "--endpoint", tmp_socket],
        stdin=terminal.theirs,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "dumb"},
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "top --once" in done.stderr


def test_once_prints_a_frame_into_a_pipe(tmp_socket: str, tmp_path: Path) -> None:
    command = [*TOP, "--once", "--interval", "0.1", "--endpoint", tmp_socket]
    with daemon_at(tmp_socket):
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert sum("GPU-" in line for line in done.stdout.splitlines()) == 3
    command = [*TOP, "--once", "--endpoint", f"ipc://{tmp_path}/nothing", "--timeout", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 69
