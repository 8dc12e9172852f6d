"""The folder for temporary files, and one error, which says what to do, where there is none."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

ADVICE: Final = "set TMPDIR to a folder that this user can write; in a container, mount a tmpfs at /tmp"

_VARIABLES: Final = ("TMPDIR", "TEMP", "TMP")
_SYSTEM_FOLDERS: Final = ("/tmp", "/var/tmp", "/usr/tmp")


class NoTemporaryFolderError(OSError):
    """No folder for temporary files can be written. The message lists those that were tried, and says what to do.

    Attributes:
        cause: what was tried, without the advice.
    """

    def __init__(self, tried: str) -> None:
        self.cause = f"no folder for temporary files can be written ({tried})"
        super().__init__(errno.EROFS, f"{self.cause}: {ADVICE}")

    def __str__(self) -> str:
        return str(self.strerror)


def temporary_folder() -> Path:
    """Returns the folder for temporary files: the first one that can be written, as Python's `tempfile` chooses it.

    It is TMPDIR, TEMP or TMP if one of them is set and can be written, else a folder of the system, else the current
    folder. A folder on a full disk cannot be written.

    Raises:
        NoTemporaryFolderError: none of these can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        raise NoTemporaryFolderError(", ".join([*configured_folders(), *_SYSTEM_FOLDERS, _current_folder()])) from None


def configured_folders() -> list[str]:
    """The folders that the environment names for temporary files, each as `VARIABLE=folder`."""
    return [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]


def _current_folder() -> str:
    try:
        return f"the current folder {Path.cwd()}"
    except OSError:
        return "the current folder, which was removed"
