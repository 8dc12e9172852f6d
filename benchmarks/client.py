"""CPU time of a call of the Python clients, beside a bare socket that sends and receives the same frames.

    python benchmarks/client.py [--rounds 5] [--seconds 1] [--outstanding 64] [--only raw,infer]

A daemon with an echo handler on one CPU worker gets requests of 64 bytes over ipc, by each way in turn:

- one request at a time: a pyzmq DEALER socket in one thread; `Client.infer`; `AsyncClient.infer`;
- `--outstanding` requests: the same DEALER socket; `Client.submit` and waiting for the oldest future; as many threads
  that call `Client.infer`; as many tasks that call `AsyncClient.infer`.

The CPU time is that of all threads of the client's process, user and system, without the daemon's. Ratios are to the
DEALER socket with as many requests in the same round. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import serving
import zmq

from multitower import AsyncClient, Client, wire

MODEL = "echo"
X = np.random.default_rng(1).normal(size=(1, 16)).astype(np.float32)


def raw(endpoint: str, outstanding: int, seconds: float) -> int:
    """A DEALER socket: the least that any client has to do."""
    header = wire.infer_header(MODEL, [wire.Tensor("x", "FP32", X.shape)])
    body = X.tobytes()
    numbers = itertools.count(1)
    done = 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)

        def send() -> None:
            socket.send_multipart([b"", wire.INFER, next(numbers).to_bytes(8, "little"), header, body])

        for _ in range(outstanding):
            send()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            reply = socket.recv_multipart()
            if reply[1] != wire.OK or np.frombuffer(reply[4], np.float32).shape != (16,):
                raise SystemExit(f"wrong answer: {reply}")
            done += 1
            send()
    return done


def infer(endpoint: str, outstanding: int, seconds: float) -> int:
    """`Client.infer` in one thread, or in many."""
    done = [0] * outstanding
    with Client(endpoint) as client:
        client.live()
        until = time.monotonic() + seconds

        def work(number: int) -> None:
            while time.monotonic() < until:
                client.infer(MODEL, {"x": X})
                done[number] += 1

        if outstanding == 1:
            work(0)
        else:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(outstanding)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return sum(done)


def submit(endpoint: str, outstanding: int, seconds: float) -> int:
    """`Client.submit`, and waiting for the oldest future."""
    done = 0
    with Client(endpoint) as client:
        client.live()
        until = time.monotonic() + seconds
        waiting = deque(client.submit(MODEL, {"x": X}) for _ in range(outstanding))
        while time.monotonic() < until:
            waiting.popleft().result()
            waiting.append(client.submit(MODEL, {"x": X}))
            done += 1
        for future in waiting:
            future.result()
    return done + outstanding


def tasks(endpoint: str, outstanding: int, seconds: float) -> int:
    """Tasks that call `AsyncClient.infer`."""

    async def run() -> int:
        done = 0
        async with AsyncClient(endpoint) as client:
            await client.live()
            until = time.monotonic() + seconds

            async def work() -> None:
                nonlocal done
                while time.monotonic() < until:
                    await client.infer(MODEL, {"x": X})
                    done += 1

            await asyncio.gather(*(work() for _ in range(outstanding)))
        return done

    return asyncio.run(run())


Way = Callable[[str, int, float], int]
ONE: dict[str, Way] = {"raw": raw, "infer": infer, "asyncio": tasks}
MANY: dict[str, Way] = {"raw": raw, "submit": submit, "threads": infer, "asyncio": tasks}


def measure(way: Way, endpoint: str, outstanding: int, seconds: float) -> tuple[float, float]:
    """CPU microseconds a call, and calls a second."""
    cpu, begun = time.process_time(), time.monotonic()
    count = way(endpoint, outstanding, seconds)
    return (time.process_time() - cpu) / count * 1e6, count / (time.monotonic() - begun)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--outstanding", type=int, default=64)
    parser.add_argument("--only", help="only these ways, separated by commas")
    options = parser.parse_args()
    models = {MODEL: "handler: 'handlers:Echo', batching: {}"}
    with (
        tempfile.TemporaryDirectory(prefix="mt-") as folder,
        serving.daemon(Path(folder), "client", workers=1, models=models) as daemon,
    ):
        print(f"{'':>10}{'outstanding':>13}{'CPU us':>9}{'of raw':>9}{'calls/s':>10}")
        for ways, outstanding in ((ONE, 1), (MANY, options.outstanding)):
            chosen = {name: way for name, way in ways.items() if not options.only or name in options.only.split(",")}
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
            for _ in range(options.rounds):
                for name, way in chosen.items():
                    found[name].append(measure(way, daemon.endpoint, outstanding, options.seconds))
            for name, figures in found.items():
                cost, rate = (statistics.median(each) for each in zip(*figures, strict=True))
                pairs = zip(figures, found.get("raw", figures), strict=True)
                ratio = statistics.median(own[0] / bare[0] for own, bare in pairs)
                print(f"{name:>10}{outstanding:>13}{cost:>9.1f}{ratio:>9.2f}{rate:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
