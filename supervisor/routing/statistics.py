"""Counters of one model, as `MT1:statistics` reports them: the Open Inference Protocol's statistics extension."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        """Counts `count` events that took `ns` nanoseconds in all."""
        self.count += count
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        """As the protocol writes it."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelStatistics:
    """What has happened to a model's requests since the daemon started.

    Attributes:
        rows: answered, over all requests.
        batches: executed.
        success: requests answered, from receipt to reply; `fail`: requests that got an error.
        queue: from receipt to a worker.
        compute_input: assembling batches; `compute_infer`: the model; `compute_output`: slicing its outputs.
        last_ms: when the last one was answered, milliseconds since the Unix epoch; 0 when none was.
    """

    rows: int = 0
    batches: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    last_ms: int = 0

    def succeeded(self, rows: int, queue_s: float, total_s: float) -> None:
        """One request was answered."""
        self.rows += rows
        # Not through `add`: this is done for each request.
        success, queue = self.success, self.queue
        success.count += 1
        success.ns += int(total_s * 1e9)
        queue.count += 1
        queue.ns += int(queue_s * 1e9)

    def failed(self, total_s: float) -> None:
        """One request got an error."""
        self.fail.add(1, int(total_s * 1e9))

    def executed(self, batches: int, requests: int, assemble_ns: int, compute_ns: int, slice_ns: int) -> None:
        """A worker has answered a message of so many batches, and requests in them."""
        self.batches += batches
        self.compute_input.add(requests, assemble_ns)
        self.compute_infer.add(requests, compute_ns)
        self.compute_output.add(requests, slice_ns)
        self.last_ms = int(time.time() * 1000)  # a date for people, not a duration

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`."""
        nothing = Duration().to_json()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.batches,
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
