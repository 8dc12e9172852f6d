"""The rules of dispatch in virtual time: the product's own balancer beside the usual disciplines, the same arrivals.

    python benchmarks/simulation.py [--seconds 20] [--hop-ms 0.2] [--noise 0.1] [--rates 400,1500,3000,6000]

Four devices of 4 ms a batch and 0.03 ms a row, batches of up to 32 rows, one row a request, Poisson arrivals; once all
alike, once with one of them four times slower. A batch takes half a hop to its worker and half a hop back, and its
time is spread by `noise` (log-normal). `multitower` and `least_depth` are the daemon's scheduler, told what the
daemon would tell it, and woken as the daemon's loop wakes, in whole milliseconds. The others are ideal: deciding takes
no time.

- `round robin`: each request goes to the next device in turn, at once.
- `join-shortest-queue`: each request goes to the device with the fewest requests, at once.
- `late binding`: requests wait in one queue, and whichever device is free takes a batch; several share what waits.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from multitower.supervisor.scheduling.pool import Rule
from multitower.supervisor.scheduling.queue import Batch, QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.supervisor.scheduling.worker import Served, Worker
from multitower.worker_wire import KeySpec

BATCH_S, ROW_S, LARGEST = 0.004, 0.00003, 32
GRAIN_S = 0.0002
WARM_UP = 0.1
"""The share of the requests that come first and are not counted: until then estimates are being learned."""


class World(NamedTuple):
    """What all disciplines meet alike.

    Attributes:
        factors: of each device's times.
        rate: requests a second.
        seconds: of arrivals.
        hop_s: to a device and back.
        noise: standard deviation of the logarithm of a batch's time.
        seed: of all that is drawn.
    """

    factors: tuple[float, ...]
    rate: float
    seconds: float
    hop_s: float
    noise: float
    seed: int = 1

    def arrivals(self) -> list[float]:
        """The moments of all requests."""
        rng = random.Random(self.seed)
        moments = itertools.accumulate(rng.expovariate(self.rate) for _ in range(round(self.rate * self.seconds)))
        return list(moments)


@dataclass(eq=False)
class Device:
    """One device: its batches one after the other, as they come."""

    factor: float
    waiting: deque[tuple[Any, int]] = field(default_factory=deque)
    running: bool = False
    rows: int = 0


class Outcome(NamedTuple):
    """Milliseconds, and the share of all rows that the last device had."""

    p50: float
    p99: float
    last_share: float


class Clock:
    """Virtual time: what is due next is done next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, moment: float, do: Callable[..., None], *arguments: Any) -> None:
        """Calls it then; things of one moment in the order in which they were said."""
        heapq.heappush(self._due, (moment, next(self._order), do, arguments))

    def run(self) -> None:
        """Until nothing is left."""
        while self._due:
            self.now, _, do, arguments = heapq.heappop(self._due)
            do(*arguments)


class Discipline:
    """Devices under a discipline that is yet to be told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = Clock()
        self.devices = [Device(factor) for factor in world.factors]
        self.latencies: list[float] = []
        self._rng = random.Random(world.seed + 1)

    def measure(self) -> Outcome:
        """Runs all arrivals to their end."""
        for number, moment in enumerate(self.world.arrivals()):
            self.clock.at(moment, self._arrive, number)
        self.clock.run()
        counted = self.latencies[int(WARM_UP * len(self.latencies)) :]
        ordered = sorted(counted)
        rows = [device.rows for device in self.devices]
        p50, p99 = (1000 * ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
        return Outcome(p50, p99, rows[-1] / sum(rows))

    def _arrive(self, number: int) -> None:
        """A request has come."""
        raise NotImplementedError

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        """A device's answer is back."""
        raise NotImplementedError

    def _send(self, device: Device, work: Any, rows: int) -> None:
        """Sends a batch to a device."""
        self.clock.at(self.clock.now + self.world.hop_s / 2, self._receive, device, work, rows)

    def _begin(self, device: Device, work: Any, rows: int) -> None:
        """The device, which is free, begins with a batch."""
        device.running = True
        device.rows += rows
        busy_s = device.factor * (BATCH_S + rows * ROW_S) * math.exp(self._rng.gauss(0, self.world.noise))
        self.clock.at(self.clock.now + busy_s, self._end, device, work, busy_s)

    def _end(self, device: Device, work: Any, busy_s: float) -> None:
        """The device has done a batch, and goes on with the next one that lies there."""
        device.running = False
        self.clock.at(self.clock.now + self.world.hop_s / 2, self._ended, device, work, busy_s)
        if device.waiting:
            self._begin(device, *device.waiting.popleft())

    def _receive(self, device: Device, work: Any, rows: int) -> None:
        if device.running:
            device.waiting.append((work, rows))
        else:
            self._begin(device, work, rows)


class Product(Discipline):
    """The product's balancer."""

    rule = Rule.EARLIEST_FINISH

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._scheduler = Scheduler({"m": QueueLimits(max_size=10**9, max_bytes=10**9)}, self.rule)
        key = BatchKey(KeySpec("m", (("x", "UINT8", ()),), None, True), LARGEST)
        self._plan = Plan(key, 1, (0,), (1,), (False,), ("x",), 3600.0)
        self._devices: dict[Worker, Device] = {}
        for slot, device in enumerate(self.devices):
            served = Served()
            towers = [({"m": served}, {("m", served.version): served})]
            (worker,) = self._scheduler.add_process(slot, f"cpu:{slot}", towers, 0.0)
            self._devices[worker] = device
        self._turn = 0

    def _arrive(self, number: int) -> None:
        self._scheduler.submit(Request((), number.to_bytes(8), self._plan, (b"x",), 1, self.clock.now))
        self._flush()

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        batch: Batch = work
        answers = [(b"", b"x")] * len(batch.requests)
        self._scheduler.finish(batch.worker, batch.id, answers, self.clock.now, busy_s)
        self.latencies.extend(self.clock.now - reply.request.received for reply in self._scheduler.replies())
        self._flush()

    def _flush(self) -> None:
        now = self.clock.now
        for batch in self._scheduler.dispatch(now):
            self._send(self._devices[batch.worker], batch, batch.rows)
        self._turn += 1
        wake = self._scheduler.next_wake()
        if wake is not None and self._scheduler.busy and wake < now + 60:
            steps = max(1, math.ceil((wake - now) / GRAIN_S))
            self.clock.at(now + steps * GRAIN_S, self._wake, self._turn)

    def _wake(self, turn: int) -> None:
        # Any event in between has made the loop ask anew.
        if turn == self._turn:
            self._flush()


class LeastDepth(Product):
    """The product's balancer with the plain rule."""

    rule = Rule.LEAST_DEPTH


class AtOnce(Discipline):
    """Each request goes to a device when it comes; a device takes as many as lie there."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._has = [0] * len(self.devices)
        self._lying: list[list[float]] = [[] for _ in self.devices]

    def _pick(self, number: int) -> int:
        """The index of the device for a request."""
        raise NotImplementedError

    def _arrive(self, number: int) -> None:
        slot = self._pick(number)
        self._has[slot] += 1
        self.clock.at(self.clock.now + self.world.hop_s / 2, self._lie_down, slot, self.clock.now)

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        self._has[self.devices.index(device)] -= len(work)
        self.latencies.extend(self.clock.now - came for came in work)

    def _end(self, device: Device, work: Any, busy_s: float) -> None:
        super()._end(device, work, busy_s)
        self._go_on(self.devices.index(device))

    def _lie_down(self, slot: int, came: float) -> None:
        self._lying[slot].append(came)
        self._go_on(slot)

    def _go_on(self, slot: int) -> None:
        device, lying = self.devices[slot], self._lying[slot]
        if lying and not device.running:
            work, self._lying[slot] = lying[:LARGEST], lying[LARGEST:]
            self._begin(device, work, len(work))


class RoundRobin(AtOnce):
    """In turn."""

    def _pick(self, number: int) -> int:
        return number % len(self.devices)


class ShortestQueue(AtOnce):
    """The fewest requests, a random one of those that have as few."""

    def _pick(self, number: int) -> int:
        least = min(self._has)
        return self._rng.choice([slot for slot, has in enumerate(self._has) if has == least])


class LateBinding(Discipline):
    """One queue; whichever device is free takes a batch."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._free = deque(self.devices)
        self._waiting: deque[float] = deque()

    def _arrive(self, number: int) -> None:
        self._waiting.append(self.clock.now)
        self._go_on()

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        self.latencies.extend(self.clock.now - came for came in work)
        self._free.append(device)
        self._go_on()

    def _go_on(self) -> None:
        while self._free and self._waiting:
            rows = min(LARGEST, -(-len(self._waiting) // len(self._free)))
            self._send(self._free.popleft(), [self._waiting.popleft() for _ in range(rows)], rows)


DISCIPLINES: dict[str, type[Discipline]] = {
    "round robin": RoundRobin,
    "join-shortest-queue": ShortestQueue,
    "late binding": LateBinding,
    "least_depth": LeastDepth,
    "multitower": Product,
}
DEVICES = {"all alike": (1.0, 1.0, 1.0, 1.0), "one 4x slower": (1.0, 1.0, 1.0, 4.0)}


def table(rates: Sequence[float], seconds: float, hop_s: float, noise: float) -> None:
    """Prints a line for each kind of devices, rate and discipline."""
    print(
        f"{'devices':14}{'arrivals/s':>11}  {'discipline':20}{'p50 ms':>8}{'p99 ms':>8}"
        f"{'p50/JSQ':>8}{'p99/JSQ':>8}{'last':>8}"
    )
    for name, factors in DEVICES.items():
        for rate in rates:
            world = World(factors, rate, seconds, hop_s, noise)
            outcomes = {label: discipline(world).measure() for label, discipline in DISCIPLINES.items()}
            beside = outcomes["join-shortest-queue"]
            for label, outcome in outcomes.items():
                ratios = f"{outcome.p50 / beside.p50:8.2f}{outcome.p99 / beside.p99:8.2f}"
                print(
                    f"{name:14}{rate:11,.0f}  {label:20}{outcome.p50:8.2f}{outcome.p99:8.2f}{ratios}"
                    f"{outcome.last_share:8.1%}",
                    flush=True,
                )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals, in virtual time")
    parser.add_argument("--hop-ms", type=float, default=0.2, help="to a device and back")
    parser.add_argument("--noise", type=float, default=0.1, help="of a batch's time, as a share of it")
    parser.add_argument("--rates", default="400,1500,3000,6000", help="requests a second")
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    table(rates, options.seconds, options.hop_ms / 1000, options.noise)


if __name__ == "__main__":
    main()
