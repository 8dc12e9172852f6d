"""Background jobs: each outcome reaches its callback in the loop's thread, and no callback's defect hides another's."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from multitower.supervisor.loop.background import BackgroundJobs

SOON_S = 20.0


@pytest.fixture
def jobs() -> Iterator[BackgroundJobs]:
    with closing(BackgroundJobs()) as jobs:
        yield jobs


def finish(jobs: BackgroundJobs, outcomes: list[object], count: int) -> None:
    """Runs callbacks until so many outcomes have arrived."""
    while len(outcomes) < count:
        readable, _, _ = select.select([jobs.descriptor], [], [], SOON_S)
        assert readable, "no outcome in time"
        jobs.run_callbacks()


def test_results_and_exceptions_arrive_in_the_callers_thread(jobs: BackgroundJobs) -> None:
    outcomes: list[object] = []
    threads: list[threading.Thread] = []

    def then(outcome: object) -> None:
        outcomes.append(outcome)
        threads.append(threading.current_thread())

    jobs.run(threading.current_thread, then)
    finish(jobs, outcomes, 1)
    jobs.run(lambda: 1 // 0, then)
    finish(jobs, outcomes, 2)
    assert outcomes[0] is not threading.current_thread(), "the job itself runs in a thread of its own"
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert set(threads) == {threading.current_thread()}


def test_a_callback_that_raises_is_logged_and_the_others_run(
    jobs: BackgroundJobs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[object] = []

    def fail(outcome: str | Exception) -> None:
        outcomes.append(outcome)
        raise KeyError("a defect")

    caplog.set_level(logging.ERROR, "multitower.background")
    monkeypatch.setattr(logging.getLogger("multitower"), "propagate", True)
    jobs.run(lambda: "one", fail)
    jobs.run(lambda: "two", fail)
    jobs.run(lambda: "three", outcomes.append)
    finish(jobs, outcomes, 3)
    assert set(outcomes) == {"one", "two", "three"}
    assert caplog.text.count("KeyError: 'a defect'") == 2, "with their tracebacks"


def test_an_outcome_after_the_end_is_dropped(jobs: BackgroundJobs) -> None:
    go, ended = threading.Event(), threading.Event()

    def job() -> None:
        assert go.wait(SOON_S)
        ended.set()

    jobs.run(job, lambda outcome: pytest.fail(f"called with {outcome}"))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "background job"]
    jobs.close()
    go.set()
    assert ended.wait(SOON_S)
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_an_error_of_the_system_that_starts_no_thread_is_an_outcome(
    jobs: BackgroundJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    outcomes: list[object] = []
    jobs.run(lambda: "never", outcomes.append)
    finish(jobs, outcomes, 1)
    assert isinstance(outcomes[0], RuntimeError)


def test_its_descriptor_is_closed_once() -> None:
    jobs = BackgroundJobs()
    jobs.close()
    jobs.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(jobs.descriptor)
