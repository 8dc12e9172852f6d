"""The load of one step: how much, each process's part of it, and when open-loop requests are due. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one step.

    Attributes:
        loop: `closed`: a fixed number of requests is outstanding, and each answer is followed by the next request;
            `open`: requests are sent at a rate, whatever became of earlier ones.
        amount: requests outstanding, or requests a second.
    """

    loop: Literal["closed", "open"]
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g} outstanding" if self.loop == "closed" else f"{self.amount:,.4g} requests/s"

    def split(self, processes: int) -> list[Load]:
        """The parts of several processes, as equal as possible; fewer parts where there are fewer requests."""
        if self.loop == "open":
            # Poisson processes add up to one of the sum of their rates.
            return [Load("open", self.amount / processes)] * processes
        requests = int(self.amount)
        each, rest = divmod(requests, processes)
        return [Load("closed", each + (index < rest)) for index in range(min(processes, requests))]


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Endless random arrivals: seconds from the start, ascending, with exponentially distributed gaps.

    Args:
        rate: arrivals a second, more than 0.
        seed: the same seed gives the same arrivals.
    """
    rng = np.random.default_rng(seed)
    last = 0.0
    while True:
        times = last + np.cumsum(rng.exponential(1 / rate, _BLOCK))
        last = float(times[-1])
        yield from times.tolist()
