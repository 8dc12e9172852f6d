"""What client processes count during one step, and the sum of it. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from multitower.errors import Reason
from multitower.tools.bench.histogram import Histogram

NOT_SENT = "not_sent"
"""The reason of requests that were due, but that the client process was too slow to send at all."""

NO_OUTCOME = "no_outcome"
"""The reason of requests whose future never came to an end: a defect of the client."""


@dataclass(slots=True)
class Tally:
    """One step, as one client process counts it or as the sum of several.

    Of requests, those count that were due while it was measured, whenever their answers came. `answered` alone counts
    answers by the time when they came, since throughput is of the time measured.

    Attributes:
        answered: answers that came while it was measured.
        latency: from when a request was due to its answer; requests with an answer.
        late: from when a request was due to when it was sent.
        errors: requests without an answer, by the reason.
        messages: the first message for each of these reasons.
        cpu: of each process, seconds of CPU for each second measured.
    """

    answered: int = 0
    latency: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)

    def fail(self, reason: str, message: str, count: int = 1) -> None:
        """Counts requests without an answer."""
        self.errors[reason] += count
        self.messages.setdefault(reason, message)

    @property
    def refused(self) -> int:
        """Requests that the daemon refused because its queue was full."""
        return self.errors[Reason.QUEUE_FULL]

    @property
    def failed(self) -> int:
        """All other requests without an answer."""
        return self.errors.total() - self.refused

    @property
    def due(self) -> int:
        """All requests that count."""
        return self.latency.count + self.errors.total()

    def percentile_s(self, percent: float) -> float:
        """Seconds that so many of 100 requests did not exceed, where one without an answer took for ever."""
        return self.latency.percentile_ns(percent, missing=self.errors.total()) / 1e9

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it."""
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
        """What `to_bytes` wrote."""
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
    """The sum of several processes' tallies."""
    whole = Tally()
    for tally in tallies:
        whole.answered += tally.answered
        whole.latency.merge(tally.latency)
        whole.late.merge(tally.late)
        whole.errors.update(tally.errors)
        whole.messages = {**tally.messages, **whole.messages}
        whole.cpu += tally.cpu
    return whole
