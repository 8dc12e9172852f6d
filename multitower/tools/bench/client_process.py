"""One client process of a bench; `client_pool` starts several.

A process has one `Client` and keeps it for all steps. It does not retry, so that refusals are counted.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Self

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.tools.bench.arrivals import poisson
from multitower.tools.bench.inputs import Request
from multitower.tools.bench.tally import NO_OUTCOME, NOT_SENT, Tally
from multitower.tools.load_generator import LoadGenerator, Outcome, sleep_until

GRACE_S: Final = 0.25
"""Seconds after the end of a step in which open-loop requests that were due before the end are still sent."""

SLACK_S: Final = 5.0
"""Seconds beyond its timeout after which a request without an outcome is counted as a defect of the client."""

CONNECT_S: Final = 3.0
"""Seconds to connect to the daemon at most."""

READY: Final = b"ready"
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what they are.

    Attributes:
        endpoint: the daemon's address.
        model: the model's name.
        version: the model's version; "" for the default one.
        requests: the inputs of the requests, sent in turn.
        timeout: seconds for a request.
        max_outstanding: the most requests outstanding in a process; an open loop waits at that number.
    """

    endpoint: str
    model: str
    version: str
    requests: Sequence[Request]
    timeout: float
    max_outstanding: int


@dataclass(frozen=True, slots=True)
class Task:
    """One process's part of one step. Times are of the clock of `time.monotonic_ns`, which all processes share.

    Attributes:
        loop: `closed` or `open`.
        amount: requests outstanding, or requests a second.
        start_ns: when the load begins.
        begin_ns: when measuring begins.
        end_ns: when both end.
        seed: of the arrivals of an open loop.
    """

    loop: str
    amount: float
    start_ns: int
    begin_ns: int
    end_ns: int
    seed: int

    def to_bytes(self) -> bytes:
        """The task as JSON, for `from_bytes`."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The task that `to_bytes` wrote."""
        return cls(**json.loads(data))


def run(connection: Connection, target: Target) -> None:
    """The main function of a client process: carries out tasks until its parent closes the connection or ends.

    Args:
        connection: gets `READY` once the daemon has answered, otherwise an error message. Then each `Task` received is
            answered with a `Tally`.
        target: where requests go.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    threading.Thread(target=_exit_with_parent, name="parent", daemon=True).start()
    with Client(
        target.endpoint,
        timeout=target.timeout,
        connect_timeout=min(target.timeout, CONNECT_S),
        max_outstanding=target.max_outstanding,
        retries=0,
    ) as client:
        try:
            client.live()  # connects before anything is measured
        except MultitowerError as error:
            connection.send_bytes(str(error).encode())
            return
        # Objects made so far stay; without them the collector takes less time while latencies are measured.
        gc.collect()
        gc.freeze()
        connection.send_bytes(READY)
        while True:
            try:
                task = Task.from_bytes(connection.recv_bytes())
            except EOFError:
                return
            connection.send_bytes(TaskRun(client, target, task).run().to_bytes())


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class TaskRun:
    """Carries out one task and counts its outcomes."""

    def __init__(self, client: Client, target: Target, task: Task) -> None:
        self._client = client
        self._target = target
        self._task = task
        self._tally = Tally()
        self._load = LoadGenerator(self._submit, self._record)

    def run(self) -> Tally:
        """Puts the load on the daemon and returns when every request has its outcome."""
        task = self._task
        meter = threading.Thread(target=self._measure_cpu, name="cpu", daemon=True)
        meter.start()
        sleep_until(task.start_ns)
        not_sent = 0
        if task.loop == "closed":
            self._load.keep_outstanding(int(task.amount))
        else:
            not_sent = self._send_arrivals()
        sleep_until(task.end_ns)
        missing = self._load.stop(self._target.timeout + SLACK_S)
        meter.join()
        if missing:
            self._tally.fail(NO_OUTCOME, "the client gave no outcome within the request's time", missing)
        if not_sent:
            self._tally.fail(NOT_SENT, "the client process was too slow to send it", not_sent)
        return self._tally

    def _submit(self, number: int) -> Future[Any]:
        target = self._target
        inputs = target.requests[number % len(target.requests)]
        return self._client.submit(target.model, inputs, version=target.version)

    def _record(self, outcome: Outcome) -> None:
        task, tally, error = self._task, self._tally, outcome.error
        if error is None and task.begin_ns <= outcome.ended_ns < task.end_ns:
            tally.answered += 1
        if not task.begin_ns <= outcome.due_ns < task.end_ns:
            return
        if error is None:
            tally.latency.add(outcome.ended_ns - outcome.due_ns)
        else:
            tally.fail(error.reason if isinstance(error, MultitowerError) else type(error).__name__, str(error))

    def _send_arrivals(self) -> int:
        """Sends open-loop requests when they are due; returns how many measured ones could not be sent in time."""
        task = self._task
        last_ns = task.end_ns + int(GRACE_S * _NS)
        not_sent = 0
        for arrival_s in poisson(task.amount, task.seed):
            due_ns = task.start_ns + int(arrival_s * _NS)
            if due_ns >= task.end_ns:
                break
            sleep_until(due_ns)
            now_ns = time.monotonic_ns()
            measured = due_ns >= task.begin_ns
            if measured:
                self._tally.late.add(now_ns - due_ns)
            if now_ns < last_ns:
                self._load.send(due_ns)
            elif measured:
                not_sent += 1
        return not_sent

    def _measure_cpu(self) -> None:
        task = self._task
        sleep_until(task.begin_ns)
        begin_ns, begin_cpu_ns = time.monotonic_ns(), time.process_time_ns()
        sleep_until(task.end_ns)
        used_ns, passed_ns = time.process_time_ns() - begin_cpu_ns, time.monotonic_ns() - begin_ns
        self._tally.cpu.append(used_ns / max(passed_ns, 1))
