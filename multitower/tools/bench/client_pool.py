"""The client processes: started once, given each step's load at the same moment, ended in any case."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Final, NamedTuple, Self

from multitower.tools.bench import client_process
from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.client_process import SLACK_S, Target, Task
from multitower.tools.bench.tally import Tally, total

START_S: Final = 60.0
END_S: Final = 5.0
LEAD_S: Final = 0.05
"""From handing out the tasks to the first request: every process has read its own by then."""

_NS: Final = 1_000_000_000


class BenchError(Exception):
    """Nothing can be measured; the message is for people."""


class Window(NamedTuple):
    """When a step is measured, on the clock of `time.monotonic_ns`."""

    begin_ns: int
    end_ns: int


class Pool:
    """Client processes; a context manager that has them connected, and ends them however it is left.

    Args:
        target: what they ask.
        processes: how many.
    """

    def __init__(self, target: Target, processes: int) -> None:
        self._target = target
        self._spawn = multiprocessing.get_context("spawn")
        self._wanted = processes
        self._processes: list[tuple[SpawnProcess, Connection]] = []
        self._asked: list[tuple[SpawnProcess, Connection]] = []
        self._window = Window(0, 0)

    def __enter__(self) -> Self:
        try:
            for number in range(self._wanted):
                self._start(number)
            for process, connection in self._processes:
                word = self._receive(process, connection, START_S)
                if word != client_process.READY:
                    raise BenchError(word.decode())
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(at_once=kind is not None)

    def begin(self, load: Load, *, warmup: float, seconds: float, seed: int) -> Window:
        """Begins a step; `collect` ends it.

        Args:
            load: of all processes together.
            warmup: seconds of load before it is measured.
            seconds: how long it is measured.
            seed: of the arrivals; each process gets others.
        """
        start = time.monotonic_ns() + int(LEAD_S * _NS)
        begin = start + int(warmup * _NS)
        self._window = Window(begin, begin + int(seconds * _NS))
        parts = load.split(len(self._processes))
        self._asked = self._processes[: len(parts)]
        for number, ((process, connection), part) in enumerate(zip(self._asked, parts, strict=True)):
            # Far apart: the next step's seed must not be this step's of another process.
            task = Task(part.loop, part.amount, start, *self._window, seed + 1_000_003 * number)
            try:
                connection.send_bytes(task.to_bytes())
            except OSError:
                raise self._dead(process) from None
        return self._window

    def collect(self) -> Tally:
        """The sum of what the processes counted; waits until every request has its outcome.

        Raises:
            BenchError: a process ended, or says nothing.
        """
        # Everything is sent within the grace, and settled within its time and the slack.
        until = self._window.end_ns / _NS + self._target.timeout + client_process.GRACE_S + 2 * SLACK_S
        return total(
            Tally.from_bytes(self._receive(process, connection, until - time.monotonic()))
            for process, connection in self._asked
        )

    def _start(self, number: int) -> None:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=client_process.run, args=(theirs, self._target), name=f"mt-bench-{number}")
        # Blocked until the process ignores it: Ctrl-C must not make it print where it was.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self._processes.append((process, ours))

    def _receive(self, process: SpawnProcess, connection: Connection, seconds: float) -> bytes:
        if not connection.poll(max(seconds, 0.0)):
            raise BenchError(f"client process {process.pid} says nothing")
        try:
            return connection.recv_bytes()
        except (EOFError, OSError):
            raise self._dead(process) from None

    @staticmethod
    def _dead(process: SpawnProcess) -> BenchError:
        process.join(END_S)
        return BenchError(f"client process {process.pid} ended (exit code {process.exitcode})")

    def _end(self, *, at_once: bool) -> None:
        for process, connection in self._processes:
            connection.close()  # it ends by itself, unless it is in a step
            if at_once:
                process.kill()
        for process, _ in self._processes:
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes.clear()
