"""How `multitower status --events` prints events: in local time, one a line in a pipe, wrapped on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from status_example import STATUS

from multitower.cli.events_view import event_lines, latest_event_lines
from multitower.cli.layout import Line, render, width_of

EVENTS: list[dict[str, Any]] = STATUS["daemon"]["events"]
EVENT = {"seq": 1, "kind": "death", "level": "warning", "time": "2026-12-01T03:02:51.204Z", "age_s": 1.0}


def text(lines: list[Line]) -> str:
    return "\n".join(render(lines, colour=False))


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "CET-1")
        time.tzset()
        yield
    time.tzset()


def test_in_a_pipe_each_event_is_a_line_with_its_local_time() -> None:
    assert text(event_lines(EVENTS, None)) == (
        "2026-12-01 02:46:51+01:00  reloaded\n"
        "2026-12-01 04:02:51+01:00  slot 1: worker died: killed by SIGSEGV (11): restart at once\n"
        "2026-12-01 04:02:55+01:00  slot 1: worker ready after 3.9 s\n"
        "2026-12-01 04:16:32+01:00  slot 2: ranking version 7: worker died: killed because it hung: a model call took "
        "over 30 s (max_execution_time): restart at once"
    )


def test_a_cause_of_several_lines_is_one_line_in_a_pipe() -> None:
    (line,) = event_lines([{**EVENT, "message": "model cannot load", "cause": "first\nsecond"}], None)
    assert text([line]).endswith("model cannot load: first second")


def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost() -> None:
    every = set(text(event_lines(EVENTS, None)).split())
    for width in range(44, 200):
        shown = text(event_lines(EVENTS, width))
        assert max(map(width_of, shown.splitlines())) <= width
        assert set(shown.split()) == every


def test_a_warning_is_coloured_behind_its_time_and_an_ordinary_event_is_not() -> None:
    reload, death = event_lines(EVENTS[:2], None)
    assert [span.style for span in reload] == ["", ""]
    assert [span.style for span in death] == ["", "attention"]


def test_what_came_from_a_model_is_no_command_for_the_terminal() -> None:
    shown = text(event_lines([{**EVENT, "message": "model cannot load", "cause": "\x1b[2Jgone"}], 80))
    assert "\x1b" not in shown
    assert "\\x1b[2Jgone" in shown


def test_a_daemon_to_which_nothing_has_happened_says_so_where_all_events_are_asked_for() -> None:
    assert text(event_lines([], 80)) == "nothing has happened since the daemon's start"
    assert latest_event_lines([], 80) == []


def test_an_order_that_failed_does_not_repeat_the_cause_of_what_it_began() -> None:
    reload = {**EVENT, "kind": "reload", "message": "reload refused", "cause": "c.yaml:4:9: spares: wrong"}
    audit = {**EVENT, "kind": "audit", "message": "audit: reload by ada: config_refused"}
    repeated = {**audit, "cause": "the configuration is refused, and nothing has changed:\nc.yaml:4:9: spares: wrong"}
    alone = {**audit, "message": "audit: reload by bob: forbidden", "cause": "bob has not the role operate"}
    death = {**EVENT, "kind": "worker", "message": "worker died", "cause": "stopped"}
    longer = {**audit, "message": "audit: restart by ada: unavailable", "cause": "slot 3: stopped while h2 was missing"}
    events = [reload, repeated, alone, death, longer]
    shown = [line.split("  ", 1)[1] for line in text(event_lines(events, None)).splitlines()]
    assert shown == [
        "reload refused: c.yaml:4:9: spares: wrong",
        "audit: reload by ada: config_refused",
        "audit: reload by bob: forbidden: bob has not the role operate",
        "worker died: stopped",
        "audit: restart by ada: unavailable: slot 3: stopped while h2 was missing",
    ]
