"""The ways to use several devices, what was found of each, and the table that shows them side by side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

TITLES: Final = {1: "a process per device", 2: "visible_device_list", 3: "tf.device in the model", 4: "towers"}
"""By the numbers that docs/four-ways.md has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """What the death of one process took along, under load.

    Attributes:
        devices: how many there are.
        lost: how many of them computed nothing from then on.
        answered: requests that were answered until all devices worked again.
        failed: those that got an error instead.
        silent_s: the longest time in which no request was answered.
        back_s: until all devices worked again; None where that was not within the time.
    """

    devices: int
    lost: int
    answered: int
    failed: int
    silent_s: float
    back_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of a way.

    Attributes:
        requests_per_s: with `outstanding` requests at a time.
        outstanding: as given.
        rows: of each request.
        p50_s, p99_s: latency then.
        alone_s: the median latency of one request at a time.
        failed: requests of these that were not answered.
        processes: that compute.
        memory_bytes: of these in the host's memory; what they share is counted once.
        device_memory_bytes: on the devices; None where the driver does not say, and on the CPU.
        ready_s: from the start until all devices served.
        fallbacks: nodes of the graph that are not on the device of their tower, by operation; None where the graph was
            not looked at.
        crash: see `Crash`.
    """

    requests_per_s: float
    outstanding: int
    rows: int
    p50_s: float
    p99_s: float
    alone_s: float
    failed: int
    processes: int
    memory_bytes: int
    device_memory_bytes: int | None
    ready_s: float
    fallbacks: dict[str, int] | None
    crash: Crash


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way.

    Attributes:
        number: of `TITLES`.
        figures: what was measured; None where it was not run, or cannot be measured.
        not_run: why it was not run, or failed; None where it was.
        found: what else was found, a sentence each.
    """

    number: int
    figures: Figures | None = None
    not_run: str | None = None
    found: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it; seconds and bytes."""
        return {"title": TITLES[self.number], **asdict(self)}


def table(ways: Sequence[Way]) -> list[list[str]]:
    """A row for each property, a column for each way that was measured; the first row and column are headings."""
    measured = [(way, way.figures) for way in ways if way.figures is not None]
    rows = [["", *(f"{way.number}. {TITLES[way.number]}" for way, _ in measured)]]
    for heading, cell in _ROWS:
        rows.append([heading, *(cell(figures) for _, figures in measured)])
    return rows


def notes(ways: Sequence[Way]) -> list[str]:
    """What the table cannot hold."""
    lines = []
    for way in ways:
        title = f"{way.number}. {TITLES[way.number]}"
        if way.not_run is not None:
            lines.append(f"{title}: not run: {way.not_run}")
        lines += [f"{title}: {sentence}" for sentence in way.found]
    return lines


def _crash(figures: Figures) -> str:
    crash = figures.crash
    return f"{crash.lost} of {crash.devices} devices"


def _meanwhile(figures: Figures) -> str:
    crash = figures.crash
    return f"{crash.answered:,} answered, {crash.failed:,} failed; at most {crash.silent_s:.2f} s without an answer"


def _back(figures: Figures) -> str:
    back = figures.crash.back_s
    return "not within the time" if back is None else f"after {back:.1f} s"


def _device_memory(figures: Figures) -> str:
    return "-" if figures.device_memory_bytes is None else _size(figures.device_memory_bytes)


def _fallbacks(figures: Figures) -> str:
    if figures.fallbacks is None:
        return "not looked at"
    return ", ".join(f"{name} {count}" for name, count in figures.fallbacks.items()) or "none"


def _size(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


_ROWS: Final[tuple[tuple[str, Callable[[Figures], str]], ...]] = (
    ("Requests/s", lambda figures: f"{figures.requests_per_s:,.0f} with {figures.outstanding} outstanding"),
    ("Latency p50, p99", lambda figures: f"{figures.p50_s * 1e3:,.2f} ms, {figures.p99_s * 1e3:,.2f} ms"),
    ("One request at a time, p50", lambda figures: f"{figures.alone_s * 1e3:,.2f} ms"),
    ("Not answered", lambda figures: f"{figures.failed:,}"),
    ("Ready after", lambda figures: f"{figures.ready_s:.1f} s"),
    ("Processes that compute", lambda figures: str(figures.processes)),
    ("Their memory", lambda figures: _size(figures.memory_bytes)),
    ("Device memory", _device_memory),
    ("Nodes not on their device", _fallbacks),
    ("A process killed: lost", _crash),
    ("  meanwhile", _meanwhile),
    ("  all devices again", _back),
)
