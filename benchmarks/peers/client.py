"""Our client in the comparison with peers: the programs that the runner needs for a server without HTTP.

    client.py probe [--endpoint E] PORT WORKLOAD                            exit code 0 if the answer is right
    client.py load [--endpoint E] [--processes 2] PORT WORKLOAD OUTSTANDING SECONDS
    client.py log [--endpoint E] PORT WORKLOAD OUTSTANDING SECONDS FILE     a line for each request

`load` runs closed loops of the Python client in several processes. It prints one JSON object: rps, p50, p90, p99 and
max (ms), n and errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from multitower import Client, MultitowerError
from multitower.tools.load_generator import LoadGenerator, Outcome

SHAPES = {"w1": (1, 16), "w2": (1, 224, 224, 3), "w3": (1, 64)}
MODEL = "bench"
TIMEOUT_S = 10.0
IMPORT_S = 1.0
"""Seconds in which the processes of a load start."""


def tensor(workload: str) -> np.ndarray:
    """The tensor to send; the answer to that of w3 is known."""
    return np.random.default_rng(11).normal(size=SHAPES[workload]).astype(np.float32)


def probe(options: argparse.Namespace) -> int:
    """Checks one answer."""
    x = tensor(options.workload)
    with Client(options.endpoint, connect_timeout=1.0, retries=0) as client:
        try:
            (y,) = client.infer(MODEL, {"x": x}, timeout=TIMEOUT_S).values()
        except MultitowerError as error:
            print(error)
            return 1
    expected = np.load(Path(os.environ["BENCH_MODEL"], "expect_y.npy")) if options.workload == "w3" else x
    return 0 if y.shape == expected.shape and np.allclose(y, expected, atol=1e-4) else 1


def result_of(outcome: Outcome, x: np.ndarray) -> str:
    """`ok`, `wrong`, or the reason of the error."""
    if outcome.error is not None:
        return outcome.error.reason if isinstance(outcome.error, MultitowerError) else "failed"
    (y,) = outcome.outputs.values()
    return "ok" if y.shape[0] == 1 and y.dtype == x.dtype else "wrong"


def closed_loop(endpoint: str, workload: str, outstanding: int, begin: float, end: float) -> list[list[float | str]]:
    """Keeps requests outstanding until `end`; returns for each when it ended, its result, and its seconds."""
    lines: list[list[float | str]] = []
    x = tensor(workload)
    with Client(endpoint) as client:

        def submit(number: int) -> Future[Any]:
            return client.submit(MODEL, {"x": x}, timeout=TIMEOUT_S)

        def record(outcome: Outcome) -> None:
            took = (outcome.ended_ns - outcome.due_ns) / 1e9
            lines.append([outcome.ended_ns / 1e9, result_of(outcome, x), took])

        with LoadGenerator(submit, record) as generator:
            time.sleep(max(0.0, begin - time.monotonic()))
            generator.keep_outstanding(outstanding)
            time.sleep(max(0.0, end - time.monotonic()))
            generator.stop(2 * TIMEOUT_S)
    return lines


def load(options: argparse.Namespace) -> int:
    """Runs closed loops in several processes, and prints their figures."""
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
    good = [seconds * 1000 for _, result, seconds in lines if result == "ok"]
    figures = dict(zip(("p50", "p90", "p99", "max"), np.percentile(good or [0.0], [50, 90, 99, 100]), strict=True))
    figures |= {"rps": len(good) / options.seconds, "n": len(good), "errors": len(lines) - len(good)}
    print(json.dumps({name: round(float(figure), 3) for name, figure in figures.items()}))
    return 0


def part(options: argparse.Namespace) -> int:
    """Runs the closed loop of one process of `load`."""
    end = options.begin + options.seconds
    print(json.dumps(closed_loop(options.endpoint, options.workload, options.outstanding, options.begin, end)))
    return 0


def log(options: argparse.Namespace) -> int:
    """Runs a closed loop, and writes a line for each request to a file."""
    begin = time.monotonic()
    lines = closed_loop(options.endpoint, options.workload, options.outstanding, begin, begin + options.seconds)
    options.file.write_text("".join(f"{ended:.6f} {result} {took:.6f}\n" for ended, result, took in lines))
    return 0


def main() -> None:
    """Runs the program that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    programs = parser.add_subparsers(required=True)
    for program in (probe, load, part, log):
        one = programs.add_parser(program.__name__, help=program.__doc__)
        one.set_defaults(program=program)
        one.add_argument("--endpoint", help="an endpoint to use instead of the port")
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
