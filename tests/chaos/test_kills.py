"""Random kills of workers under load: nothing is lost, wrong, doubled or answered by an error."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest
from amount import amount
from load import Load
from running import Running

KILLS = amount("MULTITOWER_CHAOS_KILLS", 20)
SEED = amount("MULTITOWER_CHAOS_SEED", 3)
WAYS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV)

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 3}
spares: 1
heartbeat: 200ms
restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms, max: 100ms}}
models:
  - name: m
    handler: handlers:DeclaredReckoner
    parameters: {seconds: 0.02}
    batching: {max_batch_size: 4}
    retry: 3
"""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 10 * KILLS)]


def test_random_kills_under_load_cost_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    away: dict[signal.Signals, list[float]] = {way: [] for way in WAYS}
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        with Load(daemon.endpoint) as load:
            for number in range(KILLS):
                slots = client.status()["slots"]
                victim = slots[rng.randrange(len(slots))]
                way = WAYS[number % len(WAYS)] if number < len(WAYS) else rng.choice(WAYS)
                seen = len(daemon.lines)
                killed = time.monotonic()
                os.kill(victim["pid"], way)
                daemon.wait_line("worker ready", after=seen, slot=victim["slot"], incarnation=victim["incarnation"] + 1)
                away[way].append(time.monotonic() - killed)
                # Load goes on, and the next kill hits a batch at any point of its execution.
                load.wait_ok(rng.randrange(1, 100))
            tally = load.stop()
        assert not tally.faults(), f"{tally}\n{daemon.text()}"
        status = client.status()
        assert [slot["state"] for slot in status["slots"]] == ["ready"] * 3
        assert sum(slot["restarts"] for slot in status["slots"]) == KILLS
        assert daemon.end() == 0
    every = [seconds for times in away.values() for seconds in times]
    lines = [f"{KILLS} kills: {tally}", f"from the kill to serving again: {_format_times(every)}"]
    lines += [f"  {way.name}: {len(times)} kills, {_format_times(times)}" for way, times in away.items()]
    with capsys.disabled():
        print("", *lines, sep="\n")  # noqa: T201  the figure that docs/reliability.md quotes


def _format_times(times: list[float]) -> str:
    return f"median {statistics.median(times):.2f} s, worst {max(times):.2f} s"
