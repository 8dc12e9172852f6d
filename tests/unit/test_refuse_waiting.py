"""How often waiting requests are looked at while clients leave too much unread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from multitower.errors import MultitowerError
from multitower.supervisor.loop.containment import ErrorLog
from multitower.supervisor.routing.admission import MAX_LOOK_INTERVAL_S, Admission
from multitower.supervisor.routing.recent import RefusedRequests
from multitower.supervisor.routing.request_plans import RequestPlanner
from multitower.supervisor.routing.unread import REFRESH_S, Backlog, Mark, UnreadReplies
from multitower.supervisor.scheduling.request import Request
from multitower.supervisor.scheduling.scheduler import Scheduler

LIMIT = 4000


class UnwrittenFrame:
    done = False


class Looks(Scheduler):
    """Counts looks at the waiting requests; `refused` of them are refused by each."""

    def __init__(self) -> None:
        super().__init__({})
        self.times: list[float] = []
        self.now = 1000.0
        self.refused = 0

    def refuse_waiting(self, _refusal: Callable[[Request], MultitowerError | None]) -> int:
        self.times.append(self.now)
        return self.refused


@pytest.fixture
def unread() -> UnreadReplies:
    return UnreadReplies(LIMIT, 30.0)


def look(scheduler: Looks, admission: Admission, seconds: float) -> int:
    """Calls as a busy loop does, each millisecond; returns how many looks there were."""
    before = len(scheduler.times)
    for _ in range(round(seconds * 1000)):
        scheduler.now += 0.001
        admission.refuse_waiting(scheduler.now)
    return len(scheduler.times) - before


def test_waiting_requests_are_looked_at_less_often_while_none_is_refused(unread: UnreadReplies) -> None:
    scheduler = Looks()
    admission = Admission(
        scheduler, cast(RequestPlanner, None), 1 << 20, unread, RefusedRequests(), ErrorLog(logging.getLogger())
    )
    assert look(scheduler, admission, 1.0) == 0, "too little is unread"
    backlog = Backlog()
    unread.add(backlog, Mark(cast(Any, UnwrittenFrame()), LIMIT, 0), scheduler.now)
    assert look(scheduler, admission, 10.0) <= 10.0 / MAX_LOOK_INTERVAL_S + 10
    gaps = [later - earlier for earlier, later in zip(scheduler.times, scheduler.times[1:], strict=False)]
    assert max(gaps) < MAX_LOOK_INTERVAL_S + 0.01
    scheduler.refused = 1
    look(scheduler, admission, MAX_LOOK_INTERVAL_S + 0.01)
    assert look(scheduler, admission, 1.0) >= 0.8 / REFRESH_S
