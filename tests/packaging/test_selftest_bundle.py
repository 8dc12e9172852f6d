"""The script of `make selftest-bundle`, in a folder like the bundle: signals, and other versions of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "selftest_run.sh"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def bundle(folder: Path, version: str = VERSION) -> Path:
    (folder / "wheels").mkdir(parents=True)
    for name in ("multitower-1.0.tar.gz", "multitower-1.0-py3-none-any.whl"):
        (folder / "wheels" / name).touch()
    script = folder / "run.sh"
    script.write_text(SCRIPT.read_text().replace("@PYTHON_VERSION@", version))
    script.chmod(0o755)
    return script


def stand_in(folder: Path, body: str, headers: str = "exit 1", venv: str = ":") -> Path:
    """A program in the place of Python: it tells its version, and makes an environment whose programs are `body`.

    It runs `headers` where it is asked for Python's headers, and `venv` before it makes the environment.
    """
    program = folder / "python"
    program.write_text(
        f"""#!/bin/sh
case "$*" in
-c*version_info*) echo {VERSION};;
-c*) {headers};;
"-m venv "*) {venv}; mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/multitower";;
"-m pip "*) echo "pip: $*" >&2;;
selftest*) {body};;
esac
"""
    )
    program.chmod(0o755)
    return program


def environment(folder: Path, python: Path) -> dict[str, str]:
    temporary = folder / "tmp"
    temporary.mkdir()
    inherited = {name: value for name, value in os.environ.items() if name not in ("VENV", "MULTITOWER_COMPILE")}
    return {**inherited, "PYTHON": str(python), "TMPDIR": str(temporary)}


def test_the_script_installs_from_its_folder_alone_and_passes_arguments_and_exit_code_on(tmp_path: Path) -> None:
    script = bundle(tmp_path / "bundle")
    python = stand_in(tmp_path, 'echo "$@"; exit 1')
    done = subprocess.run(
        [script, "--devices", "{cpu: 2}"],
        env=environment(tmp_path, python),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "selftest --devices {cpu: 2}\n"), done.stderr
    wheels = f"{tmp_path}/bundle/wheels"
    # There is a compiler, but this Python has no headers.
    assert f"--no-index --find-links {wheels} {wheels}/multitower-1.0-py3-none-any.whl[server]" in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_script_ends_the_selftest_and_removes_what_was_installed(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = bundle(tmp_path / "bundle")
    python = stand_in(tmp_path, "trap 'echo ended; exit 143' TERM; echo started; while :; do sleep 0.1; done")
    with subprocess.Popen(
        [script], env=environment(tmp_path, python), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stdout.read() == "ended\n"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("step", ["headers", "venv"])
def test_a_signal_before_the_selftest_runs_ends_the_script(tmp_path: Path, step: str) -> None:
    script = bundle(tmp_path / "bundle")
    wait = f"echo waiting; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 1"
    python = stand_in(tmp_path, "echo selftest", **{step: wait})
    with subprocess.Popen(
        [script], env=environment(tmp_path, python), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        assert process.wait(60) == 143
        assert process.stdout.read() == ""
        assert "virtual environment" not in process.stderr.read()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_script_names_the_version_of_python_that_it_needs(tmp_path: Path) -> None:
    script = bundle(tmp_path / "bundle", "3.99")
    python = stand_in(tmp_path, ":")
    done = subprocess.run(
        [script], env=environment(tmp_path, python), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69
    assert f"this bundle is for Python 3.99, and {python} is {VERSION}" in done.stderr
