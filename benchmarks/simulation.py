"""Simulates the rules of dispatch in virtual time: multitower's own scheduler and the usual disciplines.

    python benchmarks/simulation.py [--seconds 20] [--hop-ms 0.2] [--noise 0.1] [--rates 400,1500,3000,6000]

There are four devices of 4 ms per batch and 0.03 ms per row, batches of up to 32 rows, one row per request, and
Poisson arrivals, the same for each discipline. The devices are equally fast, or one is four times slower. A batch
takes half a hop to its device and half a hop back. Its time varies by `noise` (log-normal). `multitower` and
`least_depth` are the daemon's scheduler; it gets the same calls as in the daemon, and wakes up at most 0.2 ms late. The
other disciplines are ideal and decide in no time:

- `round robin`: each request goes to the next device, at once.
- `join-shortest-queue`: each request goes to the device with the fewest requests, at once.
- `late binding`: requests wait in one queue, and a free device takes a batch; several free ones divide what waits.
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
from multitower.supervisor.scheduling.pool_worker import Batch, Served, Worker
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.worker_wire import KeySpec

BATCH_S, ROW_S, LARGEST = 0.004, 0.00003, 32
WAKE_STEP_S = 0.0002
"""The scheduler wakes up after a multiple of this."""

WARM_UP = 0.1
"""The first requests, as a share of all, are not counted: estimates are being learned."""


class World(NamedTuple):
    """The conditions, the same for all disciplines.

    Attributes:
        factors: by which each device's times are multiplied.
        rate: requests per second.
        seconds: duration of the arrivals.
        hop_s: seconds to a device and back.
        noise: standard deviation of the logarithm of a batch's time.
        seed: of the random numbers.
    """

    factors: tuple[float, ...]
    rate: float
    seconds: float
    hop_s: float
    noise: float
    seed: int = 1

    def arrivals(self) -> list[float]:
        """When each request arrives, in seconds."""
        rng = random.Random(self.seed)
        times = itertools.accumulate(rng.expovariate(self.rate) for _ in range(round(self.rate * self.seconds)))
        return list(times)


@dataclass(eq=False)
class Device:
    """A device, which executes its batches in the order of their arrival."""

    factor: float
    waiting: deque[tuple[Any, int]] = field(default_factory=deque)
    running: bool = False
    rows: int = 0


class Outcome(NamedTuple):
    """Latencies in milliseconds, and the share of all rows that the last device executed."""

    p50: float
    p99: float
    last_share: float


class Clock:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, time: float, do: Callable[..., None], *arguments: Any) -> None:
        """Calls `do` at a time; calls of the same time in the order in which they were requested."""
        heapq.heappush(self._due, (time, next(self._order), do, arguments))

    def run(self) -> None:
        """Makes all calls."""
        while self._due:
            self.now, _, do, arguments = heapq.heappop(self._due)
            do(*arguments)


class Discipline:
    """A discipline and its devices."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = Clock()
        self.devices = [Device(factor) for factor in world.factors]
        self.latencies: list[float] = []
        self._rng = random.Random(world.seed + 1)

    def measure(self) -> Outcome:
        """Simulates until all requests are answered."""
        for number, time in enumerate(self.world.arrivals()):
            self.clock.at(time, self._arrive, number)
        self.clock.run()
        counted = self.latencies[int(WARM_UP * len(self.latencies)) :]
        ordered = sorted(counted)
        rows = [device.rows for device in self.devices]
        p50, p99 = (1000 * ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
        return Outcome(p50, p99, rows[-1] / sum(rows))

    def _arrive(self, number: int) -> None:
        """A request arrives."""
        raise NotImplementedError

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        """The answer of a device arrives."""
        raise NotImplementedError

    def _send(self, device: Device, work: Any, rows: int) -> None:
        """Sends a batch to a device."""
        self.clock.at(self.clock.now + self.world.hop_s / 2, self._receive, device, work, rows)

    def _begin(self, device: Device, work: Any, rows: int) -> None:
        """A free device starts a batch."""
        device.running = True
        device.rows += rows
        busy_s = device.factor * (BATCH_S + rows * ROW_S) * math.exp(self._rng.gauss(0, self.world.noise))
        self.clock.at(self.clock.now + busy_s, self._end, device, work, busy_s)

    def _end(self, device: Device, work: Any, busy_s: float) -> None:
        """A device finishes a batch and starts the next one that has arrived."""
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
    """The daemon's scheduler."""

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
        self._flushes = 0

    def _arrive(self, number: int) -> None:
        self._scheduler.submit(Request((), number.to_bytes(8), self._plan, (b"x",), 1, self.clock.now))
        self._flush()

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        batch: Batch = work
        answers = [(b"", b"x")] * len(batch.requests)
        self._scheduler.finish(batch.worker, batch.id, answers, self.clock.now, busy_s)
        self.latencies.extend(self.clock.now - reply.request.received for reply in self._scheduler.pop_replies())
        self._flush()

    def _flush(self) -> None:
        now = self.clock.now
        for batch in self._scheduler.dispatch(now):
            self._send(self._devices[batch.worker], batch, batch.rows)
        self._flushes += 1
        wake = self._scheduler.next_wake()
        if wake is not None and self._scheduler.busy and wake < now + 60:
            steps = max(1, math.ceil((wake - now) / WAKE_STEP_S))
            self.clock.at(now + steps * WAKE_STEP_S, self._wake, self._flushes)

    def _wake(self, flushes: int) -> None:
        # After any other event, a later wake-up was requested.
        if flushes == self._flushes:
            self._flush()


class LeastDepth(Product):
    """The daemon's scheduler with the rule `least_depth`."""

    rule = Rule.LEAST_DEPTH


class AtOnce(Discipline):
    """Each request goes to a device when it arrives; a free device takes all that are there."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._counts = [0] * len(self.devices)
        self._arrived: list[list[float]] = [[] for _ in self.devices]

    def _pick(self, number: int) -> int:
        """The index of the device that a request goes to."""
        raise NotImplementedError

    def _arrive(self, number: int) -> None:
        slot = self._pick(number)
        self._counts[slot] += 1
        self.clock.at(self.clock.now + self.world.hop_s / 2, self._deposit, slot, self.clock.now)

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        self._counts[self.devices.index(device)] -= len(work)
        self.latencies.extend(self.clock.now - arrival for arrival in work)

    def _end(self, device: Device, work: Any, busy_s: float) -> None:
        super()._end(device, work, busy_s)
        self._start_next(self.devices.index(device))

    def _deposit(self, slot: int, arrival: float) -> None:
        self._arrived[slot].append(arrival)
        self._start_next(slot)

    def _start_next(self, slot: int) -> None:
        device, arrived = self.devices[slot], self._arrived[slot]
        if arrived and not device.running:
            work, self._arrived[slot] = arrived[:LARGEST], arrived[LARGEST:]
            self._begin(device, work, len(work))


class RoundRobin(AtOnce):
    """The devices in turn."""

    def _pick(self, number: int) -> int:
        return number % len(self.devices)


class ShortestQueue(AtOnce):
    """The device with the fewest requests; of several a random one."""

    def _pick(self, number: int) -> int:
        least = min(self._counts)
        return self._rng.choice([slot for slot, count in enumerate(self._counts) if count == least])


class LateBinding(Discipline):
    """One queue; a free device takes a batch."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._free = deque(self.devices)
        self._waiting: deque[float] = deque()

    def _arrive(self, number: int) -> None:
        self._waiting.append(self.clock.now)
        self._start_next()

    def _ended(self, device: Device, work: Any, busy_s: float) -> None:
        self.latencies.extend(self.clock.now - arrival for arrival in work)
        self._free.append(device)
        self._start_next()

    def _start_next(self) -> None:
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
DEVICES = {"equally fast": (1.0, 1.0, 1.0, 1.0), "one 4x slower": (1.0, 1.0, 1.0, 4.0)}


def table(rates: Sequence[float], seconds: float, hop_s: float, noise: float) -> None:
    """Prints a line for each set of devices, rate and discipline."""
    print(
        f"{'devices':14}{'arrivals/s':>11}  {'discipline':20}{'p50 ms':>8}{'p99 ms':>8}"
        f"{'p50/JSQ':>8}{'p99/JSQ':>8}{'last':>8}"
    )
    for name, factors in DEVICES.items():
        for rate in rates:
            world = World(factors, rate, seconds, hop_s, noise)
            outcomes = {label: discipline(world).measure() for label, discipline in DISCIPLINES.items()}
            baseline = outcomes["join-shortest-queue"]
            for label, outcome in outcomes.items():
                ratios = f"{outcome.p50 / baseline.p50:8.2f}{outcome.p99 / baseline.p99:8.2f}"
                print(
                    f"{name:14}{rate:11,.0f}  {label:20}{outcome.p50:8.2f}{outcome.p99:8.2f}{ratios}"
                    f"{outcome.last_share:8.1%}",
                    flush=True,
                )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the arrivals, in virtual time")
    parser.add_argument("--hop-ms", type=float, default=0.2, help="milliseconds to a device and back")
    parser.add_argument(
        "--noise", type=float, default=0.1, help="standard deviation of a batch's time, as a share of it"
    )
    parser.add_argument("--rates", default="400,1500,3000,6000", help="requests per second")
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    table(rates, options.seconds, options.hop_ms / 1000, options.noise)


if __name__ == "__main__":
    main()
