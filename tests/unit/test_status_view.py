"""What `multitower status` prints at every width: nothing is broken or cut, and docs/operating.md shows the same."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from status_example import GPUS, HUNG, STATUS

from multitower.cli.layout import GAP, Cell, Column, Span, lay_out, render, width_of, wrap
from multitower.cli.status_view import status_lines
from multitower.supervisor.workers.hang_detector import Call, HangDetector

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
WIDTHS = (60, 80, 120)


def text(width: int | None, status: dict[str, Any] = STATUS) -> str:
    return "\n".join(render(status_lines(status, width), colour=False)).rstrip()


def words(shown: str) -> set[str]:
    return set(re.findall(r"[^\s─]+", shown))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_documentation_shows_what_status_prints(width: int) -> None:
    marked = re.search(rf"<!-- status at {width} columns -->\n```text\n(.*?)\n```\n", OPERATING.read_text(), re.DOTALL)
    assert marked is not None, f"docs/operating.md has no block for {width} columns"
    assert marked[1] == text(width), "write what this test expects into docs/operating.md"


def test_the_documentation_quotes_the_cause_as_the_daemon_words_it() -> None:
    detector = HangDetector(0.0, 60.0)
    call = Call("a batch", 0.0, 30.0)
    assert detector.check(1.0, [call], lambda: None, loading=False) is None
    assert str(detector.check(31.0, [call], lambda: None, loading=False)) == HUNG


def test_no_line_exceeds_the_terminal_and_no_word_is_lost_at_any_width() -> None:
    # Headings that stand above a column elsewhere are labels of values below a row, and begin with a small letter.
    every = {each.lower().rstrip(":") for each in words(text(None))} - {"-"}
    for width in range(44, 260):
        shown = text(width)
        assert max(map(width_of, shown.splitlines())) <= width
        missing = every - {each.lower().rstrip(":") for each in words(shown)}
        assert not missing, (width, missing)


def test_a_value_is_beside_its_unit_at_every_width() -> None:
    for width in range(44, 200):
        for line in text(width).splitlines():
            assert not re.match(r"\s*(?:ms|MiB|%|min|s)\b", line), (width, line)


def test_a_wide_status_has_one_line_for_each_slot_and_model() -> None:
    lines = text(None).splitlines()
    for device in GPUS:
        (line,) = (line for line in lines if device in line)
        assert "ready" in line or "loading" in line
    assert sum(line.startswith("ranking ") for line in lines) == 3, "as a model, and twice among what failed"


def test_a_word_that_is_longer_than_the_terminal_stands_on_a_line_of_its_own() -> None:
    path = "/" + "x" * 70
    assert wrap(f"waiting for model {path}: gone", 60, indent=2) == ["waiting for model", path + ":", "  gone"]


@pytest.mark.parametrize(
    ("words", "width", "lines"),
    [
        ("one two three", 7, ["one two", "  three"]),
        ("it took 30 s too", 10, ["it took", "  30 s too"]),
        ("a 12 b", 4, ["a 12", "  b"]),
        ("93 % busy", 6, ["93 %", "  busy"]),
        ("first\nsecond", 40, ["first", "  second"]),
        ("", 40, [""]),
        ("one two", None, ["one two"]),
    ],
)
def test_texts_are_wrapped_between_words(words: str, width: int | None, lines: list[str]) -> None:
    assert wrap(words, width, indent=2) == lines


COLUMNS = (Column("Slot"), Column("Rate", right=True, label="rate"), Column("Error", prose=True, label="error:"))
ROWS = ([Cell("0"), Cell("12.5"), None], [Cell("1"), None, Cell("it was killed by a signal")])


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (None, ["Slot  Rate  Error", "─" * 37, "0     12.5  -", "1        -  it was killed by a signal"]),
        (37, ["Slot  Rate  Error", "─" * 37, "0     12.5  -", "1        -  it was killed by a signal"]),
        (36, ["Slot  Rate", "─" * 10, "0     12.5", "1        -", "    error: it was killed by a signal"]),
        (
            16,
            [
                "Slot  Rate",
                "─" * 10,
                "0     12.5",
                "1        -",
                "    error: it",
                "      was killed",
                "      by a",
                "      signal",
            ],
        ),
        (
            9,
            [
                "Slot",
                "─" * 4,
                "0",
                "    rate",
                "     12.5",
                "1",
                "    error:",
                "      it",
                "      was",
                "   killed",
                "      by",
                "      a",
                "   signal",
            ],
        ),
    ],
)
def test_a_table_keeps_the_columns_that_fit(width: int | None, expected: list[str]) -> None:
    assert render(lay_out(COLUMNS, ROWS, width), colour=False) == expected


def test_wide_characters_and_combining_ones_are_aligned() -> None:
    rows = [[Cell("日本"), Cell("1")], [Cell("e\u0301a"), Cell("2")]]
    lines = render(lay_out((Column("Model"), Column("N")), rows, 40), colour=False)
    assert [width_of(line) for line in lines[2:]] == [5 + GAP + 1] * 2


def test_an_optional_column_without_values_is_left_out() -> None:
    columns = (Column("Slot"), Column("Memory", optional=True))
    assert render(lay_out(columns, [[Cell("0"), None]], None), colour=False)[0] == "Slot"


def test_colours_stand_around_the_text_alone() -> None:
    line = [Span("ready", "good"), Span("  "), Span("0")]
    assert render([line], colour=True) == ["\x1b[32mready\x1b[0m  0"]
    assert render([line], colour=False) == ["ready  0"]


def test_control_characters_of_models_and_causes_are_escaped() -> None:
    status = json.loads(json.dumps(STATUS).replace("SIGSEGV", "\\u001b[2J").replace("ranking", "\\u001b[31m"))
    assert all(each.isprintable() or each == "\n" for each in text(80, status))


def test_a_daemon_of_an_older_release_is_shown_too() -> None:
    old = copy.deepcopy(STATUS)
    for name in ("config", "events", "refused"):
        del old["daemon"][name]
    for slot in old["slots"]:
        for name in [name for name in slot if name.endswith("_s") and name != "rows_per_s"]:
            del slot[name]
        del slot["step"], slot["replacement"]
    for model in old["models"]:
        del model["latency_ms"], model["errors"], model["refused"], model["queue_oldest_s"]
    shown = text(80, old)
    assert "ranking" in shown
    assert "latest events" not in shown


def test_what_no_model_was_named_for_is_refused_without_a_model() -> None:
    shown = [line.split() for line in text(None).splitlines()]
    assert ["ranking", "refused", "queue_full", "38", "38"] in shown
    assert ["ranking", "version", "7", "failed", "deadline", "6", "21"] in shown
    assert ["-", "refused", "model_unknown", "1", "3"] in shown


def test_refusals_of_a_model_with_two_versions_are_counted_once() -> None:
    status = copy.deepcopy(STATUS)
    status["models"].append({**status["models"][0], "version": "8"})
    shown = [line.split() for line in text(None, status).splitlines()]
    assert shown.count(["ranking", "refused", "queue_full", "38", "38"]) == 1
    assert ["ranking", "version", "8", "failed", "deadline", "6", "21"] in shown


RELOADS = {
    "applied": ("applied", None, "last reload 12 min ago: applied"),
    "refused": ("refused", "line 3: no", "last reload 12 min ago: refused: line 3: no"),
    "in progress": ("in_progress", None, "being reloaded for 12 min"),
}


@pytest.mark.parametrize(("outcome", "cause", "shown"), RELOADS.values(), ids=RELOADS)
def test_the_last_reload_is_shown_with_its_outcome(outcome: str, cause: str | None, shown: str) -> None:
    status = copy.deepcopy(STATUS)
    status["daemon"]["config"]["last_reload"] = {"outcome": outcome, "age_s": 720.0, "cause": cause}
    assert f"configuration /etc/multitower/multitower.yaml, {shown}" in text(None, status)


def test_a_quiet_daemon_says_that_nothing_failed() -> None:
    status = copy.deepcopy(STATUS)
    status["daemon"]["refused"]["last_minute"] = {}
    for model in status["models"]:
        model["errors"]["last_minute"] = model["refused"]["last_minute"] = {}
    assert "no request failed or was refused in the last minute" in text(80, status)


def test_last_minutes_that_begin_apart_make_no_refusals_of_no_model() -> None:
    status = copy.deepcopy(STATUS)
    status["models"] = status["models"][:1]
    (model,) = status["models"]
    model["errors"]["last_minute"] = {}
    status["daemon"]["refused"] = {"last_minute": {"shape_invalid": 3}, "total": {"shape_invalid": 3}}
    model["refused"] = {"last_minute": {}, "total": {"shape_invalid": 3}}
    assert "no request failed or was refused in the last minute" in text(80, status)
    status["daemon"]["refused"]["total"]["shape_invalid"] = 5  # two of them named no model
    assert "refused  shape_invalid            2                2" in text(120, status)


def test_a_percentile_is_headed_with_what_it_measures_at_every_width() -> None:
    for width in (None, *range(44, 260)):
        for line in text(width).splitlines():
            assert not re.search(r"(?<!Batch)(?<!batch)(?<!Latency)(?<!latency)\s+p99", line), (width, line)


def test_a_character_without_a_width_takes_no_column() -> None:
    assert [width_of(each) for each in ("\u0e17\u0e35\u0e48", "a\u200bb", "e\u0301", "\u65e5")] == [1, 2, 1, 2]


def test_problems_and_events_stand_before_the_models_if_the_end_may_be_cut() -> None:
    plain, watched = (
        "\n".join(render(status_lines(STATUS, 80, problems_first=first), colour=False)) for first in (False, True)
    )
    assert sorted(plain.splitlines()) == sorted(watched.splitlines())
    assert plain.index("latest events") > plain.index("Latency p50")
    assert watched.index("failed and refused") < watched.index("latest events") < watched.index("Latency p50")


GATEWAY = {
    "state": "backoff",
    "state_for_s": 3.2,
    "cause": "exited with code 7",
    "pid": None,
    "http": ["127.0.0.1:8000", "unix:/run/multitower/http.sock"],
    "grpc": [],
    "connections": 0,
    "outstanding": 0,
    "requests": 1_204_311,
    "errors": 12,
    "restarts": 3,
    "last_death_age_s": 3.2,
}


@pytest.mark.parametrize("width", [None, 200, 80, 40])
def test_the_gateway_has_a_row(width: int | None) -> None:
    status = {**STATUS, "daemon": {**STATUS["daemon"], "gateway": GATEWAY}}
    text = "\n".join(render(status_lines(status, width), colour=False))
    section = text.partition("Gateway")[2].partition("\n\n")[0]
    for shown in ("backoff", "127.0.0.1:8000", "unix:/run/multitower/http.sock", "1,204,311", "exited with code 7"):
        assert shown in section
    assert "gRPC" not in section, "nothing is served there"
    assert width is None or all(len(line) <= width for line in text.splitlines())


def test_a_daemon_that_is_insecure_says_so() -> None:
    assert "insecure" not in text(None)
    assert "without credentials or encryption" in text(
        None, {**STATUS, "daemon": {**STATUS["daemon"], "insecure": True}}
    )


@pytest.mark.parametrize(("running_s", "shown"), [(None, None), (1.9, None), (2.0, "2 s"), (187.0, "3 min")])
def test_a_batch_that_takes_long_is_in_the_row_of_its_slot(running_s: float | None, shown: str | None) -> None:
    status = copy.deepcopy(STATUS)
    status["slots"][1]["batch_running_s"] = running_s
    lines = render(status_lines(status, None), colour=False)
    assert any("In its batch" in line for line in lines) is (shown is not None)
    row = next(line for line in lines if re.match("1 +ready", line))
    assert shown is None or re.search(rf" 31 +{shown} +3,871 ", row)
