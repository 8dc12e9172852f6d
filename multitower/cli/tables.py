"""Tables on the terminal, and cells that several commands show in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from multitower.supervisor.loop.log import escape_controls

if TYPE_CHECKING:
    from rich.text import Text

PIPE_WIDTH: Final = 250
"""Columns where the output is not a terminal: lines that are not folded are easier to search."""

_STATE_COLOURS: Final = {"ready": "green", "running": "green", "failed": "red", "stopped": "red", "unloaded": "default"}
_OTHER_COLOUR: Final = "yellow"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, wrap: bool = True) -> None:
    """Prints a table.

    Args:
        headings: one for each column; `>` before a heading aligns its column to the right.
        rows: the cells of each row. None is shown as `-`; text is never read as markup.
        wrap: fold cells to the terminal's width. Otherwise a wide table exceeds that width.
    """
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", overflow="fold", no_wrap=not wrap
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else _text_cell(cell) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    if not wrap:
        wide = console.options.update(width=10 * PIPE_WIDTH)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def _text_cell(value: object) -> Text:
    from rich.text import Text

    # Causes and names may come from models.
    return Text("-" if value is None else escape_controls(str(value), keep_lines=True))


def state_cell(state: str) -> Text:
    """A state of a slot or model, in its colour."""
    from rich.text import Text

    return Text(state, style=_STATE_COLOURS.get(state, _OTHER_COLOUR))


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
