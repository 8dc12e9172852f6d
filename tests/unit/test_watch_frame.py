"""How `multitower status --watch` draws over what a terminal shows: it neither scrolls nor erases a character."""

from __future__ import annotations

import os

import pytest
from status_example import STATUS

from multitower.cli.layout import Line, Span, render
from multitower.cli.status_view import status_lines
from multitower.cli.watch import frame


class Screen:
    """A terminal that, as xterm does, leaves the cursor on the last column when that was written.

    Attributes:
        rows: what each row shows.
        scrolled: how often the first row has left the screen.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns = columns
        self.rows = ["#" * columns] * rows
        self.scrolled = 0

    def write(self, text: str) -> None:
        assert text.startswith("\x1b[H")
        row, column, full = 0, 0, False
        pieces = iter(text.removeprefix("\x1b[H"))
        for each in pieces:
            if each == "\x1b":
                what = next(pieces) + next(pieces)
                if what == "[K":
                    self.rows[row] = self.rows[row][:column]
                elif what == "[J":
                    self.rows[row:] = ["" for _ in self.rows[row:]]
                else:
                    raise AssertionError(what)
            elif each == "\n":
                row, column, full = self._next(row), 0, False
            else:
                if full:
                    row, column, full = self._next(row), 0, False
                shown = self.rows[row].ljust(column)
                self.rows[row] = shown[:column] + each + shown[column + 1 :]
                full = column == self.columns - 1
                column += not full

    def _next(self, row: int) -> int:
        if row < len(self.rows) - 1:
            return row + 1
        self.scrolled += 1
        self.rows = [*self.rows[1:], ""]
        return row


def lines_of(*texts: str) -> list[Line]:
    return [[Span(text)] for text in texts]


def drawn(lines: list[Line], columns: int, rows: int) -> Screen:
    screen = Screen(columns, rows)
    screen.write(frame(lines, os.terminal_size((columns, rows)), colour=False))
    return screen


def test_a_frame_that_fits_overwrites_what_was_there() -> None:
    lines = lines_of("one", "two")
    assert frame(lines, os.terminal_size((80, 10)), colour=False) == "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J"


def test_no_character_of_a_line_as_wide_as_the_terminal_is_erased() -> None:
    for columns in range(60, 200):
        lines = status_lines(STATUS, columns)
        screen = drawn(lines, columns, 200)
        assert screen.rows[: len(lines)] == render(lines, colour=False)


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
def test_a_frame_never_scrolls_the_terminal(rows: int) -> None:
    screen = drawn(lines_of(*map(str, range(30))), 80, rows)
    assert (screen.scrolled, screen.rows[-1]) == (0, "")
    assert screen.rows[-2] == f"… {30 - (rows - 2)} more lines"


@pytest.mark.parametrize("rows", [24, 30, 60])
@pytest.mark.parametrize("columns", [40, 80, 90])
def test_lines_wider_than_the_terminal_do_not_scroll_it(columns: int, rows: int) -> None:
    screen = drawn(status_lines(STATUS, None), columns, rows)
    assert screen.scrolled == 0
    assert screen.rows[0].startswith("multitower 0.1.0")
    assert not any("#" in row for row in screen.rows)


def test_a_line_of_several_full_rows_is_shown_whole() -> None:
    screen = drawn(lines_of("x" * 160, "end"), 80, 10)
    assert screen.rows[:4] == ["x" * 80, "x" * 80, "end", ""]


def test_a_terminal_of_unknown_size_gets_every_line() -> None:
    text = frame(lines_of(*map(str, range(100))), os.terminal_size((0, 0)), colour=False)
    assert text.count("\n") == 100
