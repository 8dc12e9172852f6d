"""Our client in the comparison with peers: the programs that their runner asks of a server that does not speak HTTP.

    client.py probe [--endpoint E] PORT WORKLOAD                            exit 0: the answer is right
    client.py load [--endpoint E] [--processes 2] PORT WORKLOAD OUTSTANDING SECONDS
    client.py log [--endpoint E] PORT WORKLOAD OUTSTANDING SECONDS FILE     a line for each request

`load` is a closed loop of the Python client: `submit`, whose callback submits the next, in several processes. It
prints one JSON object: rps, p50, p90, p99 and max (ms), n and errors. The loads in C are load.c's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np

from multitower import Client, MultitowerError

Outputs = dict[str, np.ndarray]
SHAPES = {"w1": (1, 16), "w2": (1, 224, 224, 3), "w3": (1, 64)}
MODEL = "bench"
TIMEOUT_S = 10.0
IMPORT_S = 1.0
"""Seconds that the processes of a load get to start in."""


def tensor(workload: str) -> np.ndarray:
    """The tensor that is sent; w3's is the one whose answer is known."""
    return np.random.default_rng(11).normal(size=SHAPES[workload]).astype(np.float32)


def probe(options: argparse.Namespace) -> int:
    """Whether one answer is right."""
    x = tensor(options.workload)
    with Client(options.endpoint, connect_timeout=1.0, retries=0) as client:
        try:
            (y,) = client.infer(MODEL, {"x": x}, timeout=TIMEOUT_S).values()
        except MultitowerError as error:
            print(error)
            return 1
    expected = np.load(Path(os.environ["BENCH_MODEL"], "expect_y.npy")) if options.workload == "w3" else x
    return 0 if y.shape == expected.shape and np.allclose(y, expected, atol=1e-4) else 1


def kind_of(future: Future[Outputs], x: np.ndarray) -> str:
    """How a request ended: `ok`, or the reason why not."""
    try:
        (y,) = future.result().values()
    except MultitowerError as error:
        return error.reason
    return "ok" if y.shape[0] == 1 and y.dtype == x.dtype else "wrong"


def closed_loop(endpoint: str, workload: str, outstanding: int, begin: float, end: float) -> list[list[float | str]]:
    """Asks until `end`; when each request ended, its kind, and how long it took, in seconds."""
    lines: list[list[float | str]] = []
    over = threading.Semaphore(0)
    x = tensor(workload)
    with Client(endpoint) as client:

        def ask() -> None:
            sent = time.monotonic()
            if sent >= end:
                over.release()
                return
            client.submit(MODEL, {"x": x}, timeout=TIMEOUT_S).add_done_callback(partial(ended, sent))

        def ended(sent: float, future: Future[Outputs]) -> None:
            now = time.monotonic()
            lines.append([now, kind_of(future, x), now - sent])
            ask()

        time.sleep(max(0.0, begin - time.monotonic()))
        for _ in range(outstanding):
            ask()
        for _ in range(outstanding):
            over.acquire()
    return lines


def load(options: argparse.Namespace) -> int:
    """The closed loop, in several processes."""
    processes = min(options.processes, options.outstanding)
    begin = time.monotonic() + IMPORT_S
    parts = [options.outstanding // processes + (n < options.outstanding % processes) for n in range(processes)]
    children = []
    for share in parts:
        command = [sys.executable, __file__, "part", "--endpoint", options.endpoint, "--begin", str(begin)]
        command += [str(options.port), options.workload, str(share), str(options.seconds)]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    lines = [line for child in children for line in json.loads(child.communicate()[0])]
    if any(child.returncode for child in children):
        return 1
    good = [seconds * 1000 for _, kind, seconds in lines if kind == "ok"]
    figures = dict(zip(("p50", "p90", "p99", "max"), np.percentile(good or [0.0], [50, 90, 99, 100]), strict=True))
    figures |= {"rps": len(good) / options.seconds, "n": len(good), "errors": len(lines) - len(good)}
    print(json.dumps({name: round(float(figure), 3) for name, figure in figures.items()}))
    return 0


def part(options: argparse.Namespace) -> int:
    """One process of a load."""
    end = options.begin + options.seconds
    print(json.dumps(closed_loop(options.endpoint, options.workload, options.outstanding, options.begin, end)))
    return 0


def log(options: argparse.Namespace) -> int:
    """The closed loop in this process, as lines."""
    begin = time.monotonic()
    lines = closed_loop(options.endpoint, options.workload, options.outstanding, begin, begin + options.seconds)
    options.file.write_text("".join(f"{answered:.6f} {kind} {took:.6f}\n" for answered, kind, took in lines))
    return 0


def main() -> None:
    """Does what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    programs = parser.add_subparsers(required=True)
    for program in (probe, load, part, log):
        one = programs.add_parser(program.__name__, help=program.__doc__)
        one.set_defaults(program=program)
        one.add_argument("--endpoint", help="instead of the port")
        one.add_argument("port", type=int)
        one.add_argument("workload", choices=SHAPES)
        if program is probe:
            continue
        one.add_argument("outstanding", type=int)
        one.add_argument("seconds", type=float)
        if program is load:
            one.add_argument("--processes", type=int, default=2)
        elif program is part:
            one.add_argument("--begin", type=float, required=True, help="on the monotonic clock")
        else:
            one.add_argument("file", type=Path)
    options = parser.parse_args()
    options.endpoint = options.endpoint or f"tcp://127.0.0.1:{options.port}"
    raise SystemExit(options.program(options))


if __name__ == "__main__":
    main()
