"""A client process of `load`: sends requests to a daemon and checks every answer.

It reads its `Task` from the first line of stdin, writes to stdout how many right answers it has, and its `Tally` after
stdin is closed. So it ends when its parent ends, even by SIGKILL. Each request carries a number of its own, and its
right answer is `3 x + 1` (`handlers.Reckoner`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq

from multitower import Client, MultitowerError, wire
from multitower.tools.load_generator import LoadGenerator, Outcome

START_S = 240.0
PROGRESS_S = 0.05
QUIET_S = 0.5
"""Seconds after the last answer in which the raw client waits for answers to no request."""


@dataclass
class Task:
    """What a client process does.

    Attributes:
        endpoint: the daemon's address.
        model: the model's name; its input is `x`, INT64 of shape [1, 1].
        first: the number of the first request.
        raw: use a DEALER socket instead of `multitower.Client`, which would hide duplicate answers.
        clients: `Client` objects that take turns.
        outstanding: requests outstanding.
        rate: requests a second in an open loop (raw only); None for a closed loop.
        timeout: seconds for a request.
    """

    endpoint: str
    model: str
    first: int
    raw: bool
    clients: int
    outstanding: int
    rate: float | None
    timeout: float


@dataclass
class Tally:
    """The outcomes of the requests.

    Attributes:
        sent: requests sent.
        ok: requests with the right answer.
        wrong: wrong answers, and answers to no request.
        doubled: answers to a request that had one already (seen by raw clients only).
        lost: requests without an answer.
        held_back: requests that an open loop could not send, because the socket took no more.
        errors: requests answered with an error, by reason.
        latencies: seconds from sending to the answer, by reason; "ok" for right answers.
        finished: monotonic seconds of each answer, in the same order.
    """

    sent: int = 0
    ok: int = 0
    wrong: int = 0
    doubled: int = 0
    lost: int = 0
    held_back: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    finished: dict[str, list[float]] = field(default_factory=dict)

    def answered(self, reason: str, started: float) -> None:
        """Counts the answer of a request that was sent at `started`."""
        now = time.monotonic()
        self.latencies.setdefault(reason, []).append(now - started)
        self.finished.setdefault(reason, []).append(now)
        if reason == "ok":
            self.ok += 1
        elif reason == "wrong":
            self.wrong += 1
        else:
            self.errors[reason] += 1

    def add(self, other: Tally) -> None:
        """Adds the tally of another process."""
        for name in ("sent", "ok", "wrong", "doubled", "lost", "held_back"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors.update(other.errors)
        for mine, others in ((self.latencies, other.latencies), (self.finished, other.finished)):
            for reason, values in others.items():
                mine.setdefault(reason, []).extend(values)

    def faults(self) -> dict[str, int]:
        """Counts of everything that went wrong; empty if every request got exactly one answer, the right one."""
        found = {"wrong": self.wrong, "doubled": self.doubled, "lost": self.lost, **self.errors}
        found["unaccounted"] = self.sent - self.ok - self.wrong - self.lost - self.errors.total()
        return {name: count for name, count in found.items() if count}

    def percentile(self, percent: float, reason: str = "ok") -> float:
        """A percentile of the latency of these answers, seconds."""
        return float(np.percentile(self.latencies[reason], percent))

    def rate(self, since: float, until: float, reason: str = "ok") -> float:
        """These answers a second, between two times of the monotonic clock."""
        return sum(since <= moment < until for moment in self.finished.get(reason, ())) / (until - since)

    def __str__(self) -> str:
        counts = f"{self.sent} sent, {self.ok} ok, {self.lost} lost, {self.errors.total()} errors {dict(self.errors)}"
        return f"{counts}, {self.doubled} doubled, {self.wrong} wrong"


def _run_clients(task: Task, tally: Tally, stop: threading.Event) -> None:
    """Runs a closed loop over `multitower.Client`s that take turns."""

    def submit(number: int) -> Future[Any]:
        x = np.array([[task.first + number]], np.int64)
        return clients[number % len(clients)].submit(task.model, {"x": x})

    def record(outcome: Outcome) -> None:
        error = outcome.error
        if error is None:
            right = outcome.outputs["y"].tolist() == [[3 * (task.first + outcome.number) + 1]]
            reason = "ok" if right else "wrong"
        else:
            reason = error.reason if isinstance(error, MultitowerError) else type(error).__name__
        tally.answered(reason, outcome.due_ns / 1e9)

    with contextlib.ExitStack() as stack:
        # Without retries, so that errors of the daemon are counted.
        clients = [
            stack.enter_context(Client(task.endpoint, timeout=task.timeout, connect_timeout=START_S, retries=0))
            for _ in range(task.clients)
        ]
        load = stack.enter_context(LoadGenerator(submit, record))
        load.keep_outstanding(task.outstanding)
        stop.wait()
        tally.lost = load.stop(task.timeout + QUIET_S)
        tally.sent = load.sent


class _RawClient:
    """A DEALER socket that counts the answers to each id."""

    def __init__(self, task: Task, tally: Tally, socket: zmq.Socket[bytes]) -> None:
        self._task = task
        self._tally = tally
        self._socket = socket
        timeout_us = int(task.timeout * 1e6)
        self._header = wire.infer_header(task.model, [wire.Tensor("x", "INT64", (1, 1))], timeout_us=timeout_us)
        self._numbers = itertools.count(task.first)
        self._waiting: dict[int, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Sends until `stop` is set, then receives until every request has its answer or its timeout is over."""
        task = self._task
        interval = None if task.rate is None else 1 / task.rate
        if not self._socket.poll(int(START_S * 1000), zmq.POLLOUT):
            raise TimeoutError("no daemon listens")
        due = time.monotonic()
        stopped: float | None = None
        quiet_since: float | None = None
        while True:
            now = time.monotonic()
            if stop.is_set() and stopped is None:
                stopped = now
            if stopped is None:
                if interval is None:
                    while len(self._waiting) < task.outstanding and self._send(now):
                        pass
                while interval is not None and due <= now:
                    # It does not wait for the daemon: a late request is sent at once, and its latency counts from then.
                    if not self._send(time.monotonic()):
                        self._tally.held_back += 1
                    due += interval
            if self._socket.poll(max(0, int((due - now) * 1000)) if interval and stopped is None else 20):
                self._receive()
            if stopped is not None:
                if self._waiting:
                    if time.monotonic() > stopped + task.timeout + QUIET_S:
                        break
                    quiet_since = None
                    continue
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() > quiet_since + QUIET_S:
                    break
        self._tally.lost = len(self._waiting)

    def _send(self, started: float) -> bool:
        number = next(self._numbers)
        frame = number.to_bytes(8, "little")
        try:
            self._socket.send_multipart([wire.DELIMITER, wire.INFER, frame, self._header, frame], zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._tally.sent += 1
        self._waiting[number] = started
        return True

    def _receive(self) -> None:
        for _ in range(1000):
            try:
                _, kind, id, header, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            number = int.from_bytes(id, "little")
            started = self._waiting.pop(number, None)
            if started is None:
                if self._task.first <= number < self._task.first + self._tally.sent + self._tally.held_back:
                    self._tally.doubled += 1
                else:
                    self._tally.wrong += 1
                continue
            if kind == wire.ERROR:
                reason = json.loads(header)["error"]["reason"]
            else:
                right = [int(np.frombuffer(frame, "<i8")[0]) for frame in frames] == [3 * number + 1]
                reason = "ok" if right else "wrong"
            self._tally.answered(reason, started)


def _run_raw(task: Task, tally: Tally, stop: threading.Event) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        for option, value in {zmq.LINGER: 0, zmq.IMMEDIATE: 1, zmq.RCVHWM: 0}.items():
            socket.set(option, value)
        socket.connect(task.endpoint)
        _RawClient(task, tally, socket).run(stop)


def _write_line(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _main() -> None:
    task = Task(**json.loads(sys.stdin.readline()))
    tally = Tally()
    stop, ended = threading.Event(), threading.Event()

    def report_progress() -> None:
        while not ended.wait(PROGRESS_S):
            _write_line(tally.ok)

    def wait_for_stop() -> None:
        # Not `sys.stdin`: a thread that blocks in it would keep the interpreter from exiting.
        while os.read(0, 4096):
            pass
        stop.set()

    reporter = threading.Thread(target=report_progress)
    reporter.start()
    threading.Thread(target=wait_for_stop, daemon=True).start()
    try:
        (_run_raw if task.raw else _run_clients)(task, tally, stop)
    finally:
        ended.set()
        reporter.join()
    _write_line(vars(tally))


if __name__ == "__main__":
    _main()
