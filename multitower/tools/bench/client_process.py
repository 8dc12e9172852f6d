"""The load of one client process: what `pool` starts, several times.

A process has one `Client` and keeps it for all steps. Closed-loop requests are sent from the callback of the answer
before them, in the client's own thread, which is the cheapest way that the client has; open-loop ones are sent by the
main thread when they are due. Retries are off, so that refusals are seen.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import queue
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

PAUSE_S: Final = 0.01
"""How long a place of the closed loop rests after an error: refusals are quick, and would be all that is measured."""

GRACE_S: Final = 0.25
"""How long after the end open-loop requests that were due before it are still sent."""

SLACK_S: Final = 5.0
"""How much later than its own time a request must have its outcome."""

_NS: Final = 1_000_000_000
READY: Final = b"ready"


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked.

    Attributes:
        endpoint: the daemon's.
        model: its name; `version`: "" for the one that is served.
        requests: the inputs, sent in turn.
        timeout: seconds for a request.
        room: requests that may be outstanding in a process; an open loop waits at that many.
    """

    endpoint: str
    model: str
    version: str
    requests: Sequence[Request]
    timeout: float
    room: int


@dataclass(frozen=True, slots=True)
class Task:
    """One step of one process.

    Attributes:
        loop, amount: its part of the load.
        start_ns, begin_ns, end_ns: on the clock of `time.monotonic_ns`, which all processes share: when load begins,
            from when and until when it is measured.
        seed: of its arrivals.
    """

    loop: str
    amount: float
    start_ns: int
    begin_ns: int
    end_ns: int
    seed: int

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` wrote."""
        return cls(**json.loads(data))


def run(connection: Connection, target: Target) -> None:
    """The main function of a client process: carries out tasks until its parent closes the connection, or ends.

    Args:
        connection: says `READY` once the daemon has answered, or why it did not; then takes a `Task` and gives a
            `Tally`, again and again.
        target: what is asked.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent acts on it
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()
    connect_s = min(target.timeout, 3.0)
    with Client(
        target.endpoint, timeout=target.timeout, connect_timeout=connect_s, max_outstanding=target.room, retries=0
    ) as client:
        try:
            client.live()  # connected before anything is measured
        except MultitowerError as error:
            connection.send_bytes(str(error).encode())
            return
        # What there is by now stays; the collector has less to go through while latencies are measured.
        gc.collect()
        gc.freeze()
        connection.send_bytes(READY)
        while True:
            try:
                task = Task.from_bytes(connection.recv_bytes())
            except EOFError:
                return
            connection.send_bytes(Generator(client, target, task).run().to_bytes())


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class Generator:
    """Sends the requests of one task and counts what comes of them."""

    def __init__(self, client: Client, target: Target, task: Task) -> None:
        self._submit = functools.partial(client.submit, target.model, version=target.version)
        self._requests = target.requests
        self._timeout = target.timeout
        self._task = task
        self._closed = task.loop == "closed"
        self._tally = Tally()
        self._sent = self._done = 0
        # A future that is done already calls back in the thread that asks it to, beside the client's own.
        self._lock = threading.Lock()
        self._paused: queue.SimpleQueue[int] = queue.SimpleQueue()  # when places of the closed loop go on
        self._ended = False  # nothing more is sent
        self._settled = threading.Event()

    def run(self) -> Tally:
        """Carries the task out; ends when every request has its outcome."""
        task = self._task
        meter = threading.Thread(target=self._measure_cpu, name="cpu", daemon=True)
        meter.start()
        _sleep_until(task.start_ns)
        if self._closed:
            self._run_closed(int(task.amount))
        else:
            self._run_open()
        _sleep_until(task.end_ns)
        with self._lock:
            self._ended = True
            waits = self._done < self._sent
        if waits:
            # Every request has its outcome within its time; a little more, and the client is wrong.
            self._settled.wait(self._timeout + SLACK_S)
        meter.join()
        with self._lock:
            missing = self._sent - self._done
            if missing:
                self._tally.fail(NO_OUTCOME, "the client gave no outcome within the request's time", missing)
            return self._tally

    def _run_closed(self, places: int) -> None:
        for _ in range(places):
            self._send(time.monotonic_ns())
        end_ns = self._task.end_ns
        while (left := end_ns - time.monotonic_ns()) > 0:
            try:
                at = self._paused.get(timeout=left / _NS)
            except queue.Empty:
                return
            _sleep_until(min(at, end_ns))
            now = time.monotonic_ns()
            if now < end_ns:
                self._send(now)

    def _run_open(self) -> None:
        task = self._task
        last_ns = task.end_ns + int(GRACE_S * _NS)
        late = self._tally.late
        for at in poisson(task.amount, task.seed):
            due = task.start_ns + int(at * _NS)
            if due >= task.end_ns:
                return
            now = time.monotonic_ns()
            if now < due:
                time.sleep((due - now) / _NS)
                now = time.monotonic_ns()
            measured = due >= task.begin_ns
            if measured:
                late.add(now - due)
            if now < last_ns:
                self._send(due)
            elif measured:
                with self._lock:
                    self._tally.fail(NOT_SENT, "the client process was too slow to send it")

    def _send(self, due: int) -> None:
        with self._lock:
            self._sent += 1
            number = self._sent
        self._start(number, due)

    def _start(self, number: int, due: int) -> None:
        try:
            future = self._submit(self._requests[number % len(self._requests)])
        except MultitowerError as error:
            self._finish(due, error)
        else:
            future.add_done_callback(functools.partial(self._answered, due))

    def _answered(self, due: int, future: Future[Any]) -> None:
        self._finish(due, future.exception())

    def _finish(self, due: int, error: BaseException | None) -> None:
        now = time.monotonic_ns()
        task, tally = self._task, self._tally
        goes_on = self._closed and now < task.end_ns
        number = 0
        with self._lock:
            if error is None:
                if task.begin_ns <= now < task.end_ns:
                    tally.answered += 1
                if task.begin_ns <= due < task.end_ns:
                    tally.latency.add(now - due)
            elif task.begin_ns <= due < task.end_ns:
                reason = error.reason if isinstance(error, MultitowerError) else type(error).__name__
                tally.fail(reason, str(error))
            self._done += 1
            if goes_on and error is None:
                # At once: in between, the loop would look as if it had come to its end.
                self._sent += 1
                number = self._sent
            if self._ended and self._done == self._sent:
                self._settled.set()
        if number:
            self._start(number, now)
        elif goes_on:
            self._paused.put(now + int(PAUSE_S * _NS))

    def _measure_cpu(self) -> None:
        task = self._task
        _sleep_until(task.begin_ns)
        began_ns, began = time.monotonic_ns(), time.process_time_ns()
        _sleep_until(task.end_ns)
        used, passed = time.process_time_ns() - began, time.monotonic_ns() - began_ns
        self._tally.cpu.append(used / max(passed, 1))


def _sleep_until(at_ns: int) -> None:
    while (left := at_ns - time.monotonic_ns()) > 0:
        time.sleep(left / _NS)
