"""The load of one step: how much, whose part of it, and when open-loop requests are due. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Load:
    """What a step asks of the daemon.

    Attributes:
        loop: `closed`: so many requests are always outstanding, and each answer is followed by the next request;
            `open`: requests come at a rate, whatever becomes of those before.
        amount: requests outstanding, or requests a second.
    """

    loop: Literal["closed", "open"]
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g} outstanding" if self.loop == "closed" else f"{self.amount:,.4g} requests/s"

    def split(self, processes: int) -> list[Load]:
        """A part for each process: as even as can be, and none where there is not one request for each."""
        if self.loop == "open":
            # Poisson processes add up to one of the sum of their rates.
            return [Load("open", self.amount / processes)] * processes
        whole = int(self.amount)
        each, rest = divmod(whole, processes)
        return [Load("closed", each + (index < rest)) for index in range(min(processes, whole))]


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Endless arrivals at random: seconds from the start, each later than the one before, with exponential gaps.

    Args:
        rate: arrivals a second, over 0.
        seed: the same one gives the same arrivals.
    """
    rng = np.random.default_rng(seed)
    at = 0.0
    while True:
        times = at + np.cumsum(rng.exponential(1 / rate, _BLOCK))
        at = float(times[-1])
        yield from times.tolist()
