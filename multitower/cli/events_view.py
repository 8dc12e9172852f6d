"""Past events of the daemon as commands show them: the latest below the status, or all of them. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from multitower.cli.layout import Line, Span, wrap
from multitower.durations import measured_duration, rounded_duration
from multitower.supervisor.loop.log import escape_controls

LATEST: Final = 6
"""Events that stand below the status."""

_STYLES: Final = {"warning": "attention", "error": "bad", "critical": "bad"}


def latest_event_lines(events: Sequence[Mapping[str, Any]], width: int | None) -> list[Line]:
    """Returns the lines for the latest events with a heading, an empty line last; none where nothing has happened.

    Args:
        events: as in the status, oldest first.
        width: of the terminal; None for one without an end.
    """
    if not events:
        return []
    lines: list[Line] = [[Span("latest events:")]]
    for each in _without_repeats(events[-LATEST:]):
        lines += _wrapped(each, f"{rounded_duration(each['age_s']):>7} ago  ", width, indent=13, style="")
    return [*lines, []]


def event_lines(events: Sequence[Mapping[str, Any]], width: int | None) -> list[Line]:
    """Returns the lines for all events, the newest last, each with its local time and in the colour of its level.

    Args:
        events: as in the status, oldest first.
        width: of the terminal; None for one without an end, so that each event is a line.
    """
    if not events:
        return [[Span("nothing has happened since the daemon's start")]]
    lines: list[Line] = []
    for each in _without_repeats(events):
        lines += _wrapped(each, f"{local_time(each)}  ", width, indent=4, style=_STYLES.get(each["level"], ""))
    return lines


def local_time(each: Mapping[str, Any]) -> str:
    """Returns when an event happened, in this machine's time zone, as the daemon's log has it."""
    when = datetime.datetime.fromisoformat(each["time"]).astimezone()
    return when.isoformat(" ", "seconds")


def describe_event(each: Mapping[str, Any]) -> str:
    """Returns what happened, to what, and why; control characters are escaped."""
    what = [f"slot {each['slot']}"] if "slot" in each else []
    if "model" in each:
        version = each.get("versions") or each.get("version")
        what.append(f"{each['model']} version {version}" if version else each["model"])
    text = each["message"]
    if "away_s" in each:
        text = f"{text} after {measured_duration(each['away_s'])}"
    details = [str(each[name]) for name in ("why", "cause", "next") if name in each]
    return escape_controls(": ".join([*what, text, *details]), keep_lines=True)


def _without_repeats(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events; what somebody has asked for is without the cause of its failure where the event of that has it."""
    causes = {each["cause"] for each in events if each["kind"] != "audit" and each.get("cause")}
    return [
        {name: value for name, value in each.items() if name != "cause"}
        if each["kind"] == "audit" and _ends_in_one_of(each.get("cause", ""), causes)
        else each
        for each in events
    ]


def _ends_in_one_of(text: str, causes: Collection[str]) -> bool:
    """Whether a text is one of the causes, or an introduction and one of them."""
    return any(text == cause or text.endswith((f":\n{cause}", f": {cause}")) for cause in causes)


def _wrapped(each: Mapping[str, Any], first: str, width: int | None, *, indent: int, style: str) -> list[Line]:
    text = describe_event(each)
    # In a pipe an event is one line, whatever its cause has.
    lines = wrap(text if width is not None else text.replace("\n", " "), width, first=first, indent=indent)
    # Only the text has the colour, not the time before it.
    return [[Span(first), Span(lines[0][len(first) :], style)], *([Span(text, style)] for text in lines[1:])]
