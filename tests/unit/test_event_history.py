"""Which events the daemon keeps, how large they may be, and which of them the status has."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from daemon_scene import DaemonScene
from hypothesis import given
from hypothesis import strategies as st

from multitower import wire
from multitower.errors import MultitowerError, Reason
from multitower.supervisor.loop.history import KEPT, MAX_CAUSE, MAX_TEXT, SHOWN, EventHistory, EventKind

log = logging.getLogger("multitower.test")
SHARE = KEPT // len(EventKind)


def note(history: EventHistory, kind: EventKind, slot: int | None = None, message: str = "it happened") -> None:
    history.note(log, logging.WARNING, kind, message, slot=slot)


def kinds(history: EventHistory) -> list[EventKind]:
    return [past.kind for past in history.events()]


def test_a_worker_that_dies_again_and_again_displaces_no_other_kind_and_no_other_slot() -> None:
    history = EventHistory()
    note(history, EventKind.RELOAD)
    note(history, EventKind.DEATH, slot=7)
    for _ in range(10 * KEPT):
        note(history, EventKind.DEATH, slot=0)
        note(history, EventKind.RESTART, slot=0)
    assert len(history.events()) == KEPT
    assert kinds(history)[:2] == [EventKind.RELOAD, EventKind.DEATH]
    assert history.events()[1].fields == {"slot": 7}
    assert [past.kind for past in history.latest()][:2] == [EventKind.RELOAD, EventKind.DEATH]
    assert history.latest()[1].fields == {"slot": 7}


def test_the_latest_events_of_one_kind_may_be_all_that_are_kept() -> None:
    history = EventHistory()
    for number in range(2 * KEPT):
        note(history, EventKind.VERSION, message=str(number))
    assert [past.message for past in history.events()] == [str(number) for number in range(KEPT, 2 * KEPT)]
    assert [past.message for past in history.latest()] == [str(n) for n in range(2 * KEPT - SHOWN, 2 * KEPT)]


@given(st.lists(st.tuples(st.sampled_from(EventKind), st.integers(0, 3)), max_size=600))
def test_each_kind_keeps_its_share_of_the_latest_events(happened: list[tuple[EventKind, int]]) -> None:
    history = EventHistory()
    for kind, slot in happened:
        note(history, kind, slot)
    for kept, limit in ((history.events(), KEPT), (history.latest(), SHOWN)):
        assert len(kept) == min(len(happened), limit)
        numbers = [past.seq for past in kept]
        assert numbers == sorted(set(numbers)), "the oldest first, none twice"
        assert not happened or numbers[-1] == len(happened), "the newest event is always there"
        for kind in EventKind:
            there = sum(past.kind is kind for past in kept)
            assert there >= min(sum(each is kind for each, _ in happened), limit // len(EventKind)), kind


def test_an_event_is_kept_whatever_level_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    log.setLevel(logging.CRITICAL)
    try:
        history = EventHistory()
        note(history, EventKind.DEATH, slot=0)
    finally:
        log.setLevel(logging.NOTSET)
    assert not caplog.records
    assert len(history.events()) == 1


def test_an_event_has_its_number_its_time_its_age_and_a_cause_of_bounded_length() -> None:
    history = EventHistory()
    history.note(log, logging.ERROR, EventKind.MODEL_REFUSED, "model cannot load", model="m", cause="x" * 10_000)
    (past,) = history.events()
    shown = past.to_json(past.at + 12.5)
    assert shown["seq"] == 1
    assert shown["age_s"] == 12.5
    assert shown["level"] == "error"
    assert shown["time"].endswith("Z")
    assert shown["model"] == "m"
    assert len(shown["cause"]) == MAX_CAUSE
    assert "version" not in shown, "what is not known is left out"


def test_a_text_of_an_event_has_no_half_of_a_surrogate_pair() -> None:
    history = EventHistory()
    history.keep(logging.INFO, EventKind.MODEL, "of \ud83d", model="\ud800b", cause="x" * MAX_CAUSE + "\udfff")
    (event,) = (past.to_json(0.0) for past in history.events())
    assert (event["message"], event["model"]) == ("of ?", "?b")
    assert event["cause"] == "x" * (MAX_CAUSE - 1) + "…"
    # Readers such as the gateway refuse the whole status otherwise.
    assert "\\ud" not in wire.dump_json(event).decode()


def test_the_texts_of_an_event_are_bounded_together() -> None:
    history = EventHistory()
    long = "\U0001f525" * 10_000
    texts = dict.fromkeys(("model", "version", "versions", "why", "cause", "next"), long)
    for _ in range(KEPT + 1):
        history.note(log, logging.ERROR, EventKind.VERSION, long, slot=3, away_s=1.5, **texts)
    (past, *_) = history.events()
    assert (past.fields["slot"], past.fields["away_s"]) == (3, 1.5), "numbers are kept behind long texts"
    assert sum(len(text) for text in past.fields.values() if isinstance(text, str)) == MAX_TEXT
    assert len(past.message) == MAX_CAUSE
    everything = json.dumps([past.to_json(past.at) for past in history.events()], ensure_ascii=False).encode()
    assert len(everything) < KEPT * (4 * (MAX_CAUSE + MAX_TEXT) + 300)


# What the status has.


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonScene:
    made = DaemonScene(tmp_path, [("m",)])
    for number in range(2 * KEPT):
        made.scene.manager.history.keep(logging.INFO, EventKind.RELOAD, str(number))
    return made


@pytest.mark.parametrize(
    ("header", "count"),
    [
        ({}, SHOWN),
        ({"events": False}, SHOWN),
        ({"events": True}, KEPT),
        ({"events": 0}, 0),
        ({"events": 1}, 1),
        ({"events": 50}, 50),
        ({"events": 10**9}, KEPT),
    ],
)
def test_the_status_has_as_many_events_as_the_request_asks_for(
    daemon: DaemonScene, header: dict[str, object], count: int
) -> None:
    answer = daemon.operations.queries.answer(wire.STATUS, header, daemon.scene.now)
    numbers = [each["seq"] for each in answer["daemon"]["events"]]
    assert numbers == list(range(2 * KEPT - count + 1, 2 * KEPT + 1))


@pytest.mark.parametrize("events", [-1, 1.5, "all", None, [], {}])
def test_a_number_of_events_that_is_none_is_refused(daemon: DaemonScene, events: object) -> None:
    with pytest.raises(MultitowerError) as caught:
        daemon.operations.queries.answer(wire.STATUS, {"events": events}, daemon.scene.now)
    assert caught.value.reason == Reason.MALFORMED
    assert caught.value.details["field"] == "events"
