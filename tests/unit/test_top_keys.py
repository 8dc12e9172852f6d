"""What keys do in `multitower top`, and how they are read from what a terminal sends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from multitower.cli.terminal import obstacle, parse_keys, shows_unicode
from multitower.cli.top_keys import HELP, Screen, Shown, Sorting, View, press

SHOWN = Shown(rows=(0, 1, 2, 3), headings=("Slot", "State", "Rows/s"), lines=50, room=10)
EVENTS = Screen(view=View.EVENTS)
DETAILS = Screen(details=True)


def sorted_by(heading: str, *, reverse: bool = False) -> Screen:
    return replace(Screen(), sorting={**Screen().sorting, View.SLOTS: Sorting(heading, reverse)})


def choosing(slot: int) -> Screen:
    return Screen(chosen={View.SLOTS: slot})


PRESSES = {
    # before, keys, after
    "quit": (Screen(), ["q"], Screen(quit=True)),
    "a key without a meaning": (Screen(), ["x", "\x00", "日"], Screen()),
    "help and back with any key": (Screen(), ["?", "j"], Screen()),
    "quit while help is shown": (Screen(), ["?", "q"], Screen(help=True, quit=True)),
    "models": (Screen(), ["2"], Screen(view=View.MODELS)),
    "a view ends the details": (DETAILS, ["3"], EVENTS),
    "tab goes round": (Screen(), ["tab", "tab", "tab"], Screen()),
    "back tab goes the other way": (Screen(), ["back tab"], EVENTS),
    "down": (Screen(), ["down"], choosing(1)),
    "up at the first row": (Screen(), ["up"], choosing(0)),
    "down at the last row": (Screen(), ["end", "j"], choosing(3)),
    "a row that is gone": (choosing(99), ["down"], choosing(1)),
    "page down": (Screen(), ["page down"], choosing(3)),
    "enter chooses the row that is shown": (Screen(), ["enter"], replace(choosing(0), details=True)),
    "enter and escape": (choosing(2), ["enter", "escape"], choosing(2)),
    "sort by the next column": (Screen(), ["right"], sorted_by("State")),
    "sort by the column before": (sorted_by("State"), ["<"], sorted_by("Slot")),
    "sort at the last column that fits": (sorted_by("Rows/s"), ["right"], sorted_by("Rows/s")),
    "sorted by a column that does not fit any more": (sorted_by("Memory"), ["right"], sorted_by("Slot")),
    "reverse": (Screen(), ["r"], sorted_by("Slot", reverse=True)),
    "another column is not reversed": (sorted_by("Slot", reverse=True), ["right"], sorted_by("State")),
    "scroll events": (EVENTS, ["down", "down", "up"], replace(EVENTS, offset=1)),
    "scroll to the end": (EVENTS, ["G"], replace(EVENTS, offset=40)),
    "scroll beyond the end": (replace(EVENTS, offset=1000), ["down"], replace(EVENTS, offset=40)),
    "scroll a screen": (EVENTS, ["page down", "page down"], replace(EVENTS, offset=18)),
    "scroll before the beginning": (EVENTS, ["page up"], EVENTS),
    "details scroll": (DETAILS, ["page down"], replace(DETAILS, offset=9)),
    "details do not sort": (DETAILS, ["right", "r"], DETAILS),
}


@pytest.mark.parametrize("name", PRESSES)
def test_keys_change_the_screen(name: str) -> None:
    screen, keys, after = PRESSES[name]
    for key in keys:
        screen = press(screen, key, SHOWN)
    assert screen == after


def test_keys_do_nothing_where_there_are_no_rows() -> None:
    for key in ("down", "enter", "right", "r", "end"):
        assert not press(Screen(), key, Shown()).details


def test_every_key_of_the_help_fits_a_line_of_80_columns() -> None:
    longest = max(len(key) for key, _ in HELP)
    assert all(longest + 2 + len(what) <= 90 for _, what in HELP)


@pytest.mark.parametrize(
    ("text", "keys", "rest"),
    [
        ("q", ["q"], ""),
        ("jk", ["j", "k"], ""),
        ("\x1b[A\x1b[B", ["up", "down"], ""),
        ("\x1bOA", ["up"], ""),
        ("\x1b[5~\x1b[6~", ["page up", "page down"], ""),
        ("\x1b[1;5C", [], ""),
        ("\x1b[", [], "\x1b["),
        ("\x1b[1;", [], "\x1b[1;"),
        ("\x1b", [], "\x1b"),
        ("a\x1b", ["a"], "\x1b"),
        ("\x1bq", ["escape", "q"], ""),
        ("\r\t\x7f", ["enter", "tab", "backspace"], ""),
        ("é", ["é"], ""),
    ],
)
def test_keys_are_read_from_what_a_terminal_sends(text: str, keys: list[str], rest: str) -> None:
    assert parse_keys(text) == (keys, rest)


@pytest.mark.parametrize(
    ("environment", "unicode"),
    [
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "de_DE.utf8"}, True),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "C.UTF-8", "LANG": "C"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({}, False),
    ],
)
def test_block_characters_are_for_locales_of_utf_8(environment: dict[str, str], unicode: bool) -> None:
    assert shows_unicode(environment) is unicode


def test_what_is_no_terminal_is_not_taken_over() -> None:
    assert obstacle({"TERM": "xterm"}) == "standard output is no terminal"
