"""Limits of principals: a rate lets its burst and then its rate pass, and only so many requests are outstanding."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fake_front import ADDRESS, FakeFront

from multitower import batch_results, wire, worker_wire
from multitower.errors import MultitowerError, Reason, make
from multitower.spec import ModelReport
from multitower.supervisor.config.principals import Principal, Role
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.security.principal_limits import TokenBucket, Use, Uses


def principal(name: str, max_outstanding: int | None = None, rate: float | None = None) -> Principal:
    return Principal(name, frozenset(Role), max_outstanding=max_outstanding, rate=rate)


def answers(use: Use, times: list[float], infer: bool = True) -> list[int | None]:
    """For each time the milliseconds after which the request may be sent again; None where it is accepted."""
    found: list[int | None] = []
    for now in times:
        refusal = use.charge(infer, now)
        if refusal is not None:
            assert (refusal.reason, refusal.code) == ("queue_full", "RESOURCE_EXHAUSTED")
            assert refusal.details["limit"] == "rate"
        found.append(None if refusal is None else refusal.details["retry_after_ms"])
    return found


def test_a_request_that_a_role_and_a_limit_refuse_counts_once() -> None:
    use, forbidden = Use(), make(Reason.FORBIDDEN, "it may not")
    use.set_limits(None, 1.0, 0.0)
    assert use.charge(False, 0.0, forbidden) is forbidden
    limited = use.charge(False, 0.0, forbidden)
    assert limited is not None
    assert limited.reason == "queue_full", "a limit holds also for what is forbidden"
    assert (use.requests, use.refused) == (2, 2)


@pytest.mark.parametrize(
    ("rate", "times", "expected"),
    [
        # The burst of a second, then one each tenth of a second.
        (2.0, [0.0, 0.0, 0.0], [None, None, 500]),
        (2.0, [0.0, 0.0, 0.25, 0.5, 0.5], [None, None, 250, None, 500]),
        # A pause of any length gives one burst, not more.
        (2.0, [1000.0, 1000.0, 1000.0, 5000.0, 5000.0, 5000.0], [None, None, 500, None, None, 500]),
        # Less than one a second: a burst of one.
        (0.5, [0.0, 0.0, 1.0, 2.0, 2.0], [None, 2000, 1000, None, 2000]),
        # Refused requests use up nothing.
        (1.0, [0.0, 0.5, 0.6, 0.7, 1.0], [None, 500, 400, 300, None]),
        # A clock that stands still or goes back lets nothing more pass.
        (1.0, [5.0, 5.0, 4.0, 6.0], [None, 1000, 1000, None]),
        # Never 0: that would be no time to wait.
        (5000.0, [0.0] * 5001, [None] * 5000 + [1]),
    ],
)
def test_a_rate(rate: float, times: list[float], expected: list[int | None]) -> None:
    use = Use()
    use.set_limits(None, rate, 0.0)
    assert answers(use, times) == expected
    assert use.requests == len(times)
    assert use.refused == sum(each is not None for each in expected)


def test_a_rate_counts_requests_of_all_kinds_and_outstanding_ones_only_inference() -> None:
    use = Use()
    use.set_limits(1, 3.0, 0.0)
    use.outstanding = 1
    assert answers(use, [0.0, 0.0], infer=False) == [None, None]
    refusal = use.charge(True, 0.0)
    assert refusal is not None
    assert refusal.details == {"limit": "max_outstanding", "retry_after_ms": 50}
    # It was refused before the rate was asked, so one is left.
    assert answers(use, [0.0, 0.0], infer=False) == [None, 334]


@pytest.mark.parametrize(
    ("limit", "outstanding", "accepted"),
    [(None, 10**6, True), (2, 0, True), (2, 1, True), (2, 2, False), (2, 3, False)],
)
def test_outstanding_requests(limit: int | None, outstanding: int, accepted: bool) -> None:
    use = Use()
    use.set_limits(limit, None, 0.0)
    use.outstanding = outstanding
    refusal = use.charge(True, 0.0)
    assert isinstance(refusal, MultitowerError) is not accepted
    assert use.to_json() == {"requests": 1, "refused": int(not accepted), "outstanding": outstanding}


def test_a_limit_that_stays_goes_on_and_one_that_changes_begins_anew() -> None:
    uses = Uses()
    uses.set_principals([principal("a", rate=1.0), principal("b", rate=1.0)], 0.0)
    for name in ("a", "b"):
        use = uses.of(name)
        assert use is not None
        assert answers(use, [0.0, 0.0]) == [None, 1000]
    uses.set_principals([principal("a", rate=1.0), principal("b", rate=2.0)], 0.5)
    a, b = uses.of("a"), uses.of("b")
    assert a is not None
    assert b is not None
    assert answers(a, [0.5]) == [500]
    assert answers(b, [0.5, 0.5, 0.5]) == [None, None, 500]


def test_who_is_removed_and_comes_back_keeps_what_is_outstanding() -> None:
    uses = Uses()
    uses.set_principals([principal("a", max_outstanding=1), principal("b")], 0.0)
    a, b = uses.of("a"), uses.of("b")
    assert a is not None
    assert b is not None
    a.outstanding = 1
    b.requests = 7
    uses.set_principals([], 1.0)
    assert uses.of("b") is None
    uses.set_principals([principal("b"), principal("a", max_outstanding=1)], 2.0)
    assert uses.of("a") is a
    assert a.charge(True, 2.0) is not None
    again = uses.of("b")
    assert again is not None
    assert again.requests == 0


def test_a_bucket_is_full_again_after_a_pause() -> None:
    bucket = TokenBucket(2.0, 4.0, 0.0)
    assert bucket.full
    assert bucket.take(0.0) == 0.0
    assert not bucket.full
    bucket.wait_s(10.0)
    assert bucket.full


class Connection:
    """Stands for the connection to a worker."""

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []

    def send(self, message: list[Any]) -> None:
        self.sent.append(message)


class Routed:
    """A router with one worker for a model `m`, whose batches have one row, and the use of one principal."""

    def __init__(self) -> None:
        self.use = Use()
        self.router = Router({"m": QueueLimits(4, 1 << 20)}, {"m": 60.0}, 1 << 20)
        self.connection = Connection()
        self.route = self.router.add_worker(
            0, "cpu:0", cast(Any, self.connection), [ModelReport(name="m", max_batch_size=1)], {("m", "1"): 1}, 1.0
        )

    def ask(self, id: bytes, header: bytes | None = None, rows: int = 1) -> FakeFront:
        header = header or wire.infer_header("m", [wire.Tensor("x", "UINT8", (rows, 1))], timeout_us=50_000_000)
        front = FakeFront(None)
        body = [wire.INFER, id, header, bytes(rows)]
        self.router._admission.admit(cast(Any, front), ADDRESS, id, body, self.use)
        return front

    def answer(self) -> None:
        self.router.flush(1.0)
        head = worker_wire.read_batch_head(self.connection.sent[-1][0])
        answers: list[list[Any] | bytes] = [[b'{"outputs":[]}'] for _ in head.rows]
        timing = batch_results.Timing(10, 20, 30)
        self.router.handle_result(self.route, batch_results.result(head.batch_id, answers, timing))
        self.router.flush(1.0)


def test_a_request_is_outstanding_until_its_reply_however_it_ends() -> None:
    made = Routed()
    fronts = [made.ask(b"1"), made.ask(b"2"), made.ask(b"split", rows=2), made.ask(b"4")]
    assert made.use.outstanding == 4
    with pytest.raises(MultitowerError, match="queue_full"):
        made.ask(b"one too many")
    with pytest.raises(MultitowerError, match="model_unknown"):
        made.ask(b"5", wire.infer_header("nobody", [wire.Tensor("x", "UINT8", (1, 1))]))
    assert made.use.outstanding == 4
    made.answer()
    assert made.use.outstanding == 3
    made.router.scheduler.cancel((fronts[3], ADDRESS), b"4")
    made.router.flush(1.0)
    assert made.use.outstanding == 2
    made.answer()
    made.answer()
    assert made.use.outstanding == 1, "the second half of the split request is missing"
    made.router.scheduler.abandon("the daemon ends")
    made.router.flush(1.0)
    assert made.use.outstanding == 0
    assert [len(front.replies) for front in fronts] == [1, 1, 1, 1]
