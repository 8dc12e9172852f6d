"""A memory control group of its own for a daemon under test, where this machine allows one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_END_S = 10.0


class MemoryGroup:
    """A control group.

    Attributes:
        folder: its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version_1 = (folder / "memory.limit_in_bytes").exists()

    @property
    def enter(self) -> tuple[str, ...]:
        """A command that enters the group, and replaces itself by the command behind it."""
        return "sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"

    def limit(self, size: int) -> None:
        """Limits its memory, in bytes."""
        (self.folder / ("memory.limit_in_bytes" if self._version_1 else "memory.max")).write_text(str(size))

    def kills(self) -> int:
        """How many of its processes the kernel has killed because memory was short."""
        text = (self.folder / ("memory.oom_control" if self._version_1 else "memory.events")).read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")))


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """Makes a group, and removes it once its processes have ended; skips the test where that is not allowed."""
    parent = _V1 if _V1.is_dir() else _V2
    folder = parent / f"multitower-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {parent}: {error.strerror}")
    try:
        if not any((folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
            pytest.skip(f"control groups in {parent} do not limit memory")
        yield MemoryGroup(folder)
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
