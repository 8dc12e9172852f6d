"""A daemon in a control group whose memory does not hold everything that could be started: what serves goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from load import Load
from memory_cgroup import MemoryGroup, memory_group
from running import Running, look_at_each, multitower

from multitower.supervisor.machine.resources import INTERVAL_S

pytestmark = pytest.mark.chaos

MIB = 2**20

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
models:
  - name: good
    handler: handlers:DeclaredReckoner
  - name: heavy
    handler: handlers:Heavy
    parameters: {mib: 150}
spares: 0
"""


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group() as made:
        yield made


def limit_above_use(daemon: Running, group: MemoryGroup, more: int) -> None:
    """Leaves the daemon and its workers some MiB more than they have now."""
    used = sum(look_at_each(daemon.remember(), lambda process: process.memory_info().rss).values())
    group.limit(used + daemon.status()["daemon"]["rss_bytes"] + more * MIB)
    # The daemon reads its limits once a second (`INTERVAL_S`), and nothing tells when it has.
    time.sleep(4 * INTERVAL_S)


def test_a_replacement_without_room_beside_the_old_worker_kills_nothing(tmp_path: Path, group: MemoryGroup) -> None:
    with Running(tmp_path, CONFIG, inside=group.enter) as daemon:
        daemon.wait_ready()
        limit_above_use(daemon, group, 60)
        daemon.wait_line("worker ready")
        with Load(daemon.endpoint, model="good", processes=1) as load:
            load.wait_ok(20)
            done = multitower("restart", "0", daemon=daemon)
            load.wait_ok(20)
            tally = load.stop()
        assert done.returncode == 0, f"{done.stderr}\n{daemon.text()}"
        assert not tally.faults(), f"{tally}\n{daemon.text()}"
        line = daemon.wait_line("no room for a second worker: the one that serves ends first")
        assert "of the control group" in line["cause"]
        assert (group.kills(), daemon.slot()["restarts"]) == (0, 0)
        assert daemon.end() == 0


def test_a_worker_that_serves_survives_one_that_takes_more_memory_than_expected(
    tmp_path: Path, group: MemoryGroup
) -> None:
    """Nothing is known of a new model before it is loaded."""
    with Running(tmp_path, CONFIG.replace("mib: 150", "mib: 1"), inside=group.enter) as daemon:
        daemon.wait_ready()
        limit_above_use(daemon, group, 150)
        pid = daemon.slot()["pid"]
        daemon.config.write_text(daemon.config.read_text().replace("mib: 1", "mib: 900"))
        with Load(daemon.endpoint, model="good", processes=1) as load:
            load.wait_ok(20)
            done = multitower("reload", daemon=daemon)
            load.wait_ok(20)
            tally = load.stop()
        assert done.returncode != 0
        assert not tally.faults(), f"{tally}\n{daemon.text()}"
        daemon.wait_line("replacement worker died")
        assert group.kills() >= 1
        died = [line for line in daemon.lines if line["message"] == "worker died" and line.get("pid") == pid]
        assert not died, "the worker that served was not the one to be killed"
        assert daemon.end() == 0


WARM_UP = """
listen: ["{endpoint}"]
devices: {cpu: 1}
models:
  - name: good
    handler: handlers:DeclaredReckoner
  - name: greedy
    handler: handlers:Greedy
    parameters: {kib: 4096}
    batching: {max_batch_size: 1000}
    warmup: rows.npz
spares: 0
"""


def test_a_warm_up_that_is_killed_for_its_memory_is_tried_with_fewer_rows(tmp_path: Path, group: MemoryGroup) -> None:
    np.savez(tmp_path / "rows.npz", x=np.array([[1], [2]], np.float32))
    group.limit(800 * MIB)  # 256 rows take 1 GiB, and 128 half of it
    with Running(tmp_path, WARM_UP, inside=group.enter) as daemon, daemon.wait_ready().client() as client:
        line = daemon.wait_line("worker died in a warm-up")
        assert (line["model"], line["rows"]) == ("greedy", 256)
        slot = daemon.slot()
        assert slot["safe_rows"]["greedy"] == 128
        assert "while warming up greedy version 1 with 256 rows" in slot["last_error"]
        assert group.kills() == 1
        rows = np.arange(300, dtype=np.float32).reshape(-1, 1)
        assert client.infer("greedy", {"x": rows})["x"].tolist() == rows.tolist()
        assert daemon.slot()["restarts"] == 1
        assert daemon.end() == 0
