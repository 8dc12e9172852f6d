"""Findings about the folder for temporary files, which TensorFlow and a daemon without `runtime_dir` need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from multitower.temporary_folder import ADVICE, NoTemporaryFolderError, configured_folders, temporary_folder
from multitower.tools.doctor import disk_space
from multitower.tools.doctor.disk_space import no_inodes, no_room
from multitower.tools.doctor.findings import Finding, Level
from multitower.tools.doctor.limits import LIMITS

NOT_LOADED: Final = "the models were not loaded: doctor itself needs a folder for temporary files to load them"


def folder_or_none() -> Path | None:
    """The folder for temporary files; None if no folder can be written."""
    try:
        return temporary_folder()
    except NoTemporaryFolderError:
        return None


def finding(*, needed: bool) -> Finding:
    """A finding about the folder for temporary files.

    Args:
        needed: whether the daemon cannot serve without one: it has no other folder for its sockets, or runs TensorFlow.
    """
    try:
        folder = temporary_folder()
    except NoTemporaryFolderError as error:
        consequence = "the daemon or its workers cannot start" if needed else "handlers that use one will fail"
        level = Level.PROBLEM if needed else Level.WARNING
        return Finding(LIMITS, level, f"{error.cause}: {consequence}", ADVICE)
    configured = configured_folders()
    if configured and not _is_same(configured[0].partition("=")[2], folder):
        path = Path(configured[0].partition("=")[2])
        full = no_room(path) or no_inodes(path)
        advice = disk_space.ADVICE if full else "make it a folder that the daemon's user can write, or unset it"
        cause = f" ({full})" if full else ""
        text = f"{configured[0]} cannot be written{cause}: temporary files go to {folder} instead"
        return Finding(LIMITS, Level.WARNING, text, advice)
    if not configured and _is_same(os.curdir, folder):
        text = f"neither /tmp nor /var/tmp can be written: temporary files go to the current folder, {folder}"
        return Finding(LIMITS, Level.WARNING, text, ADVICE)
    return Finding(LIMITS, Level.OK, f"temporary files go to {folder}")


def _is_same(path: str, folder: Path) -> bool:
    try:
        return os.path.samefile(path, folder)
    except OSError:
        return False
