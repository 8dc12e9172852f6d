"""Load on a daemon from several client processes (`load_client`), which check and count every answer."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Self

from load_client import START_S, Tally, Task

CLIENT = Path(__file__).with_name("load_client.py")

FLOWING = 5
"""Right answers that each process must have before the load counts as flowing."""

NUMBERS_PER_PROCESS = 10**9
"""The first request of each process has a multiple of this number."""


class _Process:
    """One client process."""

    def __init__(self, task: Task, arrived: queue.Queue[None]) -> None:
        self.ok = 0
        self.tally: Tally | None = None
        self._arrived = arrived
        self._stderr = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  open until `close`
        self.process = subprocess.Popen(
            [sys.executable, str(CLIENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(task)) + "\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if isinstance(message, int):
                self.ok = message
            else:
                self.tally = Tally(**{**message, "errors": Counter(message["errors"])})
            self._arrived.put(None)
        self._arrived.put(None)

    def finish(self, seconds: float) -> Tally:
        """Waits until the process has ended after `stop`, and returns its tally."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a client process did not end:\n{self.errors()}") from None
        self._reader.join(seconds)
        if self.tally is None:
            raise AssertionError(f"a client process failed ({self.process.returncode}):\n{self.errors()}")
        return self.tally

    def errors(self) -> str:
        """The process's stderr."""
        self._stderr.seek(0)
        return self._stderr.read()

    def stop(self) -> None:
        """Makes the process send nothing more."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def close(self) -> None:
        """Ends the process in any case."""
        self.stop()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(START_S)
        self._reader.join(START_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()


class Load:
    """Client processes that send requests. A context manager: when entered, every process has had answers.

    Args:
        endpoint: the daemon's address.
        model: the name of a batched `handlers.Reckoner`.
        processes: processes that use `multitower.Client`.
        raw: processes that use a DEALER socket and see duplicate answers.
        clients, outstanding, rate, timeout: of each process; see `Task`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        model: str = "m",
        processes: int = 3,
        raw: int = 1,
        clients: int = 1,
        outstanding: int = 8,
        rate: float | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._tasks = [
            Task(
                endpoint,
                model,
                (index + 1) * NUMBERS_PER_PROCESS,
                index >= processes,
                clients,
                outstanding,
                rate,
                timeout,
            )
            for index in range(processes + raw)
        ]
        self._timeout = timeout
        self._arrived: queue.Queue[None] = queue.Queue()
        self._processes: list[_Process] = []
        self._tally: Tally | None = None

    def __enter__(self) -> Self:
        try:
            for task in self._tasks:
                self._processes.append(_Process(task, self._arrived))
            self._wait(lambda: min(process.ok for process in self._processes) >= FLOWING, START_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ok(self) -> int:
        """Right answers reported so far."""
        return sum(process.ok for process in self._processes)

    def wait_ok(self, more: int, timeout: float = START_S) -> None:
        """Waits until `more` right answers have been reported."""
        wanted = self.ok + more
        self._wait(lambda: self.ok >= wanted, timeout)

    def stop(self) -> Tally:
        """Sends nothing more, waits for outstanding requests, and returns the sum of all processes' tallies."""
        if self._tally is None:
            for process in self._processes:
                process.stop()
            self._tally = Tally()
            for process in self._processes:
                self._tally.add(process.finish(self._timeout + START_S))
        return self._tally

    def close(self) -> None:
        """Ends all processes in any case."""
        for process in self._processes:
            process.close()

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        until = time.monotonic() + timeout
        while not condition():
            left = until - time.monotonic()
            ended = [process for process in self._processes if process.process.poll() is not None]
            if left <= 0 or ended:
                output = "\n".join(process.errors() for process in ended or self._processes)
                what = "a client process ended" if ended else f"load did not flow within {timeout} s"
                raise AssertionError(f"{what}; {[process.ok for process in self._processes]} answers:\n{output}")
            with contextlib.suppress(queue.Empty):
                self._arrived.get(timeout=min(left, 1.0))
