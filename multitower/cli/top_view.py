"""What `multitower top` shows: the lines of a frame, from the status, its trends and what keys have set. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

from multitower.cli.events_view import LATEST, event_lines
from multitower.cli.layout import Line, Span, width_of, wrap
from multitower.cli.status_view import model_lines, slot_lines
from multitower.cli.top_keys import HELP, Screen, Shown, View
from multitower.cli.top_tables import TABLES, Look, sorted_rows, table_lines
from multitower.cli.trends import sparkline
from multitower.durations import rounded_duration
from multitower.supervisor.loop.log import escape_controls

MIN_ROOM: Final = 3
"""Lines below the heading that are shown however low the terminal is."""

COMPACT_WIDTH: Final = 64
COMPACT_HEIGHT: Final = 14
"""On a terminal that is narrower or lower, the heading has the most important figures only."""


def top_frame(look: Look, screen: Screen, width: int, height: int) -> tuple[list[Line], Shown]:
    """Returns the lines of a frame, and what keys need to know of it.

    Args:
        look: what is known.
        screen: what keys have set.
        width: columns of the terminal.
        height: lines that fit.
    """
    compact = width < COMPACT_WIDTH or height < COMPACT_HEIGHT
    head = [*_head(look, width, compact=compact), _tabs(screen), *([] if compact else [[]])]
    foot: list[Line] = [[Span(_foot(screen, width))]]
    room = max(MIN_ROOM, height - len(head) - len(foot))
    if screen.help:
        body, shown = _scrolled(_help_lines(width), screen, room)
    elif look.status is None:
        body, shown = [[Span("no answer yet")]], Shown()
    elif screen.view is View.EVENTS:
        # The newest first: the end may be cut.
        body, shown = _scrolled(event_lines(look.events[::-1], width), screen, room)
    else:
        body, shown = _table_or_details(look, screen, width, room)
    lines = [*head, *body]
    # The keys stand in the last line, or behind the table where the terminal is too low.
    lines += [[] for _ in range(height - len(lines) - len(foot))]
    return [_cut(line, width) for line in (*lines, *foot)], shown


def once_lines(look: Look, width: int | None) -> list[Line]:
    """Returns all tables below each other, and the latest events, for `--once`.

    Args:
        look: what is known.
        width: of the terminal; None for one without an end, so that each row is a line.
    """
    screen = Screen()
    lines = [*_head(look, width, compact=False), []]
    for view in TABLES:
        rows = sorted_rows(look, view, screen.sorting[view])
        lines += [*table_lines(look, view, rows, None, screen.sorting[view], width)[0], []]
    if look.events:
        lines += [[Span("latest events:")], *event_lines(look.events[-LATEST:], width), []]
    return lines


# The head and the foot.


def _head(look: Look, width: int | None, *, compact: bool) -> list[Line]:
    lines: list[Line] = []
    if look.away_s is not None:
        text = f"no answer from the daemon for {rounded_duration(look.away_s)}; trying again"
        texts = wrap(text, width, first=f"{look.clock}  ", indent=2)
        texts += wrap(look.error, width, indent=2) if look.error else []
        lines += [[Span(line, "bad")] for line in (texts[:1] if compact else texts)]
    if look.status is not None:
        lines.append(_state_line(look, look.status["daemon"], compact=compact))
        if look.away_s is None or not compact:
            lines.append(_load_line(look, look.status["models"], width, compact=compact))
    return lines


def _state_line(look: Look, daemon: Mapping[str, Any], *, compact: bool) -> Line:
    ready, total = daemon["slots_ready"], daemon["slots_total"]
    style = "good" if daemon["ready"] and ready == total else "attention" if daemon["ready"] else "bad"
    clock = f"{look.clock}  " if look.away_s is None else "as of then:  "
    which = "" if compact else f"multitower {daemon['version']}, pid {daemon['pid']}: "
    age = "" if compact else f" for {rounded_duration(daemon['uptime_s'])}"
    line = [Span(f"{clock}{which}{daemon['state']}{age}, "), Span(f"{ready}/{total} slots ready", style)]
    gateway = daemon.get("gateway")
    if gateway is not None and gateway["state"] != "ready":
        line.append(Span(f", gateway {gateway['state']}", "bad"))
    if daemon.get("insecure"):
        line.append(Span(", insecure", "attention"))
    return line


def _load_line(look: Look, models: Sequence[Mapping[str, Any]], width: int | None, *, compact: bool) -> Line:
    """Returns how much the daemon does, with a sparkline if there is room."""
    trends = look.trends
    # Each version of a model has the queue of all.
    texts = [f"queue {sum({model['name']: model['queue'] for model in models}.values()):,}"]
    for word in ("answered", *(() if compact else ("failed", "refused"))):
        rate = trends.last("daemon", f"{word}_per_s")
        texts.append(f"{word}/s {rate:,.0f}" if rate is not None else f"{word}/s -")
    text = "   ".join(texts)
    room = min(30, (width or 80) - width_of(text) - 3)
    values = trends.values("daemon", "answered_per_s")
    drawn = sparkline(values, room, blocks=look.blocks).strip() if room > 3 else ""
    return [Span(f"{text}   {drawn}".rstrip())]


def _cut(line: Line, width: int) -> Line:
    """Returns a line without what does not fit."""
    spans: list[Span] = []
    left = width
    for span in line:
        text = span.text
        while width_of(text) > left:
            text = text[:-1]
        spans.append(Span(text, span.style))
        left -= width_of(text)
    return spans


def _tabs(screen: Screen) -> Line:
    spans: list[Span] = []
    for number, view in enumerate(View, 1):
        shown = view is screen.view
        spans += [Span(f"[{number} {view}]" if shown else f" {number} {view} ", "heading" if shown else ""), Span(" ")]
    return spans


def _foot(screen: Screen, width: int) -> str:
    """Returns the most important keys, as many as fit."""
    if screen.help:
        keys = ["any key: back", "q: quit"]
    elif screen.details or screen.view is View.EVENTS:
        keys = ["q: quit", "?: keys", *(["Esc: back"] if screen.details else ["Tab: view"]), "Up/Down: scroll"]
    else:
        keys = [
            "q: quit",
            "?: keys",
            "Tab: view",
            "Up/Down: choose",
            "Enter: details",
            "Left/Right: sort",
            "r: reverse",
        ]
    text = keys[0]
    for each in keys[1:]:
        if width_of(text) + 2 + width_of(each) > width:
            break
        text = f"{text}  {each}"
    return text


def _help_lines(width: int) -> list[Line]:
    indent = 2 + max(len(key) for key, _ in HELP)
    return [
        [Span(line)]
        for key, what in HELP
        for line in wrap(what, width, first=key.ljust(indent), indent=indent if width >= 60 else 4)
    ]


def _scrolled(lines: Sequence[Line], screen: Screen, room: int) -> tuple[list[Line], Shown]:
    offset = min(screen.offset, max(0, len(lines) - room))
    shown = list(lines[offset : offset + room])
    return shown, Shown(lines=len(lines), room=room)


# Tables.


def _table_or_details(look: Look, screen: Screen, width: int, room: int) -> tuple[list[Line], Shown]:
    view = screen.view
    rows = sorted_rows(look, view, screen.sorting[view])
    keys = [TABLES[view].key(row) for row in rows]
    if not rows:
        return [[Span(f"there are no {view}")]], Shown()
    chosen = screen.chosen.get(view)
    position = keys.index(chosen) if chosen in keys else 0
    if screen.details:
        return _scrolled(_detail_lines(look, view, rows[position], width), screen, room)
    lines, headings = table_lines(look, view, rows, position, screen.sorting[view], width)
    heading, body = lines[:2], lines[2:]
    fit = max(1, room - len(heading))
    first = min(max(0, position - fit + 1), max(0, len(body) - fit))
    visible = [*heading, *body[first : first + fit]]
    left = max(0, room - len(visible))
    below = _below_table(look, view, rows[position], width, left)[:left]
    return [*visible, *below], Shown(rows=keys, headings=headings, lines=len(body), room=fit)


def _below_table(look: Look, view: View, chosen: Mapping[str, Any], width: int, room: int) -> list[Line]:
    """Returns what is wrong with the chosen row, and the events, the newest first; as much of it is shown as fits."""
    cells = TABLES[view].cells(chosen)
    notes = [
        f"{column.name} {value.text}"
        for column, value in cells.items()
        if column.heading in ("Condition", "Loading", "Last error", "Note") and value is not None
    ]
    lines: list[Line] = [[Span(line)] for note in notes for line in wrap(note, width, indent=2)]
    lines = [[], *lines] if lines else []
    # Each event takes a line at least.
    latest = look.events[::-1][: max(0, room - len(lines) - 1)]
    return [*lines, [], *event_lines(latest, width)] if latest else lines


# Details of a slot or a model.

_SLOT_TRENDS: Final[tuple[tuple[str, str, str], ...]] = (
    ("rows/s", "rows_per_s", ""),
    ("batch p50", "p50", " ms"),
    ("batch p99", "p99", " ms"),
    ("depth", "depth", ""),
)
_MODEL_TRENDS: Final[tuple[tuple[str, str, str], ...]] = (
    ("answered/s", "answered_per_s", ""),
    ("latency p50", "p50", " ms"),
    ("latency p99", "p99", " ms"),
    ("queue", "queue", ""),
    ("failed/s", "failed_per_s", ""),
)


def _detail_lines(look: Look, view: View, row: Mapping[str, Any], width: int) -> list[Line]:
    assert look.status is not None
    if view is View.SLOTS:
        lines = slot_lines([row], width)
        key: tuple[Hashable, ...] = ("slot", row["slot"])
        trends = _SLOT_TRENDS
        texts = [f"{each['name']} {each['version'] or ''}: {each['state']}" for each in row.get("models", ())]
        events = [each for each in look.events if each.get("slot") == row["slot"]]
    else:
        lines = model_lines([row], len(look.status["slots"]), width)
        key = ("model", row["name"], row["version"])
        trends = _MODEL_TRENDS
        texts = [f"{count:,} failed: {reason}" for reason, count in row["errors"]["total"].items()]
        refused = (row.get("refused") or {"total": {}})["total"]
        texts += [f"{count:,} refused: {reason}" for reason, count in refused.items()]
        events = [each for each in look.events if each.get("model") == row["name"]]
    lines = [*lines, []]
    for name, figure, unit in trends:
        values = look.trends.values(*key, figure)
        last = look.trends.last(*key, figure)
        # All lines begin with the same look, so that what stands below each other happened at the same time.
        drawn = sparkline(values, min(len(values), max(0, width - 26)), blocks=look.blocks)
        shown = f"{last:,.{1 if unit else 0}f}{unit}" if last is not None else "-"
        lines.append([Span(f"{name:<12}{shown:>12}  {drawn}".rstrip())])
    lines += [[]] if texts else []
    for text in texts:
        lines += [[Span(line)] for line in wrap(escape_controls(text), width, indent=4)]
    lines.append([])
    lines += (
        [[Span("events, the newest first:")], *event_lines(events[::-1], width)] if events else [[Span("no events")]]
    )
    return lines
