"""The demo's checks: what counts as a right answer, and what as a lost request."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multitower.errors import Reason, make
from multitower.tools.demo import OUTPUT, steps
from multitower.tools.demo.steps import CheckedLoad, HeldOut
from multitower.tools.errors import ToolError

HELD_OUT = HeldOut(
    images=np.arange(3 * 64, dtype=np.float32).reshape(3, 64),
    labels=np.array([0, 1, 2]),
    direct=np.eye(3, 10, dtype=np.float32),
)


class Scripted:
    """Stands for a client whose requests the test answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[np.ndarray, Future[Any]]] = []

    def submit(self, model: str, inputs: dict[str, np.ndarray], **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.requests.append((inputs["x"], future))
        return future

    def answer(self, number: int, probabilities: np.ndarray) -> None:
        self.requests[number][1].set_result({OUTPUT: probabilities})


def test_only_the_right_answer_of_an_image_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "OUTSTANDING", 4)
    client: Any = Scripted()
    error = make(Reason.WORKER_DIED, "two workers died with it")
    with CheckedLoad(client, HELD_OUT) as load:
        assert [int(image[0, 0]) for image, _ in client.requests] == [0, 64, 128, 0]
        client.answer(0, HELD_OUT.direct[:1] + 1e-7)
        client.answer(1, HELD_OUT.direct[:1])
        client.requests[2][1].set_exception(error)
        for number in (3, 4, 5):
            client.answer(number, HELD_OUT.direct[number % 3 : number % 3 + 1])
        load.wait_until_flowing()
        monkeypatch.setattr(steps, "_TIMEOUT_S", 0.0)
    assert load.correct == 4
    assert load.lost == load.sent - 4 >= 4, "the error, and those without an answer"
    assert load.first_error is error


def test_packages_that_the_training_needs_are_named_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "find_spec", lambda module: None)
    with pytest.raises(ToolError, match="demo needs tensorflow and scikit-learn: pip install tensorflow scikit-learn"):
        steps.train_model(tmp_path)
