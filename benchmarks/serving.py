"""Daemons for the benchmarks: started for one run, ended with it.

It uses only the command line and the client, so that a benchmark can also measure an older release.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from multitower import Client

READY_S = 120.0

HANDLERS = '''
import time
from pathlib import Path


class Echo:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        return inputs


class Sum(Echo):
    """Declares an image as its input, and returns the sum of each image."""

    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 224, 224, 3]}]
    outputs = [{"name": "sum", "datatype": "FP32", "shape": [-1]}]

    def infer(self, inputs):
        return {"sum": inputs["x"].sum(axis=(1, 2, 3))}


class Device(Echo):
    """Simulates a device: sleeps `batch_s` for each batch and `row_s` for each row.

    The worker of the slot `slow`, if that is set, takes four times as long.
    """

    def load(self, devices, parameters):
        name = Path("/proc/self/comm").read_text().strip()
        factor = 4 if name == f"mt-worker-{parameters.get('slow')}" else 1
        self._batch_s, self._row_s = factor * parameters["batch_s"], factor * parameters["row_s"]

    def infer(self, inputs):
        time.sleep(self._batch_s + self._row_s * len(inputs["x"]))
        return inputs
'''


@dataclass(frozen=True)
class Daemon:
    """A running daemon.

    Attributes:
        endpoint: the address that it listens on.
        pid: the pid of its process.
        log: the file of its log, as JSON lines.
    """

    endpoint: str
    pid: int
    log: Path

    def pids(self) -> list[int]:
        """The pids of the daemon and its workers."""
        return [self.pid, *(child.pid for child in psutil.Process(self.pid).children())]


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes so far, in seconds."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(time.user + time.system for time in times)


def free_endpoint(folder: Path, name: str, transport: str) -> str:
    """An endpoint to listen on.

    Args:
        folder: the folder of an ipc endpoint's path.
        name: the name in the path.
        transport: `ipc` or `tcp`.
    """
    if transport == "ipc":
        return f"ipc://{folder}/{name}.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def daemon(
    folder: Path,
    name: str,
    *,
    workers: int,
    models: Mapping[str, str],
    more: str = "spares: 0",
    transport: str = "ipc",
    also: Sequence[str] = (),
    installation: Path | None = None,
) -> Iterator[Daemon]:
    """Starts a daemon on CPU devices, waits until every slot is ready, and ends it afterwards.

    Args:
        folder: the folder for its files.
        name: the name of its files, different for each daemon of a run.
        workers: the number of workers.
        models: the YAML of each model without its name; the handlers above are `handlers:Class`.
        more: further YAML.
        transport: `ipc` or `tcp`.
        also: further endpoints to listen on.
        installation: a folder with the package; by default the one that this program uses.
    """
    endpoint = free_endpoint(folder, name, transport)
    listen = [endpoint, *also]
    (folder / "handlers.py").write_text(HANDLERS)
    config = folder / f"{name}.yaml"
    served = "".join(f"  - {{name: {model}, {yaml}}}\n" for model, yaml in models.items())
    config.write_text(f"listen: {listen}\ndevices: {{cpu: {workers}}}\n{more}\nmodels:\n{served}")
    log = folder / f"{name}.log"
    # -P: the installed package, not the checkout that is usually the current folder.
    command = [sys.executable, "-P", "-m", "multitower", "serve", str(config), "--log-format", "json"]
    environment = None if installation is None else {**os.environ, "PYTHONPATH": str(installation)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, env=environment)
    try:
        wait_until_ready(endpoint, log)
        yield Daemon(endpoint, process.pid, log)
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(endpoint: str, log: Path) -> None:
    """Waits until every slot is ready."""
    until = time.monotonic() + READY_S
    with Client(endpoint, connect_timeout=READY_S) as client:
        while (state := client.server_ready())["slots_ready"] < state["slots_total"]:
            if time.monotonic() > until:
                raise SystemExit(f"the workers did not become ready:\n{log.read_text()}")
            time.sleep(0.02)
