"""How figures of the status have changed over the last looks at it, and sparklines of them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

KEPT: Final = 60
"""Values of each figure that are kept: those of the last looks."""

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = "_.:-=+*#"

Figure = tuple[Hashable, ...]
"""What a value is of: `("slot", 3, "rows_per_s")`, `("model", "m", "7", "queue")`, `("daemon", "answered_per_s")`."""


class Trends:
    """The latest values of figures.

    Rates are the difference between two looks, so they are known from the second one on. A restart of the daemon
    begins anew.
    """

    def __init__(self) -> None:
        self._values: dict[Figure, deque[float | None]] = {}
        self._counts: dict[Figure, int] = {}
        self._looked_at: float | None = None  # seconds since the daemon's start
        self._start: str | int | None = None

    def add(self, status: Mapping[str, Any]) -> None:
        """Adds the figures of a status; those of slots and models that are gone are forgotten."""
        daemon = status["daemon"]
        start = start_of(daemon)
        if start != self._start:
            self._values, self._counts, self._looked_at, self._start = {}, {}, None, start
        before, self._looked_at = self._looked_at, daemon["uptime_s"]
        counts = dict(_counts(status))
        figures: dict[Figure, float | None] = dict(_figures(status))
        for figure, count in counts.items():
            former = self._counts.get(figure)
            passed = self._looked_at - before if before is not None else 0.0
            known = former is not None and passed > 0 and count >= former
            figures[figure] = (count - (former or 0)) / passed if known else None
        self._counts = counts
        self._values = {figure: self._values.get(figure) or deque(maxlen=KEPT) for figure in figures}
        for figure, value in figures.items():
            self._values[figure].append(value)

    def values(self, *figure: Hashable) -> Sequence[float | None]:
        """Returns the values of a figure, the latest last; None where it had none."""
        return tuple(self._values.get(figure, ()))

    def last(self, *figure: Hashable) -> float | None:
        """Returns the latest value of a figure; None if it has none."""
        values = self._values.get(figure)
        return values[-1] if values else None


def start_of(daemon: Mapping[str, Any]) -> str | int:
    """Returns what tells a start of the daemon from another: when it was, or the pid where an older daemon lacks that.

    Args:
        daemon: the status' part about the daemon. In a container each daemon has the same pid.
    """
    start: str | int = daemon.get("started") or daemon["pid"]
    return start


def _figures(status: Mapping[str, Any]) -> Iterator[tuple[Figure, float | None]]:
    for slot in status["slots"]:
        yield ("slot", slot["slot"], "rows_per_s"), slot.get("rows_per_s")
        yield ("slot", slot["slot"], "p50"), (slot.get("batch_ms") or {}).get("p50")
        yield ("slot", slot["slot"], "p99"), (slot.get("batch_ms") or {}).get("p99")
        yield ("slot", slot["slot"], "depth"), slot["depth"]
    for model in status["models"]:
        name = ("model", model["name"], model["version"])
        yield (*name, "queue"), model["queue"]
        yield (*name, "p50"), (model.get("latency_ms") or {}).get("p50")
        yield (*name, "p99"), (model.get("latency_ms") or {}).get("p99")


def _counts(status: Mapping[str, Any]) -> Iterator[tuple[Figure, int]]:
    models = status["models"]
    for model in models:
        name = ("model", model["name"], model["version"])
        yield (*name, "answered_per_s"), model["completed"]
        yield (*name, "failed_per_s"), model["failed"]
    yield ("daemon", "answered_per_s"), sum(model["completed"] for model in models)
    yield ("daemon", "failed_per_s"), sum(model["failed"] for model in models)
    yield ("daemon", "refused_per_s"), status["daemon"]["rejected"]


def sparkline(values: Sequence[float | None], width: int, *, most: float | None = None, blocks: str = BLOCKS) -> str:
    """Draws the latest values as a line of characters.

    Args:
        values: the latest last; None leaves a space.
        width: characters; the line is filled with spaces from the left.
        most: the value of the highest character, so that several lines have one scale; by default that of the values.
        blocks: the characters, from the lowest.
    """
    shown = values[-width:] if width > 0 else ()
    if most is None:
        most = max((value for value in shown if value is not None), default=0.0)
    return "".join(" " if value is None else _block(value, most, blocks) for value in shown).rjust(max(width, 0))


def _block(value: float, most: float, blocks: str) -> str:
    if most <= 0 or value <= 0:
        return blocks[0]
    return blocks[min(len(blocks) - 1, int(value / most * len(blocks)))]
