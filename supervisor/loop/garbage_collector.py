"""Python's garbage collector in the daemon: out of the way of requests.

What the loop makes for a request goes when its last reference goes; the collector finds nothing of it, and looking
for it takes tens of milliseconds where thousands of requests wait. What it is for, exceptions that refer to themselves
and parts of configurations that were read, comes seldom.
"""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (100_000, 20, 20)
"""Objects more than went since the last look, then looks: far more than a queue of usual size makes at once."""


def keep_out_of_the_way() -> None:
    """To be called once the process has made what it keeps: that is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
