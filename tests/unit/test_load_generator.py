"""The load generator: how many requests are outstanding, what is recorded, and when it stops."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from multitower.errors import Reason, make
from multitower.tools.load_generator import LoadGenerator, Outcome

WAIT_S = 20.0
FULL = make(Reason.QUEUE_FULL, "the queue is full")


class Scripted:
    """Stands for a client: keeps the futures of the requests, for the test to complete."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []
        self.arrived = threading.Condition()

    def submit(self, number: int) -> Future[Any]:
        with self.arrived:
            assert number == len(self.futures)
            self.futures.append(Future())
            self.arrived.notify_all()
            return self.futures[number]

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.futures) >= count, WAIT_S)


@pytest.fixture
def client() -> Scripted:
    return Scripted()


@pytest.fixture
def outcomes() -> list[Outcome]:
    return []


def test_each_answer_of_a_closed_loop_is_followed_by_the_next_request(
    client: Scripted, outcomes: list[Outcome]
) -> None:
    with LoadGenerator(client.submit, outcomes.append) as load:
        load.keep_outstanding(3)
        assert len(client.futures) == load.sent == 3
        client.futures[1].set_result({"y": 1})
        assert len(client.futures) == load.sent == 4
        (outcome,) = outcomes
        assert (outcome.number, outcome.error, outcome.outputs) == (1, None, {"y": 1})
        assert outcome.due_ns <= outcome.ended_ns <= time.monotonic_ns()


def test_an_error_is_recorded_and_the_next_request_follows_after_a_pause(
    client: Scripted, outcomes: list[Outcome]
) -> None:
    with LoadGenerator(client.submit, outcomes.append, pause_s=0.05) as load:
        load.keep_outstanding(1)
        failed_ns = time.monotonic_ns()
        client.futures[0].set_exception(FULL)
        assert len(client.futures) == 1, "it does not follow at once"
        client.wait_for(2)
        assert time.monotonic_ns() - failed_ns >= 50_000_000
        assert [outcome.error for outcome in outcomes] == [FULL]


def test_a_request_that_cannot_be_submitted_counts_as_failed(client: Scripted, outcomes: list[Outcome]) -> None:
    refusals = iter([True, False])

    def submit(number: int) -> Future[Any]:
        if next(refusals):
            client.futures.append(Future())  # keeps the numbers in step
            raise FULL
        return client.submit(number)

    with LoadGenerator(submit, outcomes.append, pause_s=0.0) as load:
        load.keep_outstanding(1)
        client.wait_for(2)
        assert [(outcome.error, outcome.future) for outcome in outcomes] == [(FULL, None)]


def test_a_cancelled_request_counts_as_failed(client: Scripted, outcomes: list[Outcome]) -> None:
    with LoadGenerator(client.submit, outcomes.append) as load:
        load.send(0)
        client.futures[0].cancel()
        assert load.stop(WAIT_S) == 0
    (outcome,) = outcomes
    assert isinstance(outcome.error, CancelledError)


def test_stop_sends_nothing_more_and_waits_for_the_outstanding_ones(client: Scripted, outcomes: list[Outcome]) -> None:
    with LoadGenerator(client.submit, outcomes.append) as load:
        load.keep_outstanding(2)
        answer = threading.Timer(0.05, lambda: [future.set_result({}) for future in client.futures])
        answer.start()
        assert load.stop(WAIT_S) == 0
        answer.join()
        load.send(time.monotonic_ns())
        assert len(client.futures) == len(outcomes) == 2


def test_stop_returns_how_many_requests_got_no_outcome(client: Scripted, outcomes: list[Outcome]) -> None:
    with LoadGenerator(client.submit, outcomes.append) as load:
        load.keep_outstanding(3)
        client.futures[0].set_result({})
        assert load.stop(0.0) == 3


def test_an_open_loop_sends_only_what_it_is_told_to(client: Scripted, outcomes: list[Outcome]) -> None:
    with LoadGenerator(client.submit, outcomes.append) as load:
        load.send(5)
        client.futures[0].set_result({})
        load.send(6)
        client.futures[1].set_exception(FULL)
        assert load.stop(WAIT_S) == 0
    assert [(outcome.due_ns, outcome.error) for outcome in outcomes] == [(5, None), (6, FULL)]
    assert len(client.futures) == 2
