"""A client process of `load`: it asks a daemon, and counts every answer.

It reads its `Task` from the first line of stdin, tells on stdout how far it is, and its `Tally` once stdin ends. So it
ends with whoever started it, however that ends. Each request carries a number that no other request has, and expects
`3 x + 1` (`handlers.Reckoner`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq

from multitower import Client, MultitowerError, wire

START_S = 60.0
TELL_S = 0.05
QUIET_S = 0.5
"""How long the raw client listens, after its last answer is there, for answers that nobody asked for."""


@dataclass
class Task:
    """What a client process does.

    Attributes:
        endpoint: the daemon's.
        model: it is sent `x`, INT64 of shape [1, 1].
        first: the first request's number; the others follow.
        raw: a DEALER socket instead of `multitower.Client`: it sees doubled answers.
        clients: how many `Client` objects take turns.
        outstanding: requests that wait for their answers at one time.
        rate: requests a second, whatever the daemon answers (raw only); None for as many as `outstanding` lets.
        timeout: seconds that a request has.
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
    """What became of the requests.

    Attributes:
        sent: how many there were.
        ok: how many got the right answer.
        wrong: how many got another answer, or an answer to no request.
        doubled: answers beyond the first (seen by raw clients only).
        lost: requests that got no answer at all.
        held_back: requests that an open loop could not send, since the daemon took no more.
        errors: by reason.
        latencies: seconds of each answer, by reason; "ok" for those.
        finished: monotonic seconds at which each came, in the same order.
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
        """One request has its answer."""
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
        """Adds another process's."""
        for name in ("sent", "ok", "wrong", "doubled", "lost", "held_back"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors.update(other.errors)
        for mine, others in ((self.latencies, other.latencies), (self.finished, other.finished)):
            for reason, values in others.items():
                mine.setdefault(reason, []).extend(values)

    def faults(self) -> dict[str, int]:
        """All that went wrong; empty when every request got its one right answer."""
        found = {"wrong": self.wrong, "doubled": self.doubled, "lost": self.lost, **self.errors}
        found["unaccounted"] = self.sent - self.ok - self.wrong - self.lost - self.errors.total()
        return {name: count for name, count in found.items() if count}

    def percentile(self, percent: float, reason: str = "ok") -> float:
        """Seconds within which that many percent of these answers came."""
        return float(np.percentile(self.latencies[reason], percent))

    def rate(self, since: float, until: float, reason: str = "ok") -> float:
        """These answers a second, between two moments of the monotonic clock."""
        return sum(since <= moment < until for moment in self.finished.get(reason, ())) / (until - since)

    def __str__(self) -> str:
        counts = f"{self.sent} sent, {self.ok} ok, {self.lost} lost, {self.errors.total()} errors {dict(self.errors)}"
        return f"{counts}, {self.doubled} doubled, {self.wrong} wrong"


def _numbers(task: Task) -> Iterator[int]:
    return itertools.count(task.first)


def _run_clients(task: Task, tally: Tally, stop: threading.Event) -> None:
    """`multitower.Client`s with pipelined requests."""
    lock = threading.Lock()
    room = threading.Semaphore(task.outstanding)
    waiting: set[Future[Any]] = set()

    def done(number: int, started: float, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            reason = "ok" if future.result()["y"].tolist() == [[3 * number + 1]] else "wrong"
        else:
            reason = error.reason if isinstance(error, MultitowerError) else type(error).__name__
        with lock:
            waiting.discard(future)
            tally.answered(reason, started)
        room.release()

    with contextlib.ExitStack() as stack:
        clients = [
            # Without retries: an error that the daemon gave is to be counted.
            stack.enter_context(Client(task.endpoint, timeout=task.timeout, connect_timeout=START_S, retries=0))
            for _ in range(task.clients)
        ]
        for client, number in zip(itertools.cycle(clients), _numbers(task), strict=False):
            while not room.acquire(timeout=TELL_S):
                if stop.is_set():
                    break
            if stop.is_set():
                break
            started = time.monotonic()
            future = client.submit(task.model, {"x": np.array([[number]], np.int64)})
            with lock:
                tally.sent += 1
                waiting.add(future)
            future.add_done_callback(functools.partial(done, number, started))
        until = time.monotonic() + task.timeout + QUIET_S
        while time.monotonic() < until:
            with lock:
                if not waiting:
                    break
            time.sleep(TELL_S)
        with lock:
            tally.lost = len(waiting)


class _Raw:
    """A DEALER that counts the answers to each id."""

    def __init__(self, task: Task, tally: Tally, socket: zmq.Socket[bytes]) -> None:
        self._task = task
        self._tally = tally
        self._socket = socket
        timeout_us = int(task.timeout * 1e6)
        self._header = wire.infer_header(task.model, [wire.Tensor("x", "INT64", (1, 1))], timeout_us=timeout_us)
        self._numbers = _numbers(task)
        self._waiting: dict[int, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Sends until it is stopped, and receives until all is answered, or has had its time."""
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
                    # It never waits for the daemon: what is late is sent at once, and its time begins then.
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
        _Raw(task, tally, socket).run(stop)


def _tell(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _main() -> None:
    task = Task(**json.loads(sys.stdin.readline()))
    tally = Tally()
    stop, over = threading.Event(), threading.Event()

    def tell() -> None:
        while not over.wait(TELL_S):
            _tell(tally.ok)

    def listen() -> None:
        # Not `sys.stdin`: a thread that waits in it keeps the interpreter from its end.
        while os.read(0, 4096):
            pass
        stop.set()

    teller = threading.Thread(target=tell)
    teller.start()
    threading.Thread(target=listen, daemon=True).start()
    try:
        (_run_raw if task.raw else _run_clients)(task, tally, stop)
    finally:
        over.set()
        teller.join()
    _tell(vars(tally))


if __name__ == "__main__":
    _main()
