"""Which requests are observed."""

from __future__ import annotations

import random

import pytest

from multitower.supervisor.routing.sampler import Sampler
from multitower.trace_context import TraceContext


def chosen(sampler: Sampler, requests: int, now: float = 2.0) -> int:
    return sum([sampler.chooses(None, now) for _ in range(requests)])


@pytest.mark.parametrize(
    ("share", "requests", "least", "most"),
    [(0.0, 10_000, 0, 0), (1e-18, 10_000, 0, 0), (0.01, 100_000, 800, 1200), (0.7, 10_000, 6700, 7300), (1.0, 9, 9, 9)],
)
def test_a_share_of_the_requests_is_chosen(share: float, requests: int, least: int, most: int) -> None:
    random.seed(20)
    assert least <= chosen(Sampler(share), requests) <= most


def test_the_choice_is_random_not_regular() -> None:
    random.seed(20)
    sampler = Sampler(0.1)
    gaps: list[int] = []
    passed = 0
    for _ in range(20_000):
        if sampler.chooses(None, 1.0):
            gaps.append(passed)
            passed = 0
        else:
            passed += 1
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    # Of a geometric distribution: 9 and 90.
    assert mean == pytest.approx(9, rel=0.15)
    assert variance == pytest.approx(90, rel=0.3)


def test_only_a_choice_draws_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def draw() -> float:
        drawn.append(0.5)
        return 0.5

    monkeypatch.setattr(random, "random", draw)
    sampler = Sampler(0.01)  # passes over ln 0.5 / ln 0.99 = 68 requests at a time
    assert chosen(sampler, 69 * 10) == 10
    assert len(drawn) == 11


def test_no_more_than_the_limit_is_chosen_in_each_second() -> None:
    sampler = Sampler(1.0, 10)
    found = sum([chosen(sampler, 50, 1000 + tenth / 10) for tenth in range(100)])  # ten seconds
    assert 100 <= found <= 110
    sampler.change(1.0, 30)
    assert 30 <= chosen(sampler, 50, 1020) <= 40
    sampler.change(0.0)
    assert chosen(sampler, 50, 1030) == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_client_that_is_traced_decides_where_it_is_followed(share: float) -> None:
    sampler = Sampler(share, 1, follows_traces=True)
    assert [sampler.chooses(TraceContext(1, 1, True), 1.0) for _ in range(5)] == [True] * 5
    assert [sampler.chooses(TraceContext(1, 1, False), 1.0) for _ in range(5)] == [False] * 5
    assert Sampler(share).chooses(TraceContext(1, 1, True), 1.0) is bool(share)
