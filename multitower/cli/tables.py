"""Tables on the terminal, and cells that several commands show in the same way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

import click

from multitower.cli.layout import Cell, Column, Line, lay_out, render
from multitower.supervisor.loop.log import escape_controls

_STATE_STYLES: Final = {"ready": "good", "running": "good", "failed": "bad", "stopped": "bad", "unloaded": ""}
_OTHER_STYLE: Final = "attention"


def print_table(headings: Sequence[str | Column], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table, and an empty line. Columns that do not fit the terminal stand below their rows.

    Args:
        headings: one for each column, as a text or with its properties; `>` before a text aligns its column to the
            right.
        rows: the cells of each row. None is shown as `-`; text is never read as markup.
    """
    columns = [
        heading if isinstance(heading, Column) else Column(heading.removeprefix(">"), right=heading.startswith(">"))
        for heading in headings
    ]
    lines = lay_out(columns, [[cell(value) for value in row] for row in rows], terminal_width())
    print_lines([*lines, []])


def print_lines(lines: Iterable[Line]) -> None:
    """Prints lines that were laid out, in colour where standard output is a terminal that shows colours."""
    click.echo("\n".join(render(lines, colour=shows_colour(sys.stdout))), color=True)


def cell(value: object) -> Cell | None:
    """A value as a table shows it. None stays None; control characters in a text are escaped."""
    if value is None or isinstance(value, Cell):
        return value
    # Causes and names may come from models.
    return Cell(escape_controls(str(value), keep_lines=True))


def terminal_width() -> int | None:
    """The columns of the terminal that standard output is, or `COLUMNS` if that is set.

    Returns:
        None where standard output is no terminal: lines that are not wrapped are easier to search.
    """
    if not sys.stdout.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def shows_colour(stream: TextIO) -> bool:
    """Whether colours are shown there: on a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def state_cell(state: str) -> Cell:
    """A state of a slot or model, in its colour."""
    return Cell(escape_controls(state), _STATE_STYLES.get(state, _OTHER_STYLE))


SUSPECTED: Final = {"slow": "attention", "unresponsive": "bad"}
"""Conditions of workers that their slots' states do not show, each with its colour."""


def slot_state_cell(slot: Mapping[str, Any]) -> Cell:
    """The state of a slot, with the condition of its worker where that is not as the state promises."""
    condition = slot.get("condition")
    if condition not in SUSPECTED:
        return state_cell(slot["state"])
    return Cell(f"{escape_controls(slot['state'])}, {condition}", SUSPECTED[condition])


def version_cell(model: Mapping[str, Any]) -> str | None:
    """The version of a model with its labels."""
    labels = ", ".join(model["labels"])
    return f"{model['version']} ({labels})" if labels else model["version"]


def memory_growth_cells(model: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """By how much host and device memory of a worker grew when it loaded the model."""
    host, device = (model.get(f"{where}_memory_bytes") for where in ("host", "device"))
    return _growth(host), _growth(device)


def _growth(size: int | None) -> str | None:
    return None if size is None else f"{size / (1 << 20):+,.0f} MiB"


def size_cell(size: int | None) -> str | None:
    """Bytes as MiB."""
    return None if size is None else f"{size / (1 << 20):,.0f} MiB"


def percent_cell(value: float | None) -> str | None:
    """A value in per cent."""
    return None if value is None else f"{value:.0f} %"
