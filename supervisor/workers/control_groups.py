"""A control group for each worker, where the system has delegated one to the daemon: it ends with all that is in it.

A process cannot leave its control group by a session, a process group, a parent or an environment of its own, so a
worker's is the surest way to find what it has started. `cgroup.kill` ends all of it at once, also processes of other
users (cgroups(7), version 2, Linux 5.14). The daemon makes a group below its own, and in that one for each worker. It
enables no controllers there: limits stay those of the daemon's group.

Groups below its own belong to a process only if they are delegated to it (`Delegate=yes` of systemd.resource-control(5)
sets an attribute of the group), or if its group is the whole tree that it sees, as in a container.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from ..loop.log import event
from ..machine.process_limits import ROOT, unified_group
from .guardian_process import end_control_group

log = logging.getLogger("multitower.manager")

_ATTRIBUTES: Final = ("user.delegate", "trusted.delegate")
"""What systemd sets to 1 on a delegated group; ordinary users can read the first only."""


class ControlGroups:
    """The control groups of the workers of this process.

    Args:
        root: the folder with `proc` and `sys`.

    Attributes:
        folder: the group that contains those of the workers; None where none is delegated to this process.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self.folder: Path | None = None
        self._serial = 0
        self._ended: list[str] = []  # of workers that have ended, as long as something is in them
        own = _delegated_group(root)
        if own is None:
            return
        folder = own / f"multitower.{os.getpid()}"
        if folder.exists():  # of a daemon that was killed together with its guardian, and had the same process id
            end_control_group(str(folder))
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            event(log, logging.WARNING, "control groups are not used: none can be made", path=folder, cause=error)
            return
        self.folder = folder
        event(log, logging.INFO, "each worker gets a control group", path=folder)

    def make(self) -> str | None:
        """Makes the group of a worker, which enters it by itself; returns its folder, None if there is none."""
        if self.folder is None:
            return None
        self._serial += 1
        folder = self.folder / f"worker.{self._serial}"
        try:
            folder.mkdir()
        except OSError as error:
            event(log, logging.WARNING, "a worker gets no control group", path=folder, cause=error)
            return None
        return str(folder)

    def kill(self, folder: str | None) -> None:
        """Kills whatever is in the group of a worker that has ended, and removes it now or with a later `tick`."""
        if folder is not None:
            self._ended.append(folder)
            self.tick()

    def tick(self) -> None:
        """Removes the groups of workers that have ended, once nothing is left in them."""
        self._ended = [folder for folder in self._ended if not end_control_group(folder)]

    def group_of(self, pid: int) -> str | None:
        """Returns the folder of the worker's group that a process is in; None if it is in none of this process."""
        if self.folder is None:
            return None
        found = unified_group(self._root, pid)
        while found is not None and found.parent != self.folder:
            # What a worker has started may make groups of its own in it.
            found = found.parent if self.folder in found.parents else None
        return None if found is None else str(found)

    def close(self) -> bool:
        """Kills whatever is left, and removes all groups; returns whether nothing is left."""
        if self.folder is not None:
            if not end_control_group(str(self.folder)):
                return False
            self.folder = None
        return True


def _delegated_group(root: Path) -> Path | None:
    own = unified_group(root)
    # The root group of a machine, and old kernels, do not have this file.
    if own is None or not (own / "cgroup.kill").exists():
        return None
    if not (os.access(own, os.W_OK) and os.access(own / "cgroup.procs", os.W_OK)):
        return None
    is_all_that_it_sees = not (own.parent / "cgroup.procs").exists()
    return own if is_all_that_it_sees or any(_read_attribute(own, name) == b"1" for name in _ATTRIBUTES) else None


def _read_attribute(path: Path, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return os.getxattr(path, name)
    return b""
