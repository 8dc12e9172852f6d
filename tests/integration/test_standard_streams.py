"""Standard streams that are closed, or whose other end is lost."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from running import Running

from multitower.exit_codes import Exit

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
models: [{name: m, handler: "handlers:Reckoner"}]
"""
CORRECT = "models: [{name: h, handler: 'json:JSONDecoder'}]\n"
MULTITOWER = (sys.executable, "-m", "multitower")


def run(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with a redirection of the shell; what it prints elsewhere is captured."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *MULTITOWER, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)


@pytest.fixture
def correct(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CORRECT)
    return str(path)


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_commands_work_with_closed_streams(redirection: str, correct: str) -> None:
    found = run(redirection, "check", correct)
    assert (found.returncode, found.stderr) == (Exit.OK, "")
    if ">&-" in redirection.replace("2>&-", ""):
        assert found.stdout == ""
    else:
        assert found.stdout.startswith(f"{correct} is correct.\n")
    found = run(redirection, "check", "missing.yaml")
    assert found.returncode == Exit.CONFIG
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["devices"], ["status", "--timeout", "0.2"], ["bogus"]])
def test_no_command_fails_because_its_output_is_closed(arguments: Sequence[str]) -> None:
    usual, closed = run("", *arguments), run(">&-", *arguments)
    assert closed.returncode == usual.returncode
    assert (closed.stdout, closed.stderr) == ("", usual.stderr)


def test_output_that_cannot_be_written_is_an_error_in_one_line(correct: str) -> None:
    for arguments in (["schema"], ["check", correct], ["--help"]):
        found = run(">/dev/full", *arguments)
        assert found.returncode == 1
        assert found.stderr == "multitower: the output could not be written: No space left on device\n"


@pytest.mark.parametrize("make", [os.pipe, pty.openpty], ids=["pipe", "terminal"])
def test_a_reader_that_has_gone_ends_a_command_quietly(make: Callable[[], tuple[int, int]]) -> None:
    reading, writing = make()
    os.close(reading)
    with open(writing, "wb") as output:
        found = subprocess.run(
            [*MULTITOWER, "schema"], stdout=output, stderr=subprocess.PIPE, timeout=60.0, check=False
        )
    assert (found.returncode, found.stderr) == (1, b"")


def test_an_error_that_cannot_be_printed_keeps_its_exit_code() -> None:
    assert run("2>/dev/full", "check", "missing.yaml").returncode == Exit.CONFIG
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as output:
        found = subprocess.run([*MULTITOWER, "check", "missing.yaml"], stderr=output, timeout=60.0, check=False)
    assert found.returncode == Exit.CONFIG


def descriptors(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_the_daemon_serves_with_closed_streams(redirection: str, tmp_path: Path) -> None:
    inside = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    with Running(tmp_path, CONFIG, inside=inside) as daemon, daemon.client() as client:
        daemon.wait(lambda: client.ready())
        assert client.infer("m", {"x": np.array([[3]])})["y"].tolist() == [[10]]
        found = descriptors(daemon.process.pid)
        for number, closed in enumerate(("<&-", " >&-", "2>&-")):
            if closed in f" {redirection}":
                assert found[number] == os.devnull
        (worker,) = client.status()["slots"]
        # Nothing but what a worker is given has taken the numbers.
        stdin, stdout, stderr = descriptors(worker["pid"])
        assert not stdin.startswith(("anon_inode", "socket", "/memfd"))
        assert stdout == stderr
        assert stdout.startswith("pipe")
        assert daemon.end() == 0


def test_the_daemon_serves_on_when_its_log_cannot_be_written_any_more(tmp_path: Path) -> None:
    inside = ("sh", "-c", 'exec "$@" 2>/dev/full', "sh")
    with Running(tmp_path, CONFIG, inside=inside) as daemon, daemon.client() as client:
        daemon.wait(lambda: client.ready())
        assert client.infer("m", {"x": np.array([[3]])})["y"].tolist() == [[10]]
        assert daemon.end() == 0
