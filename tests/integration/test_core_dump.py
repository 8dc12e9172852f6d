"""A worker that crashes writes its core dump to the end, although it answers nothing meanwhile."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from running import Running

from multitower import MultitowerError

PATTERN = Path("/proc/sys/kernel/core_pattern")

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
heartbeat: 100ms
models:
  - name: m
    handler: handlers:Crashing
    parameters: {mib: 1500}
    max_execution_time: 100ms
    retry: 0
spares: 0
"""


def why_no_dump() -> str | None:
    """Why no core dump is written into the working directory here; None if one is."""
    pattern = PATTERN.read_text().strip()
    if pattern.startswith("|") or "/" in pattern or not pattern:
        return f"the system writes core dumps elsewhere ({pattern})"
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        return "the limit on core dumps cannot be raised"
    return None


@pytest.mark.skipif(why_no_dump() is not None, reason=str(why_no_dump()))
def test_a_core_dump_that_takes_longer_than_a_call_may_is_written_to_its_end(tmp_path: Path) -> None:
    enter = ("sh", "-c", f'cd {tmp_path} && ulimit -c unlimited && exec "$@"', "sh")
    with Running(tmp_path, CONFIG, inside=enter) as daemon:
        pid = daemon.wait_ready().slot()["pid"]
        with daemon.client(retries=0) as client, pytest.raises(MultitowerError) as raised:
            client.infer("m", {"x": np.ones(1)}, timeout=60.0)
        died = daemon.wait_line("worker died", pid=pid)
        assert died["cause"] == "killed by SIGABRT (6), with a core dump"
        assert "hung" not in raised.value.message
        assert not [line for line in daemon.lines if line["message"] == "worker hangs"]
        daemon.wait_line("worker is ending: the kernel dumps its core")
        (dump,) = tmp_path.glob("core*")
        size = dump.stat().st_size
        dump.unlink()
        assert size > 1500 << 20, "nothing of it is missing"
        assert daemon.end() == 0
