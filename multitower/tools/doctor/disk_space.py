"""Whether the disk of a folder has room for further files: permissions do not tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

ADVICE: Final = "free some (`df -i` shows the inodes), or choose a folder on another disk"


def no_inodes(folder: Path) -> str | None:
    """Why no file can be made in a folder, also no socket; None if its disk has inodes, or does not count them."""
    disk = _statvfs(folder)
    if disk is None:
        return None
    free = disk.f_ffree if os.geteuid() == 0 else disk.f_favail
    return "its disk has no free inodes" if disk.f_files and not free else None


def no_room(folder: Path) -> str | None:
    """Why nothing can be written to files of a folder; None if its disk has room."""
    disk = _statvfs(folder)
    if disk is None:
        return None
    free = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    return "its disk is full" if disk.f_blocks and not free else None


def _statvfs(folder: Path) -> os.statvfs_result | None:
    try:
        return os.statvfs(folder)
    except OSError:
        return None
