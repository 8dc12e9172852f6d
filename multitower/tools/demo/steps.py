"""The steps of `multitower demo`, in order: train, classify, measure the load, kill a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from multitower.client.threads import Client
from multitower.durations import exact_duration
from multitower.import_path import module_command, module_environment
from multitower.tools.demo import HELD_OUT_FILE, MODEL, OUTPUT
from multitower.tools.errors import ToolError
from multitower.tools.load_generator import LoadGenerator, Outcome

READY_S: Final = 600.0
RECOVERY_S: Final = 300.0
OUTSTANDING: Final = 64
_NEEDED: Final = {"tensorflow": "tensorflow", "sklearn": "scikit-learn"}
"""What the training needs: packages by their modules."""
_TIMEOUT_S: Final = 60.0
_AFTER_RECOVERY_S: Final = 0.5
_PROGRESS_S: Final = 0.2

CONFIG: Final = """\
devices: {cpu: 2}   # on a machine with GPUs: all
models:
  - name: digits
    path: models/digits
spares: 1
"""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Images that the training did not see.

    Attributes:
        images: float32 `[N, 64]`.
        labels: int64 `[N]`, the digits.
        direct: float32 `[N, 10]`, the probabilities that TensorFlow gives when called directly.
    """

    images: np.ndarray
    labels: np.ndarray
    direct: np.ndarray


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How the served model compares with TensorFlow called directly.

    Attributes:
        served: share of images that the daemon's answers classify correctly.
        direct: share that TensorFlow classifies correctly when called directly.
        differing: images with different answers.
    """

    served: float
    direct: float
    differing: int


@dataclass(frozen=True, slots=True)
class Kill:
    """What a killed worker cost.

    Attributes:
        sent: requests sent before, during and after the kill.
        lost: requests without the right answer.
        first_error: the first error, or None.
        away_s: seconds until the slot was ready again.
    """

    sent: int
    lost: int
    first_error: BaseException | None
    away_s: float


def train_model(folder: Path) -> float:
    """Trains the model in a process of its own, saves it to the folder, and returns the seconds that took.

    Raises:
        ToolError: the folder cannot be made, TensorFlow or scikit-learn is missing, or the training failed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(f"the folder {folder} cannot be made: {error.strerror}") from None
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ToolError(f"The demo needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    started = time.monotonic()
    program = [*module_command("multitower.tools.demo.model"), str(folder)]
    done = subprocess.run(program, env=module_environment(), stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ToolError(
            f"{done.stderr}\nThe model could not be trained. The demo needs TensorFlow and scikit-learn: "
            "pip install tensorflow scikit-learn"
        )
    return time.monotonic() - started


def has_model(folder: Path) -> bool:
    """Whether an earlier demo trained the model in this folder."""
    return (folder / HELD_OUT_FILE).exists()


def write_config(folder: Path) -> Path:
    """Writes the configuration beside the model, and returns its path."""
    config = folder / "digits.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    return config


def read_held_out(folder: Path) -> HeldOut:
    """Reads the images that the training did not see."""
    with np.load(folder / HELD_OUT_FILE) as held_out:
        return HeldOut(held_out["x"], held_out["labels"], held_out["direct"])


def classify(client: Client, held_out: HeldOut) -> Accuracy:
    """Classifies every image, one in each request."""
    futures = [client.submit(MODEL, {"x": image[np.newaxis]}) for image in held_out.images]
    answers = np.concatenate([future.result()[OUTPUT] for future in futures])
    served, direct = answers.argmax(axis=1), held_out.direct.argmax(axis=1)
    return Accuracy(
        served=float(np.mean(served == held_out.labels)),
        direct=float(np.mean(direct == held_out.labels)),
        differing=int(np.sum(served != direct)),
    )


class CheckedLoad:
    """A closed loop of single images in which every answer is checked. A context manager: the load runs inside.

    Attributes:
        correct: requests that got the right answer.
        first_error: the first error of a request, or None.
    """

    def __init__(self, client: Client, held_out: HeldOut) -> None:
        self.correct = 0
        self.first_error: BaseException | None = None
        self._client = client
        self._held_out = held_out
        self._load = LoadGenerator(self._submit, self._record)
        self._flowing = threading.Event()
        self._started = self._seconds = 0.0

    @property
    def sent(self) -> int:
        """Requests sent."""
        return self._load.sent

    @property
    def lost(self) -> int:
        """Requests without the right answer: errors, wrong answers, and missing answers. Read it after the load."""
        return self.sent - self.correct

    @property
    def rate(self) -> float:
        """Right answers a second. Read it after the load."""
        return self.correct / self._seconds

    def wait_until_flowing(self) -> None:
        """Waits until as many answers have come as requests are outstanding.

        Raises:
            ToolError: they did not come in time.
        """
        if not self._flowing.wait(_TIMEOUT_S):
            raise ToolError(
                f"{OUTSTANDING} requests were not answered within {exact_duration(_TIMEOUT_S)}: {self.first_error}"
            )

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._load.keep_outstanding(OUTSTANDING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._load.stop(0.0 if kind is not None else _TIMEOUT_S)
        self._seconds = time.monotonic() - self._started

    def _image(self, number: int) -> slice:
        first = number % len(self._held_out.images)
        return slice(first, first + 1)

    def _submit(self, number: int) -> Future[Any]:
        return self._client.submit(MODEL, {"x": self._held_out.images[self._image(number)]}, timeout=_TIMEOUT_S)

    def _record(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.first_error = self.first_error or outcome.error
            return
        expected = self._held_out.direct[self._image(outcome.number)]
        # Rows of a larger batch may differ in the last bits, since kernels sum in another order.
        if np.allclose(outcome.outputs[OUTPUT], expected, rtol=1e-4, atol=1e-6):
            self.correct += 1
            if self.correct == OUTSTANDING:
                self._flowing.set()


def measure_load(
    client: Client, held_out: HeldOut, seconds: float, progress: Callable[[Mapping[int, int]], None]
) -> tuple[CheckedLoad, list[float]]:
    """Runs the load.

    Args:
        client: a connection to the daemon.
        held_out: the images to send.
        seconds: how long to run it.
        progress: takes the rows that each slot has answered, by slot, several times a second.

    Returns:
        The load, ended, and each slot's share of the rows.
    """
    before = _completed_rows(client)
    rows = dict.fromkeys(before, 0)
    with CheckedLoad(client, held_out) as load:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(_PROGRESS_S)
            rows = {slot: count - before[slot] for slot, count in _completed_rows(client).items()}
            progress(rows)
    return load, [count / max(sum(rows.values()), 1) for count in rows.values()]


def _completed_rows(client: Client) -> dict[int, int]:
    return {slot["slot"]: slot["completed"] for slot in client.status()["slots"]}


def wait_for_spare(client: Client) -> int:
    """Waits until the spare is idle, and returns the pid of the worker in slot 0.

    Raises:
        ToolError: the spare did not start in time.
    """
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        status = client.status()
        if any(spare["state"] == "idle" for spare in status["daemon"]["spares"]):
            pid: int = status["slots"][0]["pid"]
            return pid
        time.sleep(0.05)
    raise ToolError(f"the spare did not start within {exact_duration(READY_S)}")


def kill_worker(client: Client, held_out: HeldOut, pid: int) -> Kill:
    """Sends SIGKILL to the worker of slot 0 under load, and waits until the slot is ready again.

    Raises:
        ToolError: the slot was not ready again in time.
    """
    with CheckedLoad(client, held_out) as load:
        load.wait_until_flowing()
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        while True:
            slot = client.status()["slots"][0]
            away_s = time.monotonic() - killed
            if slot["state"] == "ready" and slot["pid"] != pid:
                break
            if away_s > RECOVERY_S:
                raise ToolError(f"slot 0 was not ready again within {exact_duration(RECOVERY_S)}: {slot['last_error']}")
            time.sleep(0.005)
        time.sleep(_AFTER_RECOVERY_S)  # some load on all workers again
    return Kill(load.sent, load.lost, load.first_error, away_s)


def process_ids(client: Client) -> list[int]:
    """The pids of the daemon, its workers and its spares."""
    status = client.status()
    return [
        status["daemon"]["pid"],
        *(slot["pid"] for slot in status["slots"] if slot["pid"] is not None),
        *(spare["pid"] for spare in status["daemon"]["spares"]),
    ]


def running(pids: Sequence[int]) -> list[int]:
    """The pids that still belong to a process."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
