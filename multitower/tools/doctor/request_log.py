"""Whether the request log could be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from multitower.supervisor.config.config import Config
from multitower.tools.doctor.disk_space import ADVICE, no_inodes, no_room
from multitower.tools.doctor.findings import Finding, Level

SECTION: Final = "request log"


def findings(config: Config) -> Iterator[Finding]:
    """Findings about the request log; none where none is configured."""
    if config.request_log is None:
        return
    path = config.request_log.path
    problem = None
    if path.is_symlink():
        problem = "it is a symbolic link, which is not followed"
    elif path.exists() and not path.is_file():
        problem = "it is no regular file"
    elif not path.parent.is_dir():
        problem = "its folder does not exist"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        problem = "its folder cannot be written, so that it cannot be renamed when it is full"
    elif path.exists() and not os.access(path, os.W_OK):
        problem = "it cannot be written"
    full = no_room(path.parent) or (None if path.exists() else no_inodes(path.parent))
    if problem is None and full is not None:
        yield Finding(SECTION, Level.WARNING, f"{path}: {full}; requests are served, and not logged", ADVICE)
    elif problem is None:
        yield Finding(SECTION, Level.OK, f"{path}: can be written")
    else:
        advice = "correct `request_log.path`, or its permissions; requests are served, and not logged"
        yield Finding(SECTION, Level.WARNING, f"{path}: {problem}", advice)
