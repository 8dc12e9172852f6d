"""Handlers that start processes. Tests copy the file beside the configuration."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Parameters = Mapping[str, Any]


class Starter:
    """Starts a helper process in the way that the request names, and returns its process id.

    - `child`: as a child, in the worker's process group;
    - `group`: in a process group of its own, as a shell with job control does;
    - `session`: in a session of its own;
    - `bare group`, `bare`: likewise, in a group or a session, with an empty environment;
    - `daemon`: in a session of its own, with a parent that has ended;
    - `bare daemon`: likewise, with an empty environment;
    - `forked`: like `daemon`, but without starting a program, so it holds all descriptors of the worker.
    """

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """The process ids of the helper and of this worker."""
        way = inputs["way"][0].decode()
        reading, writing = os.pipe()
        if way == "forked":
            self._fork(writing)
        else:
            program = ["sh", "-c", "echo $$; exec sleep 1000"]
            if way.endswith("daemon"):
                program = ["sh", "-c", '"$@" & exit', "sh", *program]
            more: dict[str, Any] = {"env": {}} if way.startswith("bare") else {}
            if way.endswith("group"):
                more["process_group"] = 0
            elif way != "child":
                more["start_new_session"] = True
            helper = subprocess.Popen(program, stdout=writing, **more)
            if way.endswith("daemon"):
                helper.wait()
        os.close(writing)
        with open(reading) as file:
            return {"pid": np.array([int(file.readline())]), "worker": np.array([os.getpid()])}

    def _fork(self, writing: int) -> None:
        child = os.fork()
        if child == 0:
            os.setsid()
            helper = os.fork()
            if helper == 0:
                while True:
                    time.sleep(1000)
            os.write(writing, f"{helper}\n".encode())
            os._exit(0)
        os.waitpid(child, 0)


class StartingLoader(Starter):
    """Starts a helper of each way in `ways` while it loads, and writes their process ids to `file`."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Starts the helpers."""
        pids = [self.infer({"way": np.array([way.encode()])})["pid"][0] for way in parameters["ways"]]
        Path(parameters["file"]).write_text(" ".join(map(str, pids)))
