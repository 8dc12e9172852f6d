"""How much a chaos test does: little in CI, more if an environment variable says so."""

from __future__ import annotations

import os


def amount(variable: str, default: int) -> int:
    """The number in an environment variable.

    The variable is removed: daemons inherit the environment, and refuse `MULTITOWER_*` variables that are no settings.
    So call it while the module is imported.
    """
    return int(os.environ.pop(variable, default))
