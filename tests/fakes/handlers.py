"""Handlers that tests serve: each stands for something that real models do. Copied beside the configuration."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class Echo:
    """Gives back what it gets."""

    def load(self) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """The inputs."""
        return inputs


class Sleeper:
    """Sleeps as long as a device would compute, then echoes.

    `seconds` a batch; `slow` is the number of a slot whose worker takes `factor` times as long.
    """

    def load(self, seconds: float = 0.02, slow: int | None = None, factor: float = 4.0) -> None:
        """Learns its pace from the name of its process."""
        name = Path("/proc/self/comm").read_text().strip()
        self._seconds = seconds * (factor if name == f"mt-worker-{slow}" else 1)

    def infer(self, inputs: Arrays) -> Arrays:
        """Sleeps and echoes."""
        time.sleep(self._seconds)
        return inputs


class Declared:
    """Declares its inputs and outputs, so that the router checks requests: `y = x * 2`, and a scalar `z`."""

    inputs = {"x": ("FP32", (-1, 3)), "n": ("INT64", (-1,))}
    outputs = {"y": ("FP32", (-1, 3)), "m": ("INT64", (-1,))}

    def load(self) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Twice x, and n."""
        return {"y": inputs["x"] * 2, "m": inputs["n"]}


class Commanded:
    """Does what the request's `do` says; see `infer`."""

    def load(self) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """One command a request."""
        command, _, argument = inputs["do"].reshape(-1)[0].decode().partition(" ")
        if command == "raise":
            raise RuntimeError(argument)
        if command == "segfault":
            ctypes.string_at(0)
        if command == "exit":
            os._exit(int(argument))
        if command == "sleep":
            time.sleep(float(argument))
        if command == "shout":
            print(argument)
            print(argument, file=sys.stderr)
        if command == "fork":
            # A grandchild that outlives the worker and holds its descriptors.
            subprocess.Popen(["sleep", argument], close_fds=False)
        if command == "farewell":
            # Time for the answer to leave, then the end.
            threading.Timer(2 * float(argument), os._exit, (7,)).start()
            time.sleep(float(argument))
        return {"pid": np.array([os.getpid()], np.int64)}


class Broken:
    """Cannot load."""

    def load(self, message: str = "the weights are missing") -> None:
        """Raises."""
        raise FileNotFoundError(message)

    def infer(self, inputs: Arrays) -> Arrays:
        """Never called."""
        return inputs


class SlowLoader:
    """Takes its time to load."""

    def load(self, seconds: float = 60.0) -> None:
        """Sleeps."""
        time.sleep(seconds)

    def infer(self, inputs: Arrays) -> Arrays:
        """Echoes."""
        return inputs


class CrashingLoader:
    """Ends its process while loading, as long as the file `crash` stands beside it."""

    def load(self) -> None:
        """Exits, or not."""
        if Path(__file__).with_name("crash").exists():
            os._exit(3)

    def infer(self, inputs: Arrays) -> Arrays:
        """Echoes."""
        return inputs


class Pinned:
    """Asks TensorFlow for its GPUs, as a model on one would, and tells what it was allowed to see."""

    def load(self) -> None:
        """Touches the device."""
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")

    def infer(self, inputs: Arrays) -> Arrays:
        """Where it runs."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        return {"pid": np.array([os.getpid()]), "visible": np.array([visible])}
