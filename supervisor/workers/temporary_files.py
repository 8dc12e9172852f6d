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
import tempfile
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

    def make(self, serial: int) -> Path | None:
        """Makes the folder of a process; None if it cannot be made, which is logged once.

        Args:
            serial: never used twice.
        """
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}tmp-", dir=temporary_folder()))
            if self._lock is None:
                self._lock, self._descriptor = hold(self._folder)
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
        self._paths.discard(path)
        self._to_remove.put(path)

    def keep(self) -> None:
        """Makes folders again that somebody has removed while their processes run, and keeps them young.

        Programs that remove old files skip the folder, which is locked, or look at its times.
        """
        if self._folder is None or self._lock is None:
            return
        # On a full disk it is tried again.
        with contextlib.suppress(HeldError, OSError):
            if not self._lock.intact:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                self._release()
                self._lock, self._descriptor = hold(self._folder)
                message = "folder of temporary files was removed: it is made again"
                event(log, logging.WARNING, message, path=self._folder)
            for path in self._paths:
                path.mkdir(mode=0o700, exist_ok=True)
            now = time.monotonic()
            if now >= self._touch_at:
                self._touch_at = now + TOUCH_S
                touch(self._folder, self._lock.path, *self._paths)

    def close(self) -> None:
        """Removes all folders; call it when no process runs any more."""
        for path in tuple(self._paths):
            self.remove(path)
        self._to_remove.put(None)
        self._thread.join(CLOSE_S)
        self._release()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
            os.close(self._descriptor)

    def _run(self) -> None:
        for base in _bases():
            with contextlib.suppress(OSError):
                remove_stale(base)
        left: list[Path] = []
        while (path := self._to_remove.get()) is not None:
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                left.append(path)  # a process that the worker had started was still writing
        for path in left:
            shutil.rmtree(path, ignore_errors=True)


def _bases() -> set[Path]:
    """The folders in which daemons of this user may have left theirs."""
    found: set[Path] = set()
    for find in (temporary_folder, lambda: temporary_base()[0]):
        with contextlib.suppress(OSError):
            found.add(Path(os.path.realpath(find())))
    return found
