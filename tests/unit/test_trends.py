"""Figures over the last looks at the status, their rates, and sparklines of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from status_example import STATUS

from multitower.cli.trends import ASCII_BLOCKS, KEPT, Trends, sparkline

MODEL = ("model", "embeddings", "7")


def later(seconds: float, answered: int = 0, **daemon: Any) -> dict[str, Any]:
    status = copy.deepcopy(STATUS)
    status["daemon"] |= daemon
    status["daemon"]["uptime_s"] += seconds
    status["models"][1]["completed"] += answered
    return status


def test_a_rate_is_known_from_the_second_look_on() -> None:
    trends = Trends()
    trends.add(STATUS)
    assert trends.last(*MODEL, "answered_per_s") is None
    trends.add(later(2.0, answered=300))
    assert trends.values(*MODEL, "answered_per_s") == (None, 150.0)
    assert trends.last("daemon", "answered_per_s") == 150.0
    assert trends.last("model", "ranking", "7", "answered_per_s") == 0.0


def test_a_restart_of_the_daemon_begins_anew() -> None:
    trends = Trends()
    trends.add(STATUS)
    trends.add(later(-10.0, answered=-100, started="2026-12-02T01:00:00.000Z"))
    assert trends.values(*MODEL, "answered_per_s") == (None,), "in a container each daemon has the same pid"


def test_a_restart_of_an_older_daemon_is_known_by_its_pid() -> None:
    trends = Trends()
    for pid in (1, 2):
        trends.add(later(0.0, pid=pid, started=None))
    assert trends.values(*MODEL, "answered_per_s") == (None,)


def test_two_answers_of_the_same_moment_make_no_rate() -> None:
    trends = Trends()
    for _ in range(2):
        trends.add(STATUS)
    assert trends.values(*MODEL, "answered_per_s") == (None, None)


def test_a_count_that_falls_since_a_version_was_loaded_again_makes_no_rate() -> None:
    trends = Trends()
    trends.add(STATUS)
    trends.add(later(1.0, answered=-5))
    assert trends.last(*MODEL, "answered_per_s") is None


def test_the_latest_values_are_kept_and_those_of_slots_that_are_gone_forgotten() -> None:
    trends = Trends()
    for second in range(2 * KEPT):
        trends.add(later(float(second)))
    assert trends.values("slot", 0, "rows_per_s") == (3912.4,) * KEPT
    status = later(500.0)
    status["slots"] = status["slots"][1:]
    trends.add(status)
    assert trends.values("slot", 0, "rows_per_s") == ()
    assert trends.last("slot", 0, "rows_per_s") is None


@pytest.mark.parametrize(
    ("values", "width", "most", "blocks", "line"),
    [
        ([], 4, None, None, "    "),
        ([0.0, 0.0], 4, None, None, "  ▁▁"),
        ([0.0, 50.0, 100.0], 3, None, None, "▁▅█"),
        ([1.0, 2.0, 3.0, 4.0], 2, None, None, "▇█"),
        ([None, 5.0], 2, None, None, " █"),
        ([5.0], 3, 10.0, None, "  ▅"),
        ([0.0, 50.0, 100.0], 3, None, ASCII_BLOCKS, "_=#"),
        ([1.0], 0, None, None, ""),
        ([1.0], -3, None, None, ""),
        ([-1.0, 1.0], 2, None, None, "▁█"),
    ],
)
def test_a_sparkline_has_the_latest_values(
    values: list[float | None], width: int, most: float | None, blocks: str | None, line: str
) -> None:
    further = {} if blocks is None else {"blocks": blocks}
    assert sparkline(values, width, most=most, **further) == line
