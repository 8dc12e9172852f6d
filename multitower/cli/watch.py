"""`multitower status --watch`: prints the status again and again, on a terminal in place."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from multitower.cli.connection import error_line
from multitower.cli.layout import Line, Span, render, wrap
from multitower.cli.status_view import status_lines
from multitower.cli.tables import duration_text, shows_colour, terminal_width
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client

_CLEAR: Final = "\x1b[2J"
_HOME: Final = "\x1b[H"
_CLEAR_REST_OF_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


def watch(client: Client, interval_s: float, *, as_json: bool, wide: bool) -> int:
    """Prints the status until Ctrl-C. A daemon that does not answer is shown, and asked again.

    Args:
        client: of the daemon; it connects again by itself.
        interval_s: seconds from one look to the next.
        as_json: print one JSON object a line, and errors to standard error.
        wide: do not fit the lines to the terminal.

    Returns:
        The exit code.

    Raises:
        OSError: the output cannot be written, as where the reader of a pipe has gone.
    """
    redraw = sys.stdout.isatty() and not as_json
    answered_at = time.monotonic()
    try:
        if redraw:
            click.echo(_CLEAR, nl=False, color=True)
        while True:
            began_at = time.monotonic()
            state, error = _ask(client)
            now = time.monotonic()
            if error is None:
                answered_at = now
            if as_json:
                click.echo(json.dumps(state) if error is None else error, err=error is not None)
            else:
                width = None if wide else terminal_width()
                lines = [*_heading(interval_s, now - answered_at, error, width), []]
                if state is not None:
                    lines += status_lines(state, width)
                _draw(lines, redraw=redraw)
            time.sleep(max(0.0, began_at + interval_s - time.monotonic()))
    except KeyboardInterrupt:
        return Exit.OK


def _ask(client: Client) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the status, or the line for the error."""
    from multitower import MultitowerError

    try:
        return client.status(), None
    except MultitowerError as error:
        return None, error_line(error)


def _heading(interval_s: float, silent_s: float, error: str | None, width: int | None) -> list[Line]:
    clock = time.strftime("%H:%M:%S")
    if error is None:
        return [[Span(f"{clock}, every {interval_s:g} s; Ctrl-C ends it")]]
    texts = [f"{clock}: the daemon does not answer, for {duration_text(silent_s)}; it is asked again", error]
    return [[Span(line, "bad")] for text in texts for line in wrap(text, width, indent=2)]


def _draw(lines: Sequence[Line], *, redraw: bool) -> None:
    texts = render(lines, colour=shows_colour(sys.stdout))
    if not redraw:
        click.echo("\n".join(texts), color=True)
        return
    click.echo(frame(texts, os.get_terminal_size(sys.stdout.fileno()).lines), nl=False, color=True)


def frame(texts: Sequence[str], height: int) -> str:
    """Returns what draws lines over those that a terminal shows.

    Args:
        texts: the lines.
        height: lines of the terminal; what does not fit is left out, and the last line tells how much.
    """
    shown = list(texts)
    if height > 1 and len(shown) > height - 1:
        left_out = len(shown) - (height - 2)
        shown = [*shown[: height - 2], f"… {left_out} more lines"]
    return _HOME + "".join(f"{text}{_CLEAR_REST_OF_LINE}\n" for text in shown) + _CLEAR_BELOW
