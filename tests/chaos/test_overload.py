"""Four times the load that the workers can take: bounded memory, full goodput, prompt refusals for the rest."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from amount import amount
from load import Load
from running import Running

SECONDS = amount("MULTITOWER_OVERLOAD_SECONDS", 8)
UNLOADED_S = 2.0
SETTLE_S = 0.5
WORKERS = 2
SERVICE_S = 0.04
QUEUE = 30
OFFERED = 4.0 * WORKERS / SERVICE_S
"""Requests per second: four times what workers that only sleep could answer."""

QUEUE_S = QUEUE * SERVICE_S / WORKERS
"""Seconds that a request waits which was the last one to fit into the queue."""

CONFIG = f"""
listen: ["{{endpoint}}"]
devices: {{cpu: {WORKERS}}}
spares: 0
models:
  - name: m
    handler: handlers:DeclaredReckoner
    parameters: {{seconds: {SERVICE_S}}}
    queue: {{max_size: {QUEUE}}}
"""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 2 * SECONDS)]


def test_goodput_and_memory_hold_at_four_times_the_capacity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Running(tmp_path, CONFIG) as daemon:
        daemon.wait_ready()
        process = psutil.Process(daemon.process.pid)
        with Load(daemon.endpoint, processes=0, raw=1, outstanding=2 * WORKERS) as load:
            since = time.monotonic()
            time.sleep(UNLOADED_S)
            until = time.monotonic()
            unloaded = load.stop()
        assert not unloaded.faults(), str(unloaded)
        most = unloaded.rate(since, until)

        with Load(daemon.endpoint, processes=0, raw=1, rate=OFFERED) as load:
            # The queue is full from here on.
            time.sleep(SETTLE_S + QUEUE_S)
            since = time.monotonic()
            memory: list[int] = []
            while time.monotonic() < since + SECONDS:
                memory.append(process.memory_info().rss)
                time.sleep(0.05)
            until = time.monotonic()
            tally = load.stop()

        goodput = tally.rate(since, until)
        refused, refused_p99 = (tally.percentile(percent, "queue_full") for percent in (50, 99))
        accepted, accepted_p99 = (tally.percentile(percent) for percent in (50, 99))
        half = len(memory) // 2
        growth = max(memory[half:]) - max(memory[:half])
        with capsys.disabled():
            print(  # noqa: T201  the figures that docs/reliability.md quotes
                f"\noffered {tally.rate(since, until, 'queue_full') + goodput:.0f}/s for {SECONDS} s, "
                f"unloaded {most:.0f}/s, goodput {goodput:.0f}/s ({100 * goodput / most:.0f} %), refused after "
                f"{1e3 * refused:.1f} ms (p99 {1e3 * refused_p99:.1f} ms), accepted answered after "
                f"{1e3 * accepted:.0f} ms (p99 {1e3 * accepted_p99:.0f} ms; queue {1e3 * QUEUE_S:.0f} ms), "
                f"RSS {max(memory) / 2**20:.1f} MiB, {growth / 2**20:+.2f} MiB in the second half"
            )
        assert set(tally.faults()) == {"queue_full"}, str(tally)
        assert tally.held_back == 0, "the daemon did not read the requests"
        assert tally.rate(since, until, "queue_full") + goodput > 0.9 * OFFERED, (
            "the load generator did not offer enough"
        )
        assert goodput >= 0.9 * most
        # The slowest are due to the machine, which runs other things as well.
        assert refused < QUEUE_S / 20
        assert refused_p99 < QUEUE_S / 2
        full = (QUEUE + WORKERS) / most  # a place at the queue's end, and one in the worker
        assert accepted < 1.25 * full
        assert accepted_p99 < 2.5 * full
        assert max(memory) - memory[0] < 16 << 20
        assert growth < 4 << 20
        with daemon.client() as client:
            assert [slot["restarts"] for slot in client.status()["slots"]] == [0] * WORKERS
        assert daemon.end() == 0
