"""Errors in the loop's chores and callbacks: logged, retried, and never at the cost of the others."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from math import inf
from typing import Any

import pytest
import zmq

from multitower import frames
from multitower.supervisor.loop.containment import (
    LOG_INTERVAL_S,
    MAX_ERRORS,
    MAX_KNOWN,
    MIN_INTERVAL_S,
    RETRY_S,
    Chore,
    ErrorLog,
    EventSources,
)
from multitower.supervisor.loop.reactor import Reactor


class Clock:
    """Time as a test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def errors(clock: Clock) -> ErrorLog:
    return ErrorLog(logging.getLogger("multitower.daemon"), clock)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with closing(Reactor()) as reactor:
        yield reactor


@pytest.fixture
def sources(reactor: Reactor, errors: ErrorLog, clock: Clock) -> EventSources:
    return EventSources(reactor, errors, clock)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    return [(record.message, record.fields) for record in errors]  # type: ignore[attr-defined]


def divide(divisor: int) -> float:
    return 1 / divisor


def raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:  # noqa: BLE001  whatever it is
        return error
    raise AssertionError("it does not raise")


def test_an_error_is_logged_with_its_traceback_once_a_minute_and_counted(
    errors: ErrorLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(500):
        errors.add("dividing", raised(lambda: divide(0)))
        clock.now += 0.1
    assert logged(caplog) == [("internal error while dividing", {})]
    assert caplog.records[0].exc_info is not None
    assert isinstance(caplog.records[0].exc_info[1], ZeroDivisionError)
    clock.now = 100.0 + LOG_INTERVAL_S
    errors.add("dividing", raised(lambda: divide(0)))
    assert logged(caplog)[1:] == [("internal error while dividing", {"repeated": 499})]


def test_errors_of_another_source_type_or_line_are_logged_too(
    errors: ErrorLog, caplog: pytest.LogCaptureFixture
) -> None:
    for source in ("dividing", "counting"):
        for function in (lambda: divide(0), lambda: divide("x"), lambda: [][0]):  # type: ignore[arg-type]
            errors.add(source, raised(function))
    assert len(logged(caplog)) == 6
    errors.add("counting", ValueError("never raised, so without a traceback"))
    errors.add("counting", ValueError("the same of another slot"), {"slot": 1})
    assert logged(caplog)[6:] == [
        ("internal error while counting", {}),
        ("internal error while counting", {"slot": 1}),
    ]


def test_errors_of_ever_new_workers_do_not_use_up_memory(errors: ErrorLog, clock: Clock) -> None:
    for incarnation in range(5000):
        errors.add("reaping", raised(lambda: divide(0)), {"incarnation": incarnation})
        clock.now += 1.0
    assert len(errors._log_at) < 2 * MAX_KNOWN


def test_a_chore_that_raises_runs_again_after_a_second(
    errors: ErrorLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[float] = []

    def run(now: float) -> None:
        runs.append(now)
        divide(0)

    chore = Chore("dividing", run, lambda now: now, errors)
    for _ in range(17):
        chore.run(clock.now)
        assert chore.next_wake(clock.now) > clock.now, "the loop must not spin"
        clock.now += RETRY_S / 8
    assert runs == [100.0, 100.0 + RETRY_S, 100.0 + 2 * RETRY_S]
    assert len(logged(caplog)) == 1


def test_a_chore_whose_next_wake_raises_is_asked_again_after_a_second(errors: ErrorLog) -> None:
    runs: list[float] = []
    chore = Chore("dividing", runs.append, lambda _: divide(0), errors)
    chore.run(100.0)
    assert chore.next_wake(100.0) == 100.0 + RETRY_S
    chore.run(100.0 + RETRY_S)
    assert runs == [100.0, 100.0 + RETRY_S]


def test_a_chore_that_never_has_to_run_wakes_nobody(errors: ErrorLog) -> None:
    assert Chore("waiting", lambda _: None, lambda _: None, errors).next_wake(100.0) == inf


def test_a_chore_that_is_always_due_does_not_make_the_loop_spin(errors: ErrorLog) -> None:
    assert Chore("waiting", lambda _: None, lambda _: 0.0, errors).next_wake(100.0) == 100.0 + MIN_INTERVAL_S


def test_a_periodic_chore_runs_once_in_each_interval(errors: ErrorLog) -> None:
    runs: list[float] = []
    chore = Chore.every(0.25, "counting", runs.append, errors)
    for now in (100.0, 100.125, 100.25, 100.5, 100.625):
        chore.run(now)
    assert runs == [100.0, 100.25, 100.5]
    assert chore.next_wake(100.625) == 100.75


def test_errors_that_are_not_exceptions_are_not_contained(errors: ErrorLog) -> None:
    def interrupt(_now: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Chore("interrupting", interrupt, lambda _: None, errors).run(100.0)


def test_a_descriptor_whose_callback_always_raises_is_paused_and_watched_again(
    reactor: Reactor, sources: EventSources, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = os.pipe()
    other, other_writing = os.pipe()
    calls: list[str] = []

    def broken() -> None:
        calls.append("broken")
        divide(0)

    sources.add("reading", reading, broken)
    sources.add("reading the other", other, lambda: calls.append(os.read(other, 1).decode()))
    try:
        os.write(writing, b"x")
        for _ in range(3 * MAX_ERRORS):
            reactor.wait(0)
        assert calls == ["broken"] * MAX_ERRORS
        assert sources.next_wake(clock.now) == clock.now + RETRY_S
        os.write(other_writing, b"y")
        reactor.wait(5)
        assert calls[MAX_ERRORS:] == ["y"], "other sources are served meanwhile"
        sources.resume(clock.now)
        reactor.wait(0)
        assert len(calls) == MAX_ERRORS + 1, "the pause is not over"
        clock.now += RETRY_S
        sources.resume(clock.now)
        assert sources.next_wake(clock.now) is None
        reactor.wait(0)
        assert calls[-1] == "broken"
        assert len(logged(caplog)) == 1
    finally:
        for descriptor in (reading, writing, other, other_writing):
            os.close(descriptor)


def test_a_socket_whose_callback_raises_loses_no_message(reactor: Reactor, sources: EventSources) -> None:
    received: list[bytes] = []

    def read() -> None:
        while True:
            message = theirs.recv(zmq.NOBLOCK)
            if message == b"bad":
                divide(0)
            received.append(message)

    def done() -> None:
        try:
            read()
        except zmq.Again:
            return

    with zmq.Context() as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        ours.bind("inproc://containment")
        theirs.connect("inproc://containment")
        sources.add_source(
            "reading messages", frames.descriptor(theirs), functools.partial(frames.readable, theirs), done
        )
        for message in (b"1", b"bad", b"2", b"bad", b"bad", b"3"):
            ours.send(message)
        for _ in range(10):
            reactor.wait(0)
        assert received == [b"1", b"2", b"3"]


def test_a_socket_is_paused_and_its_messages_are_read_afterwards(
    reactor: Reactor, sources: EventSources, clock: Clock
) -> None:
    received: list[bytes] = []
    broken = [True]

    def read() -> None:
        if broken[0]:
            divide(0)
        received.append(theirs.recv(zmq.NOBLOCK))

    with zmq.Context() as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        ours.bind("inproc://containment")
        theirs.connect("inproc://containment")
        recheck = sources.add_source(
            "reading messages", frames.descriptor(theirs), functools.partial(frames.readable, theirs), read
        )
        ours.send(b"1")
        for _ in range(2 * MAX_ERRORS):
            reactor.wait(0)
        assert sources.next_wake(clock.now) == clock.now + RETRY_S
        recheck()  # as after a send, meanwhile
        reactor.wait(0)
        broken[0] = False
        clock.now += RETRY_S
        sources.resume(clock.now)
        reactor.wait(0)
        assert received == [b"1"]
