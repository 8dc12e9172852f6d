"""The result of one step, from which table, JSON and plot take their figures. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.bottleneck import Verdict
from multitower.tools.bench.evidence import Evidence
from multitower.tools.bench.tally import Tally

PERCENTS: Final = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one step.

    Attributes:
        load: the load of the step.
        seconds: how long it was measured.
        rows: rows of each request.
        workers: slots of the daemon.
        tally: the counts of all client processes.
        evidence: how busy daemon and machine were.
        verdict: the bottleneck.
    """

    load: Load
    seconds: float
    rows: int
    workers: int
    tally: Tally
    evidence: Evidence
    verdict: Verdict

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return self.tally.answered / self.seconds

    @property
    def rows_per_s(self) -> float:
        """Rows answered a second."""
        return self.requests_per_s * self.rows

    def latency_s(self, percent: float) -> float:
        """A percentile of the latency of answered requests, seconds; NaN if none was answered."""
        return self.tally.latency.percentile_ns(percent) / 1e9

    @property
    def max_s(self) -> float:
        """The longest latency of an answered request, seconds; NaN if none was answered."""
        return self.tally.latency.max_ns / 1e9 if self.tally.latency.count else math.nan

    def to_json(self) -> dict[str, Any]:
        """The whole result as JSON; times in seconds, null for unknown figures."""
        tally = self.tally
        return {
            "loop": self.load.loop,
            "amount": self.load.amount,
            "seconds": self.seconds,
            "rows_per_request": self.rows,
            "workers": self.workers,
            "requests_per_s": self.requests_per_s,
            "rows_per_s": self.rows_per_s,
            "requests_due": tally.due,
            "answered": tally.latency.count,
            "refused": tally.refused,
            "errors": tally.failed,
            "errors_by_reason": {
                reason: {"count": count, "first_message": tally.messages[reason]}
                for reason, count in sorted(tally.errors.items())
            },
            "latency_s": {
                "mean": finite(tally.latency.mean_ns / 1e9),
                "max": finite(self.max_s),
                **{f"p{percent:g}": finite(self.latency_s(percent)) for percent in PERCENTS},
            },
            "latency_buckets_ns": [list(bucket) for bucket in tally.latency.buckets()],
            "sent_late_s": {
                "p99": finite(tally.late.percentile_ns(99) / 1e9),
                "max": tally.late.max_ns / 1e9 if tally.late.count else None,
            },
            "evidence": asdict(self.evidence),
            "bottleneck": {
                "part": self.verdict.part,
                "shares": self.verdict.shares,
                "also_near_their_limit": list(self.verdict.near),
            },
        }


def finite(number: float) -> float | None:
    """A number for JSON: None for NaN and infinity, which JSON does not have."""
    return number if math.isfinite(number) else None


def best(results: list[Result]) -> Result:
    """The result with the highest throughput; the first of equal ones."""
    return max(results, key=lambda result: result.requests_per_s)
