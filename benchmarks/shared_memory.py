"""Tensors in shared memory compared with tensors in frames, by size, over ipc with the Python clients.

    python benchmarks/shared_memory.py [--rounds 3] [--seconds 1.5] [--sizes 16,64,588] [--outstanding 1,8,64]

An echo handler without batching runs on two CPU workers. For each size and number of requests outstanding, frames and
shared memory are measured in turn, each with a separate client whose threads call `infer`. Then 602,112 bytes (float32
[1, 224, 224, 3], w2 of peers.py) are measured with each way of calling. Figures are medians over the rounds:
requests/s, and CPU microseconds a request of client, daemon and workers together.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import serving

from multitower import AsyncClient, Client
from multitower.client import codec

SIZES = "4,8,16,32,64,128,256,588,1024,4096"
OUTSTANDING = "1,8,64"
MODEL = "echo"


class Figure(NamedTuple):
    """Requests a second, and CPU microseconds a request."""

    rate: float
    cpu_us: float


def threads(endpoint: str, x: np.ndarray, outstanding: int, seconds: float, shared: bool) -> int:
    """Threads that call `infer`."""
    done = [0] * outstanding
    with Client(endpoint, shared_memory=shared) as client:
        client.live()
        until = time.monotonic() + seconds

        def work(number: int) -> None:
            while time.monotonic() < until:
                client.infer(MODEL, {"x": x})
                done[number] += 1

        workers = [threading.Thread(target=work, args=(number,)) for number in range(outstanding)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return sum(done)


def futures(endpoint: str, x: np.ndarray, outstanding: int, seconds: float, shared: bool) -> int:
    """One thread that submits requests and waits for the oldest future."""
    done = 0
    with Client(endpoint, shared_memory=shared) as client:
        client.live()
        until = time.monotonic() + seconds
        waiting = [client.submit(MODEL, {"x": x}) for _ in range(outstanding)]
        while time.monotonic() < until:
            waiting.pop(0).result()
            waiting.append(client.submit(MODEL, {"x": x}))
            done += 1
        for future in waiting:
            future.result()
    return done + outstanding


def tasks(endpoint: str, x: np.ndarray, outstanding: int, seconds: float, shared: bool) -> int:
    """Tasks that call `AsyncClient.infer`."""

    async def run() -> int:
        done = 0
        async with AsyncClient(endpoint, shared_memory=shared) as client:
            await client.live()
            until = time.monotonic() + seconds

            async def work() -> None:
                nonlocal done
                while time.monotonic() < until:
                    await client.infer(MODEL, {"x": x})
                    done += 1

            await asyncio.gather(*(work() for _ in range(outstanding)))
        return done

    return asyncio.run(run())


def in_place(endpoint: str, x: np.ndarray, outstanding: int, seconds: float, shared: bool) -> int:
    """Like `futures`, with arrays of `Client.empty`."""
    done = 0
    with Client(endpoint, shared_memory=shared) as client:
        client.live()
        inputs = [client.empty(x.shape, x.dtype) for _ in range(outstanding)]
        for each in inputs:
            each[:] = x
        until = time.monotonic() + seconds
        waiting = [client.submit(MODEL, {"x": each}) for each in inputs]
        while time.monotonic() < until:
            waiting.pop(0).result()
            waiting.append(client.submit(MODEL, {"x": inputs[done % outstanding]}))
            done += 1
        for future in waiting:
            future.result()
    return done + outstanding


Way = Callable[[str, np.ndarray, int, float, bool], int]
WAYS: dict[str, Way] = {"threads": threads, "futures": futures, "asyncio": tasks, "client.empty": in_place}


def measure(daemon: serving.Daemon, way: Way, x: np.ndarray, outstanding: int, seconds: float, shared: bool) -> Figure:
    """One run of one way of calling."""
    pids = [*daemon.pids(), psutil.Process().pid]
    cpu, begun = serving.cpu_seconds(pids), time.monotonic()
    count = way(daemon.endpoint, x, outstanding, seconds, shared)
    took = time.monotonic() - begun
    return Figure(count / took, (serving.cpu_seconds(pids) - cpu) / count * 1e6)


def compare(
    daemon: serving.Daemon, way: Way, x: np.ndarray, outstanding: int, seconds: float, rounds: int
) -> tuple[Figure, Figure, Figure]:
    """Medians of frames, of shared memory, and of each round's ratios."""
    pairs = [
        (measure(daemon, way, x, outstanding, seconds, False), measure(daemon, way, x, outstanding, seconds, True))
        for _ in range(rounds)
    ]
    frames, shared = ([pair[side] for pair in pairs] for side in (0, 1))
    ratios = [Figure(right.rate / left.rate, right.cpu_us / left.cpu_us) for left, right in pairs]
    return _median(frames), _median(shared), _median(ratios)


def _median(figures: list[Figure]) -> Figure:
    return Figure(*(statistics.median(each) for each in zip(*figures, strict=True)))


def row(name: str, outstanding: int, frames: Figure, shared: Figure, ratio: Figure) -> str:
    """A line of the table."""
    return (
        f"{name:>14} {outstanding:>11} {frames.rate:>9.0f} {shared.rate:>9.0f} {ratio.rate:>6.2f} "
        f"{frames.cpu_us:>9.0f} {shared.cpu_us:>9.0f} {ratio.cpu_us:>6.2f}"
    )


def main() -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--sizes", default=SIZES, help="KiB")
    parser.add_argument("--outstanding", default=OUTSTANDING)
    parser.add_argument("--ways", default=",".join(WAYS))
    options = parser.parse_args()
    outstandings = [int(number) for number in options.outstanding.split(",")]
    default = codec.SHARED_BYTES
    head = (
        f"{'':>14} {'outstanding':>11} {'frames/s':>9} {'shared/s':>9} {'ratio':>6} {'CPU us':>9} {'CPU us':>9} ratio"
    )
    models = {MODEL: "handler: 'handlers:Echo'"}
    with (
        tempfile.TemporaryDirectory(prefix="mt-") as folder,
        serving.daemon(Path(folder), "shared", workers=2, models=models) as daemon,
    ):
        print(head)
        codec.SHARED_BYTES = 1  # all sizes travel in shared memory where the client allows it
        for kib in [int(size) for size in options.sizes.split(",") if size]:
            x = np.random.default_rng(1).normal(size=(1, kib << 8)).astype(np.float32)
            for outstanding in outstandings:
                found = compare(daemon, threads, x, outstanding, options.seconds, options.rounds)
                print(row(f"{kib} KiB", outstanding, *found), flush=True)
        codec.SHARED_BYTES = default
        x = np.random.default_rng(1).normal(size=(1, 224, 224, 3)).astype(np.float32)
        for name in options.ways.split(","):
            for outstanding in outstandings:
                found = compare(daemon, WAYS[name], x, outstanding, options.seconds, options.rounds)
                print(row(name, outstanding, *found), flush=True)


if __name__ == "__main__":
    main()
