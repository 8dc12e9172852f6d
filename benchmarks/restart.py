"""How long a slot is down after its worker was killed, with a spare and without, on a real TensorFlow model.

    python benchmarks/restart.py [--rounds 5]

Two daemons run side by side, one with a spare and one without. In each round, one worker of each is killed with SIGKILL
in turn. `seen` is the time until the daemon has logged the death, `away` the time until the slot is ready again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import serving

from multitower import Client

WAIT_S = 60.0


def wait_line(log: Path, message: str, pid: int) -> datetime.datetime:
    """The time at which the daemon logged a message about a process."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for line in log.read_text().splitlines():
            entry: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if entry.get("message") == message and entry.get("pid") == pid:
                return datetime.datetime.fromisoformat(entry["time"])
        time.sleep(0.02)
    raise SystemExit(f"no line {message!r} about {pid} within {WAIT_S:g} s")


def kill(client: Client, log: Path, spares: int) -> tuple[float, float]:
    """Kills the worker of slot 0; returns (seen, away) in milliseconds."""
    until = time.monotonic() + WAIT_S
    while True:
        status = client.status()
        idle = sum(spare["state"] == "idle" for spare in status["daemon"]["spares"])
        if status["slots"][0]["state"] == "ready" and idle == spares:
            break
        if time.monotonic() > until:
            raise SystemExit("the daemon did not settle")
        time.sleep(0.02)
    pid = status["slots"][0]["pid"]
    killed = datetime.datetime.now(datetime.UTC)
    os.kill(pid, signal.SIGKILL)
    seen = wait_line(log, "worker died", pid)
    while (slot := client.status()["slots"][0])["state"] != "ready":
        time.sleep(0.005)
    ready = wait_line(log, "worker ready", slot["pid"])
    return (seen - killed).total_seconds() * 1000, (ready - killed).total_seconds() * 1000


def main() -> None:
    """Runs the rounds and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt-")))
        subprocess.run(
            [sys.executable, "-m", "multitower.tools.demo.model", str(folder)], check=True, stderr=subprocess.DEVNULL
        )
        figures: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
        restart = f"restart: {{max_restarts: {rounds + 1}, backoff: {{first: 1ms, max: 1ms}}}}"
        daemons = {
            spares: stack.enter_context(
                serving.daemon(
                    folder,
                    f"spares{spares}",
                    workers=1,
                    models={"model": "path: models/digits"},
                    more=f"spares: {spares}\n{restart}",
                )
            )
            for spares in figures
        }
        clients = {spares: stack.enter_context(Client(running.endpoint)) for spares, running in daemons.items()}
        for _ in range(rounds):
            for spares, running in daemons.items():
                figures[spares].append(kill(clients[spares], running.log, spares))
    for spares, name in ((1, "with a spare"), (0, "cold start  ")):
        seen, away = (statistics.median(figure) for figure in zip(*figures[spares], strict=True))
        print(f"{name}  seen after {seen:6.1f} ms  ready again after {away:8.1f} ms  (medians of {rounds})")
    ratio = statistics.median(warm[1] / cold[1] for warm, cold in zip(figures[1], figures[0], strict=True))
    worst = max(seen for rounds_ in figures.values() for seen, _ in rounds_)
    print(f"the spare takes {ratio:.2f} of a cold start; the slowest death was seen after {worst:.1f} ms")


if __name__ == "__main__":
    main()
