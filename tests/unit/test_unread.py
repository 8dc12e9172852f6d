"""How many bytes of replies clients leave unread, and which of their requests and replies are given up for it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from multitower.errors import MultitowerError
from multitower.supervisor.routing.unread import (
    LOG_EVERY_S,
    MAX_REFUSALS_BYTES,
    MIN_READ_RATE,
    REFRESH_S,
    Backlog,
    Mark,
    UnreadReplies,
)

LIMIT = 4000
HIGH = 3000
HALF = 2000
TIMEOUT_S = 30.0


class Tracker:
    """Stands for a frame in libzmq's queue."""

    def __init__(self) -> None:
        self.done = False


class Scene:
    """Connections that get replies and read them; `now` goes on by more than `REFRESH_S` with each question."""

    def __init__(self, connections: int = 2) -> None:
        self.now = 1000.0
        self.unread = UnreadReplies(LIMIT, TIMEOUT_S)
        self.backlogs = [Backlog() for _ in range(connections)]
        self.trackers: list[list[Tracker]] = [[] for _ in self.backlogs]

    def send(self, connection: int, large: int = 0, small: int = 0) -> None:
        tracker = Tracker()
        self.trackers[connection].append(tracker)
        self.unread.add(self.backlogs[connection], Mark(cast(Any, tracker), large, small), self.now)

    def read(self, connection: int, replies: int = 1) -> None:
        for tracker in self.trackers[connection][:replies]:
            tracker.done = True
        del self.trackers[connection][:replies]

    def later(self, seconds: float = 2 * REFRESH_S) -> float:
        self.now += seconds
        return self.now

    def refused(self, connection: int, *, large: bool = True) -> MultitowerError | None:
        return self.unread.refusal(self.backlogs[connection], self.later(), large)

    def drops_reply(self, connection: int) -> bool:
        return self.unread.drops_reply(self.backlogs[connection], self.later())

    def drops_refusal(self, connection: int) -> bool:
        return self.unread.drops_refusal(self.backlogs[connection], self.later())


def test_what_is_read_is_subtracted_in_order() -> None:
    scene = Scene()
    scene.send(0, large=100)
    scene.send(0, large=200, small=10)
    scene.send(1, small=1000)
    assert scene.unread.total == 1310
    scene.trackers[0][1].done = True  # a second one is never written before the first
    scene.unread.tick(scene.later())
    assert scene.unread.total == 1310
    scene.read(0)
    scene.unread.tick(scene.later())
    assert (scene.unread.total, scene.backlogs[0].unread, scene.backlogs[1].small) == (1000, 0, 1000)


def test_a_single_client_may_use_half_of_the_limit() -> None:
    scene = Scene()
    scene.send(0, large=HALF - 1)
    assert scene.refused(0) is None
    scene.send(0, large=1)
    refused = scene.refused(0)
    assert refused is not None
    assert (refused.reason, refused.details["unread_bytes"]) == ("queue_full", HALF)
    assert refused.details["retry_after_ms"] > 0
    assert scene.refused(1) is None, "it has nothing unread"
    scene.read(0)
    scene.send(0, large=1)
    scene.read(0)
    assert scene.refused(0) is None


def test_from_half_on_only_the_largest_holders_are_refused() -> None:
    scene = Scene(4)
    for connection, size in enumerate((1000, 700, 500)):
        scene.send(connection, large=size)
    assert [scene.refused(connection) is not None for connection in range(4)] == [True, True, False, False]


def test_from_three_quarters_on_every_client_with_unread_replies_is_refused() -> None:
    scene = Scene(3)
    scene.send(0, large=HIGH - 1)
    scene.send(1, large=1)
    assert [scene.refused(connection) is not None for connection in range(3)] == [True, True, False]
    scene.read(1)
    assert scene.refused(1) is None


def test_at_the_limit_large_replies_are_refused_to_all_clients() -> None:
    scene = Scene(2)
    scene.send(0, large=LIMIT - 1)
    assert scene.refused(1) is None
    scene.send(0, large=1)
    assert scene.refused(1) is not None
    assert scene.refused(1, large=False) is None


@pytest.mark.parametrize("total", [HIGH - 1, HIGH])
def test_replies_are_dropped_only_for_who_reads_nothing_while_much_is_unread(total: int) -> None:
    scene = Scene()
    scene.send(0, large=total - 10)
    scene.send(1, large=5)
    scene.send(1, large=5)
    scene.later(TIMEOUT_S - 1.0)
    scene.read(1)
    assert not scene.drops_reply(1)
    assert not scene.drops_reply(0)
    scene.later(2.0)
    assert not scene.drops_reply(1), "it has read something"
    scene.send(0, large=10)
    scene.read(1)
    assert scene.drops_reply(0) is (total == HIGH)


def test_who_reads_something_in_time_loses_nothing() -> None:
    scene = Scene()
    for _ in range(8):
        scene.send(0, large=LIMIT)
    for _ in range(7):
        scene.later(TIMEOUT_S - 1.0)
        scene.unread.tick(scene.now)
        scene.read(0)
        assert not scene.drops_reply(0)
    scene.later(TIMEOUT_S + 1.0)
    assert scene.drops_reply(0)


def test_a_large_frame_has_the_time_that_it_takes() -> None:
    scene = Scene()
    size = 520 << 20
    scene.send(0, large=size)
    scene.later(TIMEOUT_S + size / MIN_READ_RATE - 1.0)
    assert not scene.drops_reply(0)
    scene.later(2.0)
    assert scene.drops_reply(0)


def test_who_got_a_reply_after_a_long_silence_is_not_late() -> None:
    scene = Scene()
    scene.send(0, large=1)
    scene.read(0)
    scene.later(10 * TIMEOUT_S)
    scene.unread.collect(scene.backlogs[0], scene.now)
    scene.send(0, large=LIMIT)
    assert not scene.drops_reply(0)


def test_refusals_are_dropped_once_a_client_leaves_many_unread() -> None:
    scene = Scene()
    scene.send(0, small=MAX_REFUSALS_BYTES - 1)
    assert not scene.drops_refusal(0)
    scene.backlogs[0].unmarked = 1
    assert scene.drops_refusal(0)
    assert not scene.drops_refusal(1)
    scene.read(0)
    assert not scene.drops_refusal(0)


def test_refusals_are_dropped_for_who_reads_nothing() -> None:
    scene = Scene()
    scene.send(0, large=LIMIT)
    assert not scene.drops_refusal(0)
    scene.later(TIMEOUT_S + 1.0)
    assert scene.drops_refusal(0)


def test_limits_can_be_changed() -> None:
    scene = Scene()
    scene.send(0, large=HALF)
    assert scene.refused(0) is not None
    scene.unread.set_limits(2 * LIMIT, TIMEOUT_S)
    assert scene.refused(0) is None


def test_what_is_refused_and_dropped_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    caplog.set_level("WARNING", "multitower.router")
    scene.unread.tick(scene.later())
    scene.send(0, large=LIMIT)
    for _ in range(3):
        scene.refused(0)
        scene.unread.tick(scene.later())
    scene.later(TIMEOUT_S + 1.0)
    scene.drops_reply(0)
    scene.unread.tick(scene.now)
    scene.unread.tick(scene.later(LOG_EVERY_S))
    fields = [cast(Any, record).fields for record in caplog.records]
    assert [record.getMessage() for record in caplog.records] == ["clients leave replies unread"] * 2
    assert [(each["requests_refused"], each["replies_dropped"]) for each in fields] == [(1, 0), (2, 1)]
    assert fields[0]["unread_bytes"] == LIMIT
