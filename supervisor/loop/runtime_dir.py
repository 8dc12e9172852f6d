"""Files of a running daemon: its private folder, its locks, and the paths of its sockets.

An ipc bind takes a path over silently even while another daemon listens there, so each path is guarded by a lock
file beside it (flock: the kernel lets go when the process dies, however it dies).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

MAX_IPC_PATH = 107
"""Bytes of a Unix socket's path: sun_path of unix(7), less its final zero."""

_PREFIX = "multitower-"
_LOCK = "lock"


class HeldError(Exception):
    """Another process holds an endpoint or a folder; the message names it."""


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process.

    Raises:
        HeldError: somebody else holds it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise HeldError(f"{path} is held by another process") from None
            try:
                same = os.path.samestat(os.fstat(descriptor), os.stat(path))
            except FileNotFoundError:
                same = False
            if same:
                break
            os.close(descriptor)  # its last holder removed it in the meantime: take the new one
        self._descriptor = descriptor

    def release(self) -> None:
        """Removes the file, where it can, and lets go of the lock, in this order, so that no two can hold it."""
        _remove(self.path)
        os.close(self._descriptor)


class RuntimeDir:
    """The folder (mode 0700) of the workers' sockets.

    A configured folder, or systemd's RUNTIME_DIRECTORY, is used as it is and is the daemon's alone. Otherwise a
    new one is made under XDG_RUNTIME_DIR or the temporary directory, and what dead daemons left there is removed.

    Args:
        configured: an absolute path, or None.

    Raises:
        HeldError: another daemon uses the configured folder.
        OSError: it cannot be made or used.
    """

    def __init__(self, configured: Path | None) -> None:
        systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        chosen = configured or (Path(systemd) if systemd else None)
        self._own = chosen is None
        if chosen is None:
            base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
            _remove_stale(base)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        else:
            chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path = chosen
        status = self.path.stat()
        if status.st_uid != os.geteuid():
            raise PermissionError(f"{self.path} belongs to another user")
        if stat.S_IMODE(status.st_mode) != 0o700:
            self.path.chmod(0o700)
        self._lock = FileLock(self.path / _LOCK)
        for socket in self.path.glob("w*.sock"):
            socket.unlink(missing_ok=True)
        longest = self.path / "w9999999999.sock"
        if len(os.fsencode(longest)) > MAX_IPC_PATH:
            self.close()
            raise OSError(f"runtime_dir {self.path} is too long for sockets: {MAX_IPC_PATH} bytes a path at most")

    @property
    def control_socket(self) -> Path:
        """The path of the operator's endpoint."""
        return self.path / "control.sock"

    def worker_socket(self, serial: int) -> Path:
        """The path of one worker's socket; `serial` is never used twice."""
        return self.path / f"w{serial}.sock"

    def close(self) -> None:
        """Removes what the daemon made, as far as the folder can be written."""
        for socket in self.path.glob("w*.sock"):
            _remove(socket)
        self._lock.release()
        if self._own:
            shutil.rmtree(self.path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Removes a file that is of no use any more; on a disk that has gone, or cannot be written, it stays."""
    with contextlib.suppress(OSError):
        path.unlink()


def _remove_stale(base: Path) -> None:
    """Removes the folders of this user's daemons that are dead: nobody holds their locks."""
    for folder in base.glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.geteuid():
                continue
            if not (folder / _LOCK).exists():
                continue
            lock = FileLock(folder / _LOCK)
        except (HeldError, OSError):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
