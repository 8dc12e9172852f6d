"""The models of our daemon in the comparison with peers: the workloads of the runner's tools.

The tools' folder, with their module `work`, is on the import path. Loading the work writes the worker's pid and the
time to a file, by which the runner finds the workers.
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
        """Loads the workload that the environment names."""
        import work

        self._work = work.load(work.workload())

    def infer(self, inputs: Arrays) -> Arrays:
        """Runs the workload."""
        return {"y": self._work(inputs["x"])}


class Loaded:
    """Loaded after the SavedModel of w3: tells the runner that this worker has loaded it."""

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Writes the line that `work.load` writes."""
        with open(os.environ["BENCH_EVENTS"], "a") as events:
            events.write(f"{os.getpid()} {time.monotonic():.6f}\n")

    def infer(self, inputs: Arrays) -> Arrays:
        """Never called."""
        return inputs
