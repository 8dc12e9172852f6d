"""What our daemon serves in the comparison with peers: the tools' own work, loaded as the peers load it.

The tools' folder is on the import path: `work` is theirs. Loading it writes the worker's pid and the time to a file,
from which their runner knows the workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


class Identity:
    """Workloads w1 and w2."""

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Loads the work that the environment names."""
        import work

        self._work = work.load(work.workload())

    def infer(self, inputs: Arrays) -> Arrays:
        """Does it."""
        return {"y": self._work(inputs["x"])}


class Loaded:
    """Beside the SavedModel of w3, which the worker has loaded before it: tells the runner so."""

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Writes the line that `work.load` writes."""
        with open(os.environ["BENCH_EVENTS"], "a") as events:
            events.write(f"{os.getpid()} {time.monotonic():.6f}\n")

    def infer(self, inputs: Arrays) -> Arrays:
        """Never asked."""
        return inputs
