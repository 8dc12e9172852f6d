"""What a client process counts during one step, and the sum over processes. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from multitower.errors import Reason
from multitower.tools.bench.histogram import Histogram

NOT_SENT = "not_sent"
"""The reason of requests that were due, but that the client process was too slow to send."""

NO_OUTCOME = "no_outcome"
"""The reason of requests whose future was never completed: a defect of the client."""


@dataclass(slots=True)
class Tally:
    """The counts of one step, of one client process or the sum of several.

    Requests count that were due while the step was measured, whenever their answers came. Only `answered` counts by the
    time of the answers, since throughput is what was answered in the time measured.

    Attributes:
        answered: answers that came while the step was measured.
        latency: from when a request was due until its answer; requests with an answer.
        late: from when a request was due until it was sent.
        errors: requests without an answer, by reason.
        messages: the first message of each reason.
        cpu: for each process, CPU seconds per second measured.
    """

    answered: int = 0
    latency: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)

    def fail(self, reason: str, message: str, count: int = 1) -> None:
        """Counts requests that got no answer, for this reason."""
        self.errors[reason] += count
        self.messages.setdefault(reason, message)

    @property
    def refused(self) -> int:
        """Requests that the daemon refused because its queue was full."""
        return self.errors[Reason.QUEUE_FULL]

    @property
    def failed(self) -> int:
        """Requests without an answer for any other reason."""
        return self.errors.total() - self.refused

    @property
    def due(self) -> int:
        """All requests that were due."""
        return self.latency.count + self.errors.total()

    def percentile_s(self, percent: float) -> float:
        """The percentile of the latency, seconds, with infinity for requests without an answer."""
        return self.latency.percentile_ns(percent, missing=self.errors.total()) / 1e9

    def to_bytes(self) -> bytes:
        """The tally as JSON, for `from_bytes`."""
        fields = {
            "answered": self.answered,
            "latency": self.latency.to_json(),
            "late": self.late.to_json(),
            "errors": self.errors,
            "messages": self.messages,
            "cpu": self.cpu,
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The tally that `to_bytes` wrote."""
        fields = json.loads(data)
        return cls(
            fields["answered"],
            Histogram.from_json(fields["latency"]),
            Histogram.from_json(fields["late"]),
            Counter(fields["errors"]),
            fields["messages"],
            fields["cpu"],
        )


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of several tallies."""
    summed = Tally()
    for tally in tallies:
        summed.answered += tally.answered
        summed.latency.merge(tally.latency)
        summed.late.merge(tally.late)
        summed.errors.update(tally.errors)
        summed.messages = {**tally.messages, **summed.messages}
        summed.cpu += tally.cpu
    return summed
