"""Processes that a `starting_handlers.Starter` starts."""

from __future__ import annotations

import numpy as np
import psutil

from multitower import Client


def start_helper(client: Client, way: str) -> tuple[psutil.Process, int]:
    """Lets a worker start a helper; returns that and the process id of the worker."""
    answer = client.infer("m", {"way": np.array([way])})
    return psutil.Process(int(answer["pid"][0])), int(answer["worker"][0])
