"""Files of a running daemon: its private folder, its locks, and the paths of its sockets.

Binding an ipc socket replaces whatever lies at its path, even the socket of a running daemon. So each path is guarded
by a lock file beside it. The lock is a flock: the kernel releases it when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from multitower.temporary_folder import temporary_folder

from .log import event

log = logging.getLogger("multitower.daemon")

MAX_IPC_PATH: Final = 107
"""Bytes of a Unix socket's path: sun_path of unix(7), less its final zero."""

LOCK_NAME: Final = "multitower.lock"
"""The lock of a runtime folder. It also marks the folder as a daemon's own, after a daemon was killed in it."""

SUBFOLDER: Final = "multitower"
"""Made in a configured folder that is not the daemon's alone."""

TEMPORARY_PREFIX: Final = "multitower-"
"""The beginning of the names of the folders that a daemon makes in a folder for temporary files."""

WORKER_FOLDER: Final = "tmp-"
"""The beginning of the names of the folders for the temporary files of workers, in such a folder."""

LONGEST_NAME: Final = "w9999999999.sock"

_OWN_NAMES: Final = re.compile(r"w[0-9]+\.sock|(?:control|gateway)\.sock(?:\.lock)?")
_MODE: Final = 0o700


class HeldError(Exception):
    """Another process holds an endpoint or a folder; the message names it."""


class RuntimeDirError(OSError):
    """The system did not let the daemon make or use its runtime folder. The message names the folder and the setting.

    Args:
        error: as the system raised it, with the path.
        setting: what the user changes to get another folder.
    """

    def __init__(self, error: OSError, setting: str) -> None:
        path = os.fsdecode(error.filename)
        super().__init__(error.errno, f"{path} cannot be made or used: {error.strerror}; see {setting}")

    def __str__(self) -> str:
        return str(self.strerror)


class NotBindableYetError(OSError):
    """An endpoint cannot be bound now, but perhaps later: its address, name or folder is not there yet."""


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process.

    Args:
        path: the lock file; created if it does not exist. A symbolic link is not followed.

    Raises:
        HeldError: another process holds the lock.
        OSError: the file cannot be opened or created, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            try:
                self._descriptor = os.open(path, flags, 0o600)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise OSError(error.errno, f"the lock {path.name} is a symbolic link") from None
                raise
            try:
                if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                    raise OSError(errno.EINVAL, f"the lock {path.name} is no regular file")
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.intact:
                    return
            except BlockingIOError:
                os.close(self._descriptor)
                raise HeldError(f"{path} is held by another process") from None
            except OSError:
                os.close(self._descriptor)
                raise
            # The previous holder removed this file after we opened it. Lock the new one.
            os.close(self._descriptor)

    @property
    def intact(self) -> bool:
        """Whether the locked file is still the one at `path`."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def release(self, *, keep_file: bool = False) -> None:
        """Removes the file, if it is still ours and can be removed, and then releases the lock.

        In this order, so that two processes never hold it at the same time.

        Args:
            keep_file: only release the lock.
        """
        with contextlib.suppress(OSError):
            if not keep_file and self.intact:
                self.path.unlink()
        os.close(self._descriptor)


def is_listened_to(path: Path) -> bool:
    """Whether a process listens on the Unix socket at a path."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # and has as many connections waiting as it allows
        except OSError:
            return False
    return True


def private_folder(chosen: Path) -> Path:
    """The folder that a daemon uses when `chosen` is configured; creates and changes nothing.

    Returns:
        `chosen` if it does not exist yet, or is a daemon's own: of this user, with mode 0700, and empty or with the
        lock of a daemon. Otherwise the sub-folder `multitower`, and `chosen` keeps its mode and its files.

    Raises:
        OSError: `chosen` is a symbolic link or no folder, or the sub-folder exists and is not a daemon's own.
    """
    if _objection(chosen) is None:
        return chosen
    path = chosen / SUBFOLDER
    objection = _objection(path)
    if objection is not None:
        raise OSError(f"{path} {objection}; set runtime_dir to another folder")
    return path


def _objection(path: Path) -> str | None:
    """Why a folder is not a daemon's own; None if it is, or if there is none yet.

    Raises:
        OSError: a symbolic link, or no folder.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        raise OSError(f"{path} is a symbolic link; set runtime_dir to the folder that it refers to")
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{path} is not a folder")
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    permissions = status.st_mode & 0o777  # a set-group-ID bit is inherited from the parent
    if permissions != _MODE:
        return f"has mode {permissions:o}, not {_MODE:o}"
    lock = path / LOCK_NAME
    if os.listdir(path) and (lock.is_symlink() or not lock.is_file()):
        return "holds files that are not the daemon's"
    return None


class RuntimeDir:
    """The private folder (mode 0700) of the workers' sockets and of the control socket.

    With a configured folder, or with systemd's RUNTIME_DIRECTORY, it is the folder that `private_folder` returns.
    Otherwise a new one is made in the folder that `temporary_base` returns, and removed by `close`. Only files with
    names that a daemon gives are ever removed, and no symbolic link is followed.

    Programs that remove old files, such as systemd-tmpfiles, skip a folder that is locked with flock(2): the folder is
    locked, and `touch` keeps it and its files young for those that look at times alone.

    Args:
        configured: an absolute path, or None.

    Attributes:
        path: the folder.

    Raises:
        HeldError: another daemon uses the folder.
        RuntimeDirError: the system did not let the daemon make or use it.
        OSError: the folder cannot be used.
    """

    def __init__(self, configured: Path | None) -> None:
        systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        chosen = configured or (Path(systemd) if systemd else None)
        try:
            self._open(chosen)
        except OSError as error:
            if error.filename is None or error.strerror is None:
                raise  # the daemon's own, which says what to do
            from_systemd = "RuntimeDirectory of the systemd unit, or set runtime_dir"
            raise RuntimeDirError(error, "runtime_dir" if configured or not systemd else from_systemd) from None

    def _open(self, chosen: Path | None) -> None:
        self._temporary = chosen is None
        if chosen is None:
            base, refused = temporary_base()
            if refused is not None:
                event(log, logging.WARNING, "XDG_RUNTIME_DIR is not used", cause=refused, instead=base)
            self.path, self._lock, self._descriptor = _make_temporary(base)
        else:
            self.path = private_folder(chosen)
            make_own(self.path, parents=True)
            self._lock, self._descriptor = hold(self.path)
        _remove_own_files(self.path)

    @property
    def control_socket(self) -> Path:
        """The path of the operator's endpoint."""
        return self.path / "control.sock"

    @property
    def gateway_socket(self) -> Path:
        """The path of the gateway's own endpoint."""
        return self.path / "gateway.sock"

    def worker_socket(self, serial: int) -> Path:
        """The path of one worker's socket; `serial` is never used twice."""
        return self.path / f"w{serial}.sock"

    @property
    def intact(self) -> bool:
        """Whether the folder and its lock are still those that the daemon made."""
        return is_same_folder(self._descriptor, self.path) and self._lock.intact

    def restore(self) -> bool:
        """Makes the folder and its lock anew if somebody has removed them; a few system calls if not.

        Where the same folder cannot be made, or another daemon holds it by now, a temporary folder replaces it.

        Returns:
            Whether the folder was made anew; `path` may be another one then.

        Raises:
            OSError: neither can be made.
        """
        if self.intact:
            return False
        before = self.path
        lock_only = is_same_folder(self._descriptor, before)
        try:
            if not lock_only:
                make_own(before, parents=not self._temporary)
            self._replace(before, temporary=self._temporary)
        except (HeldError, OSError) as error:
            self._replace_by_temporary()
            event(log, logging.WARNING, "runtime folder replaced", path=self.path, removed=before, cause=error)
        else:
            removed = "lock of the runtime folder" if lock_only else "runtime folder"
            event(log, logging.WARNING, f"{removed} was removed: it is made again", path=before)
        return True

    def _replace(self, path: Path, *, temporary: bool) -> None:
        lock, descriptor = hold(path)
        self._use(path, lock, descriptor, temporary=temporary)

    def _use(self, path: Path, lock: FileLock, descriptor: int, *, temporary: bool) -> None:
        self._lock.release()
        os.close(self._descriptor)
        self.path, self._temporary, self._lock, self._descriptor = path, temporary, lock, descriptor

    def _replace_by_temporary(self) -> None:
        folder, lock, descriptor = _make_temporary(temporary_base()[0])
        self._use(folder, lock, descriptor, temporary=True)

    def touch(self) -> None:
        """Sets the times of the folder and of the daemon's files in it to now."""
        with contextlib.suppress(OSError):
            touch(self.path, self._lock.path, *_own_files(self.path))

    def close(self) -> None:
        """Removes what the daemon made, as far as the folder can be written."""
        _remove_own_files(self.path)
        if self._temporary:
            remove_folder(self.path, self._lock)
        else:
            self._lock.release()
        os.close(self._descriptor)


def temporary_base() -> tuple[Path, str | None]:
    """Returns the folder for a runtime folder that is not configured, and why it is not XDG_RUNTIME_DIR.

    XDG_RUNTIME_DIR is used if it is an existing folder of this user, as its specification demands. It is another user's
    under `su` and `sudo -E`, and absent after a logout. The reason is None where it is used, or not set at all.

    Raises:
        NoTemporaryFolderError: no folder for temporary files can be written.
    """
    value = os.environ.get("XDG_RUNTIME_DIR")
    if not value:
        return temporary_folder(), None
    path = Path(value)
    try:
        status = path.stat()
    except OSError as error:
        refused = f"{path} cannot be used: {error.strerror}"
    else:
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and os.access(path, os.W_OK | os.X_OK):
            return path, None
        refused = f"{path} is no folder that belongs to this user and can be written"
    return temporary_folder(), refused


def touch(*paths: Path) -> None:
    """Sets the times of files to now. Those that are gone, or are not this user's, are skipped."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.utime(path, follow_symlinks=False)


def _make_temporary(base: Path) -> tuple[Path, FileLock, int]:
    _check_length(base / f"{TEMPORARY_PREFIX}12345678")
    return make_temporary(base, TEMPORARY_PREFIX)


def make_temporary(base: Path, prefix: str) -> tuple[Path, FileLock, int]:
    """Makes a new folder and locks it.

    Args:
        base: the folder to make it in.
        prefix: the beginning of its name, which begins with `TEMPORARY_PREFIX`.

    Returns:
        The folder, and what `hold` returns.

    Raises:
        HeldError: another process locks each folder that is made.
        OSError: it cannot be made or locked.
    """
    attempts = 3
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        try:
            return (folder, *hold(folder))
        except (HeldError, OSError) as error:
            with contextlib.suppress(OSError):
                (folder / LOCK_NAME).unlink(missing_ok=True)
                folder.rmdir()
            attempts -= 1
            # A daemon that removes old folders takes one whose lock file is there, but not locked yet.
            if attempts == 0 or not isinstance(error, HeldError | FileNotFoundError):
                raise


def remove_folder(folder: Path, lock: FileLock) -> None:
    """Removes a daemon's own folder and its lock.

    Where files of a daemon or its workers remain, the lock file stays too: it marks the folder for the next daemon,
    which removes them.
    """
    remains = False
    with contextlib.suppress(OSError):
        remains = any(name.startswith(WORKER_FOLDER) or _OWN_NAMES.fullmatch(name) for name in os.listdir(folder))
    lock.release(keep_file=remains)
    if not remains:
        with contextlib.suppress(OSError):
            folder.rmdir()


def is_same_folder(descriptor: int, path: Path) -> bool:
    """Whether a descriptor's folder is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def make_own(path: Path, *, parents: bool) -> None:
    """Makes a daemon's own folder unless it exists.

    Args:
        path: of the folder.
        parents: whether to make the folders above it as well.

    Raises:
        OSError: it cannot be made, or is not a daemon's own.
    """
    _check_length(path)
    path.mkdir(mode=_MODE, parents=parents, exist_ok=True)
    objection = _objection(path)  # somebody else may have made it just now
    if objection is not None:
        raise OSError(f"{path} {objection}")


def hold(path: Path) -> tuple[FileLock, int]:
    """Locks a folder against other daemons and against programs that remove old files.

    Returns:
        The lock against other daemons, and a descriptor of the folder.

    Raises:
        HeldError: another daemon uses the folder.
        OSError: the folder or its lock cannot be opened.
    """
    try:
        lock = FileLock(path / LOCK_NAME)
    except HeldError:
        cause = f"the folder {path} is held by another process, which should be a daemon"
        raise HeldError(f"{cause}: end it, or change runtime_dir") from None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        lock.release()
        raise
    with contextlib.suppress(OSError):  # somebody removes old files just now, or the file system has no locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return lock, descriptor


def _check_length(folder: Path) -> None:
    if len(os.fsencode(folder / LONGEST_NAME)) > MAX_IPC_PATH:
        raise OSError(f"runtime_dir {folder} is too long for sockets: {MAX_IPC_PATH} bytes a path at most")


def _own_files(folder: Path) -> Iterator[Path]:
    """The sockets and locks of a daemon in its folder, except the folder's own lock."""
    for name in os.listdir(folder):
        if _OWN_NAMES.fullmatch(name) and not (folder / name).is_dir():
            yield folder / name


def _remove_own_files(folder: Path) -> None:
    """Removes a daemon's files; those that cannot be removed, as on a read-only disk, stay."""
    with contextlib.suppress(OSError):
        for path in _own_files(folder):
            path.unlink(missing_ok=True)


def remove_stale(base: Path) -> None:
    """Removes the temporary folders of this user's daemons that were killed: nobody holds their locks.

    It may take long, as the temporary files of their workers are removed as well.
    """
    for folder in base.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            if _objection(folder) is not None or not (folder / LOCK_NAME).exists():
                continue
            lock = FileLock(folder / LOCK_NAME)
        except (HeldError, OSError):
            continue
        _remove_own_files(folder)
        for path in folder.glob(f"{WORKER_FOLDER}*"):
            if not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        remove_folder(folder, lock)
