"""Lays out tables and texts for a terminal of a given width, without breaking or cutting a number or a word.

Pure: lines go in and come out; `tables.py` prints them. A table that is too wide keeps the columns that fit, from the
left; the others stand below each row, each value behind the heading of its column.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

GAP: Final = 2
"""Spaces between two columns."""

INDENT: Final = 4
"""Spaces before what stands below a row."""

_DETAIL_GAP: Final = 3

_SPACE: Final = " "
# A space behind which a unit stands is no place to break a line.
_BREAKS: Final = re.compile(r"(?<![0-9]) +| +(?!(?:ms|s|min|h|d|%|MiB|GiB|bytes|ago|rows?|requests?)\b|%)")


class Span(NamedTuple):
    """A text in one style.

    Attributes:
        text: without ends of lines.
        style: a name of `STYLES`, or "".
    """

    text: str
    style: str = ""


STYLES: Final = {"good": "32", "bad": "31", "attention": "33", "heading": "1", "chosen": "7"}
"""Codes of ECMA-48 that select each style on a terminal."""

Line = Sequence[Span]


class Cell(NamedTuple):
    """What a table shows in one place.

    Attributes:
        text: it may have several lines.
        style: as in `Span`.
    """

    text: str
    style: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: its name.
        right: whether its cells are aligned to the right.
        prose: whether its cells are texts: where the table is too wide, they are wrapped below their rows.
        label: its name where it does not stand above the cells; the heading by default.
        optional: whether it is left out where no row has a value.
    """

    heading: str
    right: bool = False
    prose: bool = False
    label: str = ""
    optional: bool = False

    @property
    def name(self) -> str:
        """Its name beside a value."""
        return self.label or self.heading


def width_of(text: str) -> int:
    """Returns the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_width_of_character, text))


def _width_of_character(character: str) -> int:
    """A sequence that makes one picture of several characters counts as all of them."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str, width: int | None, *, first: str = "", indent: int = 0) -> list[str]:
    """Wraps a text between words.

    Args:
        text: ends of lines in it stay.
        width: of the terminal; None for one without an end.
        first: before the first word.
        indent: spaces before the other lines.

    Returns:
        The lines. One that consists of a single long word may exceed the width: a word is never broken.
    """
    lines: list[str] = []
    start = first
    for paragraph in text.split("\n"):
        line, empty = start, True
        for word in filter(None, _BREAKS.split(paragraph)):
            if width is not None and not empty and width_of(line) + 1 + width_of(word) > width:
                lines.append(line)
                # A long word may still fit without the indentation.
                line, empty = _SPACE * max(0, min(indent, width - width_of(word))), True
            line, empty = f"{line}{'' if empty else _SPACE}{word}", False
        lines.append(line)
        start = _SPACE * indent
    return [line.rstrip() for line in lines]


def lay_out(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell | None]],
    width: int | None,
    *,
    rule: str = "─",
    fold: bool = True,
) -> list[Line]:
    """Lays out a table.

    Args:
        columns: from the most important one.
        rows: the cells of each row; None is shown as `-`, and left out below a row.
        width: of the terminal; None for one without an end, so that each row is a line.
        rule: the character of the line below the headings.
        fold: whether columns that do not fit stand below their rows; otherwise they are left out.

    Returns:
        The lines, the headings first.
    """
    cells = [list(row) for row in rows]
    shown = [
        index
        for index, column in enumerate(columns)
        if not column.optional or any(row[index] is not None and row[index] != Cell("") for row in cells)
    ]
    widths = {
        index: max([width_of(columns[index].heading), *(_cell_width(row[index]) for row in cells)]) for index in shown
    }
    kept = _fitting(columns, shown, widths, width)
    rest = [index for index in shown if index not in kept]
    lines: list[Line] = [
        _join([(Span(columns[index].heading, "heading"), widths[index], columns[index].right) for index in kept])
    ]
    lines.append([Span(rule * (sum(widths[index] for index in kept) + GAP * (len(kept) - 1)))])
    for row in cells:
        for part in zip(*(_lines_of(row[index], row, kept) for index in kept), strict=True):
            lines.append(
                _join([(span, widths[index], columns[index].right) for index, span in zip(kept, part, strict=True)])
            )
        lines += _details([(columns[index], row[index]) for index in rest], width) if fold else ()
    return lines


def _fitting(columns: Sequence[Column], shown: Sequence[int], widths: dict[int, int], width: int | None) -> list[int]:
    """Returns the columns that stand in the table itself: all of them, or those that fit, and no texts."""
    if width is None or sum(widths[index] + GAP for index in shown) - GAP <= width:
        return list(shown)
    kept, used = [shown[0]], widths[shown[0]]
    for index in shown[1:]:
        if not columns[index].prose and used + GAP + widths[index] <= width:
            kept.append(index)
            used += GAP + widths[index]
    return kept


def _details(values: Sequence[tuple[Column, Cell | None]], width: int | None) -> list[Line]:
    """Returns the lines below a row: short values beside each other, then texts."""
    lines: list[list[Span]] = []
    texts: list[list[Span]] = []
    used = 0
    for column, cell in values:
        if cell is None or not cell.text:
            continue
        value = ", ".join(cell.text.split("\n"))
        size = width_of(f"{column.name} {value}")
        if column.prose or (width is not None and INDENT + size > width):
            text = f"{column.name} {cell.text if column.prose else value}"
            texts += [[Span(each)] for each in wrap(text, width, first=_SPACE * INDENT, indent=INDENT + 2)]
            continue
        if not lines or (width is not None and used + _DETAIL_GAP + size > width):
            lines.append([Span(_SPACE * INDENT)])
            used = INDENT
        else:
            lines[-1].append(Span(_SPACE * _DETAIL_GAP))
            used += _DETAIL_GAP
        lines[-1] += [Span(f"{column.name} "), Span(value, cell.style)]
        used += size
    return [*lines, *texts]


def _cell_width(cell: Cell | None) -> int:
    return 1 if cell is None else max(map(width_of, cell.text.split("\n")))


def _lines_of(cell: Cell | None, row: Sequence[Cell | None], kept: Sequence[int]) -> list[Span]:
    """Returns the lines of a cell, as many as the highest cell of the row has."""
    heights = (row[index].text.count("\n") + 1 for index in kept if row[index] is not None)  # type: ignore[union-attr]
    height = max(heights, default=1)
    texts = ["-"] if cell is None else cell.text.split("\n")
    style = "" if cell is None else cell.style
    return [Span(text, style) for text in (*texts, *[""] * (height - len(texts)))]


def _join(spans: Sequence[tuple[Span, int, bool]]) -> Line:
    """Returns a line of a table, without spaces at its end."""
    line: list[Span] = []
    gap = ""
    for span, width, right in spans:
        pad = _SPACE * (width - width_of(span.text))
        if right:
            line += [Span(gap + pad), span]
            gap = _SPACE * GAP
        else:
            line += [Span(gap), span]
            gap = pad + _SPACE * GAP
    return line


def render(lines: Iterable[Line], *, colour: bool) -> list[str]:
    """Returns the lines as text.

    Args:
        lines: as laid out.
        colour: whether styles become colours.
    """
    if not colour:
        return ["".join(span.text for span in line).rstrip() for line in lines]
    return ["".join(map(_coloured, line)).rstrip() for line in lines]


def _coloured(span: Span) -> str:
    code = STYLES.get(span.style)
    return f"\x1b[{code}m{span.text}\x1b[0m" if code and span.text.strip() else span.text
