"""A control group (version 2) for a daemon under test, as systemd delegates one, where this machine allows that."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_END_S = 10.0


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
def control_group(*, delegated: bool = True) -> Iterator[ControlGroup]:
    """Makes a group, and removes it once its processes have ended; skips the test where that is not allowed."""
    parent = next((mount for mount in _MOUNTS if (mount / "cgroup.controllers").exists()), None)
    if parent is None:
        pytest.skip("control groups of version 2 are not mounted")
    folder = parent / f"multitower-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {parent}: {error.strerror}")
    try:
        if not (folder / "cgroup.kill").exists():
            pytest.skip("this kernel is older than Linux 5.14")
        if delegated:
            os.setxattr(folder, "trusted.delegate", b"1")
        yield ControlGroup(folder)
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
