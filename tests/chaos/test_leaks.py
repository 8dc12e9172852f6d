"""Many restarts: the supervisor keeps nothing of workers that died."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from amount import amount
from running import Running

from multitower.supervisor.routing.unread import MARK_BYTES

RESTARTS = amount("MULTITOWER_CHAOS_RESTARTS", 40)
WORKERS = 4
SETTLED = 16  # restarts after which everything that is kept for good is there

CONFIG = f"""
listen: ["{{endpoint}}"]
devices: {{cpu: {WORKERS}}}
spares: 0
restart: {{max_restarts: 100000, window: 1s, backoff: {{first: 1ms, max: 2ms}}}}
models:
  - {{name: m, handler: "handlers:Echo"}}
"""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 2 * RESTARTS)]


def test_restarts_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        parent = psutil.Process(daemon.process.pid)

        def kept() -> dict[str, int]:
            return {
                "descriptors": parent.num_fds(),
                "threads": parent.num_threads(),
                "shm": len(os.listdir("/dev/shm")),
                "runtime files": len(list(daemon.runtime_dir.iterdir())),
                "children": len(parent.children(recursive=True)),
            }

        def restart_all(incarnation: int) -> None:
            for slot in client.status()["slots"]:
                os.kill(slot["pid"], signal.SIGKILL)
            for number in range(WORKERS):
                daemon.wait_line("worker ready", slot=number, incarnation=incarnation)

        incarnation = 1
        while incarnation * WORKERS < SETTLED:
            incarnation += 1
            restart_all(incarnation)
        # pyzmq starts threads of its own with the first reply whose sending is tracked.
        replied = 0
        while replied <= 2 * MARK_BYTES:
            replied += len(json.dumps(client.status()))
        before, rss = kept(), parent.memory_info().rss
        while incarnation * WORKERS < RESTARTS:
            incarnation += 1
            restart_all(incarnation)
        # The last dead workers may not have been released yet.
        daemon.wait(lambda: all(kept()[name] <= before[name] for name in before))
        grown = parent.memory_info().rss - rss
        with capsys.disabled():
            count = incarnation * WORKERS
            print(f"\n{count} restarts: {kept()}; RSS {rss >> 20} MiB, {grown / 1024:+.0f} KiB")  # noqa: T201  docs quote it
        # A log line and its like may stay in the allocator; 10 KiB a restart would be a leak.
        assert grown < (4 << 20) + 10_240 * RESTARTS
