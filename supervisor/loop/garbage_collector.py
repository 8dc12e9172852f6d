"""How Python's cyclic garbage collector is set for a process whose loop must not stop."""

from __future__ import annotations

import gc
from typing import Final

GC_THRESHOLDS: Final = (100_000, 20, 20)
"""For gc.set_threshold: far more objects than a full queue of usual size makes at once."""


def tune_garbage_collector() -> None:
    """Keeps Python's cyclic garbage collector from stopping the loop; call it once the daemon has been set up.

    What the loop makes for a request is freed with its last reference. With thousands of requests waiting, a
    collection takes tens of milliseconds and finds none of them. It still runs, seldom, for what does form cycles:
    exceptions with tracebacks, and configurations that have been read.
    """
    gc.collect()
    gc.freeze()  # what exists now stays for good
    gc.set_threshold(*GC_THRESHOLDS)
