"""Private folders for the temporary files of worker processes: each is removed with its process, however that ends.

TensorFlow and Keras leave files behind in every process (`__autograph_generated_file….py`), and so does any library
that removes its files at the end of Python: a worker may be killed, and never ends that way. Each process gets a folder
of its own as TMPDIR. All are in one folder, on the file system that the daemon's own TMPDIR is on, so that neither the
space nor the memory that temporary files may take is other than before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import Final

from multitower.temporary_folder import temporary_folder

from ..loop.log import event
from ..loop.runtime_dir import (
    TEMPORARY_PREFIX,
    WORKER_FOLDER,
    FileLock,
    HeldError,
    hold,
    is_same_folder,
    make_own,
    make_temporary,
    remove_folder,
    remove_stale,
    temporary_base,
    touch,
)

log = logging.getLogger("multitower.daemon")

CLOSE_S: Final = 2.0
"""Seconds that removing the last files may take when the daemon ends; the next daemon removes what is left."""

TOUCH_S: Final = 3600.0
"""Seconds from one update of the folders' times to the next."""


class TemporaryFolders:
    """Makes and removes the folders, and removes what daemons have left that were killed.

    Files are removed by a thread, since there may be many. Where no folder can be made, as on a full disk, processes
    use the daemon's own TMPDIR.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._descriptor = -1
        self._paths: set[Path] = set()
        self._to_remove: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._has_failed = False
        self._touch_at = 0.0
        self._thread = threading.Thread(target=self._run, name="temporary-files", daemon=True)
        self._thread.start()
        # Apart from the other one: what has been left may take long to remove.
        self._sweep = threading.Thread(target=_remove_stale, name="old-temporary-files", daemon=True)
        self._sweep.start()

    def make(self, serial: int) -> Path | None:
        """Makes the folder of a process; None if it cannot be made, which is logged once.

        Args:
            serial: never used twice.
        """
        self.keep()
        try:
            if self._folder is None:
                prefix = f"{TEMPORARY_PREFIX}tmp-"
                self._folder, self._lock, self._descriptor = make_temporary(temporary_folder(), prefix)
            path = self._folder / f"{WORKER_FOLDER}{serial}"
            path.mkdir(mode=0o700)
        except (HeldError, OSError) as error:
            if not self._has_failed:
                event(log, logging.WARNING, "workers get no private folders for temporary files", cause=error)
            self._has_failed = True
            return None
        self._has_failed = False
        self._paths.add(path)
        return path

    def remove(self, path: Path) -> None:
        """Removes the folder of a process that has ended; it is gone a little later."""
        if path in self._paths:
            self._paths.discard(path)
            self._to_remove.put(path)

    def keep(self) -> None:
        """Makes folders again that somebody has removed while their processes run, and keeps them young.

        Programs that remove old files skip the folder, which is locked, or look at its times.
        """
        if self._folder is None or self._lock is None:
            return
        if not is_same_folder(self._descriptor, self._folder):
            try:
                make_own(self._folder, parents=False)
            except OSError as error:
                if os.path.lexists(self._folder):
                    self._forget(error)
                return
        # On a full disk it is tried again.
        with contextlib.suppress(HeldError, OSError):
            if not self._lock.intact:
                lock, descriptor = hold(self._folder)
                self._release()
                self._lock, self._descriptor = lock, descriptor
                message = "folder of temporary files was removed: it is made again"
                event(log, logging.WARNING, message, path=self._folder)
            for path in self._paths:
                path.mkdir(mode=0o700, exist_ok=True)
            now = time.monotonic()
            if now >= self._touch_at:
                self._touch_at = now + TOUCH_S
                touch(self._folder, self._lock.path, *self._paths)

    def _forget(self, cause: OSError) -> None:
        """Uses a new folder from now on: what is at the former path is not this daemon's."""
        message = "folder of temporary files was replaced by something else: later workers get another one"
        event(log, logging.WARNING, message, path=self._folder, cause=cause)
        self._paths.clear()  # files in a folder of somebody else are not to be removed
        self._release()
        self._folder = None

    def close(self) -> None:
        """Removes all folders; call it when no process runs any more."""
        for path in tuple(self._paths):
            self.remove(path)
        self._to_remove.put(None)
        until = time.monotonic() + CLOSE_S
        for thread in (self._thread, self._sweep):
            thread.join(max(0.0, until - time.monotonic()))
        if self._folder is not None and self._lock is not None:
            remove_folder(self._folder, self._lock)
            self._lock = None
            os.close(self._descriptor)

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
            os.close(self._descriptor)

    def _run(self) -> None:
        left: list[Path] = []
        while True:
            path = self._to_remove.get()
            # Again those that remained because a process that the worker had started was still writing.
            tried = [*left, path] if path is not None else left
            for folder in tried:
                shutil.rmtree(folder, ignore_errors=True)
            left = [folder for folder in tried if folder.exists()]
            if path is None:
                return


def _remove_stale() -> None:
    for base in _bases():
        with contextlib.suppress(OSError):
            remove_stale(base)


def _bases() -> set[Path]:
    """The folders in which daemons of this user may have left theirs."""
    found: set[Path] = set()
    for find in (temporary_folder, lambda: temporary_base()[0]):
        with contextlib.suppress(OSError):
            found.add(Path(os.path.realpath(find())))
    return found
