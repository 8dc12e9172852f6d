"""How late the event loop is."""

from __future__ import annotations

from ..routing.recent import LatencyHistogram


class LoopLag:
    """Counts how late the event loop ran what was due: its timers, several times a second.

    Attributes:
        histogram: of the delays.
        total_ns: their sum in nanoseconds.
    """

    def __init__(self) -> None:
        self.histogram = LatencyHistogram()
        self.total_ns = 0

    def add(self, seconds: float) -> None:
        """Counts how late a timer was. Negative values are ignored: an event can wake the loop before the timer is due.

        Args:
            seconds: from when it was due until it ran.
        """
        if seconds >= 0:
            ns = int(seconds * 1e9)
            self.histogram.add(ns)
            self.total_ns += ns
