"""What `multitower top` shows at every size, and how its tables are sorted."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from status_example import STATUS

from multitower.cli import top_view
from multitower.cli.events_view import event_lines
from multitower.cli.layout import Line, render, width_of
from multitower.cli.top import KEPT_EVENTS, EventLog
from multitower.cli.top_keys import Screen, Sorting, View
from multitower.cli.top_tables import Look
from multitower.cli.top_view import once_lines, top_frame
from multitower.cli.trends import Trends

SLOW = "its batches of ranking take 0.2 s, 25 times as long as those of the other workers"


def look(**changed: Any) -> Look:
    trends = Trends()
    trends.add(STATUS)
    status = copy.deepcopy(STATUS)
    status["daemon"]["uptime_s"] += 1.0
    status["models"][0]["completed"] += 120
    status["slots"][1] |= {"condition": "slow", "condition_cause": SLOW, "rows_per_s": 155}
    status["slots"][1]["batch_ms"] = {"p50": 198.4, "p99": 206.1}
    trends.add(status)
    return replace(Look(status, trends, status["daemon"]["events"], "03:16:51"), **changed)


def text(lines: list[Line]) -> str:
    return "\n".join(render(lines, colour=False))


def shown(screen: Screen, width: int = 80, height: int = 23, **changed: Any) -> str:
    return text(top_frame(look(**changed), screen, width, height)[0])


def sorting(view: View, heading: str, *, reverse: bool = False) -> Screen:
    return Screen(view=view, sorting={**Screen().sorting, view: Sorting(heading, reverse)})


SCREENS = {
    "slots": Screen(),
    "models": Screen(view=View.MODELS),
    "events": Screen(view=View.EVENTS),
    "a slot": Screen(details=True, chosen={View.SLOTS: 2}),
    "a model": Screen(view=View.MODELS, details=True),
    "help": Screen(help=True),
}


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_the_documentation_shows_what_top_shows_at_80_columns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    marked = re.search(r"<!-- top at 80 columns -->\n```text\n(.*?)\n```\n", page, re.DOTALL)
    assert marked is not None
    assert marked[1] == shown(Screen(chosen={View.SLOTS: 1}), height=21), "write what this test expects into the page"


@pytest.mark.parametrize("name", SCREENS)
@pytest.mark.parametrize("changed", [{}, {"away_s": 12.0, "error": "multitower: no daemon listens"}, {"status": None}])
def test_a_frame_fits_every_terminal(name: str, changed: dict[str, Any]) -> None:
    for width in (20, 33, 40, 60, 80, 120, 200):
        for height in (7, 10, 23, 60):
            lines, _ = top_frame(look(**changed), SCREENS[name], width, height)
            assert max(width_of(line) for line in render(lines, colour=False)) <= width, (width, height)
            assert len(lines) == height, (width, height)


def test_the_keys_stand_in_the_last_line() -> None:
    assert shown(Screen()).splitlines()[-1].startswith("q: quit  ?: keys  Tab: view")
    assert "q: quit" in shown(Screen(details=True), width=24).splitlines()[-1]


@pytest.mark.parametrize(
    ("screen", "order"),
    [
        (sorting(View.SLOTS, "Slot"), ["0", "1", "2"]),
        (sorting(View.SLOTS, "Slot", reverse=True), ["2", "1", "0"]),
        (sorting(View.SLOTS, "Batch p99"), ["1", "0", "2"]),
        (sorting(View.SLOTS, "Batch p99", reverse=True), ["0", "1", "2"]),
        (sorting(View.SLOTS, "State"), ["2", "0", "1"]),
        (sorting(View.SLOTS, "Restarts"), ["2", "1", "0"]),
        (sorting(View.MODELS, "Model"), ["embeddings", "ranking"]),
        (sorting(View.MODELS, "Answered/s"), ["ranking", "embeddings"]),
        (sorting(View.MODELS, "Trend", reverse=True), ["embeddings", "ranking"]),
        (sorting(View.MODELS, "Queue"), ["ranking", "embeddings"]),
    ],
)
def test_a_table_is_sorted_and_what_has_no_value_is_last(screen: Screen, order: list[str]) -> None:
    body = shown(screen, width=200).splitlines()[6:]
    assert [line.lstrip("> ").split()[0] for line in body[: len(order)]] == order


def test_every_column_can_be_sorted_by() -> None:
    for view in (View.SLOTS, View.MODELS):
        _, seen = top_frame(look(), Screen(view=view), 300, 30)
        assert len(seen.headings) >= 12
        for heading in seen.headings:
            lines, sorted_seen = top_frame(look(), sorting(view, heading), 300, 30)
            assert f"{heading}↓" in text(lines)
            assert sorted(sorted_seen.rows, key=str) == sorted(seen.rows, key=str)


def test_the_chosen_row_stays_chosen_and_visible_however_low_the_terminal_is() -> None:
    screen = Screen(chosen={View.SLOTS: 2})
    lines, seen = top_frame(look(), screen, 80, 8)
    assert seen.rows == [0, 1, 2]
    assert any(line.startswith(">  2") for line in render(lines, colour=False))
    (chosen,) = (line for line in lines if any(span.style == "chosen" for span in line))
    assert "loading" in "".join(span.text for span in chosen)


def test_what_is_wrong_with_the_chosen_slot_stands_below_the_table() -> None:
    assert "last error: killed because it hung: a model call" in shown(Screen(chosen={View.SLOTS: 2}))
    assert "condition: slow: its batches of ranking take 0.2 s, 25 times as" in shown(Screen(chosen={View.SLOTS: 1}))


def test_the_details_of_a_slot_are_its_figures_errors_and_events() -> None:
    of_slot = shown(SCREENS["a slot"], height=60)
    for part in ("GPU-c05d9e71", "device memory 1,520 MiB", "loading: warming up", "rows/s ", "max_execution_time"):
        assert part in of_slot
    assert "SIGSEGV" not in of_slot, "that is another slot's"


def test_the_details_of_a_model_are_its_latencies_and_errors_by_reason() -> None:
    of_model = shown(replace(SCREENS["a model"], chosen={View.MODELS: ("ranking", "7")}), height=60)
    for part in ("answered/s           120", "latency p99", "21 failed: deadline", "38 refused: queue_full"):
        assert part in of_model


def test_what_stands_below_each_other_in_the_details_happened_at_the_same_time() -> None:
    known = look()
    status = copy.deepcopy(STATUS)
    status["slots"][0]["batch_ms"] = {"p50": None, "p99": None}
    trends = Trends()
    for each in (status, STATUS, STATUS):
        trends.add(each)
    lines, _ = top_frame(replace(known, trends=trends), Screen(details=True), 80, 40)
    drawn = {line[:9].rstrip(): line[26:] for line in render(lines, colour=False)}
    assert (drawn["rows/s"], drawn["batch p50"]) == ("███", " ██")


def test_events_are_shown_newest_first_and_scroll() -> None:
    events = shown(SCREENS["events"])
    assert events.index("slot 2: ranking version 7: worker died") < events.index("reloaded")
    assert "slot 2" not in shown(replace(SCREENS["events"], offset=2), height=7)


def test_a_daemon_that_does_not_answer_is_told_with_what_was_known() -> None:
    away = shown(Screen(), away_s=12.0, error="multitower: no daemon listens")
    assert away.startswith(
        "03:16:51  no answer from the daemon for 12 s; trying again\nmultitower: no daemon listens\n"
    )
    assert "as of then:  multitower 0.1.0" in away
    assert ">  0" in away
    assert "no answer yet" in shown(Screen(), status=None)


def test_a_terminal_without_utf_8_gets_ascii_only() -> None:
    for name, screen in SCREENS.items():
        assert shown(screen, unicode=False).isascii() or name in ("a slot", "a model"), name


def test_once_prints_slots_models_and_events_for_a_pipe() -> None:
    lines = text(once_lines(look(), None)).splitlines()
    assert sum("GPU-" in line for line in lines) == 3
    assert any(line.startswith("ranking") and "120" in line for line in lines)
    assert any("slot 2: ranking version 7: worker died" in line for line in lines)
    assert not any(line.startswith(">") for line in lines)


# Events from answers that have the latest ones only.


def answer(*numbers: int, pid: int = 1, started: str = "2026-12-01T08:00:00.000Z") -> dict[str, Any]:
    return {"pid": pid, "started": started, "events": [{"seq": number} for number in numbers]}


def test_new_events_are_joined_with_those_that_are_known() -> None:
    log = EventLog()
    assert log.incomplete, "the first time all are asked for"
    log.add(answer(1, 2, 3), all_events=True)
    assert not log.incomplete
    log.add(answer(2, 3, 4, 5), all_events=False)
    assert [each["seq"] for each in log.events] == [1, 2, 3, 4, 5]
    assert not log.incomplete
    log.add(answer(8, 9), all_events=False)
    assert log.incomplete, "6 and 7 were not seen"
    log.add(answer(1, 5, 6, 7, 8, 9), all_events=True)
    assert [each["seq"] for each in log.events] == [1, 5, 6, 7, 8, 9]


def test_only_the_latest_events_are_kept() -> None:
    log = EventLog()
    log.add(answer(*range(1, 151)), all_events=True)
    log.add(answer(*range(100, 251)), all_events=False)
    assert [each["seq"] for each in log.events] == list(range(251 - KEPT_EVENTS, 251))
    assert not log.incomplete


def test_events_below_a_table_are_laid_out_only_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[int] = []

    def count(events: Any, width: int | None) -> list[Line]:
        laid_out.append(len(events))
        return event_lines(events, width)

    monkeypatch.setattr(top_view, "event_lines", count)
    events = STATUS["daemon"]["events"]
    many = (events * 200)[:200]
    few, all_of_them = (shown(Screen(), 80, 40, events=each) for each in (many[-40:], many))
    assert few == all_of_them
    assert laid_out
    assert max(laid_out) <= 40


def test_a_restarted_daemon_has_events_of_its_own() -> None:
    log = EventLog()
    log.add(answer(1, 2, 3), all_events=True)
    log.add(answer(1, started="2026-12-01T09:00:00.000Z"), all_events=False)
    assert [each["seq"] for each in log.events] == [1], "in a container each daemon has the same pid"
    assert log.incomplete


def test_a_daemon_that_does_not_number_its_events_is_taken_at_its_word() -> None:
    log = EventLog()
    for _ in range(2):
        log.add({"pid": 1, "events": [{"kind": "death"}]}, all_events=False)
    assert len(log.events) == 1
    assert not log.incomplete


def test_a_daemon_that_is_insecure_says_so_in_its_first_line() -> None:
    insecure = {**STATUS, "daemon": {**STATUS["daemon"], "insecure": True}}
    assert "insecure" not in shown(Screen()).splitlines()[0]
    assert "insecure" in shown(Screen(), status=insecure).splitlines()[0]
