"""What keys do in `multitower top`: which view is shown, how it is sorted, what is chosen. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final


class View(StrEnum):
    """What the screen shows, in the order of the key Tab."""

    SLOTS = "slots"
    MODELS = "models"
    EVENTS = "events"


@dataclass(frozen=True)
class Sorting:
    """How a table is sorted.

    Attributes:
        heading: of its column.
        reverse: whether the order is the other way round than the column's own.
    """

    heading: str
    reverse: bool = False


@dataclass(frozen=True)
class Screen:
    """What the keys have set.

    Attributes:
        view: what is shown.
        sorting: of each table.
        chosen: the row that is chosen in each table: the number of a slot, or name and version of a model. Missing for
            the first row.
        details: the chosen row is shown with its details.
        help: the keys are shown.
        offset: lines that are scrolled away, where there are more than fit.
        quit: the command ends.
    """

    view: View = View.SLOTS
    sorting: dict[View, Sorting] = field(
        default_factory=lambda: {View.SLOTS: Sorting("Slot"), View.MODELS: Sorting("Model")}
    )
    chosen: dict[View, Hashable] = field(default_factory=dict)
    details: bool = False
    help: bool = False
    offset: int = 0
    quit: bool = False


@dataclass(frozen=True)
class Shown:
    """What the last frame showed, as far as keys depend on it.

    Attributes:
        rows: the rows of the table in the order in which they were shown, as in `Screen.chosen`.
        headings: of its columns, from the left.
        lines: that scroll, in all.
        room: lines that fit.
    """

    rows: Sequence[Hashable] = ()
    headings: Sequence[str] = ()
    lines: int = 0
    room: int = 1


HELP: Final = (
    ("1, 2, 3 or Tab", "slots, models, events"),
    ("Up, Down (k, j)", "choose a row, or scroll"),
    ("Enter", "show the chosen slot or model: errors, devices, batch times, events"),
    ("Escape", "back to the table"),
    ("Left, Right (< >)", "sort by the column before, or behind"),
    ("r", "sort the other way round"),
    ("Page Up, Page Down", "a screen up, or down"),
    ("?", "show the keys, or hide them"),
    ("q, Ctrl-C", "quit"),
)

_VIEWS: Final = {"1": View.SLOTS, "2": View.MODELS, "3": View.EVENTS}
_STEPS: Final = {"up": -1, "k": -1, "down": 1, "j": 1}
_COLUMNS: Final = {"left": -1, "<": -1, "h": -1, "right": 1, ">": 1, "l": 1}
_ENDS: Final = ("home", "g", "end", "G")
_MOVES: Final = (*_STEPS, *_ENDS, "page up", "page down")


def press(screen: Screen, key: str, shown: Shown) -> Screen:
    """Returns what the screen becomes when a key is pressed; the same one for a key without a meaning.

    Args:
        screen: as it was.
        key: a character, or a name of `terminal.parse_keys`.
        shown: what the last frame showed.
    """
    if key in ("q", "Q"):
        return replace(screen, quit=True)
    if screen.help:
        return replace(screen, help=False)
    if key == "?":
        return replace(screen, help=True)
    if key in _VIEWS:
        return _show(screen, _VIEWS[key])
    if key in ("tab", "back tab"):
        views = list(View)
        step = 1 if key == "tab" else -1
        return _show(screen, views[(views.index(screen.view) + step) % len(views)])
    if key in ("escape", "backspace"):
        return replace(screen, details=False, offset=0)
    if screen.details or screen.view is View.EVENTS:
        return _scroll(screen, key, shown)
    if key == "enter":
        # The row stays chosen where the order changes.
        return replace(_choose(screen, key, shown), details=bool(shown.rows), offset=0)
    if key in _COLUMNS:
        return _sort_by(screen, _COLUMNS[key], shown.headings)
    if key == "r":
        sorting = screen.sorting[screen.view]
        return _sort(screen, replace(sorting, reverse=not sorting.reverse))
    return _choose(screen, key, shown) if key in _MOVES else screen


def _show(screen: Screen, view: View) -> Screen:
    return replace(screen, view=view, details=False, offset=0)


def _sort(screen: Screen, sorting: Sorting) -> Screen:
    return replace(screen, sorting={**screen.sorting, screen.view: sorting})


def _sort_by(screen: Screen, step: int, headings: Sequence[str]) -> Screen:
    """Sorts by the column before or behind, of those that fit; at an end it stays."""
    now = screen.sorting[screen.view].heading
    position = list(headings).index(now) + step if now in headings else 0
    if not 0 <= position < len(headings):
        return screen
    return _sort(screen, Sorting(headings[position]))


def _choose(screen: Screen, key: str, shown: Shown) -> Screen:
    rows = list(shown.rows)
    if not rows:
        return screen
    chosen = screen.chosen.get(screen.view)
    position = rows.index(chosen) if chosen in rows else 0
    moved = _moved(position, key, shown.room, len(rows) - 1)
    return replace(screen, chosen={**screen.chosen, screen.view: rows[moved]})


def _scroll(screen: Screen, key: str, shown: Shown) -> Screen:
    last = max(0, shown.lines - shown.room)
    return replace(screen, offset=_moved(min(screen.offset, last), key, shown.room, last))


def _moved(position: int, key: str, room: int, last: int) -> int:
    """Returns the position after a key that moves, from 0 to the last one."""
    if key in _ENDS:
        return 0 if key in ("home", "g") else last
    if key in ("page up", "page down"):
        step = max(1, room - 1) * (1 if key == "page down" else -1)
    else:
        step = _STEPS.get(key, 0)
    return min(max(position + step, 0), last)
