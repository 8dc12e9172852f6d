"""Background jobs: each outcome reaches its callback in the loop's thread, and no callback's defect hides another's."""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
import time
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
    go = threading.Event()
    started: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def job() -> None:
        started.put(threading.current_thread())
        assert go.wait(SOON_S)

    jobs.run(job, lambda outcome: pytest.fail(f"called with {outcome}"))
    thread = started.get(timeout=SOON_S)
    jobs.close()
    go.set()
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


def test_one_thread_runs_jobs_that_follow_each_other(jobs: BackgroundJobs) -> None:
    outcomes: list[object] = []
    for count in range(1, 6):
        jobs.run(threading.get_ident, outcomes.append)
        finish(jobs, outcomes, count)
        wait_until_idle(jobs)
    assert len(set(outcomes)) == 1


def test_a_job_that_does_not_end_keeps_no_other_from_running(jobs: BackgroundJobs) -> None:
    outcomes: list[object] = []
    ended = threading.Event()
    jobs.run(ended.wait, outcomes.append)
    for count in range(1, 4):
        jobs.run(threading.get_ident, outcomes.append)
        finish(jobs, outcomes, count)
    assert True not in outcomes
    ended.set()
    finish(jobs, outcomes, 4)
    assert True in outcomes


def test_the_thread_that_waits_for_a_job_ends_with_the_jobs() -> None:
    jobs = BackgroundJobs()
    threads: list[object] = []
    jobs.run(threading.current_thread, threads.append)
    finish(jobs, threads, 1)
    jobs.close()
    (thread,) = threads
    assert isinstance(thread, threading.Thread)
    thread.join(SOON_S)
    assert not thread.is_alive()


def wait_until_idle(jobs: BackgroundJobs) -> None:
    """Waits until a thread waits for the next job: it hands its outcome over a moment before."""
    until = time.monotonic() + SOON_S
    while not jobs._idle:
        assert time.monotonic() < until
        time.sleep(0.001)
