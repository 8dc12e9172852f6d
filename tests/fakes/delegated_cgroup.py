"""A control group (version 2) for a daemon under test, as systemd delegates one, where this machine allows that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from control_group import ControlGroup, new_folder

_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


@contextmanager
def control_group(*, delegated: bool = True) -> Iterator[ControlGroup]:
    """Makes a group, and removes it once its processes have ended; skips the test where that is not allowed."""
    parent = next((mount for mount in _MOUNTS if (mount / "cgroup.controllers").exists()), None)
    if parent is None:
        pytest.skip("control groups of version 2 are not mounted")
    with new_folder(parent) as folder:
        if not (folder / "cgroup.kill").exists():
            pytest.skip("this kernel is older than Linux 5.14")
        if delegated:
            os.setxattr(folder, "trusted.delegate", b"1")
        yield ControlGroup(folder)
