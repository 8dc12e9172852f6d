"""The command line as a whole: help, missing packages, and how it ends."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multitower.cli import SERVER_PACKAGES
from multitower.cli.commands import COMMANDS, multitower
from multitower.compiled import compiled, describe
from multitower.exit_codes import Exit

SCRIPT = Path(sys.executable).with_name("multitower")
WAYS = {
    "console script": [str(SCRIPT)],
    "python -m multitower": [sys.executable, "-m", "multitower"],
    "python -m multitower.cli": [sys.executable, "-m", "multitower.cli"],
}
STEP_S = 60.0


def run(*command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, cwd=folder, check=False)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_command_line_can_be_started_in_three_ways(way: list[str]) -> None:
    done = run(*way, "--version")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert done.stdout == f"multitower {importlib.metadata.version('multitower')} ({describe(compiled())})\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_help_lists_every_command_in_its_order(arguments: list[str]) -> None:
    done = run(sys.executable, "-m", "multitower", *arguments)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "Usage: multitower [OPTIONS] COMMAND [ARGS]..."
    listed = re.findall(r"^  ([a-z][a-z-]*) +(\S.*)$", done.stdout, re.MULTILINE)
    assert [name for name, _ in listed] == list(COMMANDS)
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_the_first_sentence_of_each_command(name: str) -> None:
    command = multitower.get_command(multitower.make_context("multitower", []), name)
    assert command is not None
    assert command.name == name
    assert command.help is not None
    first = command.help.partition("\n\n")[0]
    assert COMMANDS[name].help == re.split(r"(?<=\.)\s", " ".join(first.split()))[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chek"], "No such command 'chek'. Did you mean 'check'?"),
        (["xyzzy"], "No such command 'xyzzy'.\n"),
        (["--xyzzy"], "No such option"),
        (["check"], "Missing argument 'CONFIG'"),
        (["check", "x.yaml", "--xyzzy"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], words: str) -> None:
    done = run(sys.executable, "-m", "multitower", *arguments)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


IMPORTED = """
import sys
sys.argv[1:] = []
try:
    {statement}
finally:
    print(*sys.modules)
"""


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        # A spawned worker imports this module.
        ("import multitower.cli", {"click", "rich", "multitower.cli.commands"}),
        ("from multitower.cli import main; main()", {"rich", "multitower.cli.demo", "multitower.cli.serve"}),
    ],
)
def test_heavy_packages_are_imported_only_by_commands(statement: str, unwanted: set[str]) -> None:
    done = run(sys.executable, "-c", IMPORTED.format(statement=statement))
    assert done.returncode == Exit.OK, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert "multitower.cli" in imported
    assert not imported & {"pydantic", "ruamel", "pynvml", "psutil", "tensorflow", "multitower.supervisor", *unwanted}


MISSING = """
import sys
sys.modules[sys.argv[1]] = None
sys.argv = ["multitower", *sys.argv[2:]]
from multitower.cli import main
main()
"""


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("click", ["--help"]),
        ("pydantic", ["check", "x.yaml"]),
        ("ruamel", ["check", "x.yaml"]),
        ("ruamel.yaml", ["serve", "x.yaml"]),
        ("pynvml", ["devices"]),
        ("pydantic", ["serve", "x.yaml"]),
    ],
)
def test_a_missing_package_is_named_with_a_pip_command(package: str, arguments: list[str], tmp_path: Path) -> None:
    done = run(sys.executable, "-c", MISSING, package, *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (Exit.UNAVAILABLE, "")
    assert package.split(".")[0] in done.stderr
    assert f"pip install {' '.join(SERVER_PACKAGES.values())}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_module_of_multitower_is_a_traceback() -> None:
    done = run(sys.executable, "-c", MISSING, "multitower.cli.configuration", "schema")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "pip install" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["devices"]])
def test_a_closed_pipe_ends_the_command_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "multitower", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=STEP_S,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_ends_the_command_quietly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "multitower", "check", "x.yaml"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    try:
        # Returns when the command has opened the other end and reads.
        writing = os.open(tmp_path / "x.yaml", os.O_WRONLY)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=STEP_S)
        os.close(writing)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGINT
    assert errors.strip() == b""


@pytest.mark.parametrize(
    ("way", "module", "command"),
    [
        *((way, "click", "--help") for way in WAYS.values()),
        (WAYS["python -m multitower"], "zmq", "status"),
        (WAYS["python -m multitower"], "numpy", "infer m"),
    ],
)
def test_ctrl_c_during_an_import_ends_the_command_quietly(
    way: list[str], module: str, command: str, tmp_path: Path
) -> None:
    # Found before the installed one.
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [*way, *command.split()],
        capture_output=True,
        text=True,
        timeout=STEP_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))},
    )
    # Killed by the signal, or with the exit code that shells report for that.
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert (done.stdout, done.stderr.strip()) == ("", "")


def test_ctrl_c_stays_ignored_in_the_background(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n")
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "multitower", "--help"],
        timeout=STEP_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))},
    )
    assert done.returncode == 7


COUNT_COLLECTIONS = """
import atexit, gc, sys
found = []
gc.callbacks.append(lambda phase, _: found.append(phase))
atexit.register(lambda: print(found.count("start")))
sys.argv = ["multitower", "check", "nosuch.yaml"]
from multitower.cli import main
main()
"""


def test_imports_of_a_command_cause_hardly_any_garbage_collections(tmp_path: Path) -> None:
    done = run(sys.executable, "-c", COUNT_COLLECTIONS, folder=tmp_path)
    assert done.returncode == Exit.CONFIG, done.stderr
    # By Python's own threshold there would be 80.
    assert int(done.stdout) < 30
