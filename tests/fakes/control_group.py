"""Control groups for daemons under test, where this machine allows them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_END_S = 60.0


class ControlGroup:
    """A control group.

    Attributes:
        folder: its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def enter(self) -> tuple[str, ...]:
        """A command that enters the group, and replaces itself by the command behind it."""
        return "sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"

    def inner(self) -> list[str]:
        """The names of all groups below it."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_dir())


@contextmanager
def new_folder(parent: Path) -> Iterator[Path]:
    """Makes a group, and removes it once its processes have ended; skips the test where that is not allowed."""
    folder = parent / f"multitower-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {parent}: {error.strerror}")
    try:
        yield folder
    finally:
        until = time.monotonic() + _END_S
        while True:
            try:
                folder.rmdir()
                break
            except OSError:  # processes that have ended are still in it
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
