"""How much a chaos test does: little in CI, more where a variable of the environment says so."""

from __future__ import annotations

import os


def amount(variable: str, default: int) -> int:
    """The number in a variable.

    It is taken out of the environment: daemons inherit that, and refuse `MULTITOWER_*` variables that are none of
    their settings. So call it while the module is imported.
    """
    return int(os.environ.pop(variable, default))
