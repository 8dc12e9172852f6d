"""An exception of a model becomes an error of the request that raises it, and of no other."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import numpy as np
import pytest
from scripted_model import BAD, KEY, Scripted, picky, run, square

from multitower import wire
from multitower.errors import InvalidRequest, MultitowerError, Reason
from multitower.worker import model_errors
from multitower.worker.executor import Executor
from multitower.worker.formats.model import Arrays


def test_a_malformed_entry_is_refused_and_the_others_run() -> None:
    model = Scripted(square)
    executor = Executor("m", model, (), proven=True)
    frames = [np.array([2]).tobytes(), b"short", np.array([3]).tobytes()]
    answers, _ = executor.run(executor.prepare(KEY, [1, 1, 1], frames))
    assert isinstance(answers[1], InvalidRequest)
    assert answers[1].reason == "size_mismatch"
    assert model.calls == [[2, 3]]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def refusal() -> MultitowerError:
    return InvalidRequest(Reason.SHAPE_INVALID, "too small", {"field": "x"})


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (ValueError("wrong"), "model_error", "'m' raised ValueError: wrong"),
        (OSError(2, "none", "/a\udcff"), "model_error", r"'m' raised FileNotFoundError: [Errno 2] none: '/a\udcff'"),
        (Unspeakable(), "model_error", "'m' raised Unspeakable: (its message cannot be shown)"),
        (KeyError("k" * 5000), "model_error", "'m' raised KeyError: '" + "k" * 1999 + " ..."),
        (refusal(), "shape_invalid", "too small"),
        (InvalidRequest(Reason.SHAPE_INVALID, "bad \ud800", {"n": object()}), "shape_invalid", r"bad \ud800"),
        (
            MultitowerError(Reason.QUEUE_FULL, "of another daemon"),
            "model_error",
            "'m' raised MultitowerError: RESOURCE_EXHAUSTED/queue_full: of another daemon",
        ),
    ],
)
def test_an_exception_of_the_model_becomes_an_error(error: Exception, reason: str, message: str) -> None:
    def fail(x: np.ndarray) -> Arrays:
        raise error

    executor = Executor("m", Scripted(fail), ())
    answers, _ = executor.run(executor.prepare(KEY, [1], [bytes(8)]))
    body = json.loads(wire.dump_json(answers[0].to_wire()))["error"]  # type: ignore[union-attr]
    assert (body["reason"], body["message"]) == (reason, message)


class OpError(Exception):
    """Like the base class of TensorFlow's exceptions."""

    __module__ = "tensorflow.python.framework.errors_impl"

    def __init__(self, code: object) -> None:
        super().__init__("of TensorFlow")
        self.error_code = code


class Foreign(Exception):
    """Has the attribute of TensorFlow's exceptions, but is none of them."""

    error_code = 3


class Unreadable(OpError):
    """Raises where its code is read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "error_code":
            raise RuntimeError("no code")
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OpError(3), "INVALID_ARGUMENT"),
        (OpError(9), "FAILED_PRECONDITION"),
        (OpError(11), "OUT_OF_RANGE"),
        (OpError(12), "UNIMPLEMENTED"),
        (OpError(4), "DEADLINE_EXCEEDED"),
        (MemoryError(), "RESOURCE_EXHAUSTED"),
        (OpError(99), None),
        (OpError([]), None),
        (Unreadable(3), None),
        (Foreign(), None),
        (ValueError("wrong"), None),
    ],
)
def test_only_the_request_that_raises_gets_the_error_with_its_status(error: Exception, status: str | None) -> None:
    def fail(x: np.ndarray) -> Arrays:
        if (x == BAD).any():
            raise error
        return square(x)

    executor = Executor("m", Scripted(fail), (), proven=True)
    answers, _ = executor.run(executor.prepare(KEY, [1, 1, 1], [np.array([x]).tobytes() for x in (2, BAD, 3)]))
    good, bad, other = answers
    assert isinstance(bad, MultitowerError)
    assert (bad.code, bad.reason, bad.details.get("status")) == ("INTERNAL", "model_error", status)
    assert [np.frombuffer(each[1], "i8").tolist() for each in (good, other)] == [[4], [9]]  # type: ignore[index]


def test_a_handlers_own_refusal_keeps_its_details() -> None:
    def fail(x: np.ndarray) -> Arrays:
        raise refusal()

    executor = Executor("m", Scripted(fail), ())
    answers, _ = executor.run(executor.prepare(KEY, [1], [bytes(8)]))
    assert answers[0].details == {"field": "x"}  # type: ignore[union-attr]


def test_exceptions_of_one_kind_are_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_errors, "_exception_logs", {})
    executor = Executor("m", Scripted(picky), ())
    for _ in range(50):
        run(executor, [BAD])
    (record,) = caplog.records
    assert "picky" in getattr(record, "fields", {})["traceback"]


@pytest.mark.parametrize("proven", [True, False])
def test_the_traceback_of_an_exception_is_logged_without_those_of_larger_batches(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, proven: bool
) -> None:
    monkeypatch.setattr(model_errors, "_exception_logs", {})
    run(Executor("m", Scripted(picky), (), proven=proven), [2], [BAD], [3], [4])
    (record,) = caplog.records
    assert getattr(record, "fields", {})["traceback"].count("Traceback (most recent call last)") == 1


@pytest.mark.parametrize("rows", [1, 4])
def test_an_exception_does_not_keep_its_inputs(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(model_errors, "_exception_logs", {})
    seen: list[weakref.ref[np.ndarray]] = []

    def fail(x: np.ndarray) -> Arrays:
        seen.append(weakref.ref(x))
        raise ValueError("wrong")

    gc.disable()
    try:
        run(Executor("m", Scripted(fail), (), proven=True), *[[2]] * rows)
        assert [each() for each in seen] == [None] * len(seen)
    finally:
        gc.enable()
