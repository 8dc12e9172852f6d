"""The demo's load: a closed loop of single images over one client, each answer checked against TensorFlow's."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np

from multitower import Client

MODEL = "digits"
OUTPUT = "probabilities"


class Load:
    """Keeps a number of requests outstanding, from `start` to `stop`.

    Args:
        client: whose connection is used.
        images: float32 `[N, 64]`; sent one by one, over and over.
        direct: float32 `[N, 10]`, what TensorFlow called directly gives for them.
        outstanding: requests at one time.

    Attributes:
        sent: requests sent.
        answered: those that got the right answer.
        wrong: those that got another one.
        failed: those that got an error.
        first_error: the first of these errors.
    """

    def __init__(self, client: Client, images: np.ndarray, direct: np.ndarray, outstanding: int = 64) -> None:
        self.sent = self.answered = self.wrong = self.failed = 0
        self.first_error: BaseException | None = None
        self._client = client
        self._images = images
        self._direct = direct
        self._room = threading.Semaphore(outstanding)
        self._outstanding = outstanding
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._seconds = 0.0

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Sends no more, and waits until all that was sent has its outcome."""
        self._stop.set()
        self._thread.join()

    @property
    def lost(self) -> int:
        """Requests without the right answer: errors, wrong answers, and no answer at all. Read it after `stop`."""
        return self.sent - self.answered

    @property
    def rate(self) -> float:
        """Right answers a second. Read it after `stop`."""
        return self.answered / self._seconds

    def _run(self) -> None:
        started = time.monotonic()
        for index in itertools.cycle(range(len(self._images))):
            self._room.acquire()
            if self._stop.is_set():
                break
            self.sent += 1
            future = self._client.submit(MODEL, {"x": self._images[index : index + 1]})
            future.add_done_callback(functools.partial(self._done, index=index))
        # The last acquired place stands for no request; all others come back with their outcomes.
        for _ in range(self._outstanding - 1):
            self._room.acquire()
        self._seconds = time.monotonic() - started

    def _done(self, future: Future[dict[str, Any]], *, index: int) -> None:
        error = future.exception()
        with self._lock:
            if error is not None:
                self.failed += 1
                self.first_error = self.first_error or error
            # Rows of larger batches may differ in the last bits: kernels sum in another order.
            elif np.allclose(future.result()[OUTPUT], self._direct[index : index + 1], rtol=1e-4, atol=1e-6):
                self.answered += 1
            else:
                self.wrong += 1
        self._room.release()
