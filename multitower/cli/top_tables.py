"""The tables of `multitower top`: their columns, and how they are sorted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from multitower.cli.layout import Cell, Column, Line, Span, lay_out
from multitower.cli.status_view import model_cells, slot_cells
from multitower.cli.tables import cell
from multitower.cli.top_keys import Sorting, View
from multitower.cli.trends import ASCII_BLOCKS, BLOCKS, Trends, sparkline

TREND_WIDTH: Final = 10
"""Characters of a sparkline in a table."""


@dataclass(frozen=True)
class Look:
    """What is known at one moment.

    Attributes:
        status: the last answer of the daemon; None before the first.
        trends: of the figures.
        events: that are known, oldest first.
        clock: the time of day.
        away_s: seconds since the daemon answered last, where it does not answer now; else None.
        error: why it does not answer.
        unicode: whether the terminal shows block characters and arrows.
    """

    status: Mapping[str, Any] | None
    trends: Trends
    events: Sequence[Mapping[str, Any]]
    clock: str
    away_s: float | None = None
    error: str | None = None
    unicode: bool = True

    @property
    def blocks(self) -> str:
        """The characters of sparklines."""
        return BLOCKS if self.unicode else ASCII_BLOCKS


@dataclass(frozen=True)
class Table:
    """The table of one view.

    Attributes:
        headings: of its columns, from the most important one; `Trend` is a sparkline.
        cells: returns what `multitower status` shows of a row, by column.
        key: identifies a row.
        values: what to sort by, by heading, the highest first; other columns are sorted by their text.
        figure: what the sparkline shows; see `Trends`.
    """

    headings: Sequence[str]
    cells: Callable[[Mapping[str, Any]], Mapping[Column, Cell | None]]
    key: Callable[[Mapping[str, Any]], Hashable]
    values: Mapping[str, Callable[[Mapping[str, Any]], float | None]]
    figure: Callable[[Mapping[str, Any]], tuple[Hashable, ...]]


def _batch(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda slot: (slot.get("batch_ms") or {}).get(name)


def _latency(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda model: (model.get("latency_ms") or {}).get(name)


def _of_devices(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    def most(slot: Mapping[str, Any]) -> float | None:
        return max((value for each in slot.get("devices") or () if (value := each[name]) is not None), default=None)

    return most


def _refused(model: Mapping[str, Any]) -> float | None:
    return sum(model["refused"]["total"].values()) if model.get("refused") is not None else None


TABLES: Final = {
    View.SLOTS: Table(
        headings=(
            "Slot",
            "State",
            "Rows/s",
            "Trend",
            "Batch p50",
            "Batch p99",
            "Depth",
            "Device busy",
            "CPU",
            "Restarts",
            "Memory",
            "Device memory",
            "In state",
            "Device",
        ),
        cells=slot_cells,
        key=lambda slot: slot["slot"],
        values={
            "Slot": lambda slot: -slot["slot"],
            "Rows/s": lambda slot: slot.get("rows_per_s"),
            "Trend": lambda slot: slot.get("rows_per_s"),
            "Batch p50": _batch("p50"),
            "Batch p99": _batch("p99"),
            "Depth": lambda slot: slot["depth"],
            "Device busy": _of_devices("utilization_percent"),
            "CPU": lambda slot: slot.get("cpu_percent"),
            "Restarts": lambda slot: slot["restarts"],
            "Memory": lambda slot: slot.get("rss_bytes"),
            "Device memory": _of_devices("memory_bytes"),
            "In state": lambda slot: slot.get("state_for_s"),
        },
        figure=lambda slot: ("slot", slot["slot"], "rows_per_s"),
    ),
    View.MODELS: Table(
        headings=(
            "Model",
            "State",
            "Answered/s",
            "Trend",
            "Queue",
            "Latency p50",
            "Latency p99",
            "Slots",
            "Oldest",
            "Failed",
            "Refused",
            "Rows a batch",
            "Version",
            "Answered",
        ),
        cells=lambda model: model_cells(model, 0),
        key=lambda model: (model["name"], model["version"]),
        values={
            "Queue": lambda model: model["queue"],
            "Latency p50": _latency("p50"),
            "Latency p99": _latency("p99"),
            "Slots": lambda model: model["slots_ready"],
            "Oldest": lambda model: model.get("queue_oldest_s"),
            "Failed": lambda model: model["failed"],
            "Refused": _refused,
            "Answered": lambda model: model["completed"],
            "Rows a batch": lambda model: model["rows"] / model["batches"] if model["batches"] else None,
        },
        figure=lambda model: ("model", model["name"], model["version"], "answered_per_s"),
    ),
}


def sorted_rows(look: Look, view: View, sorting: Sorting) -> list[Mapping[str, Any]]:
    """Returns the slots or models: numbers from the highest, texts from A; what has no value is last."""
    assert look.status is not None
    table, rows = TABLES[view], list(look.status[str(view)])
    value = table.values.get(sorting.heading)
    if sorting.heading == "Answered/s" or (sorting.heading == "Trend" and value is None):
        value = lambda row: look.trends.last(*table.figure(row))  # noqa: E731
    if value is None:
        rows.sort(key=lambda row: _text_of(table, row, sorting.heading), reverse=sorting.reverse)
        return rows
    known = [row for row in rows if value(row) is not None]
    unknown = [row for row in rows if value(row) is None]
    known.sort(key=value, reverse=not sorting.reverse)  # type: ignore[arg-type]
    return [*known, *unknown]


def _text_of(table: Table, row: Mapping[str, Any], heading: str) -> str:
    found = next((value for column, value in table.cells(row).items() if column.heading == heading), None)
    return found.text if found is not None else ""


def table_lines(
    look: Look, view: View, rows: Sequence[Mapping[str, Any]], position: int | None, sorting: Sorting, width: int | None
) -> tuple[list[Line], list[str]]:
    """Returns the lines of a table, two of them headings, and the headings of the columns that fit."""
    table = TABLES[view]
    columns: dict[str, Column] = {}
    cells: list[dict[str, Cell | None]] = []
    trends = [look.trends.values(*table.figure(row))[-TREND_WIDTH:] for row in rows]
    # One scale for all rows shows which one is slow.
    most = max((value for values in trends for value in values if value is not None), default=0.0)
    for row, values in zip(rows, trends, strict=True):
        known = {column.heading: (column, value) for column, value in table.cells(row).items()}
        rate = values[-1] if values else None
        known["Answered/s"] = Column("Answered/s", right=True), cell(f"{rate:,.0f}" if rate is not None else None)
        drawn = sparkline(values, TREND_WIDTH, most=most, blocks=look.blocks)
        known["Trend"] = Column("Trend".ljust(TREND_WIDTH)), Cell(drawn)
        columns |= {heading: known[heading][0] for heading in table.headings}
        cells.append({heading: known[heading][1] for heading in table.headings})
    # A column without values, as of GPUs on a machine without, is left out.
    headings = [name for name in table.headings if not columns[name].optional or any(row[name] for row in cells)]
    arrow = _arrow(look, sorting)
    shown = [Column(" ")] if position is not None else []
    shown += [
        replace(
            columns[name],
            heading=columns[name].heading.rstrip() + arrow if name == sorting.heading else columns[name].heading,
        )
        for name in headings
    ]
    marker = ">" if position is not None else ""
    laid = [
        [
            *([Cell(marker if number == position else "")] if position is not None else []),
            *(_one_line(row[name]) for name in headings),
        ]
        for number, row in enumerate(cells)
    ]
    lines = lay_out(shown, laid, width, rule="─" if look.unicode else "-", fold=False)
    kept = _count_fitting(lines[0], shown) - (1 if position is not None else 0)
    if position is not None:
        lines[2 + position] = [Span(span.text, "chosen") for span in lines[2 + position]]
    return lines, headings[:kept]


def _count_fitting(heading: Line, columns: Sequence[Column]) -> int:
    texts = {span.text for span in heading if span.style == "heading"}
    return sum(column.heading in texts for column in columns)


def _one_line(value: Cell | None) -> Cell | None:
    return None if value is None else Cell(value.text.replace("\n", ","), value.style)


def _arrow(look: Look, sorting: Sorting) -> str:
    if look.unicode:
        return "↑" if sorting.reverse else "↓"
    return "^" if sorting.reverse else "v"
