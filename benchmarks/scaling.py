"""Late binding, measured: more workers, and one slow worker among equals. Handlers that sleep stand for devices.

    python benchmarks/scaling.py [--rounds 3] [--seconds 5]

1. Throughput of eight workers over one, each taking 20 ms a request, `max_batch_size: 1`, 64 outstanding.
2. Four workers of 5 ms, one of them four times slower, Poisson arrivals of 160 requests/s: p99 latency through
   one daemon, beside a client that spreads the same requests in turn over four daemons of one worker each (round
   robin, as people build it by hand), and the share that the slow worker gets.

Each round measures both sides one after the other; medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import serving

from multitower import Client

X = {"x": np.zeros((1, 4), np.float32)}


def closed_loop(client: Client, seconds: float, outstanding: int) -> float:
    """Requests a second with that many outstanding."""
    room = threading.Semaphore(outstanding)
    count = 0
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        room.acquire()
        client.submit("model", X).add_done_callback(lambda _: room.release())
        count += 1
    for _ in range(outstanding):
        room.acquire()
    return count / (time.monotonic() - begun)


def p99_ms(clients: Sequence[Client], rate: float, seconds: float, seed: int) -> float:
    """The 99th percentile of the latency of Poisson arrivals, sent to the clients in turn.

    Latency runs from the moment when a request was to be sent, so that a sender that falls behind hides nothing.
    """
    rng = random.Random(seed)
    latencies: list[float] = []
    futures = []
    due = time.monotonic()
    for number in range(int(rate * seconds)):
        due += rng.expovariate(rate)
        time.sleep(max(0.0, due - time.monotonic()))
        future = clients[number % len(clients)].submit("model", X)
        future.add_done_callback(lambda _, due=due: latencies.append(time.monotonic() - due))
        futures.append(future)
    for future in futures:
        future.result()
    return float(np.percentile(latencies, 99)) * 1000


def more_workers(folder: Path, rounds: int, seconds: float) -> None:
    """The first measurement."""
    model = "handler: 'handlers:Sleeper', parameters: {seconds: 0.02}, batching: {max_batch_size: 1}"
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                Client(stack.enter_context(serving.daemon(folder, f"w{n}", workers=n, model=model)).endpoint)
            )
            for n in (1, 8)
        ]
        figures = [[closed_loop(client, seconds, 64) for client in clients] for _ in range(rounds)]
    one, eight = (statistics.median(figure) for figure in zip(*figures, strict=True))
    ratio = statistics.median(eight / one for one, eight in figures)
    print(f"20 ms a request: one worker {one:.1f}/s, eight workers {eight:.1f}/s, {ratio:.2f} times")


def one_slow_worker(folder: Path, rounds: int, seconds: float) -> None:
    """The second measurement."""
    pace = "parameters: {seconds: 0.005, slow: 0}"
    with ExitStack() as stack:

        def start(name: str, workers: int, parameters: str) -> Client:
            model = f"handler: 'handlers:Sleeper', {parameters}"
            running = stack.enter_context(serving.daemon(folder, name, workers=workers, model=model))
            return stack.enter_context(Client(running.endpoint))

        together = start("together", 4, pace)
        # Slot 0 of the first is the slow one; the others are as fast as each other.
        apart = [start(f"apart{n}", 1, pace if n == 0 else "parameters: {seconds: 0.005}") for n in range(4)]
        figures = [
            (p99_ms([together], 160, seconds, seed), p99_ms(apart, 160, seconds, seed)) for seed in range(rounds)
        ]
        completed = [slot["completed"] for slot in together.status()["slots"]]
    ours, round_robin = (statistics.median(figure) for figure in zip(*figures, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in figures)
    print(
        f"one of four four times slower: p99 {ours:.1f} ms, round robin {round_robin:.1f} ms, ratio {ratio:.2f}; "
        f"the slow worker's share {completed[0] / sum(completed):.1%}"
    )


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        more_workers(Path(folder), options.rounds, options.seconds)
        one_slow_worker(Path(folder), options.rounds, options.seconds)


if __name__ == "__main__":
    main()
