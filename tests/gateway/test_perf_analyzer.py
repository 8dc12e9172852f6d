"""NVIDIA's perf_analyzer runs its sweeps over HTTP and gRPC: concurrency, request rate, batch sizes, asynchronous."""

from __future__ import annotations

import csv
import ctypes.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import foreign
import pytest
from running import Running

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
gateway: {http: "127.0.0.1:*", grpc: "127.0.0.1:*"}
models:
  - {name: vector, handler: "handlers:Greedy", batching: {max_batch_size: 8}}
"""


def missing() -> str | None:
    """Why it cannot be run, or None."""
    if why := foreign.gateway_missing() or foreign.clients_missing():
        return why
    return None if ctypes.util.find_library("b64") else "perf_analyzer needs libb64: apt-get install libb64-0d"


pytestmark = pytest.mark.skipif(bool(missing()), reason=str(missing()))


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with Running(tmp_path_factory.mktemp("gateway"), CONFIG) as daemon:
        daemon.wait_ready()
        yield foreign.addresses(daemon)


SWEEPS = {
    "concurrency": ["--concurrency-range", "1:9:4"],
    "asynchronous": ["--concurrency-range", "16", "--async"],
    "rate": ["--request-rate-range", "100:300:100", "--request-distribution", "poisson"],
    "batches": ["-b", "4", "--concurrency-range", "2"],
}
STREAMING = ["--concurrency-range", "4", "--async", "--streaming"]


@pytest.mark.parametrize(
    ("protocol", "sweep"), [*((each, sweep) for each in ("http", "grpc") for sweep in SWEEPS), ("grpc", "streaming")]
)
def test_a_sweep_is_measured_without_errors(
    addresses: dict[str, str], tmp_path: Path, protocol: str, sweep: str
) -> None:
    report = tmp_path / "report.csv"
    few = ["--measurement-interval", "150", "-s", "100000", "-r", "5"]
    command = [str(foreign.PERF_ANALYZER), "-m", "vector", "-u", addresses[protocol], "-i", protocol]
    done = subprocess.run(
        [*command, *SWEEPS.get(sweep, STREAMING), *few, "-f", str(report), "--verbose-csv"],
        env={**os.environ, "LD_LIBRARY_PATH": str(foreign.ENVIRONMENT / "lib")},
        capture_output=True,
        text=True,
        timeout=foreign.LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = list(csv.DictReader(report.read_text().splitlines()))
    assert len(rows) == (3 if sweep in ("concurrency", "rate") else 1), done.stdout
    assert all(float(row["Inferences/Second"]) > 0 for row in rows)
    # From the statistics that the server counts.
    assert all(float(row["Server Compute Infer"]) >= 0 for row in rows)
