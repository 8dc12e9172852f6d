"""The guardian: kills what workers started when the daemon has ended and could not do it, as after a SIGKILL.

    python -I -S guardian_process.py ORIGIN [CONTROL_GROUP [EXTENSION]]

The daemon holds the other end of stdin and writes a line for each worker that starts (`+PID`) and that has ended
(`-PID`). At the end of stdin the daemon is gone. Then the guardian kills every process that is in the process group of
a worker that had not ended, or whose environment has an entry that begins with ORIGIN, a `NAME=VALUE`. It looks again
until there is none left, for at most `SWEEP_S` seconds, and ends. If workers have control groups, it also kills all
that is in CONTROL_GROUP, the folder of the group that contains theirs, and removes that. EXTENSION is the path of the
extension of the package setproctitle, which sets the process's title. Either may be "".

This file runs alone, and imports as little as possible: the guardian runs as long as the daemon. The daemon imports the
functions that read /proc and kill.
"""

from __future__ import annotations

import os
import signal
import sys
import time

SWEEP_S = 10.0
"""Seconds that the guardian tries to kill what is left; a process that waits for a disk cannot be killed."""

ROUND_S = 0.02
"""Seconds from one look to the next."""


class Process:
    """A process as /proc shows it.

    Attributes:
        pid: its process id.
        name: its name, as `ps` shows it.
        state: one letter; see proc(5).
        parent: the process id of its parent.
        group: its process group, which is the process id of the process that made the group.
        started: clock ticks from the boot of the machine to its start.
    """

    __slots__ = ("group", "name", "parent", "pid", "started", "state")

    def __init__(self, pid: int, name: str, fields: list[bytes]) -> None:
        self.pid = pid
        self.name = name
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.started = int(fields[19])

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, and only its parent may still ask how."""
        return self.state in "ZX"


def _read_file(path: str) -> bytes:
    """Reads a file of /proc. The daemon reads a dozen a few times a second; a file object takes twice as long."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks: list[bytes] = []
        while chunk := os.read(descriptor, 1 << 16):
            chunks.append(chunk)
    finally:
        os.close(descriptor)
    return b"".join(chunks)


def read_process(pid: int) -> Process | None:
    """Reads the state of a process; None if there is none, or the system does not show it."""
    try:
        text = _read_file(f"/proc/{pid}/stat")
    except OSError:
        return None
    # The name is in parentheses, and may contain some itself.
    start, end = text.index(b"("), text.rindex(b")")
    return Process(pid, text[start + 1 : end].decode("utf-8", "backslashreplace"), text[end + 2 :].split())


def read_environment_entry(pid: int, beginning: bytes) -> bytes | None:
    """Reads the first entry of a process's environment that begins so, as it was when its program started.

    Returns:
        The rest of the entry; None if there is none, or the system does not show it.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb", 0) as file:
            entries = file.read().split(b"\0")
    except OSError:
        return None
    return next((entry[len(beginning) :] for entry in entries if entry.startswith(beginning)), None)


def read_adopted(pid: int) -> list[int]:
    """Reads the process ids of the children of a process's main thread; none if it has ended.

    The kernel gives orphans to this thread. Only it has children where no other thread of the process starts any.
    """
    try:
        return list(map(int, _read_file(f"/proc/{pid}/task/{pid}/children").split()))
    except OSError:
        return []


def read_children(pid: int) -> list[int]:
    """Reads the process ids of the children of a process; none if it has ended."""
    pids: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            pids += map(int, _read_file(f"/proc/{pid}/task/{thread}/children").split())
    except OSError:
        pass  # it, or one of its threads, has just ended
    return pids


def kill(process: Process) -> bool:
    """Kills a process, and never another one that has got its process id meanwhile; returns whether it was killed."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False  # it has ended, or the daemon is out of descriptors and tries again
    try:
        now = read_process(process.pid)
        if now is None or now.started != process.started:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False  # it has ended, or belongs to another user
    finally:
        os.close(pidfd)
    return True


def end_control_group(folder: str) -> bool:
    """Kills every process in a control group (version 2) and in those below it, and removes the groups.

    Returns:
        Whether they are gone. Otherwise call it again: a process takes a moment to end.
    """
    try:
        with open(f"{folder}/cgroup.kill", "wb", 0) as file:
            file.write(b"1")
        for path, _, _ in os.walk(folder, topdown=False):
            os.rmdir(path)
    except OSError:
        return not os.path.exists(folder)  # a process is in one that has not ended yet, or there is none
    return True


def kill_rest(origin: bytes, groups: set[int], ended_at: int, control_group: str | None = None) -> None:
    """Kills what workers started, until there is none of it left, for at most `SWEEP_S` seconds.

    Args:
        origin: the beginning of an entry of the environments of such processes.
        groups: the process groups of the workers that had not ended when the daemon did.
        ended_at: when that was, in clock ticks since the boot of the machine.
        control_group: the folder of the control group that contains those of the workers, or None.
    """
    for number in tuple(groups):
        leader = read_process(number)
        if leader is not None and leader.started > ended_at:
            groups.discard(number)  # the system has given the number of a worker to another process
    until = time.monotonic() + SWEEP_S
    while _kill_round(origin, groups, control_group) and time.monotonic() < until:
        time.sleep(ROUND_S)


def _kill_round(origin: bytes, groups: set[int], control_group: str | None) -> bool:
    """Kills what there is; returns whether some of it may run on."""
    found = False
    if control_group is not None:
        found = not end_control_group(control_group)
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        process = read_process(int(name))
        if process is None or process.has_ended:
            continue
        if process.group in groups or read_environment_entry(process.pid, origin) is not None:
            found |= kill(process)
    return found


def read_groups(descriptor: int) -> set[int]:
    """Reads lines until the end; returns the process groups of the workers that have started and not ended."""
    groups: set[int] = set()
    rest = b""
    while data := os.read(descriptor, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    return groups


def _set_title(title: str, extension: str) -> None:
    """Sets what `ps` shows in place of the command line, as `multitower/process_title.py` does.

    Args:
        title: the title.
        extension: the path of the extension of the package setproctitle.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    os.environ["SPT_NOENV"] = "1"
    try:
        spec = spec_from_file_location("setproctitle._setproctitle", extension)
        if spec is not None:
            module_from_spec(spec).setproctitle(title)
    except ImportError:
        pass  # it belongs to another Python


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # it ends after the daemon
    os.chdir("/")  # it must not keep a file system busy
    origin, control_group, extension = (*sys.argv[1:], "", "")[:3]
    if extension:
        _set_title("multitower: guardian", extension)
    try:
        with open("/proc/self/comm", "w") as name:
            name.write("mt-guardian")
    except OSError:
        pass  # /proc is read-only, as in some sandboxes: `ps` shows the name of Python then
    groups = read_groups(0)
    ended_at = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
    kill_rest(os.fsencode(origin), groups, ended_at, control_group or None)


if __name__ == "__main__":
    _main()
