"""A real Prometheus that scrapes the gateway of a daemon under load: its figures are those of the clients."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
from installed import find_program
from running import STEP_S, Running

from multitower import Client

# One, two and four turns take 95, 190 and 380 ms: the middle of the buckets between 67, 134, 268 and 537 ms.
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
gateway: {http: "127.0.0.1:*"}
models:
  - {name: m, handler: "handlers:Sleeper", parameters: {seconds: 0.095}, batching: {max_batch_size: 1}}
"""

SCRAPE_S = 0.6
"""More than the half second for which the gateway has one answer for all who ask."""

BENCH_S = 6

FASTEST = 2 / 0.095
"""Requests per second that both workers answer; two clients that wait for their answers are enough for it."""

OUTSTANDING = (2, 4, 8)
OK = 'multitower_requests_total{model="m",version="1",outcome="ok"}'
EDGE = 0.1
"""How near to the edge of a bucket, as a share of it, the median may count for either bucket: a client measures the way
to the daemon, too. For few requests that way is much longer where other programs want the cores, so the highest
percentiles of clients may only be higher than the daemon's."""


class Prometheus:
    """A running Prometheus.

    Args:
        process: the process.
        port: of its API.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self._address = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        assert self.process.poll() is None
        try:
            with urllib.request.urlopen(f"{self._address}/-/ready", timeout=STEP_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._address}/api/v1/query?{query}", timeout=STEP_S) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def samples(self, series: str) -> list[tuple[float, float]]:
        """The times and values of a series as they were scraped."""
        found = self.query(f"{series}[10m]")
        return [(when, float(value)) for when, value in found[0]["values"]] if found else []

    def latest(self, series: str) -> float:
        samples = self.samples(series)
        return samples[-1][1] if samples else 0.0


@contextmanager
def prometheus(program: str, folder: Path, target: str) -> Iterator[Prometheus]:
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": f"{int(SCRAPE_S * 1000)}ms"},
                "scrape_configs": [{"job_name": "multitower", "static_configs": [{"targets": [target]}]}],
            }
        )
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Prometheus(process, port)
    finally:
        process.kill()
        process.wait(STEP_S)


def bench(daemon: Running, folder: Path, outstanding: int) -> dict[str, Any]:
    """What `multitower bench` measures."""
    file = folder / "figures.json"
    command = [
        *(sys.executable, "-m", "multitower", "bench", "m", "--endpoint", daemon.endpoint, "--json", str(file)),
        *("--concurrency", str(outstanding), "--seconds", str(BENCH_S), "--warmup", "0", "--shape", "x:FP32:1"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=STEP_S)
    (step,) = json.loads(file.read_text())["steps"]
    assert isinstance(step, dict)
    return step


def rate_of(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """The increase per second while a counter grew, and for how many seconds that holds.

    The first and the last scrapes of that time do not count.
    """
    grew = [number for number in range(1, len(samples)) if samples[number][1] > samples[number - 1][1]]
    (began, first), (ended, last) = samples[grew[1]], samples[grew[-2]]
    return (last - first) / (ended - began), ended - began


def bucket_of(buckets: dict[float, float], share: float) -> tuple[float, float]:
    """The lower and the upper edge of the bucket that a percentile is in, in seconds."""
    edges = sorted(buckets)
    total = buckets[math.inf]
    number = next(index for index, edge in enumerate(edges) if buckets[edge] >= math.ceil(share * total))
    return (edges[number - 1] if number else 0.0), edges[number]


def buckets_of(scraper: Prometheus) -> dict[float, float]:
    found = scraper.query('multitower_request_seconds_bucket{model="m"}')
    return {float(each["metric"]["le"]): float(each["value"][1]) for each in found}


def check(scraper: Prometheus, daemon: Running, client: Client, folder: Path, outstanding: int) -> None:
    """Runs a bench, and compares its figures with what Prometheus scrapes meanwhile."""
    before = buckets_of(scraper)
    began, answered = scraper.samples(OK)[-1]
    step = bench(daemon, folder, outstanding)
    counted = client.statistics("m")["model_stats"][0]["inference_stats"]["success"]["count"]
    daemon.wait(lambda: buckets_of(scraper)[math.inf] >= counted)
    assert scraper.latest(OK) == counted == buckets_of(scraper)[math.inf]
    first = 1  # the request by which `bench` finds out whether the model answers
    assert 0 <= counted - answered - first - step["answered"] <= outstanding, "those sent near the end of the time"
    rate, seconds = rate_of([sample for sample in scraper.samples(OK) if sample[0] >= began])
    in_time = step["requests_per_s"] * BENCH_S
    assert step["answered"] - outstanding <= round(in_time) <= step["answered"]
    # Where other programs want the cores, clients are held up for a time, which may lie between the scrapes that count,
    # or beside them. Without that, both rates are the fastest one.
    held_up_s = max(0.0, BENCH_S - in_time / FASTEST)
    assert 0.95 * FASTEST * (1 - held_up_s / seconds) <= rate <= 1.05 * FASTEST
    grown = {edge: count - before[edge] for edge, count in buckets_of(scraper).items()}
    for percent in (50, 90, 99):
        seconds = step["latency_s"][f"p{percent}"]
        lower, upper = bucket_of(grown, percent / 100)
        assert lower * (1 - EDGE) <= seconds, (outstanding, percent, grown)
        if percent == 50:
            assert seconds <= upper * (1 + EDGE), (outstanding, grown)


@pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))
def test_a_real_prometheus_sees_what_clients_measure(tmp_path: Path) -> None:
    program = find_program("prometheus", "prometheus")
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        (target,) = daemon.status()["daemon"]["gateway"]["http"]
        with prometheus(program, tmp_path, target) as scraper:
            daemon.wait(scraper.ready)
            daemon.wait(lambda: scraper.latest("up") == 1)
            for future in [client.submit("m", {"x": np.ones((1, 1), np.float32)}) for _ in range(20)]:
                future.result(STEP_S)
            daemon.wait(lambda: scraper.latest(OK) >= 20)
            assert scraper.latest(OK) == 20, "exactly what was sent"
            for outstanding in OUTSTANDING:
                check(scraper, daemon, client, tmp_path, outstanding)
