"""The benchmarks' load generator: builds load.c and runs it. A client in Python would itself be the bottleneck.

    python benchmarks/load.py ENDPOINT [options of load.c]

builds it and sends requests to any server that speaks the wire protocol. `multitower bench` measures with Python client
processes, as applications send requests; load.c measures the daemon itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("load.c")

LIMIT_S = 60.0
"""Seconds that a run may take beyond the time that it measures; load.c itself stops if the server does not answer."""


@dataclass(frozen=True)
class Load:
    """A closed loop.

    Attributes:
        outstanding: requests outstanding.
        connections: the connections that they are spread over.
    """

    outstanding: int
    connections: int

    @classmethod
    def parse(cls, text: str) -> Load:
        """Parses `OUTSTANDING/CONNECTIONS`.

        Raises:
            ValueError: the text has another form.
        """
        outstanding, connections = (int(part) for part in text.split("/"))
        if not 1 <= connections <= outstanding:
            raise ValueError(text)
        return cls(outstanding, connections)

    def options(self) -> list[str]:
        """The options of load.c."""
        return ["-c", str(self.outstanding), "-n", str(self.connections)]

    def __str__(self) -> str:
        return f"{self.outstanding}/{self.connections}"


@dataclass(frozen=True)
class Arrivals:
    """An open loop: requests are sent at random times, whether or not earlier ones were answered.

    Attributes:
        rate: requests a second.
    """

    rate: float

    def options(self) -> list[str]:
        """The options of load.c."""
        return ["-a", str(self.rate)]

    def __str__(self) -> str:
        return f"{self.rate:g}/s"


def parse_many(text: str) -> list[Load]:
    """Parses loads separated by commas.

    Raises:
        ValueError: the text has another form.
    """
    return [Load.parse(part) for part in text.split(",")]


@dataclass(frozen=True)
class Figures:
    """The figures of a load. Latencies are in milliseconds, of good answers in the time measured.

    Attributes:
        rps: good answers a second.
        mean, p50, p99: mean and percentiles of the latency.
        answered: all answers, including those of the warm-up.
        cpu_s: CPU time of the load generator.
        waits: how often a thread of the load generator waited.
    """

    rps: float
    mean: float
    p50: float
    p99: float
    answered: int
    cpu_s: float
    waits: int


def build(folder: Path) -> Path:
    """Compiles load.c into a folder and returns the program's path."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the load generator needs a C compiler: apt-get install gcc libc6-dev, or set CC")
    program = folder / "load"
    command = [*compiler.split(), "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the load generator does not compile; {done.stderr}")
    return program


def run(
    program: Path,
    endpoints: str | Sequence[str],
    load: Load | Arrivals,
    seconds: float,
    *options: str,
    warm_up: float = 0.3,
) -> Figures:
    """Puts a load on an endpoint, or spreads it over several in turn.

    Args:
        program: the program that `build` made.
        endpoints: addresses of servers that speak the wire protocol.
        load: the load.
        seconds: how long to measure.
        options: further options of load.c.
        warm_up: seconds of load before that.

    Raises:
        SystemExit: an answer was wrong or missing.
    """
    endpoints = [endpoints] if isinstance(endpoints, str) else endpoints
    command = [str(program), *endpoints, *arguments(load, seconds, warm_up), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + warm_up + LIMIT_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(endpoints)} under {load}: {done.stderr}{done.stdout}")
    figures = json.loads(done.stdout)
    return Figures(**{name: figures[name] for name in Figures.__dataclass_fields__})


def arguments(load: Load | Arrivals, seconds: float, warm_up: float = 0.0) -> list[str]:
    """The options of load.c for a load."""
    return [*load.options(), "-t", str(seconds), "-w", str(warm_up)]


def main() -> None:
    """Builds load.c and runs it with the arguments of this program."""
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        raise SystemExit(subprocess.run([build(Path(folder)), *sys.argv[1:]]).returncode)


if __name__ == "__main__":
    main()
