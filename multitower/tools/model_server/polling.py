"""Reads the file of --model_config_file again and again, as --model_config_file_poll_wait_seconds asks."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from multitower.tools.convert.reading import MAX_FILE_BYTES


class ConfigPoll:
    """Reloads the configuration when its file has changed. A context manager: polls while it is entered.

    A thread reads the file, since its file system may not answer. It sends SIGHUP to this process, which the daemon
    answers with a reload.

    Args:
        path: the file.
        interval_s: seconds from one look to the next.
    """

    def __init__(self, path: Path, interval_s: float) -> None:
        self._path = path
        self._interval_s = interval_s
        self._content = self._read()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="config poll", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        # The thread is not waited for: it may be reading from a file system that does not answer.
        self._ended.set()

    def _poll(self) -> None:
        while not self._ended.wait(self._interval_s):
            content = self._read()
            # Before the daemon runs and after its end, SIGHUP would end the process.
            listening = signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
            if content is not None and content != self._content and listening:
                self._content = content
                os.kill(os.getpid(), signal.SIGHUP)

    def _read(self) -> bytes | None:
        """The file's content, as far as it is accepted; None if it cannot be read now, as while it is replaced."""
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
        except OSError:
            return None
