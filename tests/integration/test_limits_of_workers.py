"""What workers get of the machine: threads of libraries, cores, and their rank for the kernel when memory is short."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running import Running

from multitower.supervisor.machine.core_claims import CoreClaims

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
cores: split
threads: {intra_op: 1}
models:
  - name: m
    handler: handlers:Surroundings
spares: SPARES
"""


def ask(daemon: Running) -> dict[str, int]:
    with daemon.client() as client:
        return {name: int(array[0]) for name, array in client.infer("m", {"x": np.ones(1)}).items()}


def test_a_worker_imports_no_numpy_before_its_variables_are_set() -> None:
    code = "import sys, multitower.supervisor.workers.bootstrap; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("spares", [0, 1])
def test_blas_has_as_many_threads_as_tensorflow(tmp_path: Path, spares: int) -> None:
    environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"))
    unset = [argument for name in environment for argument in ("-u", name)]
    with Running(tmp_path, CONFIG.replace("SPARES", str(spares)), inside=("env", *unset)) as daemon:
        daemon.wait_ready()
        if spares:
            spare = daemon.wait_line("worker ready", slot=0)["pid"]
            daemon.wait(lambda: daemon.status()["daemon"]["spares"][0]["state"] == "idle")
            os.kill(spare, 9)
            daemon.wait_line("spare assigned")
            daemon.wait_ready()
        found = ask(daemon)
        assert (found["blas"], found["variable"]) == (1, 1)


def test_threads_of_blas_that_the_environment_sets_are_kept(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG.replace("SPARES", "0"), environment={"OMP_NUM_THREADS": "2"}) as daemon:
        daemon.wait_ready()
        found = ask(daemon)
        assert (found["blas"], found["variable"]) == (2, -1)


def test_the_kernel_prefers_workers_that_load_when_memory_runs_out(tmp_path: Path) -> None:
    inherited = int(Path("/proc/self/oom_score_adj").read_text())
    with Running(tmp_path, CONFIG.replace("SPARES", "0")) as daemon:
        daemon.wait_ready()
        found = ask(daemon)
        assert (found["score_while_loading"], found["score"]) == (1000, inherited)


@pytest.fixture
def all_cores_claimed() -> Iterator[None]:
    claims = CoreClaims()
    with claims.turn():
        claims.claim(os.sched_getaffinity(0))
    yield
    claims.close()


@pytest.mark.usefixtures("all_cores_claimed")
def test_workers_are_not_bound_to_cores_that_another_daemon_has_claimed(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG.replace("SPARES", "0")) as daemon:
        daemon.wait_ready()
        line = daemon.wait_line("other daemons have bound their workers to some of the cores")
        assert line["ours"] == "workers are not bound"
        for slot in daemon.status()["slots"]:
            assert slot["cores"] == []
            assert os.sched_getaffinity(slot["pid"]) == os.sched_getaffinity(0)
