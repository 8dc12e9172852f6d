"""The path of a bound Unix socket: held by a lock, recognised by its inode, and taken again after its removal."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .runtime_dir import FileLock, HeldError, is_listened_to, touch


class SocketPath:
    """A path that this process alone binds a socket to.

    Args:
        path: where the socket is bound, or will be. Its lock file lies beside it.

    Attributes:
        path: as given.

    Raises:
        HeldError: another process holds the lock, or listens there.
        FileExistsError: a file that is no socket lies there.
        OSError: the lock cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None  # of the socket's file: no other file gets its inode number meanwhile
        self._folder_mode = 0o700
        self._lock = self._take()

    def _take(self) -> FileLock:
        """Locks the path; a socket that lies there may be replaced then."""
        lock = FileLock(self.path.with_name(f"{self.path.name}.lock"))
        try:
            self._refuse_taken()
        except (HeldError, OSError):
            lock.release()
            raise
        return lock

    def _refuse_taken(self) -> None:
        if self.path.exists() and not self.path.is_socket():
            raise FileExistsError(f"{self.path} is a file, not a socket")
        if is_listened_to(self.path):  # not by a daemon, which would hold the lock
            raise HeldError(f"{self.path} is in use by another process")

    def bound(self) -> None:
        """Remembers the socket that lies at the path now; call it after each bind."""
        self._forget()
        self._descriptor = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._folder_mode = self.path.parent.stat().st_mode & 0o7777

    @property
    def intact(self) -> bool:
        """Whether the bound socket and its lock are still at their paths."""
        return self._is_bound() and self._lock.intact

    def _is_bound(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.lstat())
        except OSError:
            return False

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def retake(self) -> bool:
        """Locks the path again after it, its lock or their folder was removed.

        A missing folder is made with its former mode, but not the folders above it.

        Returns:
            Whether the socket was removed: the caller binds another one then.

        Raises:
            HeldError: another process holds the path by now.
            OSError: a folder or file cannot be made.
        """
        folder = self.path.parent
        if not folder.exists():
            folder.mkdir(0o700)
            folder.chmod(self._folder_mode)
        if not self._lock.intact:
            lock = FileLock(self._lock.path)
            self._lock.release()
            self._lock = lock
        if self._is_bound():
            return False
        self._refuse_taken()
        return True

    def touch(self) -> None:
        """Sets the times of the socket and of its lock to now."""
        touch(self.path, self._lock.path)

    def release(self) -> None:
        """Removes the socket, unless it is another one by now, and its lock."""
        with contextlib.suppress(OSError):
            if self._is_bound():
                self.path.unlink()
        self._forget()
        self._lock.release()
