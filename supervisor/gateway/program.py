"""Finds the gateway's program, and compares its version with the daemon's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from multitower.durations import exact_duration

NAME: Final = "multitower-gateway"

INSTALL: Final = (
    "`pip install ./gateway` in a checkout of multitower builds and installs it; that needs cargo, "
    "which on Debian 12 is the package cargo-web"
)
"""How to install it, for people."""

VERSION_S: Final = 10.0
"""Seconds that the program gets to print its version."""

_VERSION: Final = re.compile(rf"{NAME} (\S+)\s*")


class ProgramError(Exception):
    """The gateway cannot be started: its program is missing, cannot be run, or has another version.

    Attributes:
        advice: what to do about it.
    """

    def __init__(self, message: str, advice: str = INSTALL) -> None:
        super().__init__(message)
        self.advice = advice


def find_program(configured: Path | None) -> Path:
    """Returns the path of the program.

    Args:
        configured: `gateway.program` of the configuration; None to look beside Python's own program, then in PATH.

    Raises:
        ProgramError: there is none.
    """
    if configured is not None:
        if not configured.is_file():
            raise ProgramError(f"the gateway's program {configured} does not exist", "correct gateway.program")
        return configured
    beside = Path(sys.executable).parent / NAME
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which(NAME)
    if found is None:
        raise ProgramError(f"the gateway's program {NAME} is neither in {beside.parent} nor in PATH")
    return Path(found)


def check_program(configured: Path | None) -> Path:
    """Finds the program, runs it with `--version`, and compares its version with the daemon's. It blocks.

    Args:
        configured: see `find_program`.

    Returns:
        Its path.

    Raises:
        ProgramError: it is missing, cannot be run, or has another version.
    """
    program = find_program(configured)
    own, found = own_version(), program_version(program)
    if found != own:
        raise ProgramError(f"the gateway {program} has version {found}, but multitower has {own}")
    return program


def own_version() -> str:
    """The version of the daemon, which the gateway must have too."""
    return version("multitower")


def program_version(program: Path) -> str:
    """Returns the version that the program prints; blocks for at most `VERSION_S`.

    Raises:
        ProgramError: it cannot be run, or prints something else.
    """
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=VERSION_S,
        )
    except OSError as error:
        raise ProgramError(f"the gateway {program} cannot be run: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise ProgramError(
            f"the gateway {program} did not print its version within {exact_duration(VERSION_S)}"
        ) from None
    match = _VERSION.fullmatch(done.stdout)
    if done.returncode != 0 or match is None:
        shown = (done.stdout + done.stderr).strip().partition("\n")[0][:200] or f"exit code {done.returncode}"
        raise ProgramError(f"{program} is not the gateway of multitower: with --version it prints {shown!r}")
    return match[1]
