"""Handlers that do what a request commands, most of it harmful. Tests copy the file beside the configuration."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitower import InvalidRequest, Reason

Arrays = dict[str, np.ndarray]
Parameters = Mapping[str, Any]


class OwnRefusal(InvalidRequest):
    """A handler's own subclass, whose constructor has other arguments."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(Reason.SHAPE_INVALID, f"{field}: {message}", {"field": field})


class Unprintable(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Commanded:
    """Executes the command in the request's `do`; see `infer`."""

    def load(self, devices: Sequence[str], parameters: Parameters) -> None:
        """Nothing to load."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Executes one command a request."""
        command, _, argument = inputs["do"].reshape(-1)[0].decode().partition(" ")
        if command == "raise":
            raise RuntimeError(argument)
        if command == "refuse":
            # Details that no reply can carry: two keys that JSON makes one.
            raise InvalidRequest(Reason.SHAPE_INVALID, argument, {1: "a", "1": "b" * 100_000})  # type: ignore[dict-item]
        if command == "refuse_deep":
            details: dict[str, Any] = {}
            for _ in range(100_000):
                details = {"in": details}
            raise InvalidRequest(Reason.SHAPE_INVALID, argument, details)
        if command == "refuse_own":
            raise OwnRefusal("x", argument)
        if command == "refuse_unknown":
            error = InvalidRequest(Reason.SHAPE_INVALID, argument)
            error.reason = "my_reason"
            raise error
        if command == "unprintable":
            raise Unprintable
        if command == "sys.exit":
            sys.exit(int(argument))
        if command == "segfault":
            ctypes.string_at(0)
        if command == "exit":
            os._exit(int(argument))
        if command == "stuck":
            # In C code that lets no other thread of Python run.
            while True:
                ctypes.PyDLL(None).sleep(int(argument))
        if command == "compute":
            # The same, but it works.
            until = time.process_time() + float(argument)
            while time.process_time() < until:
                sum(range(20_000_000))
        if command == "sleep":
            time.sleep(float(argument))
        if command == "close_sockets":
            # All of the process, as careless code that closes what it does not know. Then it computes.
            for descriptor in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):  # the folder's own
                    if os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                        os.close(int(descriptor))
            time.sleep(float(argument))
        if command == "shout":
            print(argument)
            print(argument, file=sys.stderr)
        if command == "fork":
            # A helper that holds the descriptors of the worker.
            subprocess.Popen(["sleep", argument], close_fds=False)
        if command == "farewell":
            # Time for the answer to leave, then the end.
            threading.Timer(2 * float(argument), os._exit, (7,)).start()
            time.sleep(float(argument))
        return {"pid": np.array([os.getpid()], np.int64)}


class Nuisance(Commanded):
    """Executes further commands, which harm the worker."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Executes one command a request."""
        command, _, argument = inputs["do"].reshape(-1)[0].decode().partition(" ")
        if command in ("hog", "hog-abort"):
            self._hog(abort=command == "hog-abort")
        if command == "flood":
            threading.Thread(target=self._flood, args=(int(argument),), daemon=True).start()
        return super().infer(inputs)

    @staticmethod
    def _hog(*, abort: bool) -> None:
        """Allocates more memory than is allowed; with `abort` it aborts as C++ does, instead of raising."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20), hard))
        try:
            np.ones(1 << 30)
        except MemoryError:
            if abort:
                os.abort()
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    @staticmethod
    def _flood(size: int) -> None:
        """Writes `size` bytes to stderr as fast as possible: many lines, and one that does not end."""
        lines, endless = b"this line says nothing at all\n" * 2000, b"x" * 60_000
        for number in range(size // 60_000):
            os.write(2, endless if number % 2 else lines)
