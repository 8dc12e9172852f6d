"""The ways to use several devices, what was found about each, and the table that compares them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

TITLES: Final = {1: "a process per device", 2: "visible_device_list", 3: "tf.device in the model", 4: "towers"}
"""Titles by number; the documentation's page on the four ways uses the same numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """What the death of one process took down, under load.

    Attributes:
        devices: the devices in all.
        lost: devices that the process had, which computed nothing until it was replaced.
        answered: requests answered from the kill until shortly after all devices worked again.
        failed: requests that got an error instead.
        silent_s: the longest time without an answer.
        back_s: seconds until all devices worked again; None if that took too long.
    """

    devices: int
    lost: int
    answered: int
    failed: int
    silent_s: float
    back_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The measurements of one way.

    Attributes:
        requests_per_s: throughput with `outstanding` requests.
        outstanding: requests outstanding.
        rows: rows of each request.
        p50_s: median latency with `outstanding` requests.
        p99_s: 99th percentile of the latency with `outstanding` requests.
        single_request_s: median latency with one request at a time.
        failed: requests that were not answered in these measurements.
        processes: processes that compute.
        memory_bytes: host memory of these processes; pages that they share count once.
        device_memory_bytes: memory on the devices; None where the driver does not report it, and on the CPU.
        ready_s: seconds from the start until all devices served.
        fallbacks: nodes of the graph that do not run on their tower's device, by operation; None if unknown.
        crash: what the death of one process took down.
    """

    requests_per_s: float
    outstanding: int
    rows: int
    p50_s: float
    p99_s: float
    single_request_s: float
    failed: int
    processes: int
    memory_bytes: int
    device_memory_bytes: int | None
    ready_s: float
    fallbacks: dict[str, int] | None
    crash: Crash


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way and what was found about it.

    Attributes:
        number: its number in `TITLES`.
        figures: the measurements; None if it was not run, or has none.
        not_run: why it was not run, or failed; None if it was run.
        found: other findings, a sentence each.
    """

    number: int
    figures: Figures | None = None
    not_run: str | None = None
    found: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The way as JSON; times in seconds, memory in bytes."""
        return {"title": TITLES[self.number], **asdict(self)}


def table(ways: Sequence[Way]) -> list[list[str]]:
    """A row for each property and a column for each way with figures; the first row and column are headings."""
    measured = [(way, way.figures) for way in ways if way.figures is not None]
    rows = [["", *(f"{way.number}. {TITLES[way.number]}" for way, _ in measured)]]
    for heading, cell in _ROWS:
        rows.append([heading, *(cell(figures) for _, figures in measured)])
    return rows


def notes(ways: Sequence[Way]) -> list[str]:
    """Lines below the table: ways that were not run, and other findings."""
    lines = []
    for way in ways:
        title = f"{way.number}. {TITLES[way.number]}"
        if way.not_run is not None:
            lines.append(f"{title}: not run: {way.not_run}")
        lines += [f"{title}: {sentence}" for sentence in way.found]
    return lines


def _lost_devices(figures: Figures) -> str:
    crash = figures.crash
    return f"{crash.lost} of {crash.devices} devices"


def _answers_meanwhile(figures: Figures) -> str:
    crash = figures.crash
    return f"{crash.answered:,} answered, {crash.failed:,} failed; at most {crash.silent_s:.2f} s without an answer"


def _recovery(figures: Figures) -> str:
    back = figures.crash.back_s
    return "not in time" if back is None else f"after {back:.1f} s"


def _device_memory(figures: Figures) -> str:
    return "-" if figures.device_memory_bytes is None else _size(figures.device_memory_bytes)


def _fallbacks(figures: Figures) -> str:
    if figures.fallbacks is None:
        return "unknown"
    return ", ".join(f"{name} {count}" for name, count in figures.fallbacks.items()) or "none"


def _size(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


_ROWS: Final[tuple[tuple[str, Callable[[Figures], str]], ...]] = (
    ("Requests/s", lambda figures: f"{figures.requests_per_s:,.0f} with {figures.outstanding} outstanding"),
    ("Latency p50, p99", lambda figures: f"{figures.p50_s * 1e3:,.2f} ms, {figures.p99_s * 1e3:,.2f} ms"),
    ("One request at a time, p50", lambda figures: f"{figures.single_request_s * 1e3:,.2f} ms"),
    ("Not answered", lambda figures: f"{figures.failed:,}"),
    ("Ready after", lambda figures: f"{figures.ready_s:.1f} s"),
    ("Processes that compute", lambda figures: str(figures.processes)),
    ("Their memory", lambda figures: _size(figures.memory_bytes)),
    ("Device memory", _device_memory),
    ("Nodes not on their device", _fallbacks),
    ("A process killed: lost", _lost_devices),
    ("  meanwhile", _answers_meanwhile),
    ("  all devices again", _recovery),
)
