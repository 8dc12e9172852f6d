"""One step measured, and what is derived from it: the figures of the table, the JSON and the plot. Pure."""

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
    """One step.

    Attributes:
        load: what was asked.
        seconds: how long it was measured.
        rows: of each request.
        workers: slots that the daemon has.
        tally: what the client processes counted.
        evidence: what was seen of the daemon and the machine.
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
        """Answers a second while it was measured."""
        return self.tally.answered / self.seconds

    @property
    def rows_per_s(self) -> float:
        """Rows a second."""
        return self.requests_per_s * self.rows

    def latency_s(self, percent: float) -> float:
        """A percentile of the latency of answered requests, seconds; NaN when none was answered."""
        return self.tally.latency.percentile_ns(percent) / 1e9

    @property
    def max_s(self) -> float:
        """The longest latency of an answered request, seconds; NaN when none was answered."""
        return self.tally.latency.max_ns / 1e9 if self.tally.latency.count else math.nan

    def to_json(self) -> dict[str, Any]:
        """All of it; seconds, and null for what is not known."""
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
                "mean": known(tally.latency.mean_ns / 1e9),
                "max": known(self.max_s),
                **{f"p{percent:g}": known(self.latency_s(percent)) for percent in PERCENTS},
            },
            "latency_buckets_ns": [list(bucket) for bucket in tally.latency.buckets()],
            "sent_late_s": {
                "p99": known(tally.late.percentile_ns(99) / 1e9),
                "max": tally.late.max_ns / 1e9 if tally.late.count else None,
            },
            "evidence": asdict(self.evidence),
            "bottleneck": {
                "part": self.verdict.part,
                "shares": self.verdict.shares,
                "also_near_their_limit": list(self.verdict.near),
            },
        }


def known(number: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def best(results: list[Result]) -> Result:
    """The step with the highest throughput, the first of equals."""
    return max(results, key=lambda result: result.requests_per_s)
