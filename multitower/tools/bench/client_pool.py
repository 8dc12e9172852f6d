"""The client processes of a bench: started once, given each step's load at the same moment, ended in any case."""

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
from multitower.tools.errors import ToolError

START_S: Final = 60.0
END_S: Final = 5.0
LEAD_S: Final = 0.05
"""Seconds between handing out the tasks and the first request, so that every process has read its task by then."""

_SEED_STEP: Final = 1_000_003
"""Between the seeds of two processes: far more than steps, whose seeds follow each other."""

_NS: Final = 1_000_000_000


class Window(NamedTuple):
    """The time in which a step is measured, on the clock of `time.monotonic_ns`."""

    begin_ns: int
    end_ns: int


class ClientPool:
    """Several client processes. A context manager: entered when all are connected, ended when left.

    Args:
        target: where their requests go.
        processes: how many processes.
    """

    def __init__(self, target: Target, processes: int) -> None:
        self._target = target
        self._spawn = multiprocessing.get_context("spawn")
        self._count = processes
        self._processes: list[tuple[SpawnProcess, Connection]] = []
        self._active: list[tuple[SpawnProcess, Connection]] = []  # those that have a part of the current step
        self._window = Window(0, 0)

    def __enter__(self) -> Self:
        """Starts the processes.

        Raises:
            ToolError: a process could not connect, or ended.
        """
        try:
            for number in range(self._count):
                self._start(number)
            for process, connection in self._processes:
                answer = self._receive(process, connection, START_S)
                if answer != client_process.READY:
                    raise ToolError(answer.decode())
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(at_once=kind is not None)

    def begin_step(self, load: Load, *, warmup: float, seconds: float, seed: int) -> Window:
        """Begins a step; `finish_step` must follow.

        Args:
            load: the load of all processes together.
            warmup: seconds of load before measuring begins.
            seconds: seconds to measure.
            seed: of the arrivals; each process gets a different one.

        Returns:
            When the step is measured.
        """
        start_ns = time.monotonic_ns() + int(LEAD_S * _NS)
        begin_ns = start_ns + int(warmup * _NS)
        self._window = Window(begin_ns, begin_ns + int(seconds * _NS))
        parts = load.split(len(self._processes))
        self._active = self._processes[: len(parts)]
        for number, ((process, connection), part) in enumerate(zip(self._active, parts, strict=True)):
            task = Task(part.loop, part.amount, start_ns, *self._window, seed + _SEED_STEP * number)
            try:
                connection.send_bytes(task.to_bytes())
            except OSError:
                raise self._ended_error(process) from None
        return self._window

    def finish_step(self) -> Tally:
        """Waits until every request has its outcome, and returns the sum of the processes' tallies.

        Raises:
            ToolError: a process ended, or did not answer in time.
        """
        # Requests are sent until the grace is over, and have their outcomes within their timeout and the slack.
        deadline = self._window.end_ns / _NS + client_process.GRACE_S + self._target.timeout + 2 * SLACK_S
        return total(
            Tally.from_bytes(self._receive(process, connection, deadline - time.monotonic()))
            for process, connection in self._active
        )

    def _start(self, number: int) -> None:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=client_process.run, args=(theirs, self._target), name=f"mt-bench-{number}")
        # SIGINT stays blocked until the process ignores it: Ctrl-C must not make it print a traceback.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self._processes.append((process, ours))

    def _receive(self, process: SpawnProcess, connection: Connection, seconds: float) -> bytes:
        if not connection.poll(max(seconds, 0.0)):
            raise ToolError(f"client process {process.pid} did not answer in time")
        try:
            return connection.recv_bytes()
        except (EOFError, OSError):
            raise self._ended_error(process) from None

    @staticmethod
    def _ended_error(process: SpawnProcess) -> ToolError:
        process.join(END_S)
        return ToolError(f"client process {process.pid} ended (exit code {process.exitcode})")

    def _end(self, *, at_once: bool) -> None:
        for process, connection in self._processes:
            connection.close()  # a process that is not in a step exits
            if at_once:
                process.kill()
        for process, _ in self._processes:
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes.clear()
