"""The exit codes of `multitower`, for init systems and scripts (docs/configuration.md lists them for people)."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Why the process ended. 69, 75, 77 and 78 are from sysexits.h; 130 is what shells report for SIGINT."""

    OK = 0
    DEGRADED = 1  # of `multitower status`: every model is served, but a slot is not ready
    USAGE = 2  # the command line is wrong
    UNAVAILABLE = 69  # nothing can be served: a package is not installed, no device, or every slot failed
    TEMPORARY = 75  # an endpoint is in use, or a file or folder cannot be used now; a later attempt may succeed
    NO_PERMISSION = 77  # the daemon does not admit this user, or not to this operation
    CONFIG = 78  # the configuration is wrong; another attempt cannot help
    SECOND_SIGNAL = 130  # a second signal arrived while draining
