"""The exit codes of `multitower`, for init systems and scripts (docs/configuration.md lists them for people)."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Why the process ended; the numbers from 69 on are those of sysexits.h, 130 is the shell's for SIGINT."""

    OK = 0
    DEGRADED = 1  # of `status`: every model is served, but some slot is not ready
    USAGE = 2  # the command line is wrong
    UNAVAILABLE = 69  # nothing can serve: a part is not installed, no device, every slot failed
    TEMPORARY = 75  # another process holds an endpoint; a later try may succeed
    CONFIG = 78  # the configuration is wrong; trying again cannot help
    SECOND_SIGNAL = 130  # told a second time to stop while draining
