"""`multitower status --watch`: prints the status again and again, on a terminal in place."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from multitower.cli.connection import error_line
from multitower.cli.events_view import event_lines
from multitower.cli.layout import Line, Span, render, width_of, wrap
from multitower.cli.status_view import status_lines
from multitower.cli.tables import print_lines, shows_colour, terminal_width
from multitower.durations import exact_duration, rounded_duration
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client

_CLEAR: Final = "\x1b[2J"
_HOME: Final = "\x1b[H"
_CLEAR_REST_OF_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


def watch(client: Client, interval_s: float, *, as_json: bool, wide: bool, events: bool) -> int:
    """Prints the status until Ctrl-C. A daemon that does not answer is shown, and asked again.

    Args:
        client: of the daemon; it connects again by itself.
        interval_s: seconds from one look to the next.
        as_json: print one JSON object a line, and errors to standard error.
        wide: do not fit the lines to the terminal.
        events: print all events instead; on a terminal the newest first, as the end may be cut.

    Returns:
        The exit code.

    Raises:
        OSError: the output cannot be written, as where the reader of a pipe has gone.
    """
    redraw = not as_json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    answered_at = time.monotonic()
    try:
        if redraw:
            click.echo(_CLEAR, nl=False, color=True)
        while True:
            began_at = time.monotonic()
            state, error, _ = ask(client, all_events=events)
            now = time.monotonic()
            if error is None:
                answered_at = now
            if as_json:
                shown = state["daemon"]["events"] if events and state is not None else state
                click.echo(json.dumps(shown) if error is None else error, err=error is not None)
            else:
                size = os.get_terminal_size(sys.stdout.fileno()) if redraw else os.terminal_size((0, 0))
                width = None if wide else size.columns or terminal_width()
                lines = [*_heading(interval_s, now - answered_at, error, width), []]
                if state is not None and events:
                    past = state["daemon"]["events"]
                    lines += event_lines(past[::-1] if redraw else past, width)
                elif state is not None:
                    lines += status_lines(state, width, problems_first=redraw)
                if redraw:
                    click.echo(frame(lines, size, colour=shows_colour(sys.stdout)), nl=False, color=True)
                else:
                    print_lines(lines)
            time.sleep(max(0.0, began_at + interval_s - time.monotonic()))
    except KeyboardInterrupt:
        return Exit.OK


class Answer(NamedTuple):
    """What a daemon answered.

    Attributes:
        status: None where it did not answer.
        error: the line for the error then; else None.
        all_events: whether the status has all events.
    """

    status: dict[str, Any] | None
    error: str | None
    all_events: bool


def ask(client: Client, *, all_events: bool) -> Answer:
    """Asks a daemon for its status.

    Args:
        client: of the daemon.
        all_events: whether the status is to have all events that the daemon keeps.
    """
    from multitower import MultitowerError

    try:
        return Answer(client.status(events=all_events), None, all_events)
    except MultitowerError as error:
        return Answer(None, error_line(error), all_events)


def _heading(interval_s: float, silent_s: float, error: str | None, width: int | None) -> list[Line]:
    clock = time.strftime("%H:%M:%S")
    if error is None:
        return [[Span(f"{clock}, every {exact_duration(interval_s)}; Ctrl-C ends it")]]
    texts = [f"{clock}: no answer from the daemon for {rounded_duration(silent_s)}; trying again", error]
    return [[Span(line, "bad")] for text in texts for line in wrap(text, width, indent=2)]


def frame(lines: Sequence[Line], size: os.terminal_size, *, colour: bool) -> str:
    """Returns what draws lines over those that a terminal shows.

    Args:
        lines: a line may be wider than the terminal, which then shows it in several rows.
        size: of the terminal; 0 columns or rows where it is unknown.
        colour: whether styles become colours.
    """
    kept, more = _fitting([_width(line) for line in lines], size)
    drawn = [
        text + ("" if _fills_its_row(line, size) else _CLEAR_REST_OF_LINE)
        for line, text in zip(lines[:kept], render(lines[:kept], colour=colour), strict=True)
    ]
    if more:
        drawn.append(f"… {more} more lines{_CLEAR_REST_OF_LINE}")
    return _HOME + "".join(f"{text}\n" for text in drawn) + _CLEAR_BELOW


def _fitting(widths: Sequence[int], size: os.terminal_size) -> tuple[int, int]:
    """Returns how many lines are drawn, and how many are left out. The last row stays empty, for the cursor."""
    rows = [max(1, math.ceil(width / size.columns)) if size.columns else 1 for width in widths]
    if size.lines <= 1 or sum(rows) < size.lines:
        return len(rows), 0
    kept, free = 0, size.lines - 2
    while rows[kept] <= free:
        free -= rows[kept]
        kept += 1
    return kept, len(rows) - kept


def _width(line: Line) -> int:
    return width_of(render([line], colour=False)[0])


def _fills_its_row(line: Line, size: os.terminal_size) -> bool:
    """Whether the cursor stays on the last character: to clear the rest of the row would erase that."""
    width = _width(line)
    return bool(size.columns and width and width % size.columns == 0)
