"""A memory control group of its own for a daemon under test, where this machine allows one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from control_group import ControlGroup, new_folder

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class MemoryGroup(ControlGroup):
    """A control group that limits memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._version_1 = (folder / "memory.limit_in_bytes").exists()

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
    with new_folder(parent) as folder:
        if not any((folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
            pytest.skip(f"control groups in {parent} do not limit memory")
        yield MemoryGroup(folder)
