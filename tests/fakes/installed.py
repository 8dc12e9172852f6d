"""Programs that tests need and that not every machine has."""

from __future__ import annotations

import os
import shutil

import pytest


def find_program(name: str, package: str) -> str:
    """Returns the path of a program; skips the test where it is missing, and fails it in CI.

    Args:
        name: of the program.
        package: of Debian, which has it.
    """
    path = shutil.which(name)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed: `apt-get install {package}`")
    if path is None:
        pytest.skip(f"{name} is not installed: `apt-get install {package}`")
    return path
