"""Statistics of models, as `MT1:statistics` reports them, and of workers, as `MT1:status` does.

The router counts each answered request and batch here; nothing else writes to it. `ModelStatistics` follows the Open
Inference Protocol's statistics extension.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .recent import LatencyHistogram, RecentCounts

KEPT_S = 60.0
"""Seconds that the time of a batch counts in `BatchTimes`."""

KEPT_BATCHES = 1024
"""Batches that `BatchTimes` keeps at most; with more in `KEPT_S`, the latest count."""

RATE_S = 10.0
"""Seconds over which `BatchTimes` counts rows."""

_STEP_S = 0.5
"""Rows are summed up by steps of this length, so that memory does not depend on the number of batches."""

_STEPS = round(RATE_S / _STEP_S)

BATCH_ROWS_EXPONENTS = 14
"""Batches are counted by their rows: up to 1, 2, 4 and so on, up to 2 to the power of one less than this; and more."""


@dataclass(slots=True)
class Duration:
    """The number of times that something happened, and its total time."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        """Counts `count` events that took `ns` nanoseconds in total."""
        self.count += count
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        """The protocol's form."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelStatistics:
    """Counters of one version of a model since the daemon started.

    Attributes:
        rows: answered rows, over all requests.
        batches: executed batches.
        executions: those of them that the model ran without an error.
        batch_rows: rows in them, whether they were answered or failed.
        success: answered requests, from receipt to reply.
        fail: requests that got an error, from receipt to reply.
        queue: from receipt to sending the request to a worker.
        compute_input: assembling batches.
        compute_infer: executing the model.
        compute_output: slicing the outputs.
        last_ms: when the last batch was answered, milliseconds since the Unix epoch; 0 before the first.
        latency: of answered requests, from receipt to reply.
        queue_times: of answered requests, from receipt to sending the request to a worker.
        compute_times: of batches, executing the model.
        batch_sizes: how many batches had up to 1 row, up to 2, up to 4 and so on; see `BATCH_ROWS_EXPONENTS`.
        errors: requests that got an error, by its reason.
        last_error: when the last one got an error, in monotonic seconds; None before the first.
    """

    rows: int = 0
    batches: int = 0
    executions: int = 0
    batch_rows: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    last_ms: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    queue_times: LatencyHistogram = field(default_factory=LatencyHistogram)
    compute_times: LatencyHistogram = field(default_factory=LatencyHistogram)
    batch_sizes: list[int] = field(default_factory=lambda: [0] * (BATCH_ROWS_EXPONENTS + 1))
    errors: RecentCounts = field(default_factory=RecentCounts)
    last_error: float | None = None

    def count_success(self, rows: int, queue_s: float, total_s: float) -> None:
        """Counts an answered request.

        Args:
            rows: of the request.
            queue_s: seconds from its receipt to sending it to a worker.
            total_s: seconds from its receipt to its reply.
        """
        self.rows += rows
        # Every request passes here, so `Duration.add` is written out.
        success, queue = self.success, self.queue
        total_ns = int(total_s * 1e9)
        success.count += 1
        success.ns += total_ns
        self.latency.add(total_ns)
        queue_ns = int(queue_s * 1e9)
        queue.count += 1
        queue.ns += queue_ns
        self.queue_times.add(queue_ns)

    def count_failure(self, reason: str, total_s: float, now: float) -> None:
        """Counts a request that got an error.

        Args:
            reason: of the error.
            total_s: seconds from its receipt to its reply.
            now: monotonic seconds.
        """
        self.fail.add(1, int(total_s * 1e9))
        self.errors.add(reason)
        self.last_error = now

    def add_removed(self, other: ModelStatistics) -> None:
        """Adds the counts since the start of another version; its last minute is forgotten."""
        self.rows += other.rows
        self.batches += other.batches
        self.executions += other.executions
        self.batch_rows += other.batch_rows
        for mine, others in (
            (self.success, other.success),
            (self.fail, other.fail),
            (self.queue, other.queue),
            (self.compute_input, other.compute_input),
            (self.compute_infer, other.compute_infer),
            (self.compute_output, other.compute_output),
        ):
            mine.add(others.count, others.ns)
        self.latency.add_counts(other.latency)
        self.queue_times.add_counts(other.queue_times)
        self.compute_times.add_counts(other.compute_times)
        for exponent, count in enumerate(other.batch_sizes):
            self.batch_sizes[exponent] += count
        for reason, count in other.errors.total.items():
            self.errors.total[reason] = self.errors.total.get(reason, 0) + count

    def tick(self, now: float) -> None:
        """Keeps what counts as the last minute; call it several times a minute."""
        self.latency.tick(now)
        self.errors.tick(now)

    def count_batches(
        self, batches: int, rows: int, requests: int, assemble_ns: int, compute_ns: int, slice_ns: int, failed: int = 0
    ) -> None:
        """Counts a worker's result: the batches, rows and requests in it, and its times in nanoseconds.

        Of several batches, which are requests that run unbatched, each counts with the mean of their rows and times.
        `failed` of them were answered with nothing but errors. As in Triton, they count as no executions.
        """
        self.batches += batches
        self.executions += batches - failed
        self.batch_rows += rows
        exponent = (rows // batches - 1).bit_length() if rows > batches else 0
        if exponent > BATCH_ROWS_EXPONENTS:
            exponent = BATCH_ROWS_EXPONENTS
        self.batch_sizes[exponent] += batches
        self.compute_times.add(compute_ns // batches, batches)
        self.compute_input.add(requests, assemble_ns)
        self.compute_infer.add(requests, compute_ns)
        self.compute_output.add(requests, slice_ns)
        self.last_ms = int(time.time() * 1000)  # a date, not a duration

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """The entry in `model_stats` for this model and version."""
        nothing = Duration().to_json()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.to_json(),
                "fail": self.fail.to_json(),
                "queue": self.queue.to_json(),
                "compute_input": self.compute_input.to_json(),
                "compute_infer": self.compute_infer.to_json(),
                "compute_output": self.compute_output.to_json(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
        }


class BatchTimes:
    """How long the latest batches of one worker took, and how many rows it answers a second.

    Bounded in memory, without a clock of its own: callers pass monotonic seconds.
    """

    __slots__ = ("_batches", "_steps")

    def __init__(self) -> None:
        self._batches: deque[tuple[float, float]] = deque(maxlen=KEPT_BATCHES)  # when answered, seconds taken
        self._steps: deque[list[int]] = deque(maxlen=_STEPS)  # number of the step, rows in it

    def add(self, now: float, seconds: float, rows: int) -> None:
        """Records a batch.

        Args:
            now: when it was answered; never before the previous batch.
            seconds: how long it took.
            rows: in the batch.
        """
        self._batches.append((now, seconds))
        step = math.floor(now / _STEP_S)
        if self._steps and self._steps[-1][0] >= step:
            self._steps[-1][1] += rows
        else:
            self._steps.append([step, rows])

    def p50_ms(self, now: float) -> float | None:
        """The median time of a batch in the last 60 s, in milliseconds; None without a batch."""
        return self.percentile_ms(now, 0.5)

    def p99_ms(self, now: float) -> float | None:
        """The time that 99 of 100 batches in the last 60 s did not exceed, in milliseconds; None without a batch."""
        return self.percentile_ms(now, 0.99)

    def percentile_ms(self, now: float, share: float) -> float | None:
        """The shortest time that this share of the batches in the last 60 s did not exceed (nearest rank).

        Args:
            now: not before the latest batch.
            share: more than 0 and at most 1, such as 0.99.

        Returns:
            Milliseconds that one of the batches took; None without a batch.
        """
        times = sorted(seconds for when, seconds in self._batches if when > now - KEPT_S)
        if not times:
            return None
        # Rounded first: 0.07 * 100 is slightly more than 7, and its ceiling would be 8.
        rank = math.ceil(round(share * len(times), 9))
        return times[max(rank, 1) - 1] * 1000

    def rows_per_second(self, now: float) -> float:
        """Rows a second over the last 10 s (9.5 to 10, since whole steps count); 0.0 without a batch.

        A new worker is measured over the same 10 s, so its figure rises during its first 10 s.
        """
        first = math.floor(now / _STEP_S) - _STEPS + 1
        rows = sum(count for step, count in self._steps if step >= first)
        return rows / (now - first * _STEP_S)
