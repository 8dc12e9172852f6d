"""The load that the benchmarks put on a server: load.c, built on demand. A client in Python would be the bottleneck.

    python benchmarks/load.py ENDPOINT [options of load.c]

builds it and runs it on anything that speaks the wire protocol.
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
"""Seconds that a run may take beyond what it is to measure; load.c itself gives up on a server that is silent."""


@dataclass(frozen=True)
class Load:
    """A closed loop.

    Attributes:
        outstanding: requests.
        connections: that they are spread over.
    """

    outstanding: int
    connections: int

    @classmethod
    def parse(cls, text: str) -> Load:
        """From `OUTSTANDING/CONNECTIONS`.

        Raises:
            ValueError: it is not that.
        """
        outstanding, connections = (int(part) for part in text.split("/"))
        if not 1 <= connections <= outstanding:
            raise ValueError(text)
        return cls(outstanding, connections)

    def options(self) -> list[str]:
        """As load.c has it."""
        return ["-c", str(self.outstanding), "-n", str(self.connections)]

    def __str__(self) -> str:
        return f"{self.outstanding}/{self.connections}"


@dataclass(frozen=True)
class Arrivals:
    """An open loop: requests at random times, whatever was answered.

    Attributes:
        rate: requests a second.
    """

    rate: float

    def options(self) -> list[str]:
        """As load.c has it."""
        return ["-a", str(self.rate)]

    def __str__(self) -> str:
        return f"{self.rate:g}/s"


def parse_many(text: str) -> list[Load]:
    """Loads with commas between them.

    Raises:
        ValueError: it is not that.
    """
    return [Load.parse(part) for part in text.split(",")]


@dataclass(frozen=True)
class Figures:
    """What came of a load; latencies in milliseconds, of good answers while it measured.

    Attributes:
        rps: good answers a second.
        mean, p50, p99: of their latency.
        answered: all answers, those of the warm-up among them.
        cpu_s: CPU time of the load itself.
        waits: how often a thread of the load waited.
    """

    rps: float
    mean: float
    p50: float
    p99: float
    answered: int
    cpu_s: float
    waits: int


def build(folder: Path) -> Path:
    """Compiles load.c into a folder and returns the program."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the load generator needs a C compiler: apt-get install gcc libc6-dev, or set CC")
    program = folder / "load"
    command = [*compiler.split(), "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE), "-lzmq", "-lm"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        hint = "it needs libzmq with its header: apt-get install libzmq3-dev\n" if "zmq" in made.stderr else ""
        raise SystemExit(f"the load generator does not compile; {hint}{made.stderr}")
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
        program: as built.
        endpoints: of anything that speaks the wire protocol.
        load: what to ask for.
        seconds: to measure.
        options: more of load.c's.
        warm_up: seconds before that.

    Raises:
        SystemExit: an answer was wrong, or did not come.
    """
    endpoints = [endpoints] if isinstance(endpoints, str) else endpoints
    command = [str(program), *endpoints, *arguments(load, seconds, warm_up), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + warm_up + LIMIT_S)
    if ended.returncode:
        raise SystemExit(f"{' '.join(endpoints)} under {load}: {ended.stderr}{ended.stdout}")
    made = json.loads(ended.stdout)
    return Figures(**{name: made[name] for name in Figures.__dataclass_fields__})


def arguments(load: Load | Arrivals, seconds: float, warm_up: float = 0.0) -> list[str]:
    """The options of load.c for a load."""
    return [*load.options(), "-t", str(seconds), "-w", str(warm_up)]


def main() -> None:
    """Builds and runs it, with the arguments of this program."""
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        raise SystemExit(subprocess.run([build(Path(folder)), *sys.argv[1:]]).returncode)


if __name__ == "__main__":
    main()
