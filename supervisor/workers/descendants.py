"""What workers start: it ends with its worker, wherever it has gone, and what has ended is reaped.

A worker makes a process group, which is killed when the worker ends (`child_process.py`). What left the group becomes a
child of the daemon when its parent ends, since the daemon is a *subreaper* (prctl(2)). There it is found: by a variable
of its environment that workers pass on, or because it can come from nowhere else. Where the system has delegated a
control group to the daemon, each worker has one below it (`control_groups.py`).
A process leaves that only on purpose, by writing to the file system of control groups.
`guardian.py` cares for the case that the daemon itself is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from typing import Final

from ..loop.log import event
from .bootstrap import ORIGIN, ORIGIN_PID
from .control_groups import ControlGroups
from .guardian import Guardian
from .guardian_process import Process, kill, read_adopted, read_children, read_environment_entry, read_process

log = logging.getLogger("multitower.manager")

UNCLAIMED_S: Final = 10.0
"""Seconds after which a child that has ended is reaped, although code of this process may have started it."""

CLOSE_S: Final = 2.0
"""Seconds that killed processes get to end when the daemon ends."""

_ROUND_S: Final = 0.01
_PR_SET_CHILD_SUBREAPER: Final = 36


class Descendants:
    """Finds, kills and reaps what the workers of this process have started.

    Make it in the main thread before the first worker is started, and one at a time.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._group = os.getpgid(0)
        # PID 1 of a container inherits processes of others, and a shell that became the daemon may have started some.
        self._has_strangers = self._pid == 1 or bool(read_children(self._pid))
        resource_tracker.ensure_running()  # before the environment is changed: it comes from no worker
        origin = f"{self._pid}.{secrets.token_hex(8)}"
        self._entry = f"{ORIGIN}={origin}".encode()  # and `ORIGIN_PID` of a worker
        self._workers: dict[int, str | None] = {}  # by process id, the folder of its control group
        self._helpers: set[int] = set()  # process ids of the daemon's other processes
        self._uncertain: dict[int, set[int]] = {}  # orphans, and the running workers that they may come from
        self._killed: set[tuple[int, int]] = set()  # process ids and starts of those that still have to end
        self._unclaimed: dict[int, float] = {}  # children that have ended, and when that was seen
        if _set_subreaper(True) != 0:
            cause = os.strerror(ctypes.get_errno())
            event(log, logging.WARNING, "processes that leave the group of their worker are not found", cause=cause)
        # When PID 1 of a container ends, the kernel kills all other processes.
        self._control_groups = ControlGroups()
        self._guardian = Guardian(self._entry.decode(), self._control_groups.folder) if self._pid != 1 else None
        os.environ[ORIGIN] = origin + ORIGIN_PID.format(0)

    def make_control_group(self) -> str | None:
        """Makes the control group of a worker; returns its folder, None if it gets none. Call it before each start."""
        # What left a worker until now does not come from the new one.
        self._look(worker_ended=False)
        return self._control_groups.make()

    def kill_control_group(self, folder: str | None) -> None:
        """Kills whatever is in the control group of a worker that could not be started, and removes the group."""
        self._control_groups.kill(folder)

    def add_worker(self, pid: int, control_group: str | None) -> None:
        """A worker has been started.

        Args:
            pid: its process id.
            control_group: what `make_control_group` returned for it.
        """
        self._workers[pid] = control_group
        if self._guardian is not None:
            self._guardian.add_worker(pid)

    def remove_worker(self, pid: int) -> None:
        """Kills what a worker has left that has ended and has been reaped."""
        self._control_groups.kill(self._workers.pop(pid, None))
        self._look(worker_ended=True)
        if self._guardian is not None:
            self._guardian.remove_worker(pid)

    def add_helper(self, pid: int) -> None:
        """A process of the daemon's own has been started, in a process group of its own: no worker started it.

        The guardian kills its process group when the daemon is killed.
        """
        self._helpers.add(pid)
        if self._guardian is not None:
            self._guardian.add_worker(pid)

    def remove_helper(self, pid: int) -> None:
        """Such a process has ended, and has been reaped."""
        self._helpers.discard(pid)
        if self._guardian is not None:
            self._guardian.remove_worker(pid)

    def tick(self) -> None:
        """Kills what is left of workers that have ended, reaps orphans, and starts the guardian again if it ended."""
        if self._guardian is not None:
            self._guardian.tick()
        self._control_groups.tick()
        self._look(worker_ended=False)

    def close(self) -> None:
        """Kills what workers have left, and waits for its end, for at most `CLOSE_S`. Call it when no worker runs."""
        until = time.monotonic() + CLOSE_S
        while self._look(worker_ended=True) | (not self._control_groups.close()) and time.monotonic() < until:
            time.sleep(_ROUND_S)
        if self._guardian is not None:
            self._guardian.close()
        os.environ.pop(ORIGIN, None)
        _set_subreaper(False)

    def _look(self, *, worker_ended: bool) -> bool:
        """Looks at all children but the workers; returns whether some that were killed still have to end."""
        # A child of a killed process becomes a child of the daemon: that comes from a worker that has ended as well.
        worker_ended = worker_ended or bool(self._killed)
        known = {*self._workers, *self._helpers, self._guardian.pid if self._guardian is not None else None}
        # A few times a second: the children of other threads, which are no orphans, count once a worker has ended.
        pids = read_children(self._pid) if worker_ended else read_adopted(self._pid)
        children = list(_read(pid for pid in pids if pid not in known))
        self._reap([process for process in children if process.has_ended])
        orphans = [process for process in children if not process.has_ended and process.group != self._group]
        self._uncertain = {each.pid: self._uncertain[each.pid] for each in orphans if each.pid in self._uncertain}
        left = [process for process in orphans if self._is_left(process, worker_ended=worker_ended)]
        killed = {(each.pid, each.started): each.name for each in _with_descendants(left) if kill(each)}
        new = sorted(f"{name} ({pid})" for (pid, started), name in killed.items() if (pid, started) not in self._killed)
        if new:
            event(log, logging.INFO, "killed processes that a worker had started", processes=", ".join(new))
        self._killed = set(killed)
        return bool(killed)

    def _is_left(self, orphan: Process, *, worker_ended: bool) -> bool:
        """Whether an orphan comes from a worker that has ended."""
        if orphan.group in self._workers:
            return False
        control_group = self._control_groups.group_of(orphan.pid)
        if control_group is not None:
            return control_group not in self._workers.values()
        rest = read_environment_entry(orphan.pid, self._entry)
        if rest is not None:
            return rest not in {ORIGIN_PID.format(pid).encode() for pid in self._workers}
        if self._has_strangers:
            return False
        # It got an environment of its own. It comes from a worker that has just ended, or else from one of those that
        # ran when it was first seen. While a worker has ended that was not removed yet, nothing is certain.
        if orphan.pid not in self._uncertain and not worker_ended and any(map(_has_ended, self._workers)):
            return False
        if orphan.pid not in self._uncertain and not worker_ended:
            event(log, logging.DEBUG, "a process has left its worker", pid=orphan.pid, name=orphan.name)
        workers = self._uncertain.setdefault(orphan.pid, set() if worker_ended else set(self._workers))
        workers &= self._workers.keys()
        return not workers

    def _reap(self, ended: list[Process]) -> None:
        """Reaps children that have ended, except those that other code of this process may be waiting for."""
        now = time.monotonic()
        # Such code starts its processes in the daemon's own process group, and waits for them soon.
        claimed = [process.pid for process in ended if process.group == self._group]
        self._unclaimed = {pid: self._unclaimed.get(pid, now) for pid in claimed}
        for process in ended:
            since = self._unclaimed.get(process.pid)
            if since is None or now - since >= UNCLAIMED_S:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG)


def _set_subreaper(value: bool) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(value), 0, 0, 0)
    return result


def _read(pids: Iterable[int]) -> Iterator[Process]:
    for pid in pids:
        if (process := read_process(pid)) is not None:
            yield process


def _has_ended(pid: int) -> bool:
    process = read_process(pid)
    return process is None or process.has_ended


def _with_descendants(processes: Iterable[Process]) -> Iterator[Process]:
    """These processes, their children, theirs, and so on, except those that have ended."""
    found, seen = list(processes), set()
    while found:
        process = found.pop()
        if process.pid not in seen and not process.has_ended:
            seen.add(process.pid)
            yield process
            found += _read(read_children(process.pid))
