"""Handlers that tests serve: each does something that real models do. Tests copy the file beside the configuration."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Parameters = Mapping[str, Any]


class Echo:
    """Returns its inputs."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """The inputs."""
        return inputs


class Heavy(Echo):
    """Allocates `mib` MiB of memory."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Allocates the memory, and writes to all of it."""
        self._weights = np.ones(parameters["mib"] << 20, np.uint8)


class Greedy(Echo):
    """Returns `x`. It takes `kib` KiB of memory for each row; more than `rows` rows kill its process."""

    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    outputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Reads how greedy it is."""
        self._kib, self._rows = parameters.get("kib", 0), parameters.get("rows")

    def infer(self, inputs: Arrays) -> Arrays:
        """Takes the memory, and lets go of it."""
        rows = len(inputs["x"])
        if self._rows is not None and rows > self._rows:
            os.kill(os.getpid(), signal.SIGKILL)
        np.ones(rows * self._kib << 10, np.uint8)
        return inputs


class Surroundings(Echo):
    """Returns what it finds in its process: threads of BLAS, the environment, and how the kernel would choose it."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Reads the score of the out-of-memory killer while it loads."""
        self._while_loading = int(Path("/proc/self/oom_score_adj").read_text())

    def infer(self, inputs: Arrays) -> Arrays:
        """Numbers; -1 for what there is not."""
        maps = Path("/proc/self/maps").read_text().splitlines()
        library = next(line.split()[-1] for line in maps if "openblas" in line)
        threads = ctypes.CDLL(library).scipy_openblas_get_num_threads64_()
        return {
            "blas": np.array([threads]),
            "variable": np.array([int(os.environ.get("OPENBLAS_NUM_THREADS", -1))]),
            "score_while_loading": np.array([self._while_loading]),
            "score": np.array([int(Path("/proc/self/oom_score_adj").read_text())]),
        }


class Crashing(Heavy):
    """Aborts with each request, and leaves a core dump of at least `mib` MiB where the system writes one."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Aborts."""
        os.abort()


class Sized:
    """Returns as many bytes as `size` says, after as many milliseconds as follow it."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Zeros."""
        size, milliseconds = inputs["size"]
        time.sleep(milliseconds / 1000)
        return {"y": np.zeros(size, np.uint8)}


class Reversed:
    """Returns each row reversed."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Returns views that are not contiguous."""
        return {f"{name}_out": array[:, ::-1] for name, array in inputs.items()}


class Total:
    """Returns one sum over all rows of the batch, without declaring it: requests cannot be joined."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Returns the sum."""
        return {"sum": inputs["x"].sum(keepdims=True)}


class Sleeper:
    """Sleeps as long as a device would compute, then echoes.

    `seconds` a batch; `slow` is the number of a slot whose worker takes `factor` times as long.
    """

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Finds out from the name of its process how long to sleep."""
        name = Path("/proc/self/comm").read_text().strip()
        slow = name == f"mt-worker-{parameters.get('slow')}"
        self._seconds = parameters.get("seconds", 0.02) * (parameters.get("factor", 4.0) if slow else 1)

    def infer(self, inputs: Arrays) -> Arrays:
        """Sleeps and echoes."""
        time.sleep(self._seconds)
        return inputs


class Patient:
    """Sleeps as many seconds as the request says, then echoes `x`."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Sleeps and echoes."""
        time.sleep(float(inputs["seconds"].max()))
        return {"x": inputs["x"]}


class Declared:
    """Declares its inputs and outputs, so that the router checks requests: `y = x * 2`, and a scalar `z`."""

    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "n", "datatype": "INT64", "shape": [-1]},
    ]
    outputs = [
        {"name": "y", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "m", "datatype": "INT64", "shape": [-1]},
    ]

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Returns twice x, and n."""
        return {"y": inputs["x"] * 2, "m": inputs["n"]}


class Versioned:
    """Echoes, and returns the parameter `version` and its pid; each call takes `seconds`."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Takes `load_s` seconds."""
        time.sleep(parameters.get("load_s", 0.0))
        self._version = parameters.get("version", 1)
        self._seconds = parameters.get("seconds", 0.0)

    def infer(self, inputs: Arrays) -> Arrays:
        """Returns a row of version and pid for each row."""
        time.sleep(self._seconds)
        rows = len(next(iter(inputs.values())))
        return {**inputs, "version": np.full(rows, self._version), "pid": np.full(rows, os.getpid())}


class ResourceExhaustedError(Exception):
    """Has the name of TensorFlow's."""


class Hungry:
    """A device with memory for `rows` rows. Each call leaks `leak` bytes; after `calls` calls the memory is full."""

    inputs = [{"name": "x", "datatype": "INT64", "shape": [-1, 1]}]
    outputs = [
        {"name": "x", "datatype": "INT64", "shape": [-1, 1]},
        {"name": "most", "datatype": "INT64", "shape": [-1]},
    ]

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""
        self._rows, self._leak = parameters.get("rows", 1 << 30), parameters.get("leak", 0)
        self._calls = parameters.get("calls", 1 << 30)
        self._kept: list[bytearray] = []

    def infer(self, inputs: Arrays) -> Arrays:
        """Echoes, and returns the number of rows of the call."""
        x = inputs["x"]
        self._calls -= 1
        if len(x) > self._rows or self._calls < 0:
            raise ResourceExhaustedError(f"OOM when allocating tensor with shape {list(x.shape)}")
        if self._leak:
            self._kept.append(bytearray(os.urandom(1) * self._leak))
        return {"x": x, "most": np.full(len(x), len(x))}


class Broken:
    """Cannot load."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Raises."""
        name = os.fsdecode(bytes.fromhex(parameters.get("file", "")))  # as names of files are that are no UTF-8
        raise FileNotFoundError(parameters.get("message", "the weights are missing") + name)

    def infer(self, inputs: Arrays) -> Arrays:
        """Never called."""
        return inputs


class SlowLoader:
    """Loads slowly."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Sleeps."""
        time.sleep(parameters.get("seconds", 60.0))

    def infer(self, inputs: Arrays) -> Arrays:
        """Echoes."""
        return inputs


class BadLoader:
    """Does not load: `way` is one of its methods."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Does so, unless the file named like the way exists beside this one."""
        way = str(parameters["way"])
        if not Path(__file__).with_name(way).exists():
            getattr(self, way)()

    def sleep(self) -> None:
        """Waits for something that does not come."""
        time.sleep(3600.0)

    def wait(self) -> None:
        """Waits until the file named like the way exists beside this one."""
        while not Path(__file__).with_name("wait").exists():
            time.sleep(0.01)

    def compute(self) -> None:
        """Computes in native code that holds the interpreter: no other thread of the process runs."""
        pow(3, 1 << 34, (1 << 200_000) - 1)

    def wait_in_native_code(self) -> None:
        """Sleeps in native code that holds the interpreter."""
        ctypes.PyDLL(None).sleep(3600)

    def abort(self) -> None:
        """Ends the process from native code."""
        print("a failed assertion")
        os.abort()

    def infer(self, inputs: Arrays) -> Arrays:
        """Echoes."""
        return inputs


class CrashingLoader:
    """Ends its process while loading, as long as the file `crash` exists beside it."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Exits, or not."""
        if Path(__file__).with_name("crash").exists():
            os._exit(3)

    def infer(self, inputs: Arrays) -> Arrays:
        """Echoes."""
        return inputs


class Pinned:
    """Asks TensorFlow for its GPUs, as a model on a GPU does; returns which devices are visible."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Uses the device."""
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")

    def infer(self, inputs: Arrays) -> Arrays:
        """Returns the pid and the visible devices."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        return {"pid": np.array([os.getpid()]), "visible": np.array([visible])}


class Cuda:
    """Calls the driver when it loads and at each call, as a model on a GPU does."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Opens the device."""
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._ask()

    def infer(self, inputs: Arrays) -> Arrays:
        """Echoes, as long as the device exists."""
        self._ask()
        return inputs

    def _ask(self) -> None:
        error = self._driver.cuInit(0)
        if error:
            raise RuntimeError(f"CUDA error {error} on {os.environ['CUDA_VISIBLE_DEVICES']}: no CUDA-capable device")


POISON = -666


class Reckoner:
    """Computes `y = 3 x + 1`, one number a row, so that each answer shows which request it belongs to.

    A negative number raises, `POISON` crashes the process. A batch takes `seconds`; loading takes `load_seconds`, and
    with `busy` it computes in C meanwhile, which lets no other thread of the process run.
    """

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Takes `load_seconds`."""
        self._seconds = parameters.get("seconds", 0.0)
        until = time.monotonic() + parameters.get("load_seconds", 0.0)
        while parameters.get("busy") and time.monotonic() < until:
            # One call in C for a second or more; the interpreter's lock is not let go before it is over.
            sum(range(60_000_000))
        time.sleep(max(0.0, until - time.monotonic()))

    def infer(self, inputs: Arrays) -> Arrays:
        """Sleeps and computes."""
        x = inputs["x"]
        if (x == POISON).any():
            ctypes.string_at(0)
        if (x < 0).any():
            raise ValueError("a negative number")
        if x.shape[-1] != 1:
            raise ValueError(f"rows of {x.shape[-1]} numbers")
        time.sleep(self._seconds)
        return {"y": 3 * x + 1}


class DeclaredReckoner(Reckoner):
    """Declares its inputs and outputs, so that the router checks requests."""

    inputs = [{"name": "x", "datatype": "INT64", "shape": [-1, 1]}]
    outputs = [{"name": "y", "datatype": "INT64", "shape": [-1, 1]}]


class Fragile(DeclaredReckoner):
    """Fails as the file `fragile` beside it says: in `load`, or by crashing at each request (`infer`)."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Raises, or not."""
        if self._broken() == "load":
            raise FileNotFoundError("the weights are missing")
        super().load(devices, parameters)

    def infer(self, inputs: Arrays) -> Arrays:
        """Crashes, or computes."""
        if self._broken() == "infer":
            ctypes.string_at(0)
        return super().infer(inputs)

    @staticmethod
    def _broken() -> str:
        file = Path(__file__).with_name("fragile")
        return file.read_text() if file.exists() else ""


class Asker:
    """Asks in the terminal, as `getpass` and debuggers do."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """What is read from the terminal."""
        with open("/dev/tty", "r+b", buffering=0) as terminal:
            return {"answer": np.array([terminal.read(1)])}
