"""Exceptions of user code: whatever a model raises, its request is answered, and the worker goes on."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multitower import wire
from multitower.errors import InvalidRequest, ModelError, MultitowerError, Reason, from_wire
from multitower.worker import model_errors
from multitower.worker.executor import Executor
from multitower.worker.formats.model import Arrays
from multitower.worker.model_errors import (
    MAX_DETAILS_BYTES,
    MAX_KINDS,
    MAX_MESSAGE,
    ErrorTranslator,
    ExceptionLog,
    LoadError,
    is_out_of_memory,
    load_cause,
    one_line,
)
from multitower.worker_wire import KeySpec

KEY = KeySpec("m", (("x", "INT64", ()),), None, True)
BAD = -1


@pytest.fixture(autouse=True)
def _nothing_was_logged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_errors, "_exception_logs", {})


class EmptyError(InvalidRequest):
    """A handler's own subclass, whose constructor has other arguments."""

    def __init__(self, field: str, message: str = "is empty") -> None:
        super().__init__(Reason.SHAPE_INVALID, f"{field} {message}", {"field": field})


class Forgetful(InvalidRequest):
    """Does not call its base's constructor."""

    def __init__(self) -> None:
        pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Quitting(Exception):
    def __str__(self) -> str:
        sys.exit(3)


class Hostile(BaseException):
    """Access to any attribute of it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise self


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class OfNamelessClass(Exception, metaclass=Nameless):
    pass


class Greedy(Exception):
    """Its text is a hostile subclass of `str`."""

    def __str__(self) -> str:
        class Text(str):
            def __len__(self) -> int:
                raise RuntimeError("no length")

            __getitem__ = __len__  # type: ignore[assignment]

        return Text("greedy")


def nested(depth: int) -> dict[str, Any]:
    details: dict[str, Any] = {}
    for _ in range(depth):
        details = {"in": details}
    return details


def circle() -> dict[str, Any]:
    details: dict[str, Any] = {}
    details["self"] = details
    return details


def with_reason(reason: str, message: str = "no") -> InvalidRequest:
    error = InvalidRequest(Reason.SHAPE_INVALID, message)
    error.reason = reason
    return error


def with_details(details: Any) -> InvalidRequest:
    error = InvalidRequest(Reason.SHAPE_INVALID, "no")
    error.details = details
    return error


LONG = "m" * 5000
SHORTENED = "m" * MAX_MESSAGE + " ..."

REFUSED_DETAILS: dict[str, Callable[[], Any]] = {
    "deeper than JSON goes": lambda: nested(100_000),
    "deeper than clients read": lambda: nested(900),
    "a circle": circle,
    "bytes": lambda: {"a": b"\xff"},
    "NaN": lambda: {"a": float("nan")},
    "a number of 10,000 digits": lambda: {"a": 10**10_000},
    "too large": lambda: {"a": "b" * 300_000},
    "no dict": lambda: [1, 2],
    "none": lambda: None,
}

# The exception; the reason and the message that the client gets, None for any message.
ERRORS: dict[str, tuple[Callable[[], BaseException], str, str | None]] = {
    "of Python": (lambda: ValueError("wrong"), "model_error", "'m' raised ValueError: wrong"),
    "arguments that are no text": (lambda: ValueError(1, b"\xff", object), "model_error", None),
    "odd text": (lambda: ValueError("a\nb\0"), "model_error", "'m' raised ValueError: a\nb\0"),
    "no text": (Unprintable, "model_error", "'m' raised Unprintable: (its message cannot be shown)"),
    "text that exits": (Quitting, "model_error", "'m' raised Quitting: (its message cannot be shown)"),
    "nothing can be asked of it": (Hostile, "model_error", "'m' raised Hostile: (its message cannot be shown)"),
    "a class without a name": (lambda: OfNamelessClass("x"), "model_error", "'m' raised an exception: x"),
    "text of its own kind": (Greedy, "model_error", "'m' raised Greedy: greedy"),
    "huge": (lambda: ValueError("m" * 10_000_000), "model_error", f"'m' raised ValueError: {SHORTENED}"),
    "sys.exit": (lambda: SystemExit(5), "model_error", "'m' raised SystemExit: 5"),
    "Ctrl-C": (KeyboardInterrupt, "model_error", "'m' raised KeyboardInterrupt: "),
    "GeneratorExit": (GeneratorExit, "model_error", "'m' raised GeneratorExit: "),
    "recursion": (lambda: RecursionError("deep"), "model_error", "'m' raised RecursionError: deep"),
    "a group": (lambda: ExceptionGroup("g", [ValueError("a")]), "model_error", None),
    "a subclass of its own": (lambda: EmptyError("text"), "shape_invalid", "text is empty"),
    "a subclass and a long message": (
        lambda: EmptyError("x", LONG),
        "shape_invalid",
        f"x {LONG}"[:MAX_MESSAGE] + " ...",
    ),
    "a subclass without attributes": (Forgetful, "model_error", None),
    "an unknown reason": (lambda: with_reason("mine"), "model_error", None),
    "an unknown reason and a long message": (lambda: with_reason("mine", LONG), "model_error", None),
    "a reason of the daemon's": (lambda: with_reason("queue_full"), "model_error", None),
    "the reason that forbids another try": (lambda: ModelError(Reason.POISONED, "no"), "model_error", None),
    "of a newer daemon": (
        lambda: from_wire({"error": {"code": "INTERNAL", "reason": "of_next_year", "message": LONG}}),
        "model_error",
        None,
    ),
    "a long message": (lambda: InvalidRequest(Reason.SHAPE_INVALID, LONG), "shape_invalid", SHORTENED),
    "a message that is no text": (
        lambda: InvalidRequest(Reason.SHAPE_INVALID, 7),  # type: ignore[arg-type]
        "shape_invalid",
        "7",
    ),
    **{
        f"details: {what}": (lambda made=made: with_details(made()), "shape_invalid", "no")  # type: ignore[misc]
        for what, made in REFUSED_DETAILS.items()
    },
}


class Raising:
    """Raises where a row is `BAD`, and squares the others."""

    platform = "python"
    volatile = True
    version = "1"
    inputs = None
    outputs = None

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def infer(self, inputs: Arrays) -> Arrays:
        if BAD in inputs["x"]:
            raise self._error
        return {"y": inputs["x"] ** 2}

    def try_out(self, inputs: Arrays) -> Arrays:
        return self.infer(inputs)

    def close(self) -> None:
        pass


def answers(executor: Executor, *rows: int, joined: bool) -> list[Any]:
    """The answer to each request: its square, or its error as a client reads it."""
    frames = [np.array([row]).tobytes() for row in rows]
    prepared = executor.prepare(KEY, [1] * len(rows), [b"".join(frames)] if joined else frames, joined=joined)
    found = executor.run(prepared)[0]
    return [
        from_wire(wire.load_header(wire.dump_json(answer.to_wire())))
        if isinstance(answer, MultitowerError)
        else int(np.frombuffer(answer[1], np.int64)[0])
        for answer in found
    ]


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("raised", ERRORS)
def test_only_the_request_that_raises_gets_an_error_that_clients_can_read(
    raised: str, proven: bool, joined: bool
) -> None:
    error, reason, message = ERRORS[raised]
    executor = Executor("m", Raising(error()), (), proven=proven)
    first, told, last = answers(executor, 2, BAD, 3, joined=joined)
    assert (first, last) == (4, 9)
    assert told.reason == reason
    if message is not None:
        assert told.message == message
    assert len(told.message) <= MAX_MESSAGE + 100
    assert answers(executor, 4, joined=joined) == [16], "the worker goes on"


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ({"field": "x", "n": 1.5, "list": [1, {"a": None}]}, {"field": "x", "n": 1.5, "list": [1, {"a": None}]}),
        ({1: "a", "1": "b"}, {"1": "b"}),
        ({"a": "b" * (MAX_DETAILS_BYTES - 8)}, {"a": "b" * (MAX_DETAILS_BYTES - 8)}),
        ({"a": "b" * MAX_DETAILS_BYTES}, {}),
        (nested(31), nested(31)),
        (nested(32), {}),
    ],
)
def test_details_that_clients_can_read_are_kept(details: Any, told: Any) -> None:
    found = ErrorTranslator("m", "1").translate(with_details(details))
    assert json.loads(wire.dump_json(found.to_wire()))["error"].get("details", {}) == told
    assert from_wire(wire.load_header(wire.dump_json(found.to_wire()))).details == told


def test_half_a_surrogate_pair_in_a_message_is_shown_as_its_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own report could not carry the log line.
    monkeypatch.setattr(logging.getLogger("multitower.worker"), "disabled", True)
    assert ErrorTranslator("m", "1").translate(ValueError("a\ud800")).message == "'m' raised ValueError: a\\ud800"


def test_a_traceback_that_cannot_be_logged_costs_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit(4)

    handler = Raises()
    logging.getLogger("multitower.worker").addHandler(handler)
    try:
        assert ErrorTranslator("m", "1").translate(ValueError("wrong")).reason == "model_error"
    finally:
        logging.getLogger("multitower.worker").removeHandler(handler)
    assert "WARNING model raised an exception; its traceback cannot be shown" in capfd.readouterr().err


def fail_deep(depth: int, message: str) -> None:
    if depth:
        fail_deep(depth - 1, message)
    raise ValueError(message)


@pytest.mark.parametrize(("depth", "size"), [(0, 10_000_000), (900, 10), (900, 10_000_000)])
def test_a_huge_traceback_is_logged_in_part(caplog: pytest.LogCaptureFixture, depth: int, size: int) -> None:
    with pytest.raises(ValueError, match="m") as raised:
        fail_deep(depth, "m" * size)
    ErrorTranslator("m", "1").translate(raised.value)
    (record,) = caplog.records
    fields: dict[str, str] = getattr(record, "fields", {})
    assert record.getMessage() == "model raised an exception"
    assert fields["cause"].startswith("ValueError: mmm")
    assert "in fail_deep" in fields["traceback"]
    assert len(str(fields)) < 20_000


class Logged(logging.Handler):
    """The fields of entries, and an event for each."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.entries.put((record.getMessage(), getattr(record, "fields", {})))


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler = Logged()
    logger = logging.getLogger("multitower.worker")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def raised_by(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except Exception as error:  # noqa: BLE001  whatever it raises
        return error
    raise AssertionError("it raises nothing")


def test_equal_exceptions_are_logged_once_and_then_counted(logged: Logged) -> None:
    exceptions = ExceptionLog("m", "7", interval_s=0.2)
    for _ in range(5):
        exceptions.add(raised_by(lambda: 1 / 0))
    message, fields = logged.entries.get(timeout=30)
    assert message == "model raised an exception"
    assert (fields["model"], fields["version"]) == ("m", "7")
    assert "ZeroDivisionError" in fields["traceback"]
    message, fields = logged.entries.get(timeout=30)
    assert message == "model raised exceptions again"
    assert (fields["model"], fields["version"], fields["repeated"]) == ("m", "7", 4)
    assert fields["cause"].startswith("ZeroDivisionError at ")
    exceptions.add(raised_by(lambda: 1 / 0))
    assert "traceback" in logged.entries.get(timeout=30)[1], "the next one begins anew"


def test_exceptions_of_other_classes_or_lines_are_logged_by_themselves(logged: Logged) -> None:
    exceptions = ExceptionLog("m", "7", interval_s=600)
    for function in (lambda: 1 / 0, lambda: 1 / 0, lambda: int("x")):
        exceptions.add(raised_by(function))
    assert logged.entries.qsize() == 3 - 1  # two of them are on one line
    exceptions.finish()
    assert [logged.entries.get_nowait()[1].get("repeated") for _ in range(3)] == [None, None, 1]


def test_exceptions_of_very_many_kinds_are_counted_together(logged: Logged) -> None:
    exceptions = ExceptionLog("m", "7", interval_s=600)
    for number in range(MAX_KINDS + 10):
        exceptions.add(type(f"Error{number}", (Exception,), {})())
    assert logged.entries.qsize() == MAX_KINDS + 1
    exceptions.finish()
    assert logged.entries.queue[-1][1]["repeated"] == 9


class OutOfMemoryError(Exception):
    """Has the name of PyTorch's."""


@pytest.mark.parametrize(
    ("error", "out_of_memory"),
    [
        (MemoryError, True),
        (OutOfMemoryError, True),
        (lambda: RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), True),
        (lambda: RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (lambda: ValueError("wrong"), False),
        (lambda: ValueError(Unprintable()), False),
        (lambda: ValueError(object()), False),
        (Hostile, False),
        (lambda: MultitowerError(Reason.QUEUE_FULL, "of another daemon"), False),
    ],
)
def test_errors_that_say_that_memory_is_exhausted_are_recognised(
    error: Callable[[], BaseException], out_of_memory: bool
) -> None:
    assert is_out_of_memory(error()) is out_of_memory


def test_errors_are_described_in_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ValueError("x" * 5000), 10) == "ValueError: xxxxxxxxxx"
    assert one_line(Hostile()) == "Hostile: (its message cannot be shown)"


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.py").write_text(
        "import json\n\ndef parse():\n    return json.loads('{')\n\ndef fail():\n    raise KeyError('weights')\n"
    )
    yield tmp_path
    for name in ("pack", "pack.mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "location"), [("fail", "pack/mine.py:7"), ("parse", "pack/mine.py:4")])
def test_the_cause_of_a_failed_load_names_the_line_of_the_users_code(user_code: Path, name: str, location: str) -> None:
    import pack.mine  # type: ignore[import-not-found]

    with pytest.raises((KeyError, ValueError)) as raised:
        getattr(pack.mine, name)()
    assert load_cause(raised.value).endswith(f" ({location})".replace("/", os.sep))
    assert "\n" not in load_cause(raised.value)


def test_the_cause_of_a_failed_load_names_no_line_of_a_library() -> None:
    # In a separate program, which has no file.
    program = """
import json
from multitower.worker.model_errors import load_cause
try:
    json.loads("{")
except ValueError as error:
    print(load_cause(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    told = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert done.stdout == f"JSONDecodeError: {told}\n"


def test_the_cause_of_a_failed_load_is_the_message_of_a_load_error() -> None:
    assert load_cause(LoadError("there is no such file")) == "there is no such file"
    assert load_cause(Hostile()) == "Hostile: (its message cannot be shown)"


def test_a_file_is_named_by_its_path_on_the_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/srv", "/srv/models", "", "relative"])
    assert model_errors._shortened("/srv/models/pack/mine.py") == "pack/mine.py"
    assert model_errors._shortened("/elsewhere/mine.py") == "/elsewhere/mine.py"
