"""A disk that a test can fill: a small tmpfs, mounted for one subprocess alone, which takes it along when it ends."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o size=1m,nr_inodes=64,mode=0700 tmpfs "$0" && exec "$@"'


@functools.cache
def _namespace() -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """What of `unshare` gives a mount namespace, and of `nsenter` enters it: as root, else as one's own root."""
    ways = ((), ()), (("--user", "--map-root-user"), ("--user", "--preserve-credentials"))
    for unshare, nsenter in ways:
        command = ["unshare", *unshare, "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        try:
            if subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0:
                return unshare, nsenter
        except FileNotFoundError:
            return None
    return None


def why_not() -> str | None:
    """Why there can be no such disk here, or None."""
    if _namespace() is None:
        return "nobody may mount a tmpfs here: neither as root nor in a user namespace (unshare -rm)"
    return None


def new_mounts() -> tuple[str, ...]:
    """What to put before a command that mounts something for itself alone; see `why_not`."""
    namespace = _namespace()
    assert namespace is not None, why_not()
    return ("unshare", *namespace[0], "--mount")


class SmallDisk:
    """The disk of one subprocess.

    Args:
        folder: where it is mounted, for the subprocess.

    Attributes:
        folder: as given.
        command: what to put before the subprocess's command; its pid stays the same.
    """

    def __init__(self, folder: Path) -> None:
        namespace = _namespace()
        assert namespace is not None, why_not()
        unshare, self._nsenter = namespace
        self.command = ("unshare", *unshare, "--mount", "sh", "-c", _MOUNT, str(folder))
        self.folder = folder
        self._pins: list[int] = []

    def path(self, pid: int) -> Path:
        """The disk as a path of the test's own.

        Args:
            pid: the subprocess's.
        """
        return Path(f"/proc/{pid}/root{self.folder}")

    def inside(self, pid: int) -> tuple[str, ...]:
        """What to put before a command that is to see the disk, too."""
        return ("nsenter", f"--target={pid}", *self._nsenter, "--mount")

    def fill(self, pid: int) -> None:
        """Not a byte is left; files without content can still be made."""
        with (self.path(pid) / "content").open("wb", buffering=0) as file:
            while _fits(functools.partial(file.write, bytes(4096))):
                pass

    def use_up_inodes(self, pid: int) -> None:
        """No file can be made, not even where one is removed: its inode is held."""
        disk = self.path(pid)
        self._pins += [os.open(socket, os.O_PATH) for socket in disk.rglob("*.sock")]
        for number in itertools.count():
            if not _fits((disk / f"file{number}").touch):
                return

    def free(self, pid: int) -> None:
        """There is room again."""
        disk = self.path(pid)
        for file in [*disk.glob("file*"), *disk.glob("content")]:
            file.unlink()
        self.close()

    def hold(self, pid: int, *files: Path) -> None:
        """Makes files of the disk ones that cannot be removed, all at once: the daemon makes missing files again."""
        script = 'for file; do mount --bind /dev/null "$file" || exit; done'
        command = [*self.inside(pid), "sh", "-c", script, "sh", *map(str, files)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    def close(self) -> None:
        """Lets go of what was held."""
        pins, self._pins = self._pins, []
        for descriptor in pins:
            os.close(descriptor)


def _fits(write: Callable[[], object]) -> bool:
    try:
        write()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True
