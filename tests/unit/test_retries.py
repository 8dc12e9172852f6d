"""When a refused request is sent again, and the order of those that wait, as tables."""

from __future__ import annotations

import random
from typing import Any

import pytest

from multitower.client.retries import JITTER, MAX_DELAY_S, MIN_DELAY_S, Retries, delay_before_retry
from multitower.client.transport import Call
from multitower.errors import MultitowerError, Reason, from_wire, make

NOW = 1000.0
FAR = 1e9
FULL = make(Reason.QUEUE_FULL, "full", queue_depth=5, retry_after_ms=200)


class Drawn(random.Random):
    """Draws the same share of every range."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


def delay(error: MultitowerError, retries: int = 0, deadline: float = FAR, share: float = 0.0) -> float | None:
    return delay_before_retry(error, retries, NOW, deadline, Drawn(share))


@pytest.mark.parametrize("reason", Reason)
def test_only_requests_that_have_not_run_are_sent_again(reason: Reason) -> None:
    again = delay(make(reason, "why", retry_after_ms=200)) is not None
    assert again == (reason in {Reason.QUEUE_FULL, Reason.NO_WORKER})


def test_a_request_refused_for_an_unknown_reason_is_not_sent_again() -> None:
    body = {"code": "RESOURCE_EXHAUSTED", "reason": "tired", "message": "", "details": {"retry_after_ms": 1}}
    assert delay(from_wire({"error": body})) is None


RETRY_AFTER: dict[str, tuple[Any, float | None]] = {
    "whole": (200, 0.2),
    "a fraction": (200.5, 0.2005),
    "less than the floor": (1, MIN_DELAY_S),
    "zero": (0, MIN_DELAY_S),
    "very long": (60_000, MAX_DELAY_S),
    "no float holds it": (10**400, MAX_DELAY_S),
    "infinity": (float("inf"), MAX_DELAY_S),
    "NaN": (float("nan"), None),
    "negative": (-1, None),
    "true": (True, None),
    "text": ("200", None),
    "a list": ([200], None),
    "null": (None, None),
}


@pytest.mark.parametrize("reason", [Reason.QUEUE_FULL, Reason.NO_WORKER])
@pytest.mark.parametrize("case", RETRY_AFTER)
def test_a_retry_comes_after_the_time_that_the_daemon_names(case: str, reason: Reason) -> None:
    value, wanted = RETRY_AFTER[case]
    body = {"code": "UNAVAILABLE", "reason": str(reason), "message": "", "details": {"retry_after_ms": value}}
    assert delay(from_wire({"error": body})) == wanted


def test_a_refusal_without_retry_after_ms_is_not_retried() -> None:
    assert delay(make(Reason.NO_WORKER, "the model has failed")) is None
    assert delay(make(Reason.QUEUE_FULL, "full", queue_depth=5)) is None


@pytest.mark.parametrize(
    ("retries", "wanted"), [(0, 0.05), (1, 0.1), (2, 0.2), (5, 1.6), (7, MAX_DELAY_S), (100_000, MAX_DELAY_S)]
)
def test_the_shortest_wait_doubles_with_each_retry(retries: int, wanted: float) -> None:
    assert delay(make(Reason.QUEUE_FULL, "full", retry_after_ms=1), retries) == pytest.approx(wanted)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("told_ms", "least"), [(200, 0.2), (1, MIN_DELAY_S), (60_000, MAX_DELAY_S)])
def test_the_wait_is_random_but_never_shorter_than_the_daemon_says(told_ms: int, least: float, share: float) -> None:
    error = make(Reason.QUEUE_FULL, "full", retry_after_ms=told_ms)
    assert delay(error, share=share) == pytest.approx(least * (1 + JITTER * share))


@pytest.mark.parametrize(
    ("left", "share", "again"),
    [(0.21, 0.0, True), (0.2, 0.0, False), (0.19, 0.0, False), (0.21, 1.0, False), (0.31, 1.0, True), (-1, 0.0, False)],
)
def test_a_retry_past_the_deadline_is_not_made(left: float, share: float, again: bool) -> None:
    assert (delay(FULL, deadline=NOW + left, share=share) is not None) == again


def call(deadline: float = FAR, connect_by: float = NOW + 5) -> Call:
    def done(outcome: object) -> None:
        raise AssertionError(f"Retries settles no calls: {outcome}")

    return Call(b"kind", b"{}", (), deadline, connect_by, NOW, done)


def refusal(ms: int) -> MultitowerError:
    return make(Reason.QUEUE_FULL, "full", retry_after_ms=ms)


def test_calls_are_due_in_the_order_of_their_times() -> None:
    retries = Retries(2)
    assert retries.due == float("inf")
    late, early, middle = call(), call(), call()
    for each, ms in ((late, 3000), (early, 100), (middle, 1000)):
        assert retries.schedule(each, refusal(ms), NOW)
    assert NOW + 0.1 <= retries.due <= NOW + 0.15
    assert retries.pop_due(retries.due - 0.001) == []
    assert retries.pop_due(retries.due) == [early]
    assert NOW + 1.0 <= retries.due <= NOW + 1.5
    assert retries.pop_due(NOW + 10) == [middle, late]
    assert retries.due == float("inf")
    assert retries.pop_due(NOW + 10) == []


def test_calls_refused_together_are_due_at_different_times() -> None:
    retries = Retries(2)
    for _ in range(200):
        assert retries.schedule(call(), refusal(1000), NOW)
    moments = []
    while retries.due < float("inf"):
        moments.append(retries.due - NOW)
        retries.pop_due(retries.due)
    assert 1.0 <= min(moments) < 1.1
    assert 1.4 < max(moments) <= 1.5
    assert len(set(moments)) > 190


def test_clients_with_the_same_seed_wait_different_times() -> None:
    dues = set()
    for _ in range(3):
        random.seed(0)
        retries = Retries(1)
        retries.schedule(call(), refusal(1000), NOW)
        dues.add(retries.due)
    assert len(dues) == 3


@pytest.mark.parametrize("most", [0, 1, 2, 7])
def test_each_call_is_sent_again_up_to_the_limit(most: int) -> None:
    retries, one = Retries(most), call()
    for number in range(most):
        assert retries.schedule(one, refusal(1), NOW)
        assert one.retries == number + 1
        assert retries.pop_due(FAR) == [one]
    assert not retries.schedule(one, refusal(1), NOW)
    assert one.retries == most
    assert retries.due == float("inf")


def test_a_call_that_is_not_sent_again_is_unchanged() -> None:
    retries, one = Retries(2), call(deadline=NOW + 0.1)
    for error in (refusal(1000), make(Reason.POISONED, "why", retry_after_ms=1)):
        assert not retries.schedule(one, error, NOW)
    assert (one.retries, one.connect_by) == (0, NOW + 5)
    assert retries.due == float("inf")


def test_the_wait_does_not_count_as_time_to_connect() -> None:
    retries, one, short = Retries(2), call(), call(deadline=NOW + 8)
    for each in (one, short):
        assert retries.schedule(each, refusal(4000), NOW)
    assert NOW + 9 <= one.connect_by <= NOW + 11
    assert short.connect_by == NOW + 8  # never past its deadline
