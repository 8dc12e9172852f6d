"""A client that asks for a model again and again, in a thread of its own."""

from __future__ import annotations

import threading

import numpy as np
from running import START_S, Running

from multitower import MultitowerError


class Asking:
    """Asks for the model `good` of a daemon; a context manager.

    Attributes:
        answers: the number of answers.
        errors: what was raised instead.
    """

    def __init__(self, daemon: Running) -> None:
        self.answers = 0
        self.errors: list[MultitowerError] = []
        self._daemon = daemon
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(START_S)

    def _ask(self) -> None:
        with self._daemon.client() as client:
            while not self._stop.is_set():
                try:
                    client.infer("good", {"x": np.ones(1)}, timeout=START_S)
                    self.answers += 1
                except MultitowerError as error:
                    self.errors.append(error)
                self._stop.wait(0.01)
